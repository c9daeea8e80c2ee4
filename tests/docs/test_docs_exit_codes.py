"""The page of exit codes lists the codes and metrics of the code, and nothing else."""

import re
from pathlib import Path

import pytest

import intruscope.errors as errors
from intruscope.forgetting.gates import METRICS as FORGETTING_METRICS
from intruscope.spectra.gates import METRICS

PAGE = Path(__file__).parents[2] / "docs" / "exit-codes.md"
BY_SIGNALS_AND_GATES = {0, 1, 130, 143}


def kinds():
    family = [errors.IntruscopeError]
    for kind in family:
        family += kind.__subclasses__()
    return [kind for kind in family if kind.__module__ == errors.__name__]


def test_every_error_class_is_on_the_page_with_its_code():
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    listed = {(int(code), name) for code, names in rows for name in re.findall(r"`([a-z]+)`", names)}
    assert listed == {(kind.exit_code, kind.id) for kind in kinds()}
    codes = [int(code) for code, _ in rows]
    assert codes == sorted(set(codes))
    assert set(codes) == {kind.exit_code for kind in kinds()} | BY_SIGNALS_AND_GATES


def test_identifiers_are_unique():
    identifiers = [kind.id for kind in kinds()]
    assert len(set(identifiers)) == len(identifiers)


@pytest.mark.parametrize(
    ("heading", "metrics"), [("Gates", METRICS), ("Gates on forgetting", FORGETTING_METRICS)]
)
def test_every_metric_of_a_gate_is_on_the_page(heading, metrics):
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE) == list(metrics)
