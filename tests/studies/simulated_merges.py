"""Sets of adapters and their merges that were never made, with known truths."""

import numpy as np

from intruscope.studies.claims_merging import LINEAR, OWN_STARTS, RANDOM, RULES, SUM, packed

TASKS, SIZES, STRENGTHS = ("a", "b", "c"), (2, 3), (0.3, 0.5, 1.0)
ALONE, MAJORITY, HALF = 0.85, 0.5, 200
PAIRS = 21


def sets(
    gain=0.0,
    *,
    best=0.5,
    merged_only=40.0,
    null_merged_only=8.0,
    informative=True,
    seeds=(0, 1, 2),
    tasks=TASKS,
    seed=0,
):
    """One row for each seed.

    Args:
        gain: Accuracy of every rule less that of the plain sum, in absolute terms.
        best: Strength at which merges are right most often, on both halves.
        merged_only: Mean number of intruders that no part has, in sums at full strength.
        null_merged_only: The same in random directions.
        informative: Whether pre-flight figures follow what is forgotten beyond the norm; None for the contrary.
    """
    rng = np.random.default_rng(seed)
    return [
        {
            "arm": OWN_STARTS, "task": "base", "seed": number, "status": "ok",
            "parts": {
                task: {
                    "accuracy": ALONE, "chosen_on": ALONE, "num_examples": HALF, "majority": MAJORITY,
                    "learned": True,
                }
                for task in tasks
            },
            "merges": [
                merge(rng, rule, size, strength, tasks[:size], gain, best, merged_only, null_merged_only)
                for rule in (SUM, *RULES, "emr", LINEAR, RANDOM)
                for size in SIZES
                for strength in sorted({*STRENGTHS, 1.0 / size})
            ],
            "pairs": [pair(rng, informative, merged_only, null_merged_only) for _ in range(PAIRS)],
        }
        for number in seeds
    ]  # fmt: skip


def merge(rng, rule, size, strength, tasks, gain, best, merged_only, null_merged_only):
    share = 0.7 + (gain if rule in RULES else 0.0) - 0.2 * abs(strength - best)
    right = {task: rng.random(HALF) < share for task in tasks}
    return {
        "rule": rule,
        "size": size,
        "strength": strength,
        "chosen_on": {task: float((rng.random(HALF) < share).mean()) for task in tasks},
        "accuracy": {task: float(each.mean()) for task, each in right.items()},
        "right": {task: packed(each) for task, each in right.items()},
        "weights": {
            "merged_only": int(rng.poisson(merged_only)),
            "null_merged_only": int(rng.poisson(null_merged_only)),
        },
        "forgetting": 0.1,
    }


def pair(rng, informative, merged_only, null_merged_only):
    norm, more = rng.normal(size=2)
    sign = {True: 1.0, False: 0.0, None: -1.0}[informative]
    figures = {
        name: sign * more + 0.3 * rng.normal() + (0.0 if sign else rng.normal())
        for name in ("inflation", "cosine", "sign_conflict")
    }
    return {
        **figures,
        "norm": norm,
        "merged_only": round(merged_only / 4 + 5 * (sign * more + 0.3 * rng.normal())),
        "null_merged_only": int(rng.poisson(null_merged_only / 4)),
        "forgetting": 1.0 + norm + more,
        "forgetting_of_parts": 0.5,
    }
