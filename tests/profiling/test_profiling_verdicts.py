"""What is said of simulated rounds: planted gains are found, and nothing where nothing was planted."""

import numpy as np
import pytest

from intruscope.profiling.candidates import Candidate
from intruscope.profiling.records import Built, Memory, Phases, ProfileCell, Shape
from intruscope.profiling.results import results_of
from intruscope.profiling.statistics import level_of_each
from intruscope.profiling.verdicts import recommend

SHAPE = Shape(8, 16)
SHARES = (0.3, 0.5, 0.2)


def profiled(factors, *, rounds=25, noise=0.01, seed=0, failures=(), reference="full"):
    """Settings whose steps take so much of full's, on a machine that drifts and sometimes stumbles."""
    generator = np.random.default_rng(seed)
    drift = 1.0 + 0.5 * np.sin(np.arange(rounds) / 4.0)
    samples, built, memory = {}, {}, {}
    for name, factor in factors.items():
        steps = factor * drift * generator.lognormal(0.0, noise, rounds)
        steps[generator.random(rounds) < 0.04] *= 3.0
        samples[ProfileCell(name, SHAPE)] = [Phases(*(share * step for share in SHARES)) for step in steps]
        built[name] = Built(num_trained=1, num_matrices=1, runtime_bytes=1000, loaded_bytes=1500)
        peak = 1000 + int(4000 * factor)
        memory[ProfileCell(name, SHAPE)] = Memory(
            runtime_bytes=1000, loaded_bytes=1500, peak_bytes=peak, tensor_bytes=int(3000 * factor)
        )
    level = level_of_each(len(factors) - 1)
    results = results_of(
        [Candidate(name=name, label=name, method="lora") for name in factors],
        samples,
        built=built,
        memory=memory,
        failures=dict.fromkeys(failures, "no memory"),
        reference=reference,
        level=level,
    )
    return results, recommend(results, SHAPE, reference=reference, level=level)


def verdicts(results):
    return {r.candidate.name: r.cells[0].verdict for r in results}


def test_a_planted_tenth_is_found_and_said_with_its_interval():
    results, found = profiled({"full": 1.0, "full-again": 1.0, "LoRA r=8": 0.9, "LoRA r=64": 1.1})
    assert verdicts(results) == {
        "full": None,
        "full-again": None,
        "LoRA r=8": "faster",
        "LoRA r=64": "slower",
    }
    assert (found.outcome, found.setting, found.not_told_apart) == ("faster", "LoRA r=8", ())
    ratio = results[2].cells[0].ratios["step"]
    assert 0.87 < ratio.low < ratio.estimate < ratio.high < 0.93
    said = f"{ratio.estimate:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) of the time of full fine-tuning"
    assert found.sentence.startswith(
        f"LoRA r=8 is faster here: its step takes {said}, and 0.90 of its memory."
    )
    assert "Of 2 LoRA settings: 1 faster, 1 slower." in found.sentence
    assert results[2].cells[0].memory_ratio == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_where_all_are_alike_nothing_is_recommended(seed):
    """Clean twins: the intervals of a profile hold together in 19 of 20, and the null guards the rest."""
    _, found = profiled(dict.fromkeys(("full", "full-again", "a", "b", "c", "d"), 1.0), seed=seed)
    assert found.outcome in ("not-faster", "undecided", "noisy") and found.setting is None
    assert "faster here" not in found.sentence


def test_it_says_that_nothing_is_faster_only_where_every_interval_does():
    results, found = profiled({"full": 1.0, "full-again": 1.0, "LoRA a": 1.3, "LoRA b": 1.01}, noise=0.004)
    assert verdicts(results)["LoRA b"] in ("alike", "slower") and verdicts(results)["LoRA a"] == "slower"
    assert found.outcome == "not-faster" and found.setting is None
    assert found.sentence.startswith(
        "Nothing measured is faster than full fine-tuning here. The closest, LoRA b"
    )
    wide, undecided = profiled({"full": 1.0, "full-again": 1.0, "a": 0.96}, noise=0.05, rounds=30)
    assert verdicts(wide)["a"] == "undecided" and undecided.outcome == "undecided"


def test_a_machine_that_differs_from_itself_gets_no_recommendation():
    """Even a half is not recommended where full fine-tuning is not as fast as full fine-tuning."""
    for again in (1.1, 0.9):
        _, found = profiled({"full": 1.0, "full-again": again, "a": 0.5})
        assert found.outcome == "noisy" and found.setting is None
        assert "No recommendation" in found.sentence
    _, wide = profiled({"full": 1.0, "full-again": 1.0, "a": 0.5}, noise=0.5)
    assert wide.outcome == "noisy" and wide.resolution > 0.1


def test_what_the_null_cannot_resolve_is_not_called_faster():
    """A gain of 2% whose own interval excludes 1, on a machine where full against itself reaches 2% too."""
    results, found = profiled({"full": 1.0, "full-again": 1.012, "a": 0.985}, noise=0.004)
    ratio = results[2].cells[0].ratios["step"]
    assert ratio.high < 1.0
    assert verdicts(results)["a"] != "faster" and found.setting is None
    quiet, _ = profiled({"full": 1.0, "full-again": 1.0, "a": 0.95}, noise=0.004)
    assert verdicts(quiet)["a"] == "faster"


def test_settings_that_cannot_be_told_apart_are_named():
    factors = {"full": 1.0, "full-again": 1.0, "a": 0.6, "b": 0.6, "c": 0.8}
    _, found = profiled(factors)
    assert {found.setting, *found.not_told_apart} == {"a", "b"}


def test_too_few_rounds_promise_nothing():
    results, found = profiled({"full": 1.0, "full-again": 1.0, "a": 0.5}, rounds=4)
    assert found.outcome == "too-few-rounds" and found.setting is None
    assert verdicts(results)["a"] == "undecided"


def test_without_full_fine_tuning_there_is_nothing_to_compare_with():
    results, found = profiled({"a": 1.0, "b": 0.5}, reference="a", failures=("full",))
    assert found.outcome == "no-full" and found.setting is None
    assert results[1].cells[0].ratios["step"].estimate == pytest.approx(0.5, abs=0.02)


def test_figures_are_of_the_rounds():
    results, _ = profiled({"full": 1.0, "full-again": 1.0, "a": 0.5}, rounds=15)
    full, half = results[0].cells[0], results[2].cells[0]
    for index, phase in enumerate(("forward", "backward", "optimizer")):
        assert full.seconds[phase].estimate == np.median([each[index] for each in full.rounds])
        assert half.ratios[phase].estimate == pytest.approx(0.5, abs=0.02)
    steps = [sum(each) for each in half.rounds]
    assert half.seconds["step"].estimate == pytest.approx(np.median(steps))
    assert half.tokens_per_second.estimate == pytest.approx(8 * 16 / np.median(steps))
    assert half.tokens_per_second.low < half.tokens_per_second.estimate < half.tokens_per_second.high
    assert full.memory.resident_bytes == 4000 and full.memory.tensor_bytes == 3000
    assert half.memory_ratio == half.resident_ratio == 0.5
