"""``intruscope repair``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from intruscope.cli.command import only
from intruscope.cli.groups import DRY_RUN, FIELD, OUT, QUIET, Pair, TaskData, check_cpu, check_out
from intruscope.cli.outputs import Outputs, Writes, check_beside
from intruscope.cli.screen import emit, note, progress_bars
from intruscope.engine.settings import RunOptions
from intruscope.errors import UsageError, printable
from intruscope.fitting.settings import FitSettings
from intruscope.options import option
from intruscope.repair.settings import RepairSettings
from intruscope.spectra.records import ScanSettings

_FITS = ("--fit", "--fit-matrix", "--replay")


@dataclass(frozen=True, kw_only=True)
class FixOptions:
    """A repair that is fitted to data, in place of an intervention."""

    fit: bool = option(False, help="Fit one factor per direction of the update to --task and --text.")
    fit_matrix: bool = option(False, help="Fit one factor per matrix to --task and --text.")
    replay: bool = option(
        False, help="Train a LoRA adapter on for a few steps, on --task and --text mixed; keeps its rank."
    )
    weight: float = option(
        0.3,
        help="Weight of the loss on text beside the task's. A larger weight wins back more and costs the "
        "task more.",
        above=0,
        needs=_FITS,
    )
    task: str | None = option(
        None,
        help="Task examples to fit on: a built-in name such as sst2, a table, or text of the task.",
        panel="Input",
        metavar="TASK",
        needs=_FITS,
    )
    text: tuple[str, ...] = option(
        (),
        help="Text like that of pretraining to fit on: a file, a glob pattern, or hf:org/name:split. Without "
        "it, the fit keeps the predictions on the task's own text close to the base's.",
        panel="Input",
        metavar="SOURCE",
        needs=_FITS,
    )
    field: str | None = FIELD

    @property
    def name(self) -> str | None:
        """Name of the fix; None for an intervention."""
        given = {"fitted": self.fit, "fitted_matrix": self.fit_matrix, "replay": self.replay}
        return next((name for name, is_on in given.items() if is_on), None)

    @property
    def files(self) -> tuple[str, ...]:
        """Everything that is read."""
        return (*(() if self.task is None else (self.task,)), *self.text)

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UsageError: several fits at once, or a fit without a task.
        """
        if self.fit + self.fit_matrix + self.replay > 1:
            raise UsageError(
                f"{', '.join(_FITS)} exclude each other",
                remedy="give one of them; intruscope sweep compares them",
            )
        if self.name is not None and self.task is None:
            raise UsageError(
                "a fit needs examples of the task", remedy="name a file or a built-in task with --task"
            )


def repair(
    *,
    pair: Pair,
    settings: RepairSettings,
    scanning: Annotated[ScanSettings, only(ScanSettings, "k", "epsilon", "prove", "seed")],
    out: Path | None = OUT,
    dry_run: bool = DRY_RUN,
    outputs: Annotated[Outputs, Writes("repair")],
    options: Annotated[RunOptions, only(RunOptions, "workers", "memory_bytes", "work_dir", "fresh")],
    fix: FixOptions,
    tasks: TaskData,
    fitting: FitSettings,
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto",
        help="Device to fit on. Without a fit this command runs on the CPU only, and cuda is refused.",
        panel="How it runs",
    ),
    quiet: bool = QUIET,
) -> None:
    """Write a copy of a fine-tuned model with its intruder dimensions scaled down.

    Give the two models, or an adapter alone, which names its own base. The inputs are never changed.
    """
    from intruscope.fitting.repair import fitted_repair
    from intruscope.repair.plan import repair as make_plan

    fix.check()
    if fix.name is None:
        check_cpu(device)
    check_out(out, dry_run=dry_run)
    check_beside(outputs.paths, out)
    outputs.check(pair.names, others=[options.work_dir], files=[*fix.files])
    with progress_bars(quiet=quiet) as on_progress:
        shared: dict[str, Any] = {
            "base": pair.base,
            "tuned": pair.tuned,
            "seed": scanning.seed,
            "settings": scanning,
            "options": options,
            "allow_pickle": pair.allow_pickle,
            "lora_alpha": pair.lora_alpha,
            "out": None if dry_run else out,
            "on_progress": on_progress,
            "on_notice": note,
        }
        if fix.name is None:
            plan = make_plan(**asdict(settings), **shared)
        else:
            assert fix.task is not None
            plan = fitted_repair(
                task=tasks.load(fix.task, split="train"),
                text=fix.text or None,
                field=fix.field,
                fix=fix.name,
                weight=fix.weight,
                rank=settings.rank,
                compact=settings.compact,
                merged=settings.merged,
                device=device,
                fitting=fitting,
                **shared,
            )
    if plan.writes == "checkpoint":
        _note_ignored(settings, is_merged=plan.merges)
    if out is not None and not dry_run:
        with progress_bars(quiet=quiet) as on_progress:
            plan.apply(out, on_progress=on_progress)
    outputs.write(plan, quiet=quiet)
    if not quiet and not outputs.on_stdout and not dry_run:
        emit(f"written: {printable(out)}\n")
    pair.check_complete(plan.survey.pairing, "are unchanged in the output")


def _note_ignored(settings: RepairSettings, *, is_merged: bool) -> None:
    """Point out options that only concern a written adapter."""
    if settings.rank != "exact" or settings.compact:
        note("--rank and --compact have no effect: the output is a full checkpoint")
    if settings.merged and not is_merged:
        note("--merged has no effect: the tuned model is a full checkpoint already")
