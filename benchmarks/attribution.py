"""Claim: the parts of an update add up to forgetting and gain within 1%; and C26, on the same fine-tunes.

Every fine-tune of ``benchmarks/interventions.py`` (the demo model, and a masked MiniLM tuned on SST-2, MNLI
and QQP) is attributed by ``forget_where``. The verdict on C26 is of those whose parts add up.

Reports are kept in the work folder, and an interrupted run resumes there.

    python -m benchmarks.attribution --work WORK --demo
    python -m benchmarks.attribution --work WORK --base MODEL --runs RUNS --tasks TASKS --text FILE
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks.interventions import case_parser, learned_cases
from intruscope.attribution.where import forget_where
from intruscope.forgetting.records import ForgettingReport
from intruscope.studies.claims_attribution import c26
from intruscope.studies.verdicts import verdict

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.interventions import Case
    from intruscope.forgetting.where import WhereReport

NUM_SEQUENCES = 200


def report_of(case: Case, work: Path) -> ForgettingReport:
    """The attribution of one fine-tune, from the work folder where it is complete."""
    path = work / f"{case.name}.where.json"
    if not path.exists():
        is_demo = case.name.startswith("demo")
        begun = time.perf_counter()
        report = forget_where(
            str(case.base),
            str(case.tuned),
            text=work / ("demo-source.txt" if is_demo else f"text-s{case.seed}.txt"),
            tasks=[case.task],
            protocol=None if is_demo else "fast",
            context=case.measuring.context,
            max_sequences=NUM_SEQUENCES,
            max_task_tokens=case.measuring.max_tokens,
            device="cpu",
            on_notice=print,
        )
        print(f"{case.name}: {time.perf_counter() - begun:.0f} s")
        report.save(path)
    return ForgettingReport.load(path)


def row_of(case: Case, where: WhereReport) -> dict[str, Any]:
    """The figures of C26; none where the parts do not add up."""
    is_complete = all(finding.code != "where-incomplete" for finding in where.findings)
    spans = {
        span.name: {
            "norm_share": span.norm_share,
            "forgetting_share": span.forgetting_share,
            "gain_share": span.gain_share,
        }
        for span in where.spans
    }
    return {**case.row, "where": spans if is_complete else {}}


def main() -> None:
    given = case_parser(__doc__).parse_args()
    rows = []
    for case in learned_cases(given):
        where = report_of(case, given.work).where
        assert where is not None
        for name, total in (("forgetting", where.total), ("gain", where.gain_total)):
            if total is not None and total.error is not None:
                print(f"{case.name}: {name} {total.measured:+.4f}, parts off by {total.error:+.2%}")
        for span in where.spans:
            shares = (span.norm_share, span.forgetting_share, span.gain_share)
            print(f"  {span.name}: " + ", ".join("-" if each is None else f"{each:.3f}" for each in shares))
        rows.append(row_of(case, where))
    found = verdict(c26(rows))
    print(f"\nC26: {found.outcome}. {found.reason}")


if __name__ == "__main__":
    main()
