"""The fit: it lowers what it says it lowers, stops in time, repeats itself, and leaves the pair alone."""

import math

import pytest
import torch

from intruscope.engine.settings import RunOptions
from intruscope.fitting.fit import LOOK_POSITIONS, FitData, fit, fit_from_plain
from intruscope.fitting.live import LiveFitter
from intruscope.fitting.losses import items_of, task_items, text_items
from intruscope.fitting.parts import parts_of
from intruscope.fitting.settings import FitSettings
from intruscope.forgetting.losses import measure
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.scores import score
from intruscope.forgetting.tasks import load_task
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut
from intruscope.repair.survey import survey

SETTINGS = FitSettings(fit_steps=12, fit_tokens=128)


@pytest.fixture(scope="module")
def world(masked):
    """Survey, pair, and items that are fitted and watched at once."""
    found = survey(str(masked / "base"), str(masked / "adapter"), options=RunOptions(workers=0))
    pair = load_pair(masked / "base", masked / "adapter", device="cpu")
    return found, pair, data_of(pair, masked)


def data_of(pair, folder, general="loss"):
    task = task_items(pair, load_task(folder / "task.tsv"), max_tokens=None, seed=0)
    text = text_items(pair, read_texts([folder / "text.txt"]), general=general, seed=0)
    return FitData(task=task, text=text, choosing_task=task, choosing_text=text)


def test_items_are_the_losses_that_a_sweep_measures(masked, world):
    _, pair, data = world
    sequences = cut(read_texts([masked / "text.txt"]), pair.language_model())
    expected = measure(pair.language_model(), sequences, protocol="fast", seed=0)
    items = items_of(pair, sequences, general="loss", seed=0)
    with torch.no_grad():
        nats, units = items.nats(range(len(items.sizes)))
        lost, num_examples = data.task.nats(range(len(data.task.sizes)))
    assert (float(nats), units) == (pytest.approx(expected.nats.sum(), rel=1e-5), expected.tokens.sum())
    scored = score(pair, load_task(masked / "task.tsv"))
    assert (float(lost), num_examples) == (pytest.approx(scored.nats_N.sum(), rel=1e-5), 60)


def test_the_distance_to_the_base_is_zero_at_the_base_and_positive_at_the_tuned_model(masked, world):
    _, pair, _ = world
    items = data_of(pair, masked, "kl").text
    with torch.no_grad():
        assert float(items.nats([0, 1, 2])[0]) > 0.1
        with pair.as_base():
            assert abs(float(items.nats([0, 1, 2])[0])) < 1e-5


@pytest.mark.parametrize("fix", ["fitted", "fitted_matrix", "replay"])
def test_a_fit_lowers_its_loss_and_repeats_itself(world, fix):
    found, pair, data = world
    parts = parts_of(fix, found, pair)
    run = {"fix": fix, "weight": 1.0, "settings": SETTINGS, "seed": 3}
    first, second = (fit(pair, parts, data, **run) for _ in range(2))
    start, *_, end = first.looks
    assert first.stopped_at > 0
    assert end.task + end.general < start.task + start.general - 0.02
    # What was watched is what the edits do, measured through the weights.
    with pair.with_edits(first.edits):
        again = data.text.nats(data.text.limited(LOOK_POSITIONS))
    kept = next(look for look in first.looks if look.step == first.stopped_at)
    assert float(again[0]) / again[1] == pytest.approx(kept.general, rel=1e-4)
    for key, own in first.numbers.items():
        assert all(torch.equal(a, b) for a, b in zip(own, second.numbers[key], strict=True))
    restored = fit_from_plain(first.plain(), fix=fix, weight=1.0, parts=parts)
    assert restored.looks == first.looks
    for edit, other in zip(first.edits, restored.edits, strict=True):
        assert (edit.name, edit.update_scale) == (other.name, other.update_scale)
        assert torch.equal(edit.change_K, other.change_K)


def test_a_larger_weight_wins_back_more(world):
    found, pair, data = world
    parts = parts_of("fitted", found, pair)
    ends = [fit(pair, parts, data, fix="fitted", weight=w, settings=SETTINGS).looks[-1] for w in (0.01, 30.0)]
    assert ends[1].general < ends[0].general
    assert ends[1].task > ends[0].task


def test_where_no_step_helps_nothing_is_changed(world):
    """The task is what is watched, and its loss is turned upside down."""
    found, pair, data = world

    class Worse(type(data.task)):
        def __init__(self, items):
            self._items = items

        @property
        def sizes(self):
            return self._items.sizes

        def nats(self, chosen):
            nats, units = self._items.nats(chosen)
            return -nats, units

    watched = FitData(
        task=data.task, text=data.text, choosing_task=Worse(data.task), choosing_text=Worse(data.text)
    )
    parts = parts_of("fitted", found, pair)
    found_fit = fit(pair, parts, watched, fix="fitted", weight=1.0, settings=SETTINGS)
    assert (found_fit.stopped_at, found_fit.edits) == (0, ())


def test_few_windows_pull_the_factors_towards_one(world, monkeypatch):
    found, pair, data = world
    parts = parts_of("fitted", found, pair)
    moved = []
    for ridge in (0.0, 100.0):
        monkeypatch.setattr("intruscope.fitting.fit.RIDGE", ridge)
        fitted = fit(pair, parts, data, fix="fitted", weight=1.0, settings=SETTINGS)
        moved.append(sum(float((own[0] - 1.0).square().sum()) for own in fitted.numbers.values()))
    assert moved[1] < 0.5 * moved[0]


def test_a_fitter_knows_what_its_fits_depend_on(world):
    found, pair, data = world
    given = {"survey": found, "pair": pair, "data": data, "data_digest": "a", "settings": SETTINGS, "seed": 0}
    digest = LiveFitter(**given).digest
    changed = [{"data_digest": "b"}, {"settings": FitSettings()}, {"seed": 1}]
    assert len({digest, *(LiveFitter(**given | each).digest for each in changed)}) == 4
    assert LiveFitter(**given).digest == digest
    (test,) = LiveFitter(**given).directions([LiveFitter(**given).fit("fitted", 1.0)])
    values = [each.relative_value for each in test.directions]
    assert all(0.0 <= each.intruder_share <= 1.0 for each in test.directions)
    assert all(math.isfinite(each.alignment) for each in test.directions)
    assert len(values) == 24
