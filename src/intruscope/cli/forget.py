"""``intruscope forget``."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

from intruscope.cli.groups import ALLOW_PICKLE, FIELD, IGNORE, QUIET, TaskData
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import note, progress_bars
from intruscope.errors import IncompleteResult, UsageError, printable
from intruscope.forgetting.settings import ForgetSettings, SkillSettings
from intruscope.options import REQUIRED, option

if TYPE_CHECKING:
    from intruscope.forgetting.records import FleetForgettingReport, ForgettingReport
    from intruscope.spectra.gates import Gate


def forget(
    *,
    models: tuple[str, ...] = option(
        REQUIRED,
        help="The base and its fine-tune (a full checkpoint or an adapter), or the base and several of them; "
        "each a folder or org/name@revision. Alone: an adapter that names its base, or BASE+ADAPTER.",
        panel="Input",
        positional=True,
        metavar="model",
    ),
    same_base: bool = option(
        False, help="Measure several adapters although their configs name different bases.", panel="Input"
    ),
    allow_pickle: bool = ALLOW_PICKLE,
    text: tuple[str, ...] = option(
        (),
        help="Text to measure forgetting on, like that of pretraining: a file, a glob pattern, or "
        "hf:org/name:split. Required unless --skills is given.",
        panel="Input",
        metavar="SOURCE",
    ),
    field: str | None = FIELD,
    task: tuple[str, ...] = option(
        (),
        help="Also score this task: a built-in name such as sst2 or mnli, or a file.",
        panel="Input",
        metavar="TASK",
    ),
    tasks: TaskData,
    skills: SkillSettings,
    where: bool = option(
        False,
        help="Also show where the model forgot: split the forgetting, and the gain on the first --task, over "
        "matrices, singular directions and the span of the intruders. Required for --html, --parquet and "
        "--plots.",
        needs=("--text",),
    ),
    settings: ForgetSettings,
    fail_on: str | None = option(
        None,
        help="Exit with code 1 if a condition holds, such as 'forgetting > 0.05', or any of several "
        "separated by commas.",
        panel="Output",
        metavar="CONDITION",
    ),
    ignore: tuple[str, ...] = IGNORE,
    outputs: Annotated[Outputs, Writes("forget")],
    quiet: bool = QUIET,
) -> int:
    """Measure how much a fine-tune forgot: its loss on text minus the base's, with a confidence interval.

    Use text like that of pretraining, which neither model was fine-tuned on. With --skills, also compare both
    models item by item on tasks of lm-evaluation-harness. Several fine-tunes of one base are measured in one
    go, the base only once. Needs the 'lab' extra.
    """
    from intruscope.forgetting.gates import checked, parse_forgetting_gates

    gates: tuple[Gate, ...] = ()
    if fail_on:
        gates = parse_forgetting_gates(fail_on, has_text=bool(text), has_skills=bool(skills.skills))
    _check_where(where, models, outputs)
    outputs.check(models, files=[*text, *task, *skills.skills])
    from intruscope.forgetting.forget import forget as run_forget
    from intruscope.forgetting.forget import forget_fleet

    if where:
        from intruscope.attribution.where import forget_where as run_forget

    with progress_bars(quiet=quiet) as on_progress:
        options: dict[str, Any] = {
            **asdict(settings),
            "text": text or None,
            "field": field,
            "tasks": tuple(tasks.load(name) for name in task),
            "skills": skills,
            "allow_pickle": allow_pickle,
            "on_notice": note,
            "on_progress": on_progress,
        }
        found: ForgettingReport | FleetForgettingReport
        if len(models) > 2:
            found = forget_fleet(models[0], models[1:], same_base=same_base, **options)
            members = [checked(report, gates, ignore=ignore) for report in found.reports]
            found = replace(found, reports=tuple(members))
        else:
            found = checked(run_forget(*models, **options), gates, ignore=ignore)
            members = [found]
    outputs.write(found, quiet=quiet)
    return _exit_code(members, len(task))


def _check_where(where: bool, models: tuple[str, ...], outputs: Outputs) -> None:
    if where and len(models) > 2:
        raise UsageError(
            f"--where takes one fine-tune at a time, but {len(models) - 1} are given",
            remedy="run it for each fine-tune, or leave --where out",
        )
    asked = next((name for name in ("html", "parquet", "plots") if name in outputs.given), None)
    if asked is not None and not where:
        raise UsageError(
            f"--{asked} shows where a model forgot, which was not asked for", remedy="add --where"
        )


def _exit_code(reports: list[ForgettingReport], num_tasks: int) -> int:
    tripped = [(report.tuned, gate) for report in reports for gate in report.gates if gate.tripped]
    for tuned, gate in tripped:
        whose = f" for {printable(tuned)}" if len(reports) > 1 else ""
        value = "unknown" if gate.value is None else f"{gate.value:g}"
        print(f"gate {gate.gate} tripped{whose}: the value is {value}", file=sys.stderr)
    num_findings = sum(len(report.findings) for report in reports)
    if num_findings:
        raise IncompleteResult(
            f"{num_findings} of {num_tasks * len(reports)} tasks could not be scored",
            remedy="see the findings for the reasons; forgetting was measured",
        )
    return 1 if tripped else 0
