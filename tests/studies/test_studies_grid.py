"""The grid as data: one pool behind all studies, stable keys, and what each scale plans."""

from dataclasses import asdict, replace

import pytest

from intruscope.errors import UsageError
from intruscope.studies.claims import CLAIMS
from intruscope.studies.grid import Chain, Checkpoint, Run, label_of, settings_of
from intruscope.studies.recipes import RECIPES, SEQUENCE, StudyCell, places, sequence
from intruscope.studies.scales import MINI, MINILM, PAPER, PAPER_ALPHA_TIMES_RATE, SCALES, SMOKE, find_scale
from intruscope.studies.sizes import core_seconds, kinds, sizes

RUN = Run(
    base="b", task="t", method="lora", options=(("alpha", 16.0), ("rank", 8.0)), rate=1e-3, seed=0,
    examples=10, epochs=1, batch=2, max_length=8, bf16=False, group_by_length=False,
    look_every=0, interventions=False,
)  # fmt: skip
CHAIN = Chain(
    base="b", tasks=("t", "u"), method="full", options=(), rate=1e-3, seed=0, examples=10, head_examples=5,
    eval_examples=None, epochs=1, batch=2, max_length=8, bf16=False,
    group_by_length=False,
)  # fmt: skip


def test_a_key_is_a_hash_of_the_settings_and_stays():
    """Written down: a key that moves would run hours of finished work again."""
    assert RUN.key == replace(RUN).key == "871b93f711814b46"
    assert CHAIN.key == "7be099671e414cf5"


CHANGES = {
    "base": "c", "task": "u", "method": "pissa", "options": (("alpha", 16.0), ("rank", 4.0)), "rate": 2e-3,
    "seed": 1, "examples": 11, "epochs": 2, "batch": 3, "max_length": 9, "bf16": True,
    "group_by_length": True, "look_every": 5, "interventions": True,
}  # fmt: skip


@pytest.mark.parametrize("name", list(asdict(RUN)))
def test_every_setting_is_part_of_the_key(name):
    assert replace(RUN, **{name: CHANGES[name]}).key != RUN.key


def test_settings_and_labels_are_plain():
    assert settings_of(RUN)["options"] == {"alpha": 16.0, "rank": 8.0}
    assert (settings_of(RUN)["kind"], settings_of(CHAIN)["kind"]) == ("run", "chain")
    assert label_of(RUN) == "t, lora alpha 16 rank 8, rate 0.001, seed 0"


def arms(recipe, scale=MINI, task="sst2", seed=0):
    return {
        p.arm: p.work for p in places(scale) if (p.recipe, p.task, p.seed) == (recipe, task, seed)
    }  # fmt: skip


def test_one_run_serves_many_studies():
    eight = arms("counts")["lora_r8"]
    for recipe, arm in (
        ("rates", "mid"), ("trajectory", "lora_r8"), ("data_size", "r8_whole"), ("methods", "lora_r8"),
        ("equal_fit", "lora_r8"), ("correlations", "lora_r8"),
        ("interventions", "lora_r8"),
    ):  # fmt: skip
        assert arms(recipe)[arm].key == eight.key
    assert arms("alpha")["alpha2r_r16"] == arms("counts")["lora_r16"]
    assert arms("rates")["full_high_rate"] == arms("rates")["full_high"]
    assert eight.look_every and eight.interventions


@pytest.mark.parametrize("scale", list(SCALES.values()), ids=lambda s: s.name)
def test_keys_are_unique_and_arms_of_a_cell_are_too(scale):
    found = places(scale)
    works = {p.work.key: p.work for p in found}
    assert len(works) == len(set(works.values()))
    cells = [(p.recipe, p.arm, p.task, p.seed) for p in found]
    assert len(cells) == len(set(cells))


def test_every_claims_study_is_planned():
    recipes = {p.recipe for p in places(MINI)}
    assert recipes == {claim.recipe for claim in CLAIMS} == {*RECIPES, SEQUENCE}


def test_correlations_take_in_what_a_task_has_anyway():
    for task, more in (("sst2", 8), ("qqp", 0)):
        own, counted = arms("correlations", task=task), arms("counts", task=task)
        assert own.items() >= counted.items()
        assert len(own) == len(counted) + more
    asked = {p.work.key for p in places(MINI, ["correlations"])}
    assert asked <= {p.work.key for p in places(MINI, [name for name in RECIPES if name != "correlations"])}


def test_shares_of_the_data_and_rates_at_alpha_8_are_what_they_are_called():
    sizes_ = arms("data_size")
    assert [sizes_[f"r1_{name}"].examples for name in ("quarter", "half", "whole")] == [2500, 5000, 10_000]
    chains = sequence(MINILM, 0)
    for rank in (1, 8):
        fixed, scaled = (chains[f"{name}_r{rank}"] for name in ("alpha8", "lora"))
        assert (dict(fixed.options)["alpha"], dict(scaled.options)["alpha"]) == (8.0, 2.0 * rank)
        assert 8.0 * fixed.rate == pytest.approx(2 * rank * scaled.rate)
    found = arms("alpha")
    assert 8.0 * found["alpha8_r16"].rate == pytest.approx(32 * found["alpha2r_r16"].rate)
    capped = (found["alpha8_r64"], found["alpha8_full_width"], chains["alpha8_r64"])
    assert {run.rate for run in capped} == {found["alpha8_r16"].rate}
    assert {dict(run.options)["alpha"] for run in capped} == {8.0}


def test_low_is_the_papers_and_high_is_twice():
    found = arms("rates")
    assert 16 * found["low"].rate == pytest.approx(PAPER_ALPHA_TIMES_RATE)
    assert found["high"].rate == pytest.approx(2 * found["mid"].rate)


def test_full_fine_tuning_at_low_rates_is_watched_and_at_high_ones_is_not():
    found = arms("rates")
    watched = {name for name, run in found.items() if run.look_every}
    assert watched == {"mid", "full_lowest", "full_low", "full_mid"}


def test_given_seeds_replace_all():
    assert {p.seed for p in places(MINI, of_seeds=[7])} == {7}
    assert len(places(MINI, of_seeds=[7])) * 3 == len([p for p in places(MINI) if p.seed < 3])


def test_tasks_of_long_sentences_take_part_in_some_studies_and_of_these_in_all_arms_they_have():
    of_task = {
        task: {p.recipe for p in places(MINI) if p.task == task}
        for task in ("sst2", "qqp", "mnli", "reference")
    }
    assert of_task["sst2"] == of_task["reference"] == set(RECIPES)
    assert of_task["qqp"] == of_task["mnli"] == set(MINILM.only["mnli"]) < set(RECIPES)
    for recipe in of_task["mnli"] - {"correlations"}:
        assert arms(recipe, task="mnli").keys() == arms(recipe).keys()


def test_seed_by_seed_so_that_a_part_covers_all_tasks():
    seeds = [p.seed for p in places(MINI)]
    assert seeds == sorted(seeds)


def test_the_size_of_mini():
    """Published in docs/reproduction.md; see there."""
    found = places(MINI)
    assert kinds(found) == {"runs": 174, "chains": 21, "checkpoints": 0, "sets of adapters": 0}
    minutes = [size.core_minutes for size in sizes(found, MINI)]
    assert sum(minutes) < 6 * 60 * 2
    assert sum(size.num_new for size in sizes(found, MINI)) == 195


def test_the_cost_of_a_run_is_that_of_its_parts():
    base = MINILM
    cell = StudyCell(base, "sst2", 0)
    cost = base.cost
    assert core_seconds(cell.lora(16), MINI) == cost.training + cost.measuring
    whole = cost.training + cost.measuring + cost.looks + cost.interventions
    assert core_seconds(cell.lora(8), MINI) == pytest.approx(whole)
    widest = core_seconds(cell.lora(base.rates.width), MINI)
    assert widest == pytest.approx(cost.full_width * (whole - cost.interventions)) and cost.full_width > 1
    quarter = core_seconds(cell.lora(8, share=0.25), MINI)
    assert quarter == pytest.approx(cost.training / 4 + cost.measuring)
    assert core_seconds(PAPER.checkpoints[0], PAPER) is None


def test_the_papers_scale_is_planned_as_the_paper_says():
    found = places(PAPER)
    works = {p.work.key: p.work for p in found}.values()
    runs = [w for w in works if isinstance(w, Run)]
    assert {w.task for w in runs} == {"mnli", "qqp", "sst2", "siqa", "winogrande", "fever"}
    assert all((w.epochs, w.batch, w.max_length) == (5, 16, 512) for w in runs)
    usual = [w for p in found if p.recipe == "counts" and isinstance(w := p.work, Run)]
    for run in usual:
        options = dict(run.options)
        if run.method == "full":
            assert run.rate == 1e-5
        else:
            assert options["alpha"] * run.rate == pytest.approx(PAPER_ALPHA_TIMES_RATE)
            assert options["alpha"] == 2 * options["rank"]
    published = [w for w in works if isinstance(w, Checkpoint)]
    assert {c.arm for c in published} == {"full", "lora_r16", "lora_r64", "lora_r256", "lora_r2048"}
    assert {p.recipe for p in found if isinstance(p.work, Checkpoint)} == {"counts", "rates", "alpha"}
    lowest = {p.arm: p.work.rate for p in found if p.recipe == "rates" and isinstance(p.work, Run)}
    assert (lowest["full_lowest"], lowest["full_low"]) == (2.5e-6, 5e-6)
    assert all(size.core_minutes is None for size in sizes(found, PAPER) if size.num_new)


def test_smoke_has_every_arm_of_mini():
    assert {(p.recipe, p.arm) for p in places(SMOKE)} == {(p.recipe, p.arm) for p in places(MINI)}


def test_an_unknown_scale_is_told_with_a_near_one():
    with pytest.raises(UsageError, match="known scales are smoke, mini, midi, paper, merging") as error:
        find_scale("minni")
    assert "mini" in error.value.remedy
