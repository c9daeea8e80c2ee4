"""From the estimates of tasks to one verdict: what disagrees is not averaged, and no effect is a result."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from intruscope.studies.estimates import Estimate, heterogeneity, reliability, stratified_mean
from intruscope.studies.judge import committed, study_rows
from intruscope.studies.lives import equal_fit_difference, without_unfit
from intruscope.studies.records import read_results
from intruscope.studies.verdicts import Statement, over_tasks, verdict

SEEN = {"sst2": (-0.056, 0.050), "mnli": (-0.085, 0.010), "reference": (-0.319, 0.016)}
"""Change of forgetting by the edit of C16: mean and deviation over the seeds of three tasks, as measured."""
LEVEL = 0.95


def judged(rows, *, smallest=0.1, needed=None):
    """A claim of one statement: below -0.1; and what it needs, if anything."""
    values = {}
    for row in rows:
        values.setdefault(row["task"], []).append(row["x"])
    found = Statement(text="x", estimate=stratified_mean(values, level=LEVEL), below=-0.1, smallest=smallest)
    if needed is None:
        return [found]
    there = stratified_mean({task: [needed[task] - 0.01, needed[task] + 0.01] for task in values})
    return [Statement(text="needed", estimate=there, above=1.0, is_needed=True), found]


def drawn(rng, tasks, seeds=3):
    return [
        {"task": task, "x": rng.normal(mean, deviation)}
        for task, (mean, deviation) in tasks.items()
        for _ in range(seeds)
    ]


def outcomes(tasks, repetitions=400, **options):
    every = [
        over_tasks(lambda rows: judged(rows, **options), drawn(np.random.default_rng(n), tasks))[0].outcome
        for n in range(repetitions)
    ]
    return {outcome: every.count(outcome) / repetitions for outcome in dict.fromkeys(every)}


def test_heterogeneity_is_welchs_test():
    rng = np.random.default_rng(0)
    groups = [rng.normal(m, s, n).tolist() for m, s, n in ((0, 1, 3), (1, 3, 5), (4, 0.5, 4))]
    found = heterogeneity([stratified_mean({"a": group}, level=0.99) for group in groups])
    means, squares = ([f(g) for g in groups] for f in (np.mean, lambda g: np.var(g, ddof=1) / len(g)))
    weights = 1 / np.array(squares)
    middle = weights @ means / weights.sum()
    assert found.q == pytest.approx(weights @ (np.array(means) - middle) ** 2, rel=1e-9)
    assert found.p == pytest.approx(stats.f_oneway(*groups, equal_var=False).pvalue, rel=1e-9)
    # With many runs behind each error it is Cochran's Q against chi-square.
    sure = [replace(stratified_mean({"a": g}), freedom=math.inf) for g in groups]
    assert heterogeneity(sure).p == pytest.approx(stats.chi2.sf(heterogeneity(sure).q, 2), rel=1e-9)
    assert heterogeneity(sure[:1]) is None


def test_equal_tasks_are_rarely_told_apart():
    rng = np.random.default_rng(1)
    alarms = [
        heterogeneity([stratified_mean({"a": rng.normal(0, s, 3).tolist()}) for s in (1.0, 0.5, 2.0)]).p
        < 0.05
        for _ in range(600)
    ]
    assert np.mean(alarms) < 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / 600)


def test_tasks_that_disagree_as_those_seen_are_mixed():
    """Their mean, -15%, lies beyond the bound: pooled it would hold, as version 1 said."""
    found = outcomes(SEEN)
    assert found["mixed"] >= 0.8
    assert found.get("holds", 0.0) <= 0.05
    same_side = {task: (mean - 0.3, deviation) for task, (mean, deviation) in SEEN.items()}
    assert outcomes(same_side)["holds"] >= 0.9  # they differ, but not about the claim


def test_nothing_is_called_an_effect_or_none_too_often():
    """At the edge of each region, where a false word is likeliest."""
    at_bound = dict.fromkeys("abc", (-0.1, 0.03))
    assert outcomes(at_bound, smallest=None).get("holds", 0.0) <= 0.05
    found = outcomes(at_bound)
    assert found.get("no effect", 0.0) <= 0.05
    assert outcomes(dict.fromkeys("abc", (0.0, 0.03)))["no effect"] >= 0.9
    assert outcomes(dict.fromkeys("abc", (-0.1, 0.5)))["undecided"] >= 0.85


def test_tasks_without_what_a_claim_needs_do_not_count():
    tasks = {"with": (-0.3, 0.02), "without": (0.3, 0.02)}
    rows = drawn(np.random.default_rng(0), tasks)
    pooled, alone = over_tasks(lambda rows: judged(rows, needed={"with": 9.0, "without": 0.0}), rows)
    assert pooled.outcome == alone["with"].outcome == "holds"
    assert alone["without"].outcome == "not testable here"
    assert pooled.statements[-1].estimate.num_tasks == 1
    none, _ = over_tasks(lambda rows: judged(rows, needed={"with": 0.0, "without": 0.0}), rows)
    assert none.outcome == "not testable here"
    unsure, _ = over_tasks(lambda rows: judged(rows, needed={"with": 1.0, "without": 1.0}), rows)
    assert unsure.outcome == "undecided"
    both, _ = over_tasks(lambda rows: judged(rows, needed={"with": 9.0, "without": 9.0}), rows)
    assert both.outcome == "mixed"
    assert "the tasks differ: with −0.296, without 0.3" in both.reason


def made(low, high, **options):
    """A statement whose interval this is."""
    estimate = Estimate(
        estimate=(low + high) / 2, low=low, high=high, level=LEVEL, detectable=1.0, num_runs=3, num_tasks=1
    )
    return Statement(text="x", estimate=estimate, **options)


@pytest.mark.parametrize(
    ("interval", "finding"),
    [
        ((0.2, 0.4), "supported"),
        ((0.01, 0.05), "no effect"),  # surely above 0, and too small to matter
        ((-0.05, 0.05), "no effect"),
        ((-0.3, -0.2), "contradicted"),
        ((-0.3, -0.05), "contradicted"),
        ((-0.05, 0.3), "open"),
    ],
)
def test_a_finding_is_read_off_the_whole_interval(interval, finding):
    assert made(*interval, above=0.0, smallest=0.1).finding == finding
    moved = [0.5 + end for end in interval]
    assert made(*moved, above=0.5, smallest=0.1, nothing=0.5).finding == finding


def test_the_words_of_several_statements():
    yes, no = made(0.2, 0.4, above=0.0), made(-0.4, -0.2, above=0.0)
    nil, open_ = made(-0.05, 0.05, above=0.0, smallest=0.1), made(-0.4, 0.4, above=0.0)
    for statements, outcome in (
        ([yes, yes], "holds"),
        ([yes, no], "holds in part"),
        ([yes, nil], "holds in part"),
        ([no, nil], "does not hold"),
        ([nil, open_], "no effect"),
        ([open_], "undecided"),
        ([], "undecided"),
    ):
        assert verdict(statements).outcome == outcome
    assert verdict([yes, replace(no, is_aside=True)]).outcome == "holds"


def test_reliability_is_the_share_of_variance_between_models():
    """Against the two mean squares by hand, and the share that was put in."""
    rng = np.random.default_rng(2)
    models = {f"m{i}": (10.0 * rng.normal() + rng.normal(0, 5, 3)).tolist() for i in range(300)}
    found = reliability({"a": models})
    table = np.array(list(models.values()))
    between = 3 * np.var(table.mean(axis=1), ddof=1)
    inside = table.var(axis=1, ddof=1).mean()
    assert found.estimate == pytest.approx((between - inside) / (between + 2 * inside), rel=1e-12)
    assert found.low < 100 / 125 < found.high and found.high - found.low < 0.1
    alike = {f"m{i}": rng.normal(0, 5, 3).tolist() for i in range(300)}
    assert reliability({"a": alike}).low < 0.0 < reliability({"a": alike}).high < 0.15
    shifted = {"a": models, "b": {name: [v + 1e3 for v in values] for name, values in models.items()}}
    assert reliability(shifted).estimate == pytest.approx(
        found.estimate, abs=0.01
    )  # levels of tasks are not models
    assert reliability({"a": {"m": [1.0, 2.0]}}) is None
    assert reliability({"a": {"m": [1.0, 1.0], "n": [1.0, 1.0]}}) is None


def run(arm, losses, forgetting, *, seed=0, task="t", status="ok", final=None):
    looks = [
        {"step": step, "held_out_loss": loss, "forgetting": lost}
        for step, (loss, lost) in enumerate(zip(losses, forgetting, strict=True))
    ]
    return {
        "arm": arm, "task": task, "seed": seed, "status": status, "looks": looks,
        "held_out_loss": losses[-1] if final is None else final, "settings": {"base": "b", "task": task},
    }  # fmt: skip


def test_two_arms_are_compared_at_the_loss_that_both_reach():
    """A third arm that hardly learns no longer sets the level, as it did for all arms together."""
    rows = [
        run("lora_r8", (2.0, 1.5, 1.0), (0.0, 0.2, 0.4)),
        run("full", (2.0, 1.0, 0.5), (0.0, 0.1, 0.3)),
        run("full_width", (2.0, 1.9), (0.0, 5.0)),
        run("lora_r8", (2.0, 1.0), (0.0, 0.4), seed=1, status="diverged"),
        run("full", (2.0, 1.0), (0.0, 0.1), seed=1),
    ]
    assert equal_fit_difference(rows, "lora_r8", "full") == pytest.approx({("t", 0): 0.4 - 0.1})
    assert equal_fit_difference(rows, "full", "lora_r8") == pytest.approx({("t", 0): 0.1 - 0.4})


def test_who_hardly_fits_does_not_count_whatever_trained_it():
    records = {
        "best": run("lora", (2.0, 1.0), (0, 0)),
        "fine": run("full", (2.0, 1.7), (0, 0)),
        "lora": run("lora", (2.0, 1.8), (0, 0)),
        "full": run("full", (2.0, 1.8), (0, 0)),
        "other task": run("full", (2.0, 1.8), (0, 0), task="u"),
        "not watched": {**run("full", (2.0, 9.0), (0, 0), task="v"), "looks": None},
        "diverged": run("full", (2.0, 2.1), (0, 0), status="diverged"),
    }
    kept = without_unfit(records)
    assert "gained 0.200 nats" in kept["lora"]["reason"] and "best run 1.000" in kept["lora"]["reason"]
    found = {key: record["status"] for key, record in kept.items()}
    assert found == {
        "best": "ok", "fine": "ok", "lora": "unfit", "full": "unfit", "other task": "ok", "not watched": "ok",
        "diverged": "diverged",
    }  # fmt: skip


def test_what_verdicts_leave_out_is_in_no_table_or_picture_either():
    records, _ = read_results(committed(scale_name="mini")[1])
    unfit = {key for key, record in without_unfit(records).items() if record["status"] == "unfit"}
    rows = [row for recipe in study_rows("mini", records).values() for row in recipe]
    assert unfit and {row["key"] for row in rows if row["status"] == "unfit"} == unfit
