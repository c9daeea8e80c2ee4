"""The sentence says what was found, in numbers that add up, and promises nothing else."""

import random
from dataclasses import replace

import pytest
import report_cases as cases

from intruscope.errors import printable_text
from intruscope.spectra.records import NullCount
from intruscope.spectra.words import percent, sentence


def with_verdicts(counts, *, layers=1):
    """A scan of one kind whose first matrices have so many intruders."""
    report = cases.scan(layers=layers, kinds={"q": "q_proj"}, rate=0)
    settings = report.settings
    matrices = [
        cases.matrix(random.Random(i), f"m{i}", "q", i, intruders=count, settings=settings)
        for i, count in enumerate(counts)
    ]
    return replace(report, matrices=tuple(matrices))


def test_counts_of_vectors_and_matrices():
    said = sentence(with_verdicts([3, 0, 2, 0]))
    assert said == (
        "5 of 40 leading singular vectors (12%) are intruders, in 2 of 4 matrices. They have no counterpart "
        "in the base (alignment below 0.5)."
    )


def test_chance_stands_beside_the_count():
    report = with_verdicts([3, 0, 2, 0])
    given = NullCount(trials=4, mean=1.25, low=1.0, high=2.0, counts=(1, 1, 1, 2), method="spectra")
    beside = replace(
        report,
        matrices=tuple(replace(m, sides=(replace(m.sides[0], chance=given),)) for m in report.matrices),
    )
    assert sentence(beside) == sentence(report) + (
        " By chance one would expect 5.0 (2.8 to 7.2): random directions with the same singular values, "
        "sampled from the spectra of base and update."
    )


def test_one_is_singular():
    said = sentence(with_verdicts([0, 1]))
    assert "1 of 20 leading singular vectors (5.0%) is an intruder, in 1 of 2 matrices. It has no" in said


def test_none_names_epsilon():
    report = cases.scan(epsilon=0.3, rate=0, layers=1)
    said = sentence(report)
    assert said.startswith("None of the 70 leading singular vectors is an intruder at epsilon 0.3")


def test_undecided_vectors_are_said():
    (matrix,) = with_verdicts([1]).matrices
    (side,) = matrix.sides
    place = side.verdicts.index("aligned")
    for verdict in ("borderline", "degenerate"):
        verdicts = (*side.verdicts[:place], verdict, *side.verdicts[place + 1 :])
        report = replace(
            with_verdicts([1]), matrices=(replace(matrix, sides=(replace(side, verdicts=verdicts),)),)
        )
        assert "1 more could not be decided" in sentence(report)


def test_embeddings_are_not_counted():
    settings = cases.scan(layers=1).settings
    head = cases.matrix(
        random.Random(1), "lm_head", "head", None, intruders=7, settings=settings, scope="other"
    )
    assert sentence(cases.scan(rate=0, layers=1, extra=(head,))).startswith("None of the 70 ")


def test_the_first_side_counts():
    both = cases.scan(3, side="both", layers=2)
    found = sum(matrix.sides[0].num_intruders for matrix in both.matrices)
    assert sentence(both).startswith(f"{found} of 140 ")


def test_an_incomplete_scan_says_so():
    assert sentence(cases.scan(complete=False)).endswith("incomplete: see the findings and the ledger.")
    nothing = cases.scan(layers=0, complete=False)
    assert sentence(nothing).startswith("Nothing in the paper's scope was compared")
    assert "incomplete" in sentence(nothing)


def test_nothing_changed():
    report = cases.scan(rate=0, layers=1)
    zero = tuple(
        replace(matrix, update=replace(matrix.update, frobenius_norm=0.0)) for matrix in report.matrices
    )
    assert sentence(replace(report, matrices=zero)).startswith("Nothing changed")
    one_changed = (*zero[:-1], report.matrices[-1])
    assert not sentence(replace(report, matrices=one_changed)).startswith("Nothing changed")


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.0, "0.0%"), (1e-9, "under 0.1%"), (0.0123, "1.2%"), (0.0994, "9.9%"), (0.0996, "10%"),
        (0.5, "50%"), (1.0, "100%"), (1.154, "115%"),
    ],
)  # fmt: skip
def test_percentages(fraction, text):
    assert percent(fraction) == text


def test_what_does_not_print_is_escaped_and_nothing_is_cut():
    text = "a\x00b\x1b[31mc\u202ed\u2028e\ud800f" + "é" * 500
    shown = printable_text(text)
    assert shown == "a\\x00b\\x1b[31mc\\u202ed\\u2028e\\ud800f" + "é" * 500
