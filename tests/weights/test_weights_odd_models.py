"""Odd but valid models against what they compute in memory; ``benchmarks/odd_models.py`` runs all of them."""

from __future__ import annotations

import pytest

from odd_models import FAMILIES, Case, all_cases, run_case

pytestmark = pytest.mark.filterwarnings("ignore")
# One of each way to go wrong: Conv1D by table, nested, converted and of an unknown type; fused parts of every
# order; experts both ways round; embeddings that have other names; shared words.
_SHOWN = [
    *(("gpt2", True, "full"), ("vit-gpt2", False, "full"), ("bert-gpt2", True, "full")),
    *(("gpt2-as-linear", True, "full"), ("gpt2-of-unknown-type", True, "lora")),
    *(("clvp", False, "lora"), ("gpt2-without-config", False, "lora"), ("gpt-bigcode", True, "lora")),
    *(("falcon-new", False, "full"), ("codegen", False, "lora"), ("gpt-oss", True, "full")),
    *(("mixtral", False, "full"), ("qwen2.5-vl", False, "full"), ("siglip2", False, "full")),
    *(("t5-gated", True, "full"), ("albert", True, "lora"), ("llama-tied", False, "full")),
]


_CASES = [Case(family=family, square=square, method=method) for family, square, method in _SHOWN]


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_a_scan_finds_what_the_model_in_memory_computes(case, asked_here, tmp_path):
    outcome = run_case(case, tmp_path)
    assert (outcome.verdict, outcome.notes) == ("right", [])
    assert outcome.num_matrices >= 8
    assert outcome.num_intruders > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decision-transformer", "gpt-neo"])
def test_what_headers_leave_open_transformers_decides(name, request, tmp_path):
    if name != "decision-transformer":  # one of them in a process of its own, as for users
        request.getfixturevalue("asked_here")
    outcome = run_case(Case(family=name, square=True, method="full"), tmp_path)
    assert (outcome.verdict, outcome.notes) == ("right", [])


def test_there_are_two_hundred_cases_and_each_family_has_four():
    cases = all_cases()
    assert len(cases) == len({case.name for case in cases}) == 4 * len(FAMILIES) >= 200
