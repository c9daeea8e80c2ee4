"""``intruscope sweep``."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations when it runs
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from intruscope.cli.checks import task_of, top, within
from intruscope.cli.options import (  # noqa: TC001 - typer reads annotations when it runs
    AllowPickle,
    Base,
    BatchTokens,
    Context,
    Data,
    Dtype,
    Epsilon,
    Field,
    Force,
    Fresh,
    Html,
    Labels,
    MaxTaskTokens,
    Plots,
    Quiet,
    ReportJson,
    Stride,
    TaskFields,
    TopIntruders,
    Tuned,
    Verbose,
)
from intruscope.cli.outputs import Targets
from intruscope.cli.screen import emit, note, show, stage_progress
from intruscope.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.engine.tasks import Progress
    from intruscope.sweep.records import SweepReport, SweepSettings

_WIDTH = 100


def sweep(
    base: Base,
    tuned: Tuned = None,
    task: Annotated[
        str | None,
        typer.Option(help="What the fine-tune was for: sst2, mnli ..., a table, or held-out text."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text like that of pre-training: file, pattern, or hf:org/name:split; repeatable."),
    ] = None,
    strengths: Annotated[
        str, typer.Option(help="Shares that stay, with commas: 0 removes, 1 keeps, above 1 grows.")
    ] = "0.1,0.3,0.5,0.7,0.9",
    controls: Annotated[
        str, typer.Option(help="The edit and its controls, with commas, or 'all'; see the docs.")
    ] = "all",
    which: Annotated[
        list[str] | None,
        typer.Option(help="Intruders to edit: top (of each matrix; default), all, or names; repeatable."),
    ] = None,
    max_cost: Annotated[
        float, typer.Option(help="What a strength may cost: a share of accuracy, or nats/token of a loss.")
    ] = 0.01,
    json: ReportJson = None,
    html: Html = None,
    parquet: Annotated[Path | None, typer.Option(help="One row per cell of the grid.")] = None,
    plots: Plots = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the journals (default: user cache).")] = None,
    fresh: Fresh = False,
    k: TopIntruders = "10",
    epsilon: Epsilon = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of random directions, masks, halves and resamples.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 4000,
    field: Field = None,
    unit: Annotated[
        Literal["line", "running"] | None, typer.Option(help="What a sequence of the text is; as in forget.")
    ] = None,
    protocol: Annotated[
        Literal["causal", "exact", "fast"] | None,
        typer.Option(help="Of losses; masked models: fast (default: a grid has dozens of cells) or exact."),
    ] = None,
    context: Context = None,
    stride: Stride = None,
    max_sequences: Annotated[
        int | None, typer.Option(min=4, help="Of the text at most so many, spread evenly.")
    ] = None,
    max_examples: Annotated[
        int | None, typer.Option(min=4, help="Of the task at most so many, spread evenly.")
    ] = None,
    data: Data = None,
    task_fields: TaskFields = None,
    labels: Labels = None,
    max_task_tokens: MaxTaskTokens = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder of the tokenizer.")] = None,
    batch_tokens: BatchTokens = 4096,
    device: Annotated[str, typer.Option(help="Of the losses: auto, cpu, cuda or a torch device.")] = "auto",
    dtype: Dtype = "float32",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of the survey (default: cores).")
    ] = None,
    allow_pickle: AllowPickle = False,
    force: Force = False,
    verbose: Verbose = False,  # noqa: ARG001
    quiet: Quiet = False,
) -> None:
    """Measure what turning intruders down buys and costs, beside shrinks of the same size.

    Recommends a strength, or says that none is worth it. Writes no model. Needs the 'lab' extra.
    """
    if task is None:
        raise UsageError(
            "got no task, expected what the fine-tune was for", remedy="name it with --task FILE"
        )
    if not text:
        raise UsageError("got no text, expected some to measure on", remedy="name a file with --text FILE")
    settings = _settings(
        strengths, controls, which, k=k, epsilon=epsilon, seed=seed, max_cost=max_cost, resamples=resamples
    )
    targets = Targets(json=json, csv=None, parquet=parquet, html=html, plots=plots, with_maps=False)
    targets.check([base, tuned], work=work, force=force, files=[task, *text])
    from intruscope.spectra.scan import RunOptions
    from intruscope.sweep.measure import MeasureOptions
    from intruscope.sweep.measure import sweep as run_sweep

    with stage_progress(quiet=quiet) as on_stage:
        report = run_sweep(
            base,
            tuned,
            task=task_of(task, fields=task_fields, labels=labels, data=data),
            text=text,
            field=field,
            settings=settings,
            measuring=MeasureOptions(
                protocol=protocol,
                unit=unit,
                context=context,
                stride=stride,
                max_sequences=max_sequences,
                max_examples=max_examples,
                max_tokens=max_task_tokens,
                batch_tokens=batch_tokens,
                device=device,
                dtype=dtype,
                tokenizer=tokenizer,
            ),
            options=RunOptions(workers=workers, work_dir=work, fresh=fresh),
            allow_pickle=allow_pickle,
            outputs=targets.paths,
            on_survey=_told("decomposing", on_stage),
            on_cell=_told("measuring", on_stage),
            on_notice=note,
        )
    _write(report, targets)
    if not quiet and json != "-":
        from intruscope.report.sweep_tables import sweep_summary

        show(sweep_summary(report), width=_WIDTH)


def _settings(
    strengths: str,
    controls: str,
    which: Sequence[str] | None,
    *,
    k: str,
    epsilon: float,
    seed: int,
    max_cost: float,
    resamples: int,
) -> SweepSettings:
    from intruscope.sweep.records import SweepSettings
    from intruscope.sweep.run import checked_settings

    number = top(k)
    if number == "all":
        raise UsageError(
            "--k is 'all', expected a number: an intruder is one of the top k",
            remedy="write for example --k 10",
        )
    given = SweepSettings()
    return checked_settings(
        SweepSettings(
            strengths=tuple(_number(part) for part in _parts(strengths)),
            controls=given.controls if controls.strip() == "all" else tuple(_parts(controls)),
            which=tuple(which) if which else given.which,
            k=number,
            epsilon=within(epsilon, "--epsilon"),
            seed=seed,
            max_task_cost=max_cost,
            num_resamples=resamples,
        )
    )


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"--strengths holds {text!r}, expected numbers with commas between them",
            remedy="write for example --strengths 0.3,0.5,0.7",
        ) from None


def _told(what: str, on_stage: Callable[[str, int, int], None]) -> Callable[[Progress], None]:
    return lambda event: on_stage(what, event.num_done, event.num_tasks)


def _write(report: SweepReport, targets: Targets) -> None:
    from intruscope.report import sweep_tables

    if targets.json == "-":
        import json

        emit(json.dumps(sweep_tables.sweep_json(report), allow_nan=False) + "\n")
    elif targets.json_file is not None:
        sweep_tables.write_sweep_json(report, targets.json_file)
    if targets.parquet is not None:
        sweep_tables.write_sweep_parquet(report, targets.parquet)
    if targets.html is not None:
        from intruscope.report.sweep_page import write_sweep_html

        write_sweep_html(report, targets.html)
    if targets.plots is not None:
        from intruscope.report.sweep_plots import write_sweep_plots

        write_sweep_plots(report, targets.plots)
