"""The model and the texts of the demonstration as files, for those who train on them otherwise."""

from __future__ import annotations

import json
import shutil
from typing import IO, TYPE_CHECKING

from intruscope.demo.run import MODEL, MODEL_FILES, step_progress
from intruscope.demo.texts import language_reference, library_texts
from intruscope.progress import OnProgress, ignore_progress
from intruscope.weights.output import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from intruscope.demo.texts import Text


def unpack(folder: Path, source: str = "shipped", *, on_progress: OnProgress = ignore_progress) -> None:
    """Write ``model/``, and a JSON line for each text: to train on, held out, and like those of pre-training.

    Args:
        folder: Exists, empty. ``train.jsonl`` and ``held_out.jsonl`` are chapters of the language reference,
            ``text.jsonl`` files of the standard library that the model never saw.
        source: Of the model: ``shipped``, or ``grown``: the larger one of
            :data:`intruscope.demo.pretrain.LARGE`, trained now, on a GPU where there is one.
        on_progress: Called after every step of a training.

    Raises:
        UsageError: this Python does not carry the texts.
        OutputConflict, ResourceExhausted: it cannot be written.
    """
    if source == "grown":
        _grow(folder / "model", on_progress)
    else:
        (folder / "model").mkdir()
        for name in MODEL_FILES:
            shutil.copyfile(MODEL / name, folder / "model" / name)
    train, held_out = language_reference()
    _write(folder / "train.jsonl", train)
    _write(folder / "held_out.jsonl", held_out)
    _write(folder / "text.jsonl", library_texts(held_out=True))


def _grow(folder: Path, on_progress: OnProgress) -> None:
    import torch

    from intruscope.demo.pretrain import LARGE, pretrain

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def report(step: int, loss: float) -> None:
        on_progress(step_progress("training the base", step, LARGE.num_steps, loss))

    pretrain(folder, LARGE, device=device, on_step=report)


def _write(path: Path, texts: Iterable[Text]) -> None:
    def write(stream: IO[bytes]) -> None:
        stream.writelines(json.dumps({"text": text.content}).encode() + b"\n" for text in texts)

    write_atomically(path, write)
