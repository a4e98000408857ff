"""Fetches a model from the Hugging Face hub; what goes wrong there, said in one line."""

from __future__ import annotations

from pathlib import Path

from orchestrator.engines.content import hub_errors
from orchestrator.measure import InputError

_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "tokenizer*", "vocab*", "merges*"]
# Copies of the weights in other layouts, which from_pretrained does not read.
_NOT = ["original/*", "consolidated*", "onnx/*", "*/*.safetensors"]


def fetch(repository: str, revision: str | None, *, code: bool, commit: str | None = None) -> Path:
    """The snapshot's directory, downloaded unless it is in the hub's own cache.

    Parameters
    ----------
    repository, revision : str
        ``owner/name``; a branch, tag or commit, None for the default branch.
    code : bool
        Whether the repository's Python files come too (``trust_remote_code``).
    commit : str, optional
        What the revision is; the hub is not asked for it then.

    Raises
    ------
    InputError
        If the repository is missing, gated, has no such revision, or cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    where = f"{repository}@{revision}" if revision else repository
    try:
        snapshot = Path(
            snapshot_download(
                repository,
                revision=commit or revision,
                allow_patterns=[*_FILES, *(["*.py"] if code else [])],
                ignore_patterns=_NOT,
            )
        )
    except errors.GatedRepoError as error:
        fix = f"Ask for access at https://huggingface.co/{repository}, then " + (
            # A process that runs the repository's code is not given the token.
            f"download it first: hf download {repository}" if code else "set HF_TOKEN"
        )
        raise InputError("this hub model is gated", where=where, fix=fix) from error
    except errors.RevisionNotFoundError as error:
        fix = "Check model.revision"
        raise InputError("the hub model has no such revision", where=where, fix=fix) from error
    except errors.RepositoryNotFoundError as error:
        fix = "Check model.id; a private model needs " + (
            f"to be downloaded first: hf download {repository}" if code else "HF_TOKEN"
        )
        raise InputError("no such model on the hub", where=where, fix=fix) from error
    except errors.HFValidationError as error:
        fix = "A hub id is OWNER/NAME; for a directory use model=path"
        raise InputError("not a hub id", where=where, fix=fix) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
        raise InputError(
            "the hub cannot be reached and the model is not in its cache",
            where=where,
            fix="Go online and unset HF_HUB_OFFLINE, or download it first: hf download "
            + repository,
        ) from error
    except hub_errors() as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(f"fetching from the hub failed: {line}", where=where) from error
    if commit is not None and commit != revision:
        # As a download by branch leaves it, so that the branch is found again offline.
        branch = snapshot.parents[1] / "refs" / (revision or "main")
        branch.parent.mkdir(parents=True, exist_ok=True)
        branch.write_text(commit)
    return snapshot
