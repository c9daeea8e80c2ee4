"""CONTRIBUTING names every folder of the package, and each term once."""

import re
from pathlib import Path

import intruscope

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = Path(intruscope.__file__).parent


def test_the_house_has_every_folder_and_no_other():
    listed = re.findall(r"^\| `(\w+)/` \|", PAGE, re.MULTILINE)
    assert sorted(listed) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def test_the_glossary_has_one_line_per_term():
    rows = re.findall(r"^\| ([^|`]+) \|", PAGE.split("## Glossary")[1], re.MULTILINE)[1:]
    terms = [term.strip() for row in rows for term in row.split(",")]
    assert len(terms) > 30
    assert len(set(terms)) == len(terms)
