"""Claim: turning the top intruders down removes forgetting, more than a mere shrink of the same size does.

The paper's table 3 in its form (strength .1 .3 .5 .7 .9; change of accuracy, change of forgetting), with
all controls and paired intervals: on a masked MiniLM that LoRA of rank 1 and 8 tuned on SST-2, MNLI and QQP
(see ``examples/train_minilm.py``; up to three seeds), and on the shipped demonstration model. Forgetting is
measured on text that the base never saw. Each seed takes other sequences of the text and other examples of
the task, so that pooling seeds also pools samples.

Measurements are kept in the work folder, cell by cell, and an interrupted run goes on there; whatever is
finished is published. The controls that are no shrinks (random directions, neighbours, tail) are taken at one
strength, for processor time.

    python -m benchmarks.interventions --work WORK --base MODEL --runs RUNS --tasks TASKS --text FILE
    python -m benchmarks.interventions --work WORK --demo --publish
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch

from benchmarks.common import RESULTS, environment
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.tasks import ClassificationTask, Task, load_task
from intruscope.forgetting.texts import Corpus, read_texts
from intruscope.repair.survey import survey
from intruscope.report.json_report import plain, write_object
from intruscope.report.tables import write_rows
from intruscope.spectra.records import ScanSettings
from intruscope.spectra.scan import RunOptions
from intruscope.sweep.figures import Measured, cell_report
from intruscope.sweep.measure import MeasureOptions, measure_pair
from intruscope.sweep.records import MATCHED, Cell, CellReport, Measurement, SweepSettings
from intruscope.sweep.statistics import Sample, samples

SHRINKS = SweepSettings(controls=("intruders", *MATCHED, "uniform", "interpolation"))
"""The edit and what is a shrink, at the paper's strengths."""
OTHERS = replace(
    SHRINKS,
    strengths=(0.5,),
    controls=("intruders", "random", "neighbour_above", "neighbour_below", "tail"),
)
SEEDS = (0, 1, 2)
NUM_SEQUENCES, NUM_EXAMPLES, MAX_TOKENS = 20, 100, 48
LABELS = {"mnli": ("contradiction", "entailment", "neutral")}
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fine-tune, and what it is measured on.

    Attributes:
        name: Unique; names its file in the work folder.
        group: Those that are pooled: all seeds of one task and rank.
    """

    name: str
    group: str
    seed: int
    base: Path
    tuned: Path
    task: Task
    text: Corpus
    measuring: MeasureOptions
    training: dict[str, Any]


def minilm_cases(base: Path, runs: Path, tasks: Path, text: Path, work: Path) -> list[Case]:
    """The LoRA runs that are there, all of one seed before the next."""
    cases = []
    lines = text.read_text(encoding="utf-8").splitlines()
    for seed in SEEDS:
        part = work / f"text-s{seed}.txt"
        if not part.exists():
            part.write_text("\n".join(lines[seed :: len(lines) // NUM_SEQUENCES]) + "\n", encoding="utf-8")
        for task in ("sst2", "mnli", "qqp"):
            for rank in (1, 8):
                folder = runs / f"{task}-r{rank}-s{seed}"
                if (folder / "figures.json").exists():
                    cases.append(
                        Case(
                            name=folder.name,
                            group=f"{task} r={rank}",
                            seed=seed,
                            base=base,
                            tuned=folder,
                            task=_some_examples(tasks, task, seed),
                            text=read_texts([part]),
                            measuring=MeasureOptions(max_tokens=MAX_TOKENS, device="cpu"),
                            training=json.loads((folder / "figures.json").read_text()),
                        )
                    )
    return cases


def _some_examples(tasks: Path, name: str, seed: int) -> Task:
    file = next(path for path in (tasks / name / "dev.tsv", tasks / name / "dev.json") if path.exists())
    task = load_task(file, labels=LABELS.get(name))
    assert isinstance(task, ClassificationTask)
    step = len(task.labels) // NUM_EXAMPLES
    chosen = range(seed, len(task.labels), step)[:NUM_EXAMPLES]
    return replace(
        task, texts=tuple(task.texts[i] for i in chosen), labels=tuple(task.labels[i] for i in chosen)
    )


def demo_cases(work: Path) -> list[Case]:
    """The shipped model, tuned on the language reference with LoRA as the demonstration does."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from intruscope.demo.finetune import LoopSettings, encode, train, with_lora
    from intruscope.demo.run import BATCH, CONTEXT, LORA_LEARNING_RATE, LORA_RANK, MODEL, NUM_STEPS
    from intruscope.demo.texts import language_reference, library_texts

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    held_out = work / "demo-source.txt"
    held_out.write_text("\n\n".join(each.content for each in library_texts(held_out=True)), encoding="utf-8")
    measuring = MeasureOptions(context=CONTEXT, max_sequences=64, device="cpu")
    cases = []
    for seed in SEEDS:
        chapters, test = language_reference(seed=seed)
        folder, test_file = work / f"demo-adapter-s{seed}", work / f"demo-task-s{seed}.txt"
        test_file.write_text("\n\n".join(each.content for each in test)[:60_000], encoding="utf-8")
        settings = LoopSettings(
            learning_rate=LORA_LEARNING_RATE, num_steps=NUM_STEPS, batch=BATCH, context=CONTEXT, seed=seed
        )
        if not folder.exists():
            model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).requires_grad_(False)
            model = with_lora(model, rank=LORA_RANK, seed=seed)
            train(model, encode(tokenizer, chapters), settings, precision="float32")
            model.save_pretrained(folder, save_embedding_layers=False)
        cases.append(
            Case(
                name=f"demo-r{LORA_RANK}-s{seed}",
                group=f"demo LM r={LORA_RANK}",
                seed=seed,
                base=MODEL,
                tuned=folder,
                task=load_task(test_file),
                text=read_texts([held_out]),
                measuring=measuring,
                training=asdict(settings),
            )
        )
    return cases


def measure_case(case: Case, work: Path) -> None:
    """Both grids of one fine-tune, kept as one file."""
    path = work / f"{case.name}.measured.json"
    if path.exists():
        return
    started = time.perf_counter()
    folder = work / case.name
    folder.mkdir(exist_ok=True)
    found = survey(
        str(case.base),
        str(case.tuned),
        settings=ScanSettings(),
        options=RunOptions(workers=0, work_dir=folder / "survey"),
    )
    pair = load_pair(case.base, case.tuned, device="cpu")
    grids = [
        measure_pair(
            found,
            pair,
            task=case.task,
            text=case.text,
            settings=replace(settings, seed=case.seed),
            measuring=case.measuring,
            options=RunOptions(work_dir=folder / "sweep"),
        )
        for settings in (SHRINKS, OTHERS)
    ]
    cells = {cell.key: cell for grid in grids for cell in grid.cells}
    record = {
        "group": case.group,
        "seed": case.seed,
        "training": case.training,
        "num_intruders": sum(len(matrix.intruders) for matrix in found.matrices),
        "num_matrices": len(found.matrices),
        "text_sha256": case.text.sha256,
        "task_sha256": case.task.sha256,
        "metric": grids[0].metric,
        "protocol": grids[0].protocol,
        "base_text": plain(grids[0].base_text),
        "tuned": plain(grids[0].tuned),
        "cells": [plain(cell) for cell in cells.values()],
        "by_key": {key: plain(value) for grid in grids for key, value in grid.by_key.items()},
    }
    write_object(record, path)
    print(f"{case.name}: {len(cells)} cells in {time.perf_counter() - started:.0f} s", flush=True)


def pooled(records: list[dict[str, Any]]) -> Measured:
    """Several seeds as one sample; norms and counts as means.

    Where the seeds took other sequences, these come one after the other. Where they took the same, the losses
    of a sequence are added up over the seeds: it is one item of the resampling, not several.
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
            Cell(
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


def figures(records: list[dict[str, Any]]) -> tuple[Measured, Sample, list[CellReport]]:
    measured = pooled(records)
    sample, *_ = samples(len(measured.tuned.text_nats), len(measured.tuned.task_scores), SHRINKS)
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
    """Pool whatever is measured, and write the table, its comparisons and its sources."""
    by_group: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(work.glob("*.measured.json")):
        record = json.loads(path.read_text())
        by_group.setdefault(record["group"], []).append(record)
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
                "forgetting_of_seeds": [
                    sum(record["tuned"]["text_nats"]) / sum(record["tuned"]["text_tokens"])
                    - sum(record["base_text"]["text_nats"]) / sum(record["base_text"]["text_tokens"])
                    for record in records
                ],
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
    write_rows(COLUMNS, rows, RESULTS / "interventions.parquet")
    record = {
        "environment": environment(),
        "command": "python -m benchmarks.interventions, see its docstring",
        "groups": groups,
        "against_matched_shrinks": _counted(comparisons),
        "at_no_greater_price": prices,
        "comparisons": comparisons,
        "columns": list(COLUMNS),
        "rows": rows,
    }
    write_object(record, RESULTS / "interventions.json")
    print(table(groups, rows))
    print(json.dumps(record["against_matched_shrinks"], indent=2))
    outdone = sum(price["shrink_wins_back"] > price["edit_wins_back"] for price in prices)
    print(f"a shrink that costs the task no more wins back more in {outdone} of {len(prices)} cells")


def _tuned_score(measured: Measured) -> dict[str, float]:
    return {"tuned": sum(measured.tuned.task_scores) / sum(measured.tuned.task_weights)}


def _three(interval: Any) -> tuple[float | None, float | None, float | None]:
    return (None,) * 3 if interval is None else (interval.estimate, interval.low, interval.high)


def _comparison(group: str, report: CellReport, metric: str) -> dict[str, Any]:
    """One matched shrink beside the edit: the difference, and a p from its interval's width (normal)."""
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


def _prices(group: str, reports: list[CellReport]) -> list[dict[str, Any]]:
    """For each strength of the edit, the shrink that wins back most without costing the task more.

    By the loss of the right answers, which is finer than accuracy; strength 1, the tuned model, counts as a
    shrink of nothing.
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
    """How often the edit or the shrink forgets less at this level: raw, and after Holm's correction."""
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
    """The paper's form: change of the task / change of forgetting with its interval.

    One table of the edit and the shrinks over the strengths, one of the other controls at theirs.
    """
    strengths = [f"{strength:g}" for strength in SHRINKS.strengths]
    others = [name for name in OTHERS.controls if name != "intruders"]
    first = _heading("fine-tune", "edit or shrink", *strengths)
    second = _heading(
        "fine-tune", *(f"{name}, {strength:g}" for name in others for strength in OTHERS.strengths)
    )
    for group in groups:
        found = {
            (row["control"], row["strength"]): row
            for row in (dict(zip(COLUMNS, values, strict=True)) for values in rows)
            if row["group"] == group["group"]
        }
        for control in ("intruders", *MATCHED, "uniform"):
            shown = [_shown(group, found[control, strength]) for strength in SHRINKS.strengths]
            first += _line(group["group"], control, *shown)
        second += _line(
            group["group"],
            *(_shown(group, found[name, strength]) for name in others for strength in OTHERS.strengths),
        )
    return f"{first}\n{second}"


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
    """Without a sign before what rounds to zero."""
    text = f"{value:+.{places}f}" if is_signed else f"{value:.{places}f}"
    return text.lstrip("+-") if float(text) == 0.0 else text.replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="the masked MiniLM")
    parser.add_argument("--runs", type=Path, help="what examples/train_minilm.py wrote")
    parser.add_argument("--tasks", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument(
        "--only", default="", help="runs whose name holds this: for several processes at once"
    )
    parser.add_argument("--demo", action="store_true", help="the shipped model")
    parser.add_argument("--publish", action="store_true", help="pool and write what is measured")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.base is not None:
        for case in minilm_cases(options.base, options.runs, options.tasks, options.text, options.work):
            if options.only in case.name:
                measure_case(case, options.work)
    if options.demo:
        for case in demo_cases(options.work):
            measure_case(case, options.work)
    if options.publish:
        publish(options.work)


if __name__ == "__main__":
    main()
