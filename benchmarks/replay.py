"""Claim: replaying general text lowers forgetting more than stopping early does, at the same task loss.

The demo's model learns the language reference (150 steps of 4 x 128 tokens) by LoRA of rank 8 and by full
fine-tuning. Each arm keeps it from forgetting in another way: text replayed at a weight, the base's
predictions kept on that text at a weight, or a forgetting budget that stops the run or halves its rate. The
controls are plain training, and plain training for fewer steps of a shorter schedule.

Replayed are files of the standard library from pre-training. Of the files that the base never saw, every
other one is for the budget's looks, and the rest are for the figures. The task loss is that of held-out
chapters.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import publish
from intruscope import TuneSettings, tune
from intruscope.demo.run import MODEL
from intruscope.demo.texts import Text, language_reference, library_texts
from intruscope.forgetting.intervals import paired_difference
from intruscope.forgetting.losses import SequenceLosses, measure
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut
from intruscope.train.precision import is_bfloat16_slow

LENGTH = 128
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rate": 6.5e-3, "options": {"rank": 8, "alpha": 16}},
    "full": {"rate": 8e-4},
}
WEIGHTS = (0.1, 0.3, 1.0)
EVERY = 10
NUM_SEQUENCES = 192
REPLAYED_SHARE = 6
"""One file in so many of pre-training is replayed: more than a run can use."""


def arms(steps: int, limits: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    """What differs from the plain run, by name."""
    found: dict[str, dict[str, Any]] = {"plain": {}}
    for share in (0.25, 0.5):
        found[f"{round(share * steps)} steps"] = {"steps": round(share * steps)}
    for target in ("text", "base"):
        for weight in WEIGHTS:
            found[f"{target} {weight:g}"] = {"replay_target": target, "replay_weight": weight}
    for limit in limits:
        for action in ("stop", "lower-rate"):
            found[f"{action} {limit:g}"] = {
                "max_forgetting": limit, "on_budget": action, "watch_every": EVERY,
            }  # fmt: skip
    return found


def write(path: Path, texts: tuple[Text, ...]) -> Path:
    """One JSON line for each text."""
    path.write_text("".join(json.dumps({"text": text.content}) + "\n" for text in texts))
    return path


def losses(tuned: Path | None, files: dict[str, Path]) -> dict[str, SequenceLosses]:
    """The losses of a fine-tune, or of the base, on both texts of the figures."""
    language = load_pair(str(MODEL), str(tuned or MODEL), device="cpu").language_model()
    return {
        part: measure(
            language,
            cut(
                read_texts([files[part]]), language, context=LENGTH + 1, stride=LENGTH,
                max_sequences=NUM_SEQUENCES,
            ),
            protocol="causal",
        )
        for part in ("held_out", "figures")
    }  # fmt: skip


def run(
    files: dict[str, Path], base: dict[str, SequenceLosses], method: str, changes: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Train once, and measure what was learned and what was forgotten."""
    usual = {"batch": 4, "max_length": LENGTH + 1, "watch_every": 0, "seed": seed, "save_every": 10**6}
    settings = TuneSettings(
        **{"method": method, "bf16": not is_bfloat16_slow(), **METHODS[method], **usual, **changes}
    )
    with tempfile.TemporaryDirectory() as name:
        report = tune(
            str(MODEL),
            out=Path(name) / "run",
            settings=settings,
            data=read_texts([files["train"]]),
            forget_text=[files["looks"]] if settings.max_forgetting is not None else [],
            replay=read_texts([files["replay"]]) if "replay_weight" in changes else None,
            pictures=False,
        )
        found = losses(report.model, files)
    before, after = base["figures"], found["figures"]
    forgetting = paired_difference(before.nats, after.nats, before.tokens)
    return {
        "seed": seed,
        "steps": report.steps,
        "seconds": report.seconds,
        "task_loss": found["held_out"].nats_per_token,
        "forgetting": forgetting.estimate,
        "low": forgetting.low,
        "high": forgetting.high,
        "above_budget": [[each.step, each.forgetting] for each in report.budget],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--limits", nargs="*", type=float, default=[0.1])
    parser.add_argument("--only", nargs="*", help="names of arms (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        train, held_out = language_reference()
        unseen = library_texts(held_out=True)
        parts = {
            "train": train, "held_out": held_out, "looks": unseen[::2], "figures": unseen[1::2],
            "replay": library_texts(held_out=False)[::REPLAYED_SHARE],
        }  # fmt: skip
        files = {part: write(Path(name) / f"{part}.jsonl", texts) for part, texts in parts.items()}
        base = losses(None, files)
        for seed in range(given.seeds):
            for method in given.methods:
                for arm, changes in arms(given.steps, tuple(given.limits)).items():
                    if given.only and arm not in given.only:
                        continue
                    chosen = {"steps": given.steps, **changes}
                    rows.append({"method": method, "arm": arm, **run(files, base, method, chosen, seed)})
                    print(json.dumps(rows[-1]), flush=True)
    publish("replay", record(given, base, rows))


def record(
    given: argparse.Namespace, base: dict[str, SequenceLosses], rows: list[dict[str, Any]]
) -> dict[str, object]:
    """Everything that was measured so far."""
    return {
        "threads": given.threads,
        "steps": given.steps,
        "bf16": not is_bfloat16_slow(),
        "base_task_loss": base["held_out"].nats_per_token,
        "base_loss": base["figures"].nats_per_token,
        "runs": rows,
    }


if __name__ == "__main__":
    main()
