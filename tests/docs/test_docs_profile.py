"""The page on profiling: its options, defaults, words and fields are those of the code."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

from intruscope.cli.main import app
from intruscope.profiling import records
from intruscope.profiling.candidates import DROPOUTS, METHODS, RANKS
from intruscope.profiling.profile import LEAST_ROUNDS, WARM_STEPS
from intruscope.profiling.stepping import TOTAL_STEPS
from intruscope.profiling.verdicts import ALIKE, MAX_RESOLUTION, NULL_OFFSET

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "profile.md").read_text(encoding="utf-8")
FLAT = " ".join(TEXT.split())


def test_every_option_exists_and_every_option_of_what_is_measured_is_named():
    (command,) = (c for name, c in app.commands.items() if name == "profile")
    known = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", TEXT))
    assert named <= known
    usual = {"--threads", "--device", "--seed", "--allow-pickle", "--force", "--verbose", "--quiet"}
    assert known - named <= usual


def test_numbers_are_those_of_the_code():
    settings = records.ProfileSettings()
    assert settings.shapes == ((16, 128),) and "16 sequences of 128 tokens" in FLAT
    assert RANKS == (8, 1, 64) and "rank 8 on all linear layers" in FLAT and "rank 1 or 64" in FLAT
    assert DROPOUTS == (0.0, 0.1) and "dropout 0.1" in FLAT and METHODS == ("lora", "melora")
    assert WARM_STEPS == 3 and "their first three steps" in FLAT
    assert LEAST_ROUNDS == 10 and "at least ten" in FLAT
    assert (NULL_OFFSET, MAX_RESOLUTION, ALIKE) == (0.01, 0.10, 0.05)
    assert "misses 1 by over 1%, or reaches further than 10%" in FLAT and "lies within 5% of 1" in FLAT
    assert TOTAL_STEPS == 10_000 and "10,000 steps" in FLAT


def test_words_and_fields_are_those_of_the_records():
    for verdict in get_args(records.StepVerdict):
        assert verdict in TEXT
    for outcome in get_args(records.Outcome):
        assert f"`{outcome}`" in TEXT
    for record in (records.ShapeReport, records.ShapeRecommendation, records.Memory):
        for field in fields(record):
            if field.name not in ("batch", "length", "num_rounds"):
                assert f"`{field.name}`" in TEXT, field.name
    assert records.SCHEMA in TEXT
