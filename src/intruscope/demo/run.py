"""The demonstration: one small model, fine-tuned twice to about the same task loss, and both scanned.

Everything is offline: the model is in the package and the texts are in Python itself.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intruscope.demo.folder import SCHEMA, replaced_whole
from intruscope.demo.texts import digest, language_reference, library_texts
from intruscope.errors import UsageError
from intruscope.progress import OnProgress, Progress, ignore_progress
from intruscope.spectra.words import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from intruscope.demo.finetune import Precision
    from intruscope.spectra.records import ScanReport
    from intruscope.spectra.totals import ScanTotals

MODEL = Path(__file__).parent / "model"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md")

NUM_STEPS = 150
BATCH = 4
CONTEXT = 128
NUM_EVALUATION_WINDOWS = 64
NUM_MAPPED_VECTORS = 24
FULL_LEARNING_RATE = 8e-4
LORA_LEARNING_RATE = 6.5e-3
LORA_RANK = 8


@dataclass(frozen=True, kw_only=True)
class MeasuredText:
    """A text that losses were measured or trained on; texts vary with the Python version."""

    name: str
    role: Literal["train", "task", "source"]
    num_documents: int
    num_tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Mean loss in nats per token, on the task's test text and on held-out text like the pre-training's."""

    task: float
    source: float


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """One fine-tune and what it did.

    Attributes:
        name: ``full`` or ``lora``; also the folder it was saved in.
        forgetting: Source loss after minus before, in nats per token.
        num_vectors: Number of tuned singular vectors that were examined.
        expected_by_chance: Intruders to expect of an update with the same singular values in random
            directions.
    """

    name: Literal["full", "lora"]
    method: str
    learning_rate: float
    num_trained_parameters: int
    num_steps: int
    losses: Losses
    forgetting: float
    num_intruders: int
    num_vectors: int
    expected_by_chance: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """All figures of one demonstration.

    Attributes:
        out: The folder; ``report.html``, ``base``, ``full``, ``lora`` and the JSON files are in it.
        texts: What was trained and measured on, by hash.
        reports: The scans of ``runs``, in the same order.
    """

    out: Path
    python: str
    precision: str
    base: Losses
    runs: tuple[FineTune, ...]
    texts: tuple[MeasuredText, ...]
    reports: tuple[ScanReport, ...]
    seconds: float

    @property
    def report_path(self) -> Path:
        """The page to look at."""
        return self.out / "report.html"

    def to_json(self) -> dict[str, Any]:
        """The figures without the scans, which have files of their own."""
        content = asdict(replace(self, reports=()))
        del content["reports"]
        return {"schema": SCHEMA, **content, "out": str(self.out)}

    def sentence(self) -> str:
        """What was seen, in one sentence, without claiming more than these two runs show."""
        full, lora = self.runs
        noun = "dimension" if full.num_intruders == 1 else "dimensions"
        return (
            f"At task losses of {full.losses.task:.2f} (full) and {lora.losses.task:.2f} (LoRA), full "
            f"fine-tuning made {full.num_intruders} intruder {noun} among {full.num_vectors} leading "
            f"singular vectors{_beside_chance(full)}, and LoRA made {lora.num_intruders}"
            f"{_beside_chance(lora)}. Held-out source loss changed by {full.forgetting:+.2f} (full) and "
            f"{lora.forgetting:+.2f} (LoRA) nats per token."
        )


def _beside_chance(run: FineTune) -> str:
    """What random directions would give, in brackets."""
    return "" if run.expected_by_chance is None else f" (by chance {count(run.expected_by_chance)})"


@dataclass(frozen=True, kw_only=True)
class _Material:
    """What both fine-tunes share: tokens to train on, windows to measure on, and the mode to compute in."""

    train_tokens: Tensor
    task_windows: Tensor
    source_windows: Tensor
    precision: Precision
    num_steps: int
    seed: int


def run_demo(
    out: Path,
    *,
    steps: int = NUM_STEPS,
    seed: int = 0,
    precision: Precision | None = None,
    on_progress: OnProgress = ignore_progress,
) -> DemoResult:
    """Fine-tune the shipped model fully and with LoRA, measure both, scan both, and write a report.

    Args:
        out: Folder to make; an earlier demonstration in it is replaced, anything else is refused.
        steps: Optimiser steps of each fine-tune.
        seed: Chooses windows, the test chapters and the adapter's start.
        precision: Numeric mode of training; the faster one on this processor if None.
        on_progress: Called at every step of every stage.

    Returns:
        Every figure. The same are in ``figures.json``.

    Raises:
        UsageError: transformers or peft is missing, the texts are missing, or ``steps`` is not positive.
        OutputConflict: ``out`` holds something that is not an earlier demonstration.
    """
    if steps < 1:
        raise UsageError(f"{steps} steps are too few", remedy="train for at least 1 step")
    missing = [name for name in ("transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the demonstration needs {' and '.join(missing)}",
            remedy="install the 'lab' extra: pip install 'intruscope[lab]'",
        )
    start = time.perf_counter()
    with replaced_whole(out) as building:
        on_progress(Progress(stage="preparing", done=0, total=1, unit="texts"))
        with _quiet_transformers():
            return _run(building, Path(out).absolute(), steps, seed, precision, on_progress, start)


def _run(
    building: Path,
    out: Path,
    steps: int,
    seed: int,
    precision: Precision | None,
    on_progress: OnProgress,
    start: float,
) -> DemoResult:
    """The demonstration inside its temporary folder ``building``, which will become ``out``."""
    material, texts = _material(steps, seed, precision)
    _save_base(building / "base")
    on_progress(Progress(stage="preparing", done=1, total=1, unit="texts"))
    base_losses = _measure(_load_base(), material, "measuring the base", on_progress)

    names: tuple[Literal["full", "lora"], ...] = ("full", "lora")
    runs, reports = [], []
    for name in names:
        run = _fine_tune(name, building / name, out, material, base_losses, on_progress)
        report = _scan(building, name, on_progress)
        runs.append(_counted(run, report.totals))
        reports.append(report)
    result = DemoResult(
        out=out,
        python=platform.python_version(),
        precision=material.precision,
        base=base_losses,
        runs=tuple(runs),
        texts=texts,
        reports=tuple(reports),
        seconds=time.perf_counter() - start,
    )
    _write_report(building, result)
    return result


def _material(
    steps: int, seed: int, precision: Precision | None
) -> tuple[_Material, tuple[MeasuredText, ...]]:
    """Tokenise the texts with the shipped tokenizer."""
    from tokenizers import Tokenizer

    from intruscope.demo.finetune import encode, evaluation_windows, faster_precision

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    train, task = language_reference(seed=seed)
    source = library_texts(held_out=True)
    train_tokens, task_tokens, source_tokens = (encode(tokenizer, part) for part in (train, task, source))
    task_windows, source_windows = (
        evaluation_windows(tokens, context=CONTEXT, max_windows=NUM_EVALUATION_WINDOWS)
        for tokens in (task_tokens, source_tokens)
    )
    if precision is None:
        shape = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
        precision = faster_precision(width=shape["hidden_size"], outputs=shape["vocab_size"])
    parts: tuple[tuple[str, Literal["train", "task", "source"], Any, int], ...] = (
        ("language reference, training chapters", "train", train, len(train_tokens)),
        ("language reference, test chapters", "task", task, task_windows[:, 1:].numel()),
        ("standard library source, held-out files", "source", source, source_windows[:, 1:].numel()),
    )
    texts = tuple(
        MeasuredText(
            name=name, role=role, num_documents=len(part), num_tokens=num_tokens, sha256=digest(part)
        )
        for name, role, part, num_tokens in parts
    )
    material = _Material(
        train_tokens=train_tokens,
        task_windows=task_windows,
        source_windows=source_windows,
        precision=precision,
        num_steps=steps,
        seed=seed,
    )
    return material, texts


def _save_base(folder: Path) -> None:
    """Copy the shipped model next to what is trained from it, so that the reader can scan the three."""
    folder.mkdir()
    for name in MODEL_FILES:
        shutil.copyfile(MODEL / name, folder / name)


def _load_base() -> Any:
    """The shipped model in float32, with nothing to be trained yet."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    return model.requires_grad_(False)


def step_progress(stage: str, step: int, num_steps: int, loss: float | None = None) -> Progress:
    """How far a training is, with its latest loss."""
    item = "" if loss is None else f"loss {loss:.3f}"
    return Progress(stage=stage, done=step, total=num_steps, unit="steps", item=item)


def _measure(model: Any, material: _Material, stage: str, on_progress: OnProgress) -> Losses:
    """Both losses of a model."""
    from intruscope.demo.finetune import evaluate

    on_progress(Progress(stage=stage, done=0, total=2, unit="texts"))
    task = evaluate(model, material.task_windows)
    on_progress(Progress(stage=stage, done=1, total=2, unit="texts"))
    source = evaluate(model, material.source_windows)
    on_progress(Progress(stage=stage, done=2, total=2, unit="texts"))
    return Losses(task=task, source=source)


def _fine_tune(
    name: Literal["full", "lora"],
    folder: Path,
    out: Path,
    material: _Material,
    base: Losses,
    on_progress: OnProgress,
) -> FineTune:
    """Train a fresh copy of the base, measure it and save it as its users would."""
    from intruscope.demo.finetune import LoopSettings, train, train_linear_weights, with_lora

    model = _load_base()
    if name == "full":
        method, learning_rate = "full fine-tuning", FULL_LEARNING_RATE
        model = train_linear_weights(model)
    else:
        method, learning_rate = f"LoRA, rank {LORA_RANK}", LORA_LEARNING_RATE
        model = with_lora(model, rank=LORA_RANK, seed=material.seed)
    settings = LoopSettings(
        learning_rate=learning_rate,
        num_steps=material.num_steps,
        batch=BATCH,
        context=CONTEXT,
        seed=material.seed,
    )
    start = time.perf_counter()
    on_progress(step_progress(method, 0, material.num_steps))
    train(
        model,
        material.train_tokens,
        settings,
        precision=material.precision,
        on_step=lambda step, loss: on_progress(step_progress(method, step, material.num_steps, loss)),
    )
    losses = _measure(model, material, f"measuring {method}", on_progress)
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    _save(model, folder, base=out / "base")
    return FineTune(
        name=name,
        method=method,
        learning_rate=learning_rate,
        num_trained_parameters=num_trained,
        num_steps=material.num_steps,
        losses=losses,
        forgetting=losses.source - base.source,
        num_intruders=0,
        num_vectors=0,
        expected_by_chance=None,
        seconds=time.perf_counter() - start,
    )


def _save(model: Any, folder: Path, *, base: Path) -> None:
    """A full checkpoint with its tokenizer, or an adapter that names its base by path."""
    if hasattr(model, "peft_config"):
        model.peft_config["default"].base_model_name_or_path = str(base)
        # Embeddings are untouched; asked to find that out itself, PEFT would look the base up by name.
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(MODEL / name, folder / name)


def _scan(building: Path, name: str, on_progress: OnProgress) -> ScanReport:
    """Scan one fine-tune against the base; names in the report are relative to the output folder."""
    from intruscope.engine.settings import RunOptions
    from intruscope.spectra.records import ScanSettings
    from intruscope.spectra.scan import scan

    stage = f"scanning {name}"
    work = building / "work"
    report = scan(
        str(building / "base"),
        str(building / name),
        settings=ScanSettings(maps=NUM_MAPPED_VECTORS),
        options=RunOptions(work_dir=work),
        on_progress=lambda event: on_progress(replace(event, stage=stage)),
    )
    shutil.rmtree(work, ignore_errors=True)
    return replace(report, base="base", tuned=name)


def _counted(run: FineTune, totals: ScanTotals) -> FineTune:
    """The fine-tune with what its scan counted."""
    return replace(
        run,
        num_intruders=totals.num_intruders,
        num_vectors=totals.num_vectors,
        expected_by_chance=None if totals.chance is None else totals.chance.expected,
    )


def _write_report(building: Path, result: DemoResult) -> None:
    """The page, one JSON file per scan, and the figures."""
    from intruscope.report.html import write_html

    for run, report in zip(result.runs, result.reports, strict=True):
        report.save(building / f"scan-{run.name}.json")
    _write_json(building / "figures.json", result.to_json())
    write_html(
        [(run.method, report) for run, report in zip(result.runs, result.reports, strict=True)],
        building / "report.html",
        title="Full fine-tuning and LoRA of the same small model",
        notes=notes(result),
        sources=sources(result),
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, and never with NaN."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def notes(result: DemoResult) -> list[tuple[str, str]]:
    """What the page says above the scans: the result, how it was obtained, and what it does not show."""
    lines = [
        ("Result", result.sentence()),
        (
            "Base",
            f"Task loss {result.base.task:.3f}, held-out source loss {result.base.source:.3f} "
            "nats per token.",
        ),
    ]
    lines.extend(
        (
            run.method,
            f"Learning rate {run.learning_rate:g}, {run.num_steps} steps of {BATCH} x {CONTEXT} tokens: task "
            f"loss {run.losses.task:.3f}, held-out source loss {run.losses.source:.3f}, forgetting "
            f"{run.forgetting:+.3f}.",
        )
        for run in result.runs
    )
    lines.append(
        (
            "Limits",
            "One seed of one small model, at one learning rate per method: this demonstrates what a scan "
            "shows, and is no evidence for or against either method.",
        )
    )
    return lines


def sources(result: DemoResult) -> list[tuple[str, str]]:
    """What the page says below the scans: the texts, by hash."""
    return [
        (
            text.name,
            f"From Python {result.python}: {text.num_documents} documents, {text.num_tokens:,} tokens, "
            f"SHA-256 {text.sha256}.",
        )
        for text in result.texts
    ]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hide transformers' own progress bars, which would break into ours, and put them back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
