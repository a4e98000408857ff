"""Names of secrets, and what a measured process is not told of its surroundings."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.host.secrets import is_secret, secret_values, without_secrets

SECRETS = (
    "HF_TOKEN", "HF_TOKEN_PATH", "GH_TOKEN", "GITHUB_TOKEN", "NPMTOKEN", "RAY_AUTH_TOKEN",
    "AWS_SESSION_TOKEN", "hub.token", "OPENAI_KEY", "OPENAI_API_KEY", "MY_APIKEY", "APIKEY_2",
    "AWS_ACCESS_KEY_ID", "SSH_PRIVATE_KEY", "KEY_FILE", "GH_PAT", "AZURE_DEVOPS_EXT_PAT",
    "GPG_PASSPHRASE", "PGPASSWORD", "MLFLOW_TRACKING_PASSWORD", "DB_PASS", "MYSQL_PWD",
    "SENTRY_DSN", "REGISTRY_AUTH", "authorization", "AWS_SECRET_ACCESS_KEY", "CLIENT_SECRET",
    "DB_SECRET_2", "GOOGLE_APPLICATION_CREDENTIALS", "MY_CREDENTIALS", "SESSION_COOKIE",
    "CI_JOB_JWT", "SLACK_WEBHOOK_URL", "AZURE_STORAGE_CONNECTION_STRING", "hub-token", "api.key",
)  # fmt: skip
PLAIN = (
    "PATH", "HOME", "PWD", "OLDPWD", "OMP_NUM_THREADS", "HF_HOME", "SSH_AUTH_SOCK", "XAUTHORITY",
    "TOKENIZERS_PARALLELISM", "AWS_REGION", "AWS_DEFAULT_REGION", "RAY_AUTH_MODE", "MAX_TOKENS",
    "task.new_tokens", "missing_keys", "KEYBOARD", "eos_token", "pad_token", "time_per_token",
    "forward_pass", "COMPASS", "PATTERN",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_known_by_name(name: str) -> None:
    assert is_secret(name)
    assert without_secrets({name: "x"}, hub=False) == {}
    assert secret_values({name: "abcdef"}) == ["abcdef"]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_names_are_not_secrets(name: str) -> None:
    assert not is_secret(name)
    assert without_secrets({name: "x"}, hub=False) == {name: "x"}
    assert secret_values({name: "abcdef"}) == []


def test_only_the_hubs_own_secrets_and_named_ones_can_be_kept() -> None:
    base = {"HF_TOKEN": "hf_x", "GH_TOKEN": "x", "PATH": "/bin"}
    assert without_secrets(base, hub=True) == {"HF_TOKEN": "hf_x", "PATH": "/bin"}
    assert without_secrets(base, hub=False) == {"PATH": "/bin"}
    kept = without_secrets({**base, "MY_KEY": "x"}, hub=False, keep=("MY_KEY", "NOT_SET_KEY"))
    assert kept == {"MY_KEY": "x", "PATH": "/bin"}


def test_a_password_in_a_url_is_a_secret_whatever_the_name() -> None:
    base = {
        "DATABASE_URL": "postgresql://me:hunter22@db/x",
        "HTTPS_PROXY": "http://me:swordfish@proxy:3128",
        "PLAIN_URL": "https://host/x@y",
        "NO_URL": "http://[broken@",
    }
    assert set(without_secrets(base, hub=False)) == {"HTTPS_PROXY", "PLAIN_URL", "NO_URL"}
    assert secret_values(base) == ["swordfish", "hunter22"]


def test_values_longer_ones_first_without_words_and_files(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch()
    found = secret_values(
        {
            "A_TOKEN": "abcdefgh",
            "B_TOKEN": "abcdefghijkl",
            "C_TOKEN": "short",
            "AWS_SECRET_ACCESS_KEY": "/begins/with+a/slash",
            "HF_TOKEN_PATH": str(file),
            "HOME": "/home/someone",
        }
    )
    assert found == ["/begins/with+a/slash", "abcdefghijkl", "abcdefgh"]
