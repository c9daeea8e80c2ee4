"""Rewrite the tables of docs/reproduction.md from the scales and the committed results."""

from __future__ import annotations

from pathlib import Path

from intruscope.report.study_docs import filled
from intruscope.studies.judge import judge_committed

PAGE = Path(__file__).parents[1] / "docs" / "reproduction.md"


def main() -> None:
    judged, _ = judge_committed()
    larger, _ = judge_committed(scale_name="midi")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), judged, larger), encoding="utf-8")


if __name__ == "__main__":
    main()
