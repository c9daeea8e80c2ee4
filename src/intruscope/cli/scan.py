"""``intruscope scan``."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from intruscope.errors import OutputConflict, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from intruscope.engine.tasks import Progress
    from intruscope.spectra.gates import Gate
    from intruscope.spectra.records import ScanReport
    from intruscope.weights.matrices import Pairing


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
    device: Annotated[Literal["auto", "cpu"], typer.Option(help="Where to compute.")] = "auto",  # noqa: ARG001
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
    outputs = {"csv": csv, "parquet": parquet, "html": html, "plots": plots}
    targets: dict[str, Path] = {kind: path for kind, path in outputs.items() if path is not None}
    if json is not None and json != "-":
        targets["json"] = Path(json)
    _check_targets(targets, [base, tuned], force=force)
    sources: dict[str, Any] = {"allow_pickle": allow_pickle, "lora_alpha": lora_alpha}
    if dry_run:
        _show_plan(make_plan(base, tuned, **sources))
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
            on_notice=lambda text: print(f"note: {text}", file=sys.stderr),
            **sources,
        )
    _write(report, targets, to_stdout=json == "-")
    if not quiet and json != "-":
        _show(report)
    _leave(report, gates)


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


def _check_targets(targets: dict[str, Path], models: list[str | None], *, force: bool) -> None:
    """Refuse outputs that would touch an input or another's work, before any work is done."""
    from intruscope.weights.names import parse_name
    from intruscope.weights.output import check_output

    inputs = []
    for model in models:
        name = parse_name(model) if model is not None else None
        inputs += [part.path for part in (name, name.adapter if name else None) if part and part.path]
    for kind, path in targets.items():
        check_output(path, inputs)
        if kind == "plots" and path.exists() and any(path.iterdir()) and not force:
            raise OutputConflict("is not empty", remedy="choose another folder, or add --force", file=path)
        if kind != "plots" and path.is_dir():
            raise OutputConflict("is a folder, expected a file name", remedy="name a file", file=path)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar with the time left, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("scanning"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("matrices"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.description}", style="dim"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("", total=None)

        def update(event: Progress) -> None:
            bar.update(
                row,
                total=event.num_tasks,
                completed=event.num_done,
                description=event.key if event.key else "",
            )

        yield update


def _write(report: ScanReport, targets: dict[str, Path], *, to_stdout: bool) -> None:
    from intruscope.report import json_report, tables

    if to_stdout:
        import json as json_module

        print(json_module.dumps(json_report.to_json(report), allow_nan=False))
    if "json" in targets:
        json_report.write_json(report, targets["json"])
    if "csv" in targets:
        tables.write_csv(report, targets["csv"])
    if "parquet" in targets:
        tables.write_parquet(report, targets["parquet"])
    if "html" in targets:
        from intruscope.report.html import write_html

        write_html([(report.tuned, report)], targets["html"], title="Intruder dimensions")
    if "plots" in targets:
        from intruscope.plots.figures import write_plots

        write_plots([(report.tuned, report)], targets["plots"])


def _show(report: ScanReport) -> None:
    from rich.console import Console

    from intruscope.report.terminal import summary

    console = Console()
    for part in summary(report):
        console.print(part)


def _show_plan(pairing: Pairing) -> None:
    from rich.console import Console

    from intruscope.report.terminal import plan_table

    console = Console()
    for part in plan_table(pairing):
        console.print(part)


def _leave(report: ScanReport, gates: tuple[Gate, ...]) -> None:
    tripped = [(gate, value) for gate in gates if (value := gate.trips(report)) is not None]
    for gate, value in tripped:
        print(f"gate {gate.text} tripped: {gate.metric} is {value:g}", file=sys.stderr)
    if not report.complete:
        print("the scan is incomplete: see the findings and the coverage ledger", file=sys.stderr)
        raise typer.Exit(5)
    if tripped:
        raise typer.Exit(1)
