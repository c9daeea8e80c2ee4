"""Claim under test: at equal task loss, adapter guidance forgets less than scaling the adapter down.

The shipped demo model with its LoRA, three seeds. Both are measured on the same held-out chapters (task) and
held-out source files (forgetting): guidance at several gammas, and the update at several strengths. For each
gamma, the strength with the same task loss is interpolated (monotone cubic), and so is the forgetting there.
The difference has a 95% bootstrap interval over sequences of both texts; each resample finds its own equal
strength. Resampling does not cover other seeds of the training: each seed has its row.

Measurements are kept in the work folder, seed by seed, and an interrupted run resumes there.

    python -m benchmarks.guidance --work WORK
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from benchmarks.common import publish
from benchmarks.interventions import Case, demo_cases
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.windows import cut
from intruscope.sweep.live import LiveBench
from intruscope.sweep.records import Measurement
from intruscope.weights.output import write_json_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

GAMMAS = (0.3, 0.5, 0.7, 0.8, 0.9, 1.5, 2.0, 3.0)
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NUM_RESAMPLES = 2000
NUM_TASK_SEQUENCES = 96


class Losses:
    """Losses of several models on resamples of the same sequences, in nats per token: (models, resamples).

    Column 0 is the data itself.
    """

    def __init__(self, models: list[Measurement]) -> None:
        generator = np.random.default_rng(0)
        self.text = _resampled([(m.text_nats, m.text_tokens) for m in models], generator)
        self.task = _resampled([(m.task_scores, m.task_weights) for m in models], generator)


def _resampled(
    models: list[tuple[tuple[float, ...], tuple[float, ...]]], generator: np.random.Generator
) -> NDArray[np.float64]:
    num = len(models[0][0])
    counts = generator.multinomial(num, np.full(num, 1 / num), size=NUM_RESAMPLES).T
    weights = np.concatenate([np.ones((num, 1)), counts], axis=1)
    return np.stack([(np.array(nats) @ weights) / (np.array(tokens) @ weights) for nats, tokens in models])


def interval(values: NDArray[np.float64]) -> dict[str, float]:
    """The figure of the data, with the percentiles of the resamples."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {"estimate": float(values[0]), "low": float(low), "high": float(high)}


def measure(case: Case, path: Path) -> list[Measurement]:
    """Every strength, then every gamma; from the file where they are known."""
    if path.exists():
        return [Measurement(**{n: tuple(v) if isinstance(v, list) else v for n, v in each.items()})
                for each in json.loads(path.read_text())["models"]]  # fmt: skip
    pair = load_pair(case.base, case.tuned, device="cpu")
    settings = case.measuring
    sequences = cut(
        case.text, pair.language_model(), context=settings.context, max_sequences=settings.max_sequences
    )
    bench = LiveBench(pair, sequences, protocol="causal", task=case.task, max_sequences=NUM_TASK_SEQUENCES)
    models = [bench.interpolated(strength) for strength in STRENGTHS]
    models += [bench.guided(gamma) for gamma in GAMMAS]
    write_json_file({"models": [asdict(each) for each in models]}, path)
    return models


def figures(seed: int, models: list[Measurement]) -> dict[str, Any]:
    """All figures of one fine-tune."""
    losses, num = Losses(models), len(STRENGTHS)
    tuned_task, forgetting = losses.task[num - 1], losses.text - losses.text[0]
    fine = np.linspace(0.0, 1.0, 501)
    task_fine, text_fine = (
        PchipInterpolator(STRENGTHS, each[:num])(fine) for each in (losses.task, forgetting)
    )

    def row(place: int) -> dict[str, Any]:
        change, forgot = losses.task[place] - tuned_task, forgetting[place]
        share = forgot / forgetting[num - 1]
        return {"task_change": interval(change), "forgetting": interval(forgot), "share": interval(share)}

    guided = []
    for place, gamma in enumerate(GAMMAS, start=num):
        more: dict[str, Any] = {}
        if gamma < 1.0:
            strengths = equal_strength(fine, task_fine, losses.task[place])
            there = [np.interp(at, fine, each) for at, each in zip(strengths, text_fine.T, strict=True)]
            more["equal_strength"] = interval(strengths)
            more["forgetting_minus_shrink"] = interval(forgetting[place] - np.array(there))
        guided.append({"gamma": gamma, **row(place), **more})
    return {
        "seed": seed,
        "num_sequences": len(models[0].text_nats),
        "num_task_sequences": len(models[0].task_scores),
        "base_task": interval(losses.task[0]),
        "tuned_task": interval(tuned_task),
        "tuned_forgetting": interval(forgetting[num - 1]),
        "shrink": [{"strength": strength, **row(place)} for place, strength in enumerate(STRENGTHS)],
        "guidance": guided,
    }


def equal_strength(
    strengths: NDArray[np.float64], losses: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The strength whose task loss is the wanted one, for each resample.

    Args:
        strengths: From 0 to 1.
        losses: Task loss at each of them, (strengths, resamples).
        wanted: (resamples,).

    Returns:
        The strength on the way down from the one with the least task loss; that one itself where no strength
        is as good as wanted.
    """
    found = []
    for curve, target in zip(losses.T, wanted, strict=True):
        best = int(curve.argmin())
        rising = np.maximum.accumulate(curve[: best + 1][::-1])
        found.append(float(np.interp(target, rising, strengths[: best + 1][::-1])))
    return np.array(found)


def table(runs: list[dict[str, Any]]) -> list[str]:
    """The table of the docs: each figure is the mean over the seeds, with their range."""

    def over_seeds(values: list[float], digits: int, scale: float = 1.0) -> str:
        mean, low, high = sum(values) / len(values), min(values), max(values)
        return f"{scale * mean:.{digits}f} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"

    rows = [
        "| gamma | task loss, more than tuned | forgetting left, % | strength with the same task loss | "
        "guidance forgets more by |",
        "|---|---|---|---|---|",
    ]
    for place, gamma in enumerate(GAMMAS):
        found = [run["guidance"][place] for run in runs]
        strength = difference = ""
        if gamma < 1.0:
            strength = over_seeds([each["equal_strength"]["estimate"] for each in found], 2)
            difference = over_seeds([each["forgetting_minus_shrink"]["estimate"] for each in found], 3)
        task = over_seeds([each["task_change"]["estimate"] for each in found], 3)
        share = over_seeds([each["share"]["estimate"] for each in found], 0, 100.0)
        rows.append(f"| {gamma:g} | {task} | {share} | {strength} | {difference} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    runs = []
    for case in demo_cases(options.work)[: options.seeds]:
        models = measure(case, options.work / f"guidance-s{case.seed}.json")
        runs.append(figures(case.seed, models))
        print(f"seed {case.seed} is measured", flush=True)
    publish("guidance", {"num_resamples": NUM_RESAMPLES, "runs": runs})


if __name__ == "__main__":
    main()
