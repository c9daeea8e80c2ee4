"""Rewrite the tables of the studies' pages from the scales and the committed results."""

from __future__ import annotations

from pathlib import Path

from intruscope.report.study_docs import filled, merging_filled
from intruscope.studies.judge import committed, judge_committed, study_rows
from intruscope.studies.recipes import MERGING
from intruscope.studies.records import Record, read_results

DOCS = Path(__file__).parents[1] / "docs"
PAGE, MERGING_PAGE = DOCS / "reproduction.md", DOCS / "merging-study.md"


def merged_rows() -> list[Record]:
    """The committed rows of the study of merging."""
    found = committed(scale_name="merging")
    return study_rows("merging", read_results(found[1])[0])[MERGING] if found is not None else []


def main() -> None:
    judged, _ = judge_committed()
    larger, _ = judge_committed(scale_name="midi")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), judged, larger), encoding="utf-8")
    merging, _ = judge_committed(scale_name="merging")
    page = merging_filled(MERGING_PAGE.read_text(encoding="utf-8"), merging, merged_rows())
    MERGING_PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
