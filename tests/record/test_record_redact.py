"""Planted secrets come out of nothing; what only looks like one stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.record.redact import REDACTED, Redactor

PLANTED = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUv",
    "MLFLOW_TRACKING_PASSWORD": 'pa"ss\\wörd',
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "OPENAI_API_KEY": "sk-proj-0123456789abcdef",
    "MY_SECRET_THING": "correct horse battery",
}


@pytest.fixture
def redactor() -> Redactor:
    return Redactor.of_environment({**PLANTED, "HOME": "/home/someone", "CI_KEY": "1"})


@pytest.mark.parametrize("secret", PLANTED.values())
@pytest.mark.parametrize("around", ["{}", "a {} b", "x={}", "https://host/?q={}", "\n{}\n"])
def test_values_of_secret_variables_disappear(redactor: Redactor, secret: str, around: str) -> None:
    assert secret not in redactor.text(around.format(secret))
    assert secret not in redactor.artifact(around.format(secret).encode()).decode()
    assert json.dumps(secret)[1:-1] not in redactor.text(json.dumps({"a": around.format(secret)}))


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("HF_TOKEN=abc123def", "abc123def"),
        ("export SOME_API_KEY='abc 123'", "abc 123"),
        ('{"hub_token": "abcdefgh12345678"}', "abcdefgh12345678"),
        ("password: hunter22", "hunter22"),
        ("--hf-token verysecret run", "verysecret"),
        ("model.token=verysecret", "verysecret"),
        ("postgresql://me:pw12@db/x", "me:pw12"),
        ("https://tokenonly@host/x", "tokenonly"),
        ("Authorization: Bearer abcdef.ghijkl", "abcdef.ghijkl"),
        ("got hf_AAAAbbbbCCCCddddEEEE back", "hf_AAAAbbbbCCCCddddEEEE"),
        ("ghp_abcdefghijklmnopqrst", "ghp_abcdefghijklmnopqrst"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("AWS_SESSION_TOKEN: abcdefgh", "abcdefgh"),
        ("SENTRY_DSN=abcdefgh", "abcdefgh"),
        ("REGISTRY_AUTH='abcdefgh'", "abcdefgh"),
        ("export OPENAI_KEY=abcdefgh", "abcdefgh"),
        ("GH_PAT: abcdefgh", "abcdefgh"),
        ("GPG_PASSPHRASE=abcdefgh", "abcdefgh"),
        ("SLACK_WEBHOOK_URL=abcdefgh", "abcdefgh"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "MIIE"),
    ],
)
def test_shapes_disappear_whatever_they_came_from(text: str, gone: str) -> None:
    assert gone not in Redactor().text(text)
    assert REDACTED in Redactor().text(text)


@pytest.mark.parametrize(
    "text",
    [
        "task.prompt_tokens=512 task.new_tokens=128",
        "eos_token: </s>",
        "decode 31.2 tokens/s, 64 tokens",
        "token: 42",
        "the API token is missing: see the docs",
        "https://huggingface.co/Qwen/Qwen2.5-0.5B",
        "time_per_token=0.1",
        "key points of the run",
        "missing_keys: lm_head",
        "forward_pass: aten::mm",
        "author: somebody",
        "/home/someone/models@v2",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_structures_lose_values_under_secret_names_only(redactor: Redactor) -> None:
    tree = {
        "model": {"id": "a/b", "token": "xyz", "eos_token": "</s>", "max_new_tokens": 128},
        "list": ["hf_AAAAbbbbCCCCddddEEEE", 1, None, True, 0.5],
        "password": None,
    }
    assert redactor.value(tree) == {
        "model": {"id": "a/b", "token": REDACTED, "eos_token": "</s>", "max_new_tokens": 128},
        "list": [REDACTED, 1, None, True, 0.5],
        "password": None,
    }


def test_command_lines(redactor: Redactor) -> None:
    words = ["python", "--token", "abc", "--api-key=def", "quant=nf4", PLANTED["HF_TOKEN"]]
    assert redactor.command(words) == [
        "python", "--token", REDACTED, f"--api-key={REDACTED}", "quant=nf4", REDACTED,
    ]  # fmt: skip


def test_binary_artifacts_are_left_alone(redactor: Redactor) -> None:
    content = b"PAR1\0\xff" + PLANTED["HF_TOKEN"].encode()
    assert redactor.artifact(content) == content


def test_short_values_do_not_eat_the_text(redactor: Redactor) -> None:
    assert redactor.text("1 and 11") == "1 and 11"


def test_a_long_line_takes_no_quadratic_time() -> None:
    # With a quadratic pattern this takes hours; the test's timeout is the check.
    Redactor().text("A" * 2_000_000 + "_TOKEN" + "b" * 1_000_000)


@settings(deadline=None, max_examples=60)
@given(st.recursive(st.none() | st.integers() | st.floats(allow_nan=False), st.lists))
def test_numbers_are_never_touched(tree: object) -> None:
    assert Redactor().value(tree) == tree
