"""Runs of studies that were never made, with known truths: three tasks, three seeds, normal noise."""

import numpy as np

TASKS, SEEDS = ("a", "b", "c"), (0, 1, 2)
CANDIDATES = {"candidates": 360, "candidates_attention": 240, "candidates_mlp": 120}


def runs(arms, *, noise=1.0, seeds=SEEDS, tasks=TASKS, seed=0):
    """A row per arm, task and seed.

    Args:
        arms: Per arm its figures, each a mean (with a spread of a twentieth) or a mean and a spread.
        noise: Multiplies every spread.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for arm, figures in arms.items():
        for task in tasks:
            for number in seeds:
                row = {"arm": arm, "task": task, "seed": number, "status": "ok", **CANDIDATES}
                for name, value in figures.items():
                    put(row, name.split("/"), drawn(rng, value, noise))
                rows.append(row)
    return rows


def drawn(rng, value, noise):
    mean, spread = value if isinstance(value, tuple) else (value, abs(value) / 20)
    return float(mean + noise * spread * rng.normal())


def put(row, path, value):
    """``counts/0.9`` goes into a mapping, ``by_fifth/3`` into a list."""
    *folders, last = path
    for folder in folders:
        row = row.setdefault(folder, {})
    row[last] = value


def whole(rows):
    """Counts as counts: rounded, never negative; fifths as lists; forgetting at equal fit as looks."""
    for row in rows:
        if "forgetting_at_fit" in row:
            at_fit = row.pop("forgetting_at_fit")
            row["looks"] = [
                {"held_out_loss": 1.0, "forgetting": 0.0},
                {"held_out_loss": 0.5, "forgetting": at_fit},
            ]
        for name in (
            "count",
            "count_attention",
            "count_mlp",
            "count_first",
            "count_last",
            "most_at_any_look",
        ):
            if name in row:
                row[name] = max(0, round(row[name]))
        if "counts" in row:
            row["counts"] = {epsilon: max(0, round(count)) for epsilon, count in row["counts"].items()}
        if "by_fifth" in row:
            row["by_fifth"] = [max(0, round(row["by_fifth"][str(place)])) for place in range(5)]
    return rows
