"""The advice finds what was planted, says none where nothing was, and not by the data it chose on."""

import re
from dataclasses import replace

import numpy as np
import pytest
from sweep_cases import CONTROLS, NUM_EXAMPLES, NUM_SEQUENCES, SETTINGS, report_of, world

from intruscope.sweep.choice import choose
from intruscope.sweep.figures import grid_reports
from intruscope.sweep.statistics import samples


def parts(num_sequences, num_examples, settings=SETTINGS):
    names = ("everything", "choosing", "evaluation")
    return dict(zip(names, samples(num_sequences, num_examples, settings), strict=True))


def decided(measured, settings=SETTINGS):
    choices, (advice,) = choose(measured, settings, **parts(NUM_SEQUENCES, NUM_EXAMPLES, settings))
    return {choice.control: choice for choice in choices}, advice


def only_the_edit(control, strength):
    return 0.6 * (1.0 - strength) if control == "intruders" else 0.1 * (1.0 - strength)


def alike(control, strength):
    return 0.5 * (1.0 - strength)


def free_down_to(limit):
    return lambda control, strength: 0.0 if strength >= limit - 1e-9 else 0.1


def test_a_special_edit_is_found_at_its_best_strength():
    choices, advice = decided(world(only_the_edit, free_down_to(0.5)))
    assert (advice.outcome, advice.strength, advice.intruders) == ("recommended", 0.5, "special")
    share = advice.report.forgetting_share
    assert share.low < -0.3 < share.high
    assert share.high - share.low < 0.1
    assert choices["uniform"].strength == 0.5  # the same rule for all
    assert advice.sentence == (
        "On the evaluation half of the data, turning the top intruders to 0.5 removes "
        f"{-100 * share.estimate:.0f}% ({-100 * share.high:.0f} to {-100 * share.low:.0f}) of the forgetting "
        "and costs 0.0 points (−0.9 to 0.9) of accuracy; shrinking the whole update "
        + advice.sentence.split("shrinking the whole update ")[1].split(":")[0]
        + ": the intruders are special here, beyond their size."
    )


@pytest.mark.parametrize(("num_sequences", "is_enough"), [(8, False), (11, True), (12, True)])
def test_nothing_is_sure_of_a_handful_of_sequences(num_sequences, is_enough):
    """However clear the effect: of five in a half, all may go one way by chance."""
    measured = world(only_the_edit, free_down_to(0.5), noise=0.0)
    _, (advice,) = choose(measured, SETTINGS, **parts(num_sequences, NUM_EXAMPLES))
    assert advice.report.forgetting_change.high < 0.0
    assert (advice.outcome == "recommended") == is_enough
    assert (advice.intruders == "special") == is_enough
    assert ("too few to tell an effect from chance. Give more text" in advice.sentence) != is_enough


def test_a_shrink_that_does_as_well_makes_them_not_special():
    _, advice = decided(world(alike, free_down_to(0.7)))
    assert (advice.outcome, advice.strength, advice.intruders) == ("recommended", 0.7, "not-special")
    assert advice.sentence.endswith(": the intruders are not special here.")


def test_a_shrink_that_does_better_is_said_to():
    def removed(control, strength):
        return (0.9 if control == "matched_result" else 0.5) * (1.0 - strength)

    _, advice = decided(world(removed, free_down_to(0.5)))
    assert advice.intruders == "worse"
    assert re.search(r"to the same norm removes 4[4-6]% \(", advice.sentence)
    worse, instead = advice.sentence.split(" By the same rule, ")
    assert worse.endswith("merely shrinking the update does better.")
    assert re.match(
        r"shrinking the whole update to 0\.5 removes 2[3-7]% \(.*\) of the forgetting and costs", instead
    )


def test_better_forgetting_at_a_dearer_task_is_not_special():
    """The edit wins back more and its task is clearly the worse: another place of the same trade."""

    def cost(control, strength):
        return 0.05 if control == "intruders" else 0.0

    settings = SETTINGS.__class__(
        **{**{f: getattr(SETTINGS, f) for f in SETTINGS.__dataclass_fields__}, "max_task_cost": 0.1}
    )
    _, advice = decided(world(only_the_edit, cost), settings)
    assert (advice.outcome, advice.intruders) == ("recommended", "not-special")


@pytest.mark.parametrize(
    ("outcome", "options", "said"),
    [
        ("nothing-to-edit", {"edits": False}, "No matrix has an intruder"),
        ("no-forgetting", {"forgetting": 0.0}, "did not measurably forget"),
        ("no-gain", {"removed": lambda c, s: -0.5 * (1 - s)}, "none lowers forgetting"),
        ("no-gain", {"cost": lambda c, s: 0.1}, "at a cost of at most 1 points of accuracy"),
    ],
    ids=["nothing", "no-forgetting", "it-adds", "dear"],
)
def test_it_says_none_and_why(outcome, options, said):
    options = {"removed": alike, "cost": free_down_to(0.1), **options}
    _, advice = decided(world(options.pop("removed"), options.pop("cost"), **options))
    assert advice.outcome == outcome
    assert said in advice.sentence


def test_whether_it_forgot_is_decided_on_all_the_data():
    """The evaluation half alone cannot tell forgetting from chance, all the data can: no contradiction."""
    measured = world(alike, free_down_to(0.1))
    everything, choosing, evaluation = parts(NUM_SEQUENCES, NUM_EXAMPLES).values()
    tuned, tokens = np.array(measured.tuned.text_nats), np.array(measured.tuned.text_tokens)
    harm = np.full(NUM_SEQUENCES, 0.1)
    harm[evaluation.text_items] = np.tile([0.5, -0.49], len(evaluation.text_items) // 2)
    base_text = replace(measured.base_text, text_nats=tuple(tuned - tokens * harm))
    report = report_of(replace(measured, base_text=base_text))
    assert report.forgetting.low > 0.0 > report.halves[1].forgetting.low
    (advice,) = report.recommendations
    assert (advice.outcome, advice.report.forgetting_share) == ("recommended", None)
    assert "nats/token" in advice.sentence
    assert [half.data for half in report.halves] == ["choosing half", "evaluation half"]
    for half, part in zip(report.halves, (choosing, evaluation), strict=True):
        own = part.text_items
        assert half.forgetting.estimate == pytest.approx((tokens * harm)[own].sum() / tokens[own].sum())
        assert half.task_score.estimate == np.mean(np.array(measured.tuned.task_scores)[part.task_items])
        assert (half.num_sequences, half.num_examples) == (len(own), len(part.task_items))
    assert (report.cells[0].data, advice.report.data) == (everything.data, evaluation.data)


@pytest.mark.parametrize(
    ("options", "models", "command"),
    [
        (
            {},
            ("a base", "org/it's@v1"),
            "'a base' 'org/it'\"'\"'s@v1' -o 'it'\"'\"'s-repaired' --strength 0.5",
        ),
        ({"k": 5, "seed": 3}, ("b+x/ad",), "b+x/ad -o ad-repaired --strength 0.5 --k 5 --seed 3"),
        ({"epsilon": 0.4}, ("b", "t/"), "b t/ -o t-repaired --strength 0.5 --epsilon 0.4"),
    ],
)
def test_advice_ends_with_the_command_to_run(options, models, command):
    measured, settings = world(only_the_edit, free_down_to(0.5)), replace(SETTINGS, **options)
    _, (advice,) = choose(measured, settings, **parts(NUM_SEQUENCES, NUM_EXAMPLES, settings), models=models)
    assert (advice.command, advice.shrink_command) == (f"intruscope repair {command}", None)
    _, (nameless,) = choose(measured, settings, **parts(NUM_SEQUENCES, NUM_EXAMPLES, settings))
    assert nameless.command is None


def test_noise_alone_is_recommended_no_more_often_than_the_interval_allows():
    """No edit does anything, so some strength always looks good on one half; the other half must say no."""
    outcomes = []
    for seed in range(40):
        _, advice = decided(world(lambda c, s: 0.0, lambda c, s: 0.0, seed=seed, noise=0.1))
        outcomes.append(advice.outcome)
    assert outcomes.count("not-confirmed") > 20
    assert outcomes.count("recommended") <= 4  # nominal 2.5% a side: 1 expected
    assert set(outcomes) <= {"not-confirmed", "no-gain", "recommended"}


def test_what_was_chosen_is_told_by_the_other_half():
    """Every item of the reporting half set to the base: its figures change, the choice does not."""
    measured = world(only_the_edit, free_down_to(0.5))
    _, first, second = samples(NUM_SEQUENCES, NUM_EXAMPLES, SETTINGS)
    assert sorted([*first.text_items, *second.text_items]) == list(range(NUM_SEQUENCES))
    assert sorted([*first.task_items, *second.task_items]) == list(range(NUM_EXAMPLES))
    assert abs(len(first.text_items) - len(second.text_items)) <= 1
    altered = {}
    for key, each in measured.by_key.items():
        nats = np.array(each.text_nats)
        nats[second.text_items] = np.array(measured.tuned.text_nats)[second.text_items]
        altered[key] = each.__class__(**{**vars(each), "text_nats": tuple(nats)})
    twin = measured.__class__(**{**vars(measured), "by_key": altered})
    before, after = decided(measured)[1], decided(twin)[1]
    assert before.strength == after.strength == 0.5
    assert after.report.forgetting_change.estimate == 0.0
    assert (before.outcome, after.outcome) == ("recommended", "not-confirmed")


def test_a_loss_is_better_when_it_falls():
    def cost(control, strength):
        return -0.05 if strength >= 0.7 else 0.05

    _, advice = decided(world(alike, cost, metric="loss"))
    assert (advice.outcome, advice.strength) == ("recommended", 0.7)
    assert "and lowers the task's loss by 0.05" in advice.sentence


def test_the_grid_is_told_on_all_the_data_with_its_differences():
    measured = world(only_the_edit, free_down_to(0.5))
    everything, *_ = samples(NUM_SEQUENCES, NUM_EXAMPLES, SETTINGS)
    reports = {each.cell.key: each for each in grid_reports(measured, ("top",), everything)}
    assert len(reports) == 4 * len(CONTROLS)
    edit, shrink = reports["intruders/top/0.3"], reports["matched_change/top/0.3"]
    assert edit.forgetting_difference is None
    tokens = sum(measured.tuned.text_tokens)
    losses = {
        key: sum(measured.by_key[key].text_nats) / tokens
        for key in ("intruders/top/0.3", "matched_change/top/0.3")
    }
    change = losses["intruders/top/0.3"] - sum(measured.tuned.text_nats) / tokens
    assert edit.forgetting_change.estimate == pytest.approx(change, rel=1e-9)
    assert shrink.forgetting_difference.estimate == pytest.approx(
        losses["matched_change/top/0.3"] - losses["intruders/top/0.3"], rel=1e-9
    )
    assert shrink.forgetting_difference.low > 0.0  # positive: the edit forgets less
    assert reports["uniform/0.3"].forgetting_difference.estimate > 0.0  # beside the edit of the same strength
    mean = np.mean(measured.by_key["intruders/top/0.3"].task_scores)
    assert edit.task.estimate == pytest.approx(mean)
    assert edit.task_change.estimate == pytest.approx(mean - np.mean(measured.tuned.task_scores))
