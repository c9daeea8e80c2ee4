"""``intruscope scan``."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003 - typer reads annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from intruscope.cli.outputs import Targets
from intruscope.cli.screen import show
from intruscope.errors import IncompleteResult, UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from intruscope.engine.tasks import Progress
    from intruscope.spectra.gates import Gate
    from intruscope.spectra.records import ScanReport


def scan(
    base: Annotated[str, typer.Argument(help="Model before: path, org/name@revision, or base+adapter.")],
    tuned: Annotated[str | None, typer.Argument(help="Model after: full checkpoint or adapter.")] = None,
    k: Annotated[str, typer.Option(help="How many top vectors per matrix, or 'all' (dense).")] = "10",
    epsilon: Annotated[float, typer.Option(help="Alignment below which a vector is an intruder.")] = 0.5,
    side: Annotated[
        Literal["left", "right", "both"], typer.Option(help="Output space, input space.")
    ] = "left",
    seed: Annotated[int, typer.Option(help="Of every random block.")] = 0,
    null: Annotated[int, typer.Option(help="Random rotations of the update: what would chance give?")] = 0,
    maps: Annotated[int, typer.Option(help="Similarity maps of the top N vectors.")] = 0,
    exact_effective_rank: Annotated[
        bool, typer.Option("--exact-effective-rank", help="Of large full updates, from all singular values.")
    ] = False,
    prove: Annotated[bool, typer.Option("--prove", help="Decompose everything densely in float64.")] = False,
    json: Annotated[str | None, typer.Option(help="Write the report as JSON; - for stdout.")] = None,
    csv: Annotated[Path | None, typer.Option(help="One row per tuned vector.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="The same rows as Parquet.")] = None,
    html: Annotated[Path | None, typer.Option(help="One self-contained page.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for PNG and SVG pictures.")] = None,
    fail_on: Annotated[str | None, typer.Option(help="Exit with 1 if e.g. intruders>0 (comma: any).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, read no weights.")] = False,
    work: Annotated[Path | None, typer.Option(help="Folder for the journal (default: user cache).")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run finished.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes (default: cores).")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads per worker.")] = 1,
    deadline: Annotated[float | None, typer.Option(help="Seconds per matrix.")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB that running matrices may take.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read PyTorch files (weights_only).")
    ] = False,
    lora_alpha: Annotated[
        float | None, typer.Option(help="For adapter formats that do not store alpha.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; a scan needs no GPU.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Write into folders that are not empty.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of our own faults.")] = False,  # noqa: ARG001
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Find the intruder dimensions that a fine-tune left in a model's weights.

    BASE TUNED compares two models; a single adapter names its base itself.
    """
    from intruscope.spectra.gates import parse_gates
    from intruscope.spectra.records import ScanSettings
    from intruscope.spectra.scan import RunOptions
    from intruscope.spectra.scan import plan as make_plan
    from intruscope.spectra.scan import scan as run_scan

    gates = parse_gates(fail_on) if fail_on else ()
    settings = ScanSettings(
        k=_top(k),
        epsilon=_within(epsilon, "--epsilon"),
        side=side,
        seed=seed,
        null_trials=_not_negative(null, "--null"),
        maps=_not_negative(maps, "--maps"),
        exact_effective_rank=exact_effective_rank,
        prove=prove,
        threads=threads,
    )
    deadline, memory = _above_zero(deadline, "--deadline"), _above_zero(memory, "--memory")
    _check_device(device)
    targets = Targets(json=json, csv=csv, parquet=parquet, html=html, plots=plots, with_maps=maps > 0)
    targets.check([base, tuned], work=work, force=force)
    sources: dict[str, Any] = {"allow_pickle": allow_pickle, "lora_alpha": lora_alpha}
    if dry_run:
        from intruscope.report.terminal import plan_table

        show(plan_table(make_plan(base, tuned, **sources)))
        return
    options = RunOptions(
        workers=workers,
        deadline_seconds=deadline,
        memory_bytes=None if memory is None else int(memory * 2**30),
        work_dir=work,
        fresh=fresh,
    )
    with _progress(quiet=quiet) as on_progress:
        report = run_scan(
            base,
            tuned,
            settings=settings,
            options=options,
            on_progress=on_progress,
            outputs=targets.paths,
            on_notice=_note,
            **sources,
        )
    targets.write(report, on_notice=_note)
    if not quiet and json != "-":
        from intruscope.report.terminal import summary

        show(summary(report))
    _leave(report, gates)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _top(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(
        f"--k is {text!r}, expected a positive number or 'all'", remedy="write for example --k 10"
    )


def _within(value: float, name: str) -> float:
    if 0.0 < value <= 1.0:
        return value
    raise UsageError(f"{name} is {value}, expected a cosine above 0 and up to 1", remedy=f"write {name} 0.5")


def _not_negative(value: int, name: str) -> int:
    if value >= 0:
        return value
    raise UsageError(f"{name} is {value}, expected 0 or more", remedy=f"leave {name} out, or raise it")


def _above_zero(value: float | None, name: str) -> float | None:
    if value is None or 0.0 < value < float("inf"):
        return value
    raise UsageError(
        f"{name} is {value:g}, expected a number above 0", remedy=f"leave {name} out, or raise it"
    )


def _check_device(device: str) -> None:
    """Refuse what would otherwise be ignored: nothing here runs on a GPU."""
    if device == "cuda":
        raise UsageError(
            "--device is cuda, expected cpu: a scan computes on the CPU, one matrix per process",
            remedy="leave --device out; --workers says how many processes",
        )


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar with the time left, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("scanning"),
        BarColumn(),
        TextColumn("{task.fields[count]} matrices"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.description}", style="dim", markup=False),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        rows: list[TaskID] = []

        def update(event: Progress) -> None:
            # By weight, not by count, so that the time left is right for matrices of several sizes; and the
            # row begins with what was resumed, so that it counts as done but not as speed.
            count = f"{event.num_done}/{event.num_tasks}"
            shown = printable(event.key) if event.key else ""
            if not rows:
                rows.append(
                    bar.add_task(
                        shown, total=event.weight_total, completed=int(event.weight_done), count=count
                    )
                )
            bar.update(rows[0], completed=event.weight_done, description=shown, count=count)

        yield update


def _leave(report: ScanReport, gates: tuple[Gate, ...]) -> None:
    tripped = [(gate, value) for gate in gates if (value := gate.trips(report)) is not None]
    for gate, value in tripped:
        print(f"gate {gate.text} tripped: {gate.metric} is {value:g}", file=sys.stderr)
    if not report.complete:
        missing = sum(matrix.status != "done" for matrix in report.matrices)
        got = f"got {len(report.matrices) - missing} of {len(report.matrices)} matrices"
        fact = got if missing else f"{got}, and weights that could not be matched or decoded"
        raise IncompleteResult(
            f"{fact}, expected everything",
            remedy="see the findings and the coverage ledger",
            file=report.tuned,
        )
    if tripped:
        raise typer.Exit(1)
