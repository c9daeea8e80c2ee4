"""Opening what two names lead to, adapters of every kind that PEFT merges included."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.adapters.folder import find_adapter
from intruscope.adapters.other_kinds import merge_other_kind, other_kind
from intruscope.errors import IntruscopeError, ResourceExhausted, UsageError
from intruscope.spectra.scan import open_sources
from intruscope.weights.names import parse_name
from intruscope.weights.source import ModelSource, open_model

if TYPE_CHECKING:
    from intruscope.adapters.folder import AdapterSource


class Scratch:
    """A folder for temporary files that is gone when nobody holds this any more.

    Attributes:
        folder: Exists and is empty.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="intruscope-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def open_any(
    base: str, tuned: str | None, *, allow_pickle: bool, lora_alpha: float | None
) -> tuple[ModelSource, ModelSource | AdapterSource, Scratch | None]:
    """Open two models; an adapter that is no LoRA is merged into a folder for temporary files first.

    Args:
        base: As :func:`intruscope.spectra.scan.plan` takes it.
        tuned: Likewise.
        allow_pickle: Likewise.
        lora_alpha: Likewise.

    Returns:
        Both sides, and the folder of the merge, to be held as long as the second is read; None where nothing
        was merged.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    name = parse_name(tuned) if tuned is not None else None
    folder = find_adapter(name, allow_pickle=allow_pickle) if name is not None and not name.adapter else None
    if name is None or folder is None or other_kind(folder) is None:
        return *open_sources(base, tuned, allow_pickle=allow_pickle, lora_alpha=lora_alpha), None
    if lora_alpha is not None:
        fact = f"got lora_alpha {lora_alpha:g} for an adapter that tells its own, expected none"
        raise UsageError(fact, remedy="leave it out", file=folder)
    from intruscope.adapters.live_models import quiet

    before, scratch = open_model(base, allow_pickle=allow_pickle), Scratch()
    try:
        with quiet():
            merge_other_kind(before, folder, scratch.folder / "merged")
    except IntruscopeError:
        raise
    except OSError as error:
        raise ResourceExhausted(
            f"the merged model could not be written ({error.strerror}), expected room for it",
            remedy="free some space, or let TMPDIR name another folder",
            file=scratch.folder,
        ) from error
    return before, replace(open_model(scratch.folder / "merged"), name=name.given), scratch
