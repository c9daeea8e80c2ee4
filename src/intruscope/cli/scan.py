"""``intruscope scan``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

from intruscope.cli.groups import CPU, DRY_RUN, IGNORE, QUIET, Pair, check_cpu
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import note, progress_bars, show
from intruscope.engine.settings import RunOptions
from intruscope.errors import IncompleteResult
from intruscope.options import option
from intruscope.spectra.records import ScanSettings

if TYPE_CHECKING:
    from pathlib import Path

    from intruscope.spectra.records import ScanReport


def scan(
    pair: Pair,
    settings: ScanSettings,
    outputs: Annotated[Outputs, Writes("scan")],
    options: RunOptions,
    fail_on: str | None = option(
        None,
        help="Exit with code 1 if a condition holds, such as 'intruders>0', or any of several separated by "
        "commas.",
        panel="Output",
        metavar="CONDITION",
    ),
    ignore: tuple[str, ...] = IGNORE,
    dry_run: bool = DRY_RUN,
    device: Literal["auto", "cpu", "cuda"] = CPU,
    quiet: bool = QUIET,
) -> int:
    """Find the intruder dimensions that a fine-tune left in a model's weights.

    An intruder is a leading singular vector of a tuned matrix that matches no singular vector of the base.
    Give the two models, or an adapter alone, which names its own base.
    """
    from intruscope.spectra.gates import checked, parse_gates
    from intruscope.spectra.scan import plan as make_plan
    from intruscope.spectra.scan import scan as run_scan

    gates = parse_gates(fail_on) if fail_on else ()
    check_cpu(device)
    maps_file = _maps_file(outputs) if settings.maps else None
    outputs.check(pair.names, others=[options.work_dir, maps_file])
    sources: dict[str, Any] = {"allow_pickle": pair.allow_pickle, "lora_alpha": pair.lora_alpha}
    if dry_run:
        from intruscope.report.terminal import plan_table

        if outputs.given:
            note("--dry-run writes no report")
        show(plan_table(make_plan(*pair.names, **sources)))
        return 0
    with progress_bars(quiet=quiet) as on_progress:
        report = run_scan(
            *pair.names,
            settings=settings,
            options=options,
            on_progress=on_progress,
            outputs=[*outputs.paths, *([maps_file] if maps_file else [])],
            on_notice=note,
            **sources,
        )
    report = checked(report, gates, ignore=list(ignore))
    if maps_file is not None:
        from intruscope.report.maps import move_large_maps

        compact = move_large_maps(report, maps_file)
        if compact is not report:
            note(f"the similarity maps are in {maps_file}")
            small = [name for name in ("json", "html") if outputs.path(name) is not None]
            outputs.without([name for name in outputs.given if name not in small]).write(compact, quiet=True)
            outputs = outputs.without(small)
    outputs.write(report, quiet=quiet)
    return _exit_code(report)


def _maps_file(outputs: Outputs) -> Path | None:
    """Where large similarity maps go: beside the page, or else beside the JSON."""
    report = outputs.path("html") or outputs.path("json")
    if report is None or (report.exists() and not report.is_file()):
        return None  # beside a pipe or a device there is no place for it
    return report.with_name(f"{report.stem}.maps.npz")


def write_page(report: ScanReport, path: Path) -> None:
    """The page of one scan."""
    from intruscope.report.html import write_html

    write_html([(report.tuned, report)], path, title="Intruder dimensions")


def write_figures(report: ScanReport, folder: Path) -> None:
    """The figures of one scan."""
    from intruscope.plots.figures import write_plots

    write_plots([(report.tuned, report)], folder)


def _exit_code(report: ScanReport) -> int:
    tripped = [gate for gate in report.gates if gate.tripped]
    for gate in tripped:
        value = "unknown" if gate.value is None else f"{gate.value:g}"
        print(f"gate {gate.gate} tripped: the value is {value}", file=sys.stderr)
    if not report.complete:
        missing = sum(matrix.status != "done" for matrix in report.matrices)
        raise IncompleteResult(
            f"only {len(report.matrices) - missing} of {len(report.matrices)} matrices could be scanned"
            if missing
            else "some weights could not be matched or decoded",
            remedy="see the findings and the coverage ledger of the report",
            file=report.tuned,
        )
    return 1 if tripped else 0
