"""What runs read: bases, tasks and texts, found in a data folder, shipped, or made; and their hashes.

What a scale makes or unpacks is written once into the study's own folder, each file whole or not at all, so
that several processes may find it there.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, OutputConflict, UsageError, printable
from intruscope.forgetting.named_tasks import named_task
from intruscope.forgetting.tasks import TextTask, classification_task
from intruscope.forgetting.texts import Document, read_texts
from intruscope.studies.scale import GROWN, MADE, SHIPPED
from intruscope.weights.output import whole_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from intruscope.forgetting.named_tasks import Split
    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.texts import Corpus
    from intruscope.studies.scale import Base, Scale

_BESIDE_WEIGHTS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
"""What makes other tokens or another network of the same weights."""
_BLANK_LINES = re.compile(r"\n\s*\n")
_PASSAGE_CHARS, _MAX_PASSAGE_CHARS, _MAX_PASSAGES, _HELD_OUT_EVERY = 400, 600, 600, 10
_TEXT, _TRAIN, _HELD_OUT = "text.jsonl", "train.jsonl", "held_out.jsonl"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where everything of one base is.

    Attributes:
        base: As models are named.
        text: Files of the text of forgetting.
        tasks: Folder of the tasks; None for the hub.
        own: Folder of what was made or unpacked; None where nothing was.
        texts: Files of plain text, by the tasks that are to be learned from them.
    """

    base: str
    text: tuple[Path, ...]
    tasks: Path | None
    own: Path | None
    texts: Mapping[str, Path] = field(default_factory=dict)

    def task(self, name: str, split: Split) -> Task | Corpus:
        """One side of a task.

        Raises:
            UsageError, MalformedInput: see :func:`intruscope.forgetting.named_tasks.named_task`.
        """
        if name in self.texts:
            corpus = passages(read_texts([self.texts[name]]), split)
            return corpus if split == "train" else TextTask(name=name, corpus=corpus, sha256=corpus.sha256)
        if self.own is None:
            return named_task(name, split=split, folder=self.tasks)
        planted = self.own / f"{name}.{split}.json"
        if planted.exists():
            found: dict[str, Any] = json.loads(planted.read_bytes())
            classes = tuple(found["classes"])
            return classification_task(found["rows"], name, ("sentence",), "label", classes=classes)
        corpus = read_texts([self.own / (_TRAIN if split == "train" else _HELD_OUT)], field="text")
        return corpus if split == "train" else TextTask(name=name, corpus=corpus, sha256=corpus.sha256)


def check_data(scale: Scale, data: Path | None) -> None:
    """Refuse a scale whose files are not there, all of them named.

    Raises:
        UsageError: no data folder, or files that it lacks.
    """
    wanted = [name for base in scale.bases for name in base.files]
    if not wanted:
        return
    if data is None:
        raise UsageError(
            f"the scale {scale.name} needs a data folder with {', '.join(wanted)} and tasks/",
            remedy="pass it with --data, or use --scale smoke, which makes its own data "
            "(docs/reproduction.md)",
        )
    lacking = [name for name in wanted if not (data / name).exists()]
    for base in scale.bases:
        if base.files and any(name.startswith("models/") for name in base.files):
            lacking += [
                f"tasks/{task}" for task in sorted(base.every_task) if not (data / "tasks" / task).is_dir()
            ]
    if lacking:
        raise UsageError(
            f"the data folder lacks {', '.join(lacking)}, which the scale {scale.name} needs",
            remedy=f"put it there, at {printable(data / lacking[0])}; see docs/reproduction.md",
            file=data,
        )


def inputs_of(
    base: Base, out: Path, data: Path | None, *, unpack: Callable[[Path, str], None] | None = None
) -> Inputs:
    """Find, unpack or make what a base needs; after :func:`check_data`.

    Args:
        base: Of the scale.
        out: Folder of the study.
        data: Folder of models, tasks and texts.
        unpack: Fills a folder with the shipped model and its texts, or with a grown one (second argument);
            not needed where that was done before.

    Raises:
        UsageError: what is shipped cannot be unpacked.
        OutputConflict, ResourceExhausted: it cannot be written.
    """
    if base.source in (MADE, SHIPPED, GROWN):
        own = out / "inputs" / base.name
        if not own.exists():
            own.parent.mkdir(parents=True, exist_ok=True)
            try:
                with whole_folder(own) as building:
                    _fill(base, building, unpack)
            except OutputConflict:
                if not own.exists():  # else another process was first, with the same
                    raise
        more = base.merging.texts if base.merging is not None and data is not None else {}
        texts = {name: data / path for name, path in more.items() if data is not None}
        return Inputs(base=str(own / "model"), text=(own / _TEXT,), tasks=None, own=own, texts=texts)
    assert data is not None or not base.files
    is_local = base.source.startswith("models/")
    return Inputs(
        base=str(data / base.source) if is_local and data is not None else base.source,
        text=tuple(data / name for name in base.text) if data is not None else (),
        tasks=data / "tasks" if is_local and data is not None else None,
        own=None,
    )


def digests(base: Base, inputs: Inputs) -> dict[str, str]:
    """SHA-256 of the base's weights, configuration and tokenizer, of the text and of both sides of tasks.

    Raises:
        IntruscopeError: one of them cannot be read.
    """
    from intruscope.weights.source import open_model

    source = open_model(inputs.base)
    weights = [Path(str(record["path"])) for record in source.inputs]
    beside = [source.on_disk / name for name in _BESIDE_WEIGHTS]
    found = {f"base/{path.name}": _sha256(path) for path in (*weights, *beside) if path.is_file()}
    found["text"] = read_texts(inputs.text).sha256
    for name in base.every_task:
        for split in ("train", "eval"):
            found[f"{name}/{split}"] = inputs.task(name, split).sha256
    return found


def passages(corpus: Corpus, split: Split) -> Corpus:
    """The leading passages of a text, every tenth of which is held out.

    Args:
        corpus: One text, of paragraphs with blank lines between them.
        split: ``train`` or ``eval``.

    Returns:
        Passages of whole paragraphs with at least 400 characters, cut at 600, as documents.

    Raises:
        MalformedInput: there are fewer than ten passages.
    """
    found, open_passage = [], ""
    for paragraph in _BLANK_LINES.split(corpus.documents[0].text):
        open_passage = f"{open_passage}\n\n{paragraph.strip()}".strip()
        if len(open_passage) >= _PASSAGE_CHARS:
            found.append(open_passage[:_MAX_PASSAGE_CHARS])
            open_passage = ""
    if len(found) < _HELD_OUT_EVERY:
        raise MalformedInput(
            f"the text has {len(found)} passages of {_PASSAGE_CHARS} characters; at least {_HELD_OUT_EVERY} "
            "are needed",
            remedy="use a longer text with blank lines between its paragraphs",
            file=corpus.sources[0].name,
        )
    chosen = [
        passage
        for place, passage in enumerate(found[:_MAX_PASSAGES])
        if (place % _HELD_OUT_EVERY == 0) == (split == "eval")
    ]
    return replace(
        corpus,
        documents=tuple(Document(text=passage, source=0, is_row=True) for passage in chosen),
        sha256=hashlib.sha256("\0".join(chosen).encode()).hexdigest(),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_seeds(seeds: Sequence[int]) -> None:
    """Reject seeds that are not distinct, or negative.

    Raises:
        UsageError: a seed occurs twice, or is negative.
    """
    if len(set(seeds)) != len(seeds) or min(seeds, default=0) < 0:
        raise UsageError(
            f"the seeds {', '.join(map(str, seeds))} are not valid: each may occur once, and none may be "
            "negative",
            remedy="for example --seeds 0,1,2",
        )


def _fill(base: Base, folder: Path, unpack: Callable[[Path, str], None] | None) -> None:
    if base.source == MADE:
        from intruscope.studies.tiny import write_tiny

        write_tiny(base, folder)
        return
    if unpack is None:
        raise UsageError(
            f"the study needs the {base.source} model ({base.name}), and no function to unpack it was given",
            remedy="pass unpack=intruscope.demo.unpack.unpack to run_study",
        )
    unpack(folder, base.source)
