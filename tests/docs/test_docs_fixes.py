"""The page on fixes: its options exist, and what it says of the defaults is true."""

import inspect
import re
from pathlib import Path

from intruscope.cli.main import app
from intruscope.fitting.fit import fit
from intruscope.fitting.parts import MAX_DIRECTIONS
from intruscope.fitting.settings import WEIGHTS, FitSettings
from intruscope.fitting.table import FITS
from intruscope.forgetting.disjoint import MAX_SHARED_LINES

TEXT = (Path(__file__).parents[2] / "docs" / "fixes.md").read_text(encoding="utf-8")


def test_every_option_of_the_page_exists():
    options = {
        verb: {each for parameter in app.commands[verb].params for each in parameter.opts}
        for verb in ("sweep", "repair")
    }
    for line in re.findall(r"^intruscope (\w+) (.*)$", TEXT, re.MULTILINE):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line[1])) <= options[line[0]]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) <= options["sweep"] | options["repair"]


def test_every_fix_is_on_the_page():
    rows = re.findall(r"^\| `(\w+)` \| `(--[a-z-]+)` \|", TEXT, re.MULTILINE)
    assert [name for name, _ in rows] == list(FITS)


def test_the_defaults_are_those_of_the_page():
    settings = FitSettings()
    assert f"{settings.fit_steps} steps of Adam" in TEXT
    assert f"about {settings.fit_tokens} tokens" in TEXT
    assert ",".join(f"{weight:g}" for weight in WEIGHTS) in TEXT
    assert f"{MAX_DIRECTIONS} largest directions" in TEXT
    assert f"more than {MAX_SHARED_LINES:.0%}" in TEXT
    assert {FITS["fitted"].learning_rate, FITS["fitted_matrix"].learning_rate} == {0.03}
    assert FITS["replay"].learning_rate == 0.002
    assert inspect.signature(fit).parameters["seed"].default == 0
