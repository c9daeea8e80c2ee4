"""Models by their id on the Hugging Face hub: downloaded once, kept in the hub's own cache.

The only code here that may open a connection, and only for a hub id. The endpoint, cache and token come
from the environment (``HF_ENDPOINT``, ``HF_HUB_CACHE``, ``HF_TOKEN``), as for every tool of the hub.
"""

from __future__ import annotations

from pathlib import Path

from intruscope.errors import MalformedInput, UsageError

_NEEDED = ("config.json", "*.safetensors", "*.safetensors.index.json", "adapter_config.json")
_PICKLES = ("*.bin", "*.bin.index.json")
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
# Training state and other formats' twins: gigabytes that are never read.
_NEVER = ("optimizer*", "scheduler*", "training_args*", "rng_state*", "scaler*", "checkpoint-*/*", "onnx/*")


def download_model(
    hub_id: str, *, revision: str | None = None, allow_pickle: bool = False, with_tokenizer: bool = False
) -> tuple[Path, str | None]:
    """Download a model or adapter into the hub's cache, or find it there.

    Args:
        hub_id: ``org/name``.
        revision: Branch, tag or commit.
        allow_pickle: Also fetch PyTorch pickles.
        with_tokenizer: Also fetch the tokenizer's files, for models that are run.

    Returns:
        The folder and its commit.

    Raises:
        UsageError: there is no such repository or revision, it is gated, or the hub cannot be reached and the
            cache holds nothing of it.
        MalformedInput: the hub cannot be reached and the cache holds only some of the files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.file_download import repo_folder_name

    shown = f"{hub_id}@{revision}" if revision else hub_id
    patterns = [*_NEEDED, *(_PICKLES if allow_pickle else ()), *(_TOKENIZER if with_tokenizer else ())]
    try:
        folder = snapshot_download(
            hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=list(_NEVER)
        )
    except GatedRepoError:
        fact = "this repository is gated, and your token does not give access to it"
        remedy = "accept its terms on the hub and set HF_TOKEN"
        raise UsageError(fact, remedy=remedy, file=shown) from None
    except RevisionNotFoundError:
        fact = f"the repository has no branch, tag or commit '{revision}'"
        raise UsageError(fact, remedy="check the part after @", file=shown) from None
    except RepositoryNotFoundError:
        fact = "there is no such folder here and no such public repository on the hub"
        remedy = "check the spelling, or set HF_TOKEN for a private one"
        raise UsageError(fact, remedy=remedy, file=shown) from None
    except HFValidationError as error:
        raise UsageError(
            f"this is not a valid hub id ({error})", remedy="check its spelling", file=shown
        ) from None
    except (LocalEntryNotFoundError, OSError) as error:
        # Every failure of the connection: offline, refused, timed out, a server error.
        reason = type(error.__cause__ or error).__name__
        if not Path(HF_HUB_CACHE, repo_folder_name(repo_id=hub_id, repo_type="model")).exists():
            fact = f"there is no such folder here, and the hub could not be reached ({reason})"
            raise UsageError(fact, remedy="check the spelling, or your connection", file=shown) from error
        raise MalformedInput(
            f"the copy in the hub's cache is incomplete, and the hub could not be reached ({reason})",
            remedy="check the connection and run again: the download resumes where it stopped",
            file=shown,
        ) from error
    path = Path(folder)
    return path, path.name if path.parent.name == "snapshots" else None
