"""The page on watching: its names, options and numbers are those of the code."""

import inspect
import re
from pathlib import Path

from intruscope.cli.main import app
from intruscope.linalg.limits import DENSE_LIMIT
from intruscope.train.look_file import Look, figures
from intruscope.train.looks import MatrixLook, VectorLook
from intruscope.train.probe import MAX_SEQUENCES
from intruscope.train.recipes import PAPER
from intruscope.train.watch import IntruderWatch

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")


def test_every_figure_is_in_the_table_and_no_other():
    vector = VectorLook(
        singular_value=1.0, alignment_lower=0.1, alignment_upper=0.2, verdict="intruder", track=0,
        turned=1.0, born=True,
    )  # fmt: skip
    matrix = MatrixLook(name="m", how="warm", vectors=(vector,))
    look = Look(step=1, epoch=0.1, seconds=0.1, matrices=(matrix,), loss=1.0, forgetting=0.1)
    assert set(re.findall(r"`(intruders/[a-z_]+)`", TEXT)) == set(figures(look))


def test_every_option_and_argument_exists():
    (command,) = (c for name, c in app.commands.items() if name == "tune")
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) <= known
    arguments = inspect.signature(IntruderWatch).parameters
    for name in ("every", "k", "text", "base", "stop_at_forgetting", "stop_at_intruders"):
        assert name in arguments and f"{name}" in TEXT
    assert arguments["k"].default == 10 and "ten (`k`)" in TEXT


def test_its_numbers_are_those_of_the_code():
    words = " ".join(TEXT.split())
    assert f"above {DENSE_LIMIT:,}" in words
    assert f"up to {MAX_SEQUENCES} sequences" in words
    assert f"{PAPER.warmup:.0%} warm-up, batch {PAPER.batch}, {PAPER.max_length} tokens" in words
    assert PAPER.alpha_times_rate == 2.4e-3 and "alpha * lr = 2.4e-3" in words
    for name in ("watch_trainer.py", "watch_sft.py"):
        assert (ROOT / "examples" / name).exists() and name in TEXT
