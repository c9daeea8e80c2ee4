"""Simulated sweeps: what each edit does to every sequence and example is planted, so the answer is known."""

import numpy as np

from intruscope.repair.interventions import INTERVENTIONS
from intruscope.sweep.assemble import assemble
from intruscope.sweep.figures import Measured
from intruscope.sweep.records import DataSource, Measurement, SweepCell, SweepSettings

NUM_SEQUENCES, NUM_EXAMPLES = 400, 600
TOKENS = 50.0
CONTROLS = ("intruders", "matched_change", "matched_result", "uniform")
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
SETTINGS = SweepSettings(strengths=STRENGTHS, controls=CONTROLS, num_resamples=400)


def world(removed, cost, *, forgetting=0.2, metric="accuracy", edits=True, seed=0, noise=0.02):
    """A sweep's measurements with planted effects.

    Args:
        removed: control and strength to the share of the forgetting that it removes.
        cost: control and strength to the accuracy (or nats per token) that it costs.
        forgetting: nats per token.
        metric: of the task.
        edits: whether there is an intruder to edit.
        seed: of everything random.
        noise: standard deviation of an edit's effect on a sequence, nats per token.
    """
    draw = np.random.default_rng(seed)
    tokens = draw.integers(40, 60, NUM_SEQUENCES).astype(float)
    before = tokens * (3.0 + 0.5 * draw.standard_normal(NUM_SEQUENCES))
    harm = tokens * forgetting * (1.0 + 0.5 * draw.standard_normal(NUM_SEQUENCES))
    tuned = before + harm
    is_right = draw.random(NUM_EXAMPLES) < 0.8
    hardness = draw.random(NUM_EXAMPLES)
    loss = TOKENS * (3.0 + 0.3 * draw.standard_normal(NUM_EXAMPLES))

    def measurement(nats, task):
        weights = np.ones(NUM_EXAMPLES) if metric == "accuracy" else np.full(NUM_EXAMPLES, TOKENS)
        return Measurement(
            text_nats=tuple(nats),
            text_tokens=tuple(tokens),
            task_scores=tuple(task),
            task_weights=tuple(weights),
            task_nats=tuple(task if metric == "loss" else 1.5 - np.asarray(task)),
        )

    def task_at(price):
        if metric == "loss":
            return loss + TOKENS * (price + 0.01 * draw.standard_normal(NUM_EXAMPLES))
        lost = is_right & (hardness < price / 0.8)
        return (is_right & ~lost).astype(float)

    cells, by_key = [], {}
    for control in CONTROLS:
        for strength in STRENGTHS:
            norm = (1.0 - strength) * (2.0 if edits or control == "uniform" else 0.0)
            which = "top" if INTERVENTIONS[control].uses_selection else None
            cell = SweepCell(
                control=control,
                which=which,
                strength=strength,
                num_matrices=3 if norm else 0,
                change_norm=norm,
            )
            change = -removed(control, strength) * harm
            change = change + tokens * noise * draw.standard_normal(NUM_SEQUENCES)
            cells.append(cell)
            by_key[cell.key] = measurement(
                tuned + (change if norm else 0.0), task_at(cost(control, strength) if norm else 0.0)
            )
    return Measured(
        metric=metric,
        protocol="simulated/1",
        base_text=measurement(before, task_at(0.0)),
        tuned=measurement(tuned, task_at(0.0)),
        cells=tuple(cells),
        by_key=by_key,
    )


def report_of(measured, settings=SETTINGS, *, base="base", tuned="tuned"):
    """The whole report of a simulated sweep."""
    return assemble(
        measured,
        settings,
        base=base,
        tuned=tuned,
        text=DataSource(name="text.txt", sha256="0" * 64, num_items=NUM_SEQUENCES, protocol="simulated/1"),
        task=DataSource(name="task.tsv", sha256="1" * 64, num_items=NUM_EXAMPLES, protocol=measured.metric),
        num_intruders=3,
        num_matrices=12,
        models=(base, tuned),
        environment={"python": "3.11"},
    )
