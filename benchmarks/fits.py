"""Claim: at the tuned model's own task loss, fitted factors win back more than a shrink, and replay most.

Every fine-tune of ``benchmarks/interventions.py`` (the demo model, and a masked MiniLM tuned on SST-2, MNLI
and QQP) is swept with the fitted fixes. They are fitted on what is not measured: for the demo, chapters
without a measured line and library files of the pretraining part; for MiniLM, a third of its held-out text
and examples that were trained on. The verdict on C25 is of the fits of one factor per direction.

Measurements and fits are kept in the work folder, and an interrupted run resumes there.

    python -m benchmarks.fits --work WORK --demo
    python -m benchmarks.fits --work WORK --base MODEL --runs RUNS --tasks TASKS --text FILE
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.interventions import case_parser, learned_cases
from intruscope.engine.settings import RunOptions
from intruscope.forgetting.tasks import Task, load_task
from intruscope.studies.claims_fits import c25
from intruscope.studies.verdicts import verdict
from intruscope.sweep.live import limited
from intruscope.sweep.measure import sweep
from intruscope.sweep.records import SweepReport, SweepSettings
from intruscope.sweep.settings import MeasureOptions
from intruscope.sweep.words import effect

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.interventions import Case

GRID = SweepSettings(
    controls=("intruders", "uniform", "fitted", "fitted_matrix", "replay"),
    strengths=(0.5, 0.7, 0.85, 0.9),
    weights=(0.1, 0.3, 1.0, 3.0),
    max_task_cost=0.002,
)
NUM_SEQUENCES, NUM_EXAMPLES, NUM_FITTED = 200, 800, 2000
_TELLING_CHARACTERS = 40


def demo_data(work: Path, seed: int) -> dict[str, Any]:
    """Chapters and library files that share no line with what is measured."""
    from intruscope.demo.texts import language_reference, library_texts

    chapters, _ = language_reference(seed=seed)
    measured = _lines((work / f"demo-task-s{seed}.txt").read_text(encoding="utf-8"))
    path = work / f"demo-fit-s{seed}.txt"
    apart = [each.content for each in chapters if not _lines(each.content) & measured]
    path.write_text("\n\n".join(apart), encoding="utf-8")
    text = work / "demo-fit-source.txt"
    files = library_texts(held_out=False)[::20]
    text.write_text("\n\n".join(each.content for each in files), encoding="utf-8")
    return {
        "task": load_task(work / f"demo-task-s{seed}.txt"),
        "text": str(work / "demo-source.txt"),
        "fit_task": load_task(path),
        "fit_text": str(text),
        "measuring": MeasureOptions(
            context=128, max_sequences=NUM_SEQUENCES, max_examples=NUM_SEQUENCES, device="cpu"
        ),
    }


def _lines(text: str) -> set[str]:
    lines = (line.strip() for line in re.split("\r\n|\n|\r", text))
    return {line for line in lines if len(line) >= _TELLING_CHARACTERS}


def minilm_data(case: Case, tasks: Path, text: Path) -> dict[str, Any]:
    """All held-out text, a third of which is fitted on, and examples that were trained on."""
    name = case.name.partition("-")[0]
    folder = tasks / name
    train = next(path for path in (folder / "train_full.tsv", folder / "train.json") if path.exists())
    dev = next(path for path in (folder / "dev.tsv", folder / "dev.json") if path.exists())
    labels = getattr(case.task, "order", None)

    def read(path: Path, most: int) -> Task:
        return limited(load_task(path, labels=labels), most)

    return {
        "task": read(dev, NUM_EXAMPLES),
        "text": str(text),
        "fit_task": read(train, NUM_FITTED),
        "measuring": replace(case.measuring, max_sequences=NUM_SEQUENCES, max_examples=NUM_EXAMPLES),
    }


def report_of(case: Case, data: dict[str, Any], work: Path) -> SweepReport:
    """The sweep of one fine-tune, from the work folder where it is complete."""
    path = work / f"{case.name}.fits.json"
    if not path.exists():
        report = sweep(
            str(case.base),
            str(case.tuned),
            **data,
            settings=replace(GRID, seed=case.seed),
            options=RunOptions(workers=0, work_dir=work / f"{case.name}-fits"),
            on_notice=print,
        )
        report.save(path)
    return SweepReport.load(path)


def row_of(case: Case, report: SweepReport) -> dict[str, Any]:
    """The figures of C25."""
    assert report.fitting is not None
    shares = {
        cell.cell.weight: cell.forgetting_share
        for cell in report.cells
        if cell.cell.control == "fitted" and cell.forgetting_share is not None
    }
    fits: dict[str, dict[str, float]] = {}
    for test in report.fitting.directions:
        if test.correlation is not None and test.difference is not None and test.weight in shares:
            factors = [each.factor for each in test.directions]
            share = shares[test.weight]
            assert share is not None
            fits[f"{test.weight:g}"] = {
                "difference": test.difference.estimate,
                "correlation": test.correlation,
                "mean_factor": sum(factors) / len(factors),
                "forgetting_share": share.estimate,
            }
    return {**case.row, "fits": fits}


def main() -> None:
    given = case_parser(__doc__).parse_args()
    rows = []
    for case in learned_cases(given):
        is_demo = case.name.startswith("demo")
        data = demo_data(given.work, case.seed) if is_demo else minilm_data(case, given.tasks, given.text)
        report = report_of(case, data, given.work)
        assert report.fitting is not None
        print(f"\n{case.name}: {report.fitting.best.sentence}")
        for choice in report.choices:
            setting = choice.weight if choice.strength is None else choice.strength
            said = "nothing" if choice.report is None else effect(choice.report, report.metric)
            print(f"  {choice.control} at {setting}: {said}")
        seconds = {each.fix: each.seconds for each in report.fitting.fits}
        print("  seconds per fit: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
        rows.append(row_of(case, report))
    found = verdict(c25(rows))
    print(f"\nC25: {found.outcome}. {found.reason}")


if __name__ == "__main__":
    main()
