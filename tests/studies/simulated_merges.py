"""Sets of adapters and their merges that were never made, with known truths."""

import numpy as np

from intruscope.studies.claims_merging import LINEAR, OWN_STARTS, RANDOM, RULES, SUM

TASKS, SIZES, STRENGTHS = ("a", "b", "c"), (2, 3), (0.3, 0.5, 1.0)
ALONE, MAJORITY, HALF = 0.85, 0.5, 200
SUMS = ("ab",) * 10 + ("abc",) * 10


def sets(
    gain=0.0,
    *,
    best=0.5,
    merged_only=90.0,
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
        informative: Whether pre-flight figures follow what is forgotten beyond the norm; None for the
            contrary.
    """
    rng = np.random.default_rng(seed)
    return [
        {
            "arm": OWN_STARTS, "task": "base", "seed": number, "status": "ok",
            "parts": {
                task: {
                    "score": ALONE, "chosen_on": ALONE, "floor": 0.0, "chosen_floor": 0.0,
                    "majority": MAJORITY, "learned": True, "forgetting": 0.05, "norm": 0.1, "intruders": 3,
                }
                for task in tasks
            },
            "merges": [
                merge(rng, rule, size, strength, tasks[:size], gain, best, merged_only, null_merged_only)
                for rule in (SUM, *RULES, "emr", LINEAR, RANDOM)
                for size in SIZES
                for strength in sorted({*STRENGTHS, 1.0 / size})
            ],
            "sums": [sum_of(rng, each, informative, merged_only, null_merged_only) for each in SUMS],
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
        "score": {task: float(each.mean()) for task, each in right.items()},
        "scores": {task: each.astype(float).tolist() for task, each in right.items()},
        "weights": {
            "norm": 0.2,
            "inflation": 1.5,
            "intruders": 9,
            "merged_only": int(rng.poisson(merged_only)),
            "null_merged_only": int(rng.poisson(null_merged_only)),
        },
        "forgetting": 0.1,
    }


def sum_of(rng, tasks, informative, merged_only, null_merged_only):
    norm, more = rng.normal(size=2)
    sign = {True: 1.0, False: 0.0, None: -1.0}[informative]
    figures = {
        name: sign * more + 0.3 * rng.normal() + (0.0 if sign else rng.normal())
        for name in ("inflation", "cosine", "sign_conflict")
    }
    return {
        **figures,
        "tasks": list(tasks),
        "norm": norm,
        "merged_only": round(merged_only / 4 + 5 * (sign * more + 0.3 * rng.normal())),
        "null_merged_only": int(rng.poisson(null_merged_only / 4)),
        "forgetting": 1.0 + norm + more,
        "forgetting_of_parts": 0.5,
    }
