"""A whole study at mini scale that was never run: every record has the figures that a real one has."""

import math

import numpy as np

from intruscope.studies.grid import Chain
from intruscope.studies.measure import CONTROLS, STRENGTHS
from intruscope.studies.recipes import is_pictured, places
from intruscope.studies.records import records_of
from intruscope.studies.scales import MINI
from intruscope.studies.weights import EPSILONS, KS

MATRICES = {"minilm-mlm": 36, "demo": 28}
SIZE = 24
"""Of the similarity maps."""


def study(*, recipes=None, seeds=None, scale=MINI, left_out=()):
    """Records by key.

    Args:
        recipes: By name; all by default.
        seeds: Instead of the scale's.
        left_out: Keys of runs that diverged.
    """
    works = {place.work.key: place.work for place in places(scale, recipes, of_seeds=seeds)}
    journal = {}
    for number, (key, work) in enumerate(works.items()):
        rng = np.random.default_rng(number)
        figures = chain_of(work, rng) if isinstance(work, Chain) else run_of(work, scale, rng)
        journal[key] = {"status": "ok", "reason": None, "core_seconds": 90.0, **figures}
        if key in left_out:
            journal[key] |= {"status": "diverged", "reason": "the loss became NaN at step 7"}
    return records_of(works, journal)


def strength_of(work):
    """How far a run moves, about 1."""
    options = dict(work.options)
    scale = options.get("alpha", 16.0) / options.get("rank", 8.0) if work.method != "full" else 10.0
    return math.sqrt(work.rate * scale / 2.8e-3) * {"mnli": 1.1, "qqp": 1.0, "sst2": 0.8}.get(work.task, 0.9)


def run_of(work, scale, rng):
    far = strength_of(work) * (1 + 0.06 * rng.normal()) * math.sqrt(work.examples / 6000)
    matrices = MATRICES[work.base]
    rank = dict(work.options).get("rank", 384.0)
    rate = 0.0 if work.method == "full" else 0.5 * far / (1 + (rank / 40) ** 1.5)
    counts = {f"{e:g}": round(10 * matrices * min(0.9, rate * e**2 + 0.01 * e**8)) for e in EPSILONS}
    is_text = work.task == "reference"
    found = {
        "count": counts["0.5"],
        "counts": counts,
        "counts_by_k": {str(k): round(matrices * k * rate / (3 + 0.05 * k)) for k in KS},
        "by_fifth": [round(matrices * 12 * rate / (1 + place)) + place for place in range(5)],
        "candidates": 10 * matrices,
        "candidates_attention": 20 * matrices // 3,
        "candidates_mlp": 10 * matrices // 3,
        "count_attention": 2 * counts["0.5"] // 3,
        "count_mlp": counts["0.5"] // 3,
        "null_count": round(0.9 * counts["0.5"] + rng.uniform(0, 3), 2),
        "hosts": min(matrices, counts["0.5"]),
        "predicted_hosts": min(matrices, round(1.1 * counts["0.5"])),
        "effective_rank": 150 * far if work.method == "full" else min(rank, 0.8 * rank),
        "update_norm": 9 * far,
        "relative_update_norm": 0.05 * far,
        "matched_change": 0.02 * far,
        "accuracy": None if is_text else 0.8 - 0.1 * (far - 1) ** 2 + 0.004 * rng.normal(),
        "held_out_loss": 3.4 + 0.2 * (far - 1) ** 2 if is_text else 0.5 + 0.2 * (far - 1) ** 2,
        "forgetting": 0.25 * far + 0.02 * rng.normal(),
        "learned": True,
    }
    found |= {"forgetting_low": found["forgetting"] - 0.02, "forgetting_high": found["forgetting"] + 0.02}
    is_shown = is_pictured(work, scale.base(work.base))
    if work.look_every:
        found |= looks_of(work, found, is_shown=is_shown, rng=rng)
    if work.interventions:
        found["interventions"] = edits_of(work, rng)
    if is_shown:
        found["similarity"] = similarity_of(rate, rng)
    return found


def looks_of(work, found, *, is_shown, rng):
    steps = [work.look_every * turn for turn in range(6)]
    looks = [
        {
            "step": step,
            "count": round(found["count"] * (place / 5) ** 2),
            "forgetting": found["forgetting"] * math.sqrt(place / 5),
            "held_out_loss": found["held_out_loss"] + 0.6 * (1 - place / 5) ** 2,
        }
        for place, step in enumerate(steps)
    ]
    lives = {
        "rank_change": -2.1,
        "log_growth": 0.7,
        "alignment_change": -0.3,
        "most_at_any_look": found["count"],
    }
    if not is_shown:
        return {**lives, "looks": looks}
    followed = [course_of(number, steps) for number in range(min(12, found["count"]))]
    return {**lives, "looks": looks, "followed": followed}


def course_of(number, steps):
    """An intruder that comes later, rises further and turns away."""
    seen = range(5 - number % 3)
    return {
        "matrix": f"encoder.layer.{number % 6}.attention.output.dense",
        "step": steps[1 + number % 3 :],
        "rank": [max(1, 9 - 2 * place) for place in seen],
        "singular_value": [round(1.5 + 0.4 * number * (place + 1) ** 0.5, 4) for place in seen],
        "alignment": [round(0.9 - 0.5 * (place + 1) / len(seen) - 0.01 * number, 4) for place in seen],
    }


def edits_of(work, rng):
    found = {}
    for turn, control in enumerate(CONTROLS):
        for strength in STRENGTHS:
            away = 1 - strength
            cell = {
                "forgetting_change": -0.05 * away * (1 - 0.3 * turn) + 0.002 * rng.normal(),
                "forgetting_share": -0.4 * away * (1 - 0.3 * turn) + 0.01 * rng.normal(),
                "loss_change": 0.05 * away**2 * (1 + turn),
                "change_norm": abs(away) * 2,
            }
            if work.task != "reference":
                cell["accuracy_change"] = -0.03 * away**2 * (1 + turn) + 0.001 * rng.normal()
            found.setdefault(control, {})[f"{strength:g}"] = cell
    return found


def similarity_of(rate, rng):
    blank = 0 if rate == 0 else round(6 * rate) + 1
    cosines = np.clip(np.abs(0.06 * rng.normal(size=(SIZE, SIZE))), 0, 0.4)
    for column in range(blank, SIZE):
        cosines[column - blank, column] = 0.97 - 0.004 * column
    hundredths = [round(100 * value) for value in cosines.ravel()]
    profiles = {
        "other": {"place": blank, "hundredths": [97, *[round(abs(8 * x)) for x in rng.normal(size=383)]]}
    }
    if blank:
        flat = [min(40, round(abs(6 * x))) for x in rng.normal(size=384)]
        profiles["intruder"] = {"place": 0, "hundredths": flat}
    return {
        "matrix": "encoder.layer.3.attention.output.dense",
        "num_base": SIZE,
        "num_tuned": SIZE,
        "hundredths": hundredths,
        "profiles": profiles,
    }


def chain_of(work, rng):
    num = len(work.tasks)
    loses = {"full": 0.02}.get(work.method, 0.05) * (2 if dict(work.options).get("alpha") == 8 else 1)
    accuracies = [[0.55 + 0.02 * task for task in range(num)]]
    for stage in range(1, num + 1):
        accuracies.append(
            [
                0.55 + 0.02 * task
                if task >= stage
                else 0.8 + 0.02 * task - loses * (stage - 1 - task) + 0.005 * rng.normal()
                for task in range(num)
            ]
        )
    each = 0 if work.method == "full" else 14
    by_stage = [each * stage + int(rng.integers(0, 3)) for stage in range(1, num + 1)]
    return {
        "lost": loses + 0.004 * rng.normal(),
        "count_first": by_stage[0],
        "count_last": by_stage[-1],
        "candidates": 360,
        "first_tasks_gain": 0.1 + 0.01 * rng.normal(),
        "forgetting": 0.4,
        "counts_by_stage": by_stage,
        "accuracies": accuracies,
    }
