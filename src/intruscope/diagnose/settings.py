"""What a diagnosis is asked for, beyond how its parts measure."""

from __future__ import annotations

from dataclasses import dataclass

from intruscope.options import documented, shared
from intruscope.spectra.records import ScanSettings
from intruscope.sweep.records import SweepSettings

CHEAP_CONTROLS = ("intruders", "matched_change", "uniform")
"""The repair, a shrink of the same size, and a shrink of the whole update."""


@documented
@dataclass(frozen=True, kw_only=True)
class DiagnoseSettings:
    """What counts as an intruder, which fixes are compared, and the statistics."""

    controls: tuple[str, ...] = shared(
        SweepSettings,
        "controls",
        default=CHEAP_CONTROLS,
        help="Fixes to compare where a task and a text are given, as in sweep; 'all' takes longer.",
    )
    strengths: tuple[float, ...] = shared(SweepSettings, "strengths")
    weights: tuple[float, ...] = shared(SweepSettings, "weights")
    max_task_cost: float = shared(SweepSettings, "max_task_cost")
    k: int = shared(ScanSettings, "k")
    epsilon: float = shared(ScanSettings, "epsilon")
    seed: int = shared(ScanSettings, "seed")
    num_resamples: int = shared(SweepSettings, "num_resamples")
