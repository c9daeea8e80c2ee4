"""A forgetting budget: nothing happens below it; above it a run stops, or goes on at half the rate."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tune_models import write_chains, write_gpt2, write_learned

from intruscope.errors import UsageError
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut
from intruscope.train.budget import ForgettingBudget
from intruscope.train.encoding import as_language
from intruscope.train.loading import load_for
from intruscope.train.look_file import read_looks
from intruscope.train.settings import TuneSettings
from intruscope.train.tune import tune
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
STEPS, EVERY = 12, 2


class Stopped(Exception):
    """Ends a run from its progress."""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Training on another language than the base's, which it forgets from look to look."""
    folder = tmp_path_factory.mktemp("case")
    base, texts = write_learned(folder)  # with dropout: a resumed run also needs torch's random state

    def run(name, *, kill_at=None, **changes):
        usual = {
            "method": "lora", "steps": STEPS, "batch": 4, "rate": 2e-2, "save_every": 2, "max_length": 24,
            "watch_every": EVERY,
        }  # fmt: skip

        def watched(event):
            if event.done == kill_at:
                raise Stopped

        return tune(
            str(base), out=folder / name, settings=TuneSettings(**(usual | changes)),
            data=read_texts([texts["task"]]), forget_text=[texts["measure"]], pictures=False,
            on_progress=watched,
        )  # fmt: skip

    plain = run("plain")
    return folder, run, plain


def looks_of(folder):
    return read_looks(folder / "intruders" / "looks.jsonl")[1]


def weights(report):
    return load_file(report.model / "adapter_model.safetensors")


def same(first, second):
    return all(torch.equal(weights(first)[name], weights(second)[name]) for name in weights(first))


def limit_between(looks, step):
    """A budget that the look at a step is the first to exceed."""
    before = max(look.forgetting for look in looks if look.step < step)
    (at,) = (look.forgetting for look in looks if look.step == step)
    assert before < at
    return (before + at) / 2


def rates(folder):
    log = json.loads((folder / "run.json").read_text())["log"]
    return {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}


def test_a_run_stops_at_the_first_look_above_the_budget_also_after_it_was_killed_there(case):
    folder, run, _ = case
    looks = looks_of(folder / "plain")
    limit = limit_between(looks, 6)
    report = run("stopped", max_forgetting=limit)
    found = looks_of(folder / "stopped")
    assert report.steps == 6 and [look.step for look in found] == [0, 2, 4, 6]
    assert [look.forgetting for look in found] == [look.forgetting for look in looks[:4]]
    record = json.loads((folder / "stopped" / "run.json").read_text())
    assert record["plan"]["budget"] == {"max_forgetting": limit, "on_budget": "stop"}
    (exceeded,) = record["budget"]
    assert (exceeded["step"], exceeded["action"]) == (6, "stopped")
    assert exceeded["forgetting"] == found[-1].forgetting > limit
    assert exceeded["low"] < exceeded["forgetting"] < exceeded["high"]
    # A bootstrap of its own.
    corpus = read_texts([folder / "measure.txt"])
    language = as_language(load_for(open_model(str(folder / "base")), corpus, seed=0))
    tokens = np.bincount(
        [window.sequence for window in cut(corpus, language, max_sequences=64).windows],
        [len(window.scored) for window in cut(corpus, language, max_sequences=64).windows],
    )
    change = np.subtract(found[-1].sequence_nats, found[0].sequence_nats)
    assert change.sum() / tokens.sum() == pytest.approx(found[-1].forgetting)
    draws = np.random.default_rng(1).integers(len(change), size=(4000, len(change)))
    low, high = np.quantile(change[draws].sum(1) / tokens[draws].sum(1), [0.025, 0.975])
    assert exceeded["low"] == pytest.approx(low, abs=0.2 * (high - low))
    assert exceeded["high"] == pytest.approx(high, abs=0.2 * (high - low))
    with pytest.raises(Stopped):
        run("killed", max_forgetting=limit, kill_at=6)
    again = run("killed", max_forgetting=limit)
    assert again.steps == 6 and again.budget == report.budget and same(again, report)


def test_below_the_budget_nothing_changes(case):
    folder, run, plain = case
    highest = max(look.forgetting for look in looks_of(folder / "plain"))
    report = run("free", max_forgetting=1.001 * highest, on_budget="lower-rate")
    assert report.steps == STEPS and report.budget == () and same(report, plain)

    class Watch:
        looks = looks_of(folder / "plain")

    assert ForgettingBudget(Watch(), float("inf"), "stop").exceeded(STEPS) == ()
    above = ForgettingBudget(
        type("Unmeasured", (Watch,), {"forgetting": lambda *_: None})(), highest / 2, "stop"
    )
    assert {each.action for each in above.exceeded(STEPS)[:-1]} == {"stopped"}
    assert above.exceeded(STEPS)[-1].action == "none"  # found when all steps were done


def test_a_rate_is_halved_at_each_look_above_the_budget_and_stays_so_after_a_resume(case):
    folder, run, plain = case
    limit = limit_between(looks_of(folder / "plain"), 6)
    report = run("lowered", max_forgetting=limit, on_budget="lower-rate")
    assert report.steps == STEPS and report.budget[0].step == 6
    usual, lowered = rates(folder / "plain"), rates(folder / "lowered")
    halved = [each.step for each in report.budget if each.action == "rate halved"]
    assert len(halved) >= 2 and halved[0] == 6
    for step, rate in usual.items():
        times = sum(1 for at in halved if at < step)
        assert lowered[step] == pytest.approx(rate * 0.5**times), step
    assert not same(report, plain)
    with pytest.raises(Stopped):
        run("lowered-killed", max_forgetting=limit, on_budget="lower-rate", kill_at=9)
    again = run("lowered-killed", max_forgetting=limit, on_budget="lower-rate")
    assert same(again, report) and again.budget == report.budget


@pytest.mark.parametrize(
    ("changes", "texts", "words"),
    [
        ({}, False, "--forget-text"),
        ({"watch_every": 0}, True, "--watch"),
        ({"max_forgetting": -0.1}, True, "budget is -0.1"),
        ({"max_forgetting": float("nan")}, True, "budget is nan"),
    ],
)
def test_a_budget_that_cannot_be_checked_is_refused(changes, texts, words, tmp_path):
    base = write_gpt2(tmp_path / "base")
    text = write_chains(tmp_path / "text.txt", 1, lines=9)
    settings = TuneSettings(**({"method": "lora", "steps": 1, "max_forgetting": 0.1} | changes))
    with pytest.raises(UsageError, match=words):
        tune(
            str(base), out=tmp_path / "run", settings=settings, data=read_texts([text]),
            forget_text=[text] if texts else [],
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
