"""Second half of the interventions benchmark: pools measurements over seeds, compares and tabulates them."""

from __future__ import annotations

import json
import statistics
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from benchmarks.common import RESULTS, environment
from intruscope.records.plain import plain
from intruscope.records.tables import write_parquet
from intruscope.repair.interventions import INTERVENTIONS
from intruscope.sweep.figures import Measured, cell_report
from intruscope.sweep.records import Measurement, SweepCell, SweepCellReport, SweepSettings
from intruscope.sweep.statistics import Sample, samples
from intruscope.weights.output import write_json_file

if TYPE_CHECKING:
    from pathlib import Path

MATCHED = tuple(name for name, each in INTERVENTIONS.items() if each.role == "matched")
GRID = SweepSettings()
"""The edit and every control, at the paper's strengths."""
SHRINKS = ("intruders", *MATCHED, "uniform")
OTHERS = ("random", "neighbour_above", "neighbour_below", "tail")
LEVEL = 0.05


def pooled(records: list[dict[str, Any]]) -> Measured:
    """Several seeds as one sample; norms and counts as means.

    If the seeds used different sequences, the sequences are concatenated. If they used the same ones, the
    losses of a sequence are summed over the seeds, so that it is one item of the resampling and not several.
    """
    is_same_text = len({record["text_sha256"] for record in records}) == 1

    def joined(measurements: list[dict[str, list[float]]]) -> Measurement:
        values = {
            name: tuple(value for each in measurements for value in each[name]) for name in measurements[0]
        }
        if is_same_text:
            for name in ("text_nats", "text_tokens"):
                values[name] = tuple(map(sum, zip(*(each[name] for each in measurements), strict=True)))
        return Measurement(**values)

    keys = [key for key in records[0]["by_key"] if all(key in each["by_key"] for each in records)]
    cells = []
    for place, plain_cell in enumerate(records[0]["cells"]):
        twins = [each["cells"][place] for each in records]
        assert {(t["control"], t["strength"]) for t in twins} == {
            (plain_cell["control"], plain_cell["strength"])
        }
        cells.append(
            SweepCell(
                **{
                    **plain_cell,
                    "num_matrices": round(statistics.mean(t["num_matrices"] for t in twins)),
                    "change_norm": statistics.mean(t["change_norm"] for t in twins),
                }
            )
        )
    return Measured(
        metric=records[0]["metric"],
        protocol=records[0]["protocol"],
        base_text=joined([each["base_text"] for each in records]),
        tuned=joined([each["tuned"] for each in records]),
        cells=tuple(cells),
        by_key={key: joined([each["by_key"][key] for each in records]) for key in keys},
    )


def figures(records: list[dict[str, Any]]) -> tuple[Measured, Sample, list[SweepCellReport]]:
    measured = pooled(records)
    sample, *_ = samples(len(measured.tuned.text_nats), len(measured.tuned.task_scores), GRID)
    return measured, sample, [cell_report(measured, cell, "top", sample) for cell in measured.cells]


FIGURES = (
    "forgetting_change",
    "forgetting_share",
    "task_change",
    "task_loss_change",
    "forgetting_difference",
    "task_difference",
)
COLUMNS = {
    "group": "string",
    "seeds": "int64",
    "control": "string",
    "strength": "float64",
    "change_norm": "float64",
    **{f"{name}{end}": "float64" for name in FIGURES for end in ("", "_low", "_high")},
    "forgetting_share_least_of_seeds": "float64",
    "forgetting_share_most_of_seeds": "float64",
}


def publish(work: Path) -> None:
    """Pool all measurements and write the table, the comparisons and the sources."""
    by_group: dict[str, list[dict[str, Any]]] = {}
    failed = []
    for path in sorted(work.glob("*.measured.json")):
        record = json.loads(path.read_text())
        if record["learned"]:
            by_group.setdefault(record["group"], []).append(record)
        else:
            failed.append(
                {
                    **{name: record[name] for name in ("group", "seed", "num_intruders", "training")},
                    "forgetting": _forgetting(record),
                }
            )
    rows, groups, comparisons, prices = [], [], [], []
    for group, records in by_group.items():
        measured, sample, reports = figures(records)
        own = [{each.cell.key: each for each in figures([record])[2]} for record in records]
        losses = sample.losses(measured.tuned) - sample.losses(measured.base_text)
        groups.append(
            {
                "group": group,
                "metric": measured.metric,
                "protocol": measured.protocol,
                "seeds": [record["seed"] for record in records],
                "num_intruders": [record["num_intruders"] for record in records],
                "num_matrices": records[0]["num_matrices"],
                "num_sequences": len(measured.tuned.text_nats),
                "text_sha256": [record["text_sha256"] for record in records],
                "task_sha256": [record["task_sha256"] for record in records],
                "num_examples": len(measured.tuned.task_scores),
                "forgetting": plain(sample.interval(losses)),
                "forgetting_of_seeds": list(map(_forgetting, records)),
                "task_score": plain(reports[0].task) | _tuned_score(measured),
                "training": [record["training"] for record in records],
            }
        )
        for report in reports:
            shares = [r[report.cell.key].forgetting_share for r in own]
            known = [share.estimate for share in shares if share is not None]
            rows.append(
                (
                    group,
                    len(records),
                    report.cell.control,
                    report.cell.strength,
                    report.cell.change_norm,
                    *(value for name in FIGURES for value in _three(getattr(report, name))),
                    min(known) if len(known) == len(shares) else None,
                    max(known) if len(known) == len(shares) else None,
                )
            )
            if report.cell.control in MATCHED:
                comparisons.append(_comparison(group, report, measured.metric))
        prices += _prices(group, reports)
    RESULTS.mkdir(exist_ok=True)
    write_parquet(COLUMNS, rows, RESULTS / "interventions.parquet")
    record = {
        "environment": environment(),
        "command": "python -m benchmarks.interventions, see its docstring",
        "groups": groups,
        "learned_nothing": failed,
        "against_matched_shrinks": _counted(comparisons),
        "at_no_greater_price": prices,
        "comparisons": comparisons,
        "columns": list(COLUMNS),
        "rows": rows,
    }
    write_json_file(record, RESULTS / "interventions.json")
    print(table(groups, rows))
    print(json.dumps(record["against_matched_shrinks"], indent=2))
    outdone = sum(price["shrink_wins_back"] > price["edit_wins_back"] for price in prices)
    print(f"shrinks at no greater cost reduce forgetting more in {outdone} of {len(prices)} grid points")


def _forgetting(record: dict[str, Any]) -> float:
    after, before = (
        sum(record[name]["text_nats"]) / sum(record[name]["text_tokens"]) for name in ("tuned", "base_text")
    )
    return after - before


def _tuned_score(measured: Measured) -> dict[str, float]:
    return {"tuned": sum(measured.tuned.task_scores) / sum(measured.tuned.task_weights)}


def _three(interval: Any) -> tuple[float | None, float | None, float | None]:
    return (None,) * 3 if interval is None else (interval.estimate, interval.low, interval.high)


def _comparison(group: str, report: SweepCellReport, metric: str) -> dict[str, Any]:
    """Compare a matched shrink with the edit: the difference, and a p from its interval's width (normal)."""
    difference, task = report.forgetting_difference, report.task_difference
    assert difference is not None
    assert task is not None
    error = (difference.high - difference.low) / (2 * NormalDist().inv_cdf(0.975))
    z = difference.estimate / error if error > 0.0 else 0.0
    sign = 1.0 if metric == "accuracy" else -1.0
    return {
        "group": group,
        "control": report.cell.control,
        "strength": report.cell.strength,
        "edit_forgets_less_by": plain(difference),
        "shrink_task_better_by": sorted((sign * task.low, sign * task.high)),
        "p": 2.0 * (1.0 - NormalDist().cdf(abs(z))),
    }


def _prices(group: str, reports: list[SweepCellReport]) -> list[dict[str, Any]]:
    """For each strength of the edit, the shrink that reduces forgetting most without costing the task more.

    The cost is the loss of the right answers, which is finer than accuracy. Strength 1, the tuned model,
    counts as a shrink of zero.
    """
    shrinks = [
        (report.cell.control, report.cell.strength, report.task_loss_change, report.forgetting_change)
        for report in reports
        if report.cell.control in (*MATCHED, "uniform")
    ]
    found = []
    for report in reports:
        if report.cell.control != "intruders":
            continue
        price = report.task_loss_change.estimate
        fitting = [
            (change.estimate, control, strength)
            for control, strength, task, change in shrinks
            if task.estimate <= price
        ]
        best = min(fitting, default=(0.0, None, 1.0))
        found.append(
            {
                "group": group,
                "strength": report.cell.strength,
                "task_loss_change": price,
                "edit_wins_back": -report.forgetting_change.estimate,
                "shrink_wins_back": max(0.0, -best[0]),
                "shrink": best[1],
                "shrink_strength": best[2],
            }
        )
    return found


def _counted(comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    """How often the edit or the shrink forgets less at this level, raw and after Holm's correction."""
    found: dict[str, Any] = {"comparisons": len(comparisons), "level": LEVEL}
    ordered = sorted(comparisons, key=lambda each: each["p"])
    kept = 0
    for place, each in enumerate(ordered):
        if each["p"] > LEVEL / (len(ordered) - place):
            break
        kept = place + 1
    for name, chosen in (
        ("uncorrected", [c for c in comparisons if c["p"] < LEVEL]),
        ("after_holm", ordered[:kept]),
    ):
        better = [c for c in chosen if c["edit_forgets_less_by"]["estimate"] > 0.0]
        found[name] = {
            "edit_forgets_less": len(better),
            "of_these_task_surely_worse": sum(c["shrink_task_better_by"][0] > 0.0 for c in better),
            "shrink_forgets_less": len(chosen) - len(better),
            "no_difference_shown": len(comparisons) - len(chosen),
        }
    return found


def table(groups: list[dict[str, Any]], rows: list[tuple[Any, ...]]) -> str:
    """The form of the paper: change in the task / change in forgetting with its interval.

    One table shows the edit and the shrinks over the strengths, another one the other controls.
    """
    return "\n".join(_one_table(groups, rows, controls) for controls in (SHRINKS, OTHERS))


def _one_table(groups: list[dict[str, Any]], rows: list[tuple[Any, ...]], controls: tuple[str, ...]) -> str:
    found = {
        (row["group"], row["control"], row["strength"]): row
        for row in (dict(zip(COLUMNS, values, strict=True)) for values in rows)
    }
    lines = _heading("fine-tune", "change", *(f"{strength:g}" for strength in GRID.strengths))
    for group in groups:
        for control in controls:
            shown = [_shown(group, found[group["group"], control, at]) for at in GRID.strengths]
            lines += _line(group["group"], control, *shown)
    return lines


def _heading(*names: str) -> str:
    return _line(*names) + "|---" * len(names) + "|\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _shown(group: dict[str, Any], row: dict[str, Any]) -> str:
    scale, digits = (100.0, 1) if group["metric"] == "accuracy" else (1.0, 3)
    unit, factor, places = ("change", 1.0, 3) if row["forgetting_share"] is None else ("share", 100.0, 0)
    value, low, high = (factor * row[f"forgetting_{unit}{end}"] for end in ("", "_low", "_high"))
    interval = f"({_rounded(low, places)} to {_rounded(high, places)})"
    task = _rounded(scale * row["task_change"], digits, is_signed=True)
    return f"{task} / {_rounded(value, places, is_signed=True)} {interval}"


def _rounded(value: float, places: int, *, is_signed: bool = False) -> str:
    """Format a number; no sign before a value that rounds to zero."""
    text = f"{value:+.{places}f}" if is_signed else f"{value:.{places}f}"
    return text.lstrip("+-") if float(text) == 0.0 else text.replace("-", "−")
