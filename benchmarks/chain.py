"""Claim: trained on one task after another, low-rank LoRA loses earlier tasks faster than full fine-tuning.

This is the paper's sequential study (arXiv 2410.21228, v1 Figures 8 and 17, v3 Figure 9) on the masked
MiniLM: MNLI, QQP, SST-2, SIQA, WinoGrande and FEVER in turn, with full fine-tuning and LoRA of rank 1, 8 and
64, merged and reinitialised after each task. Every task is scored with a head fitted on the frozen body. The
study is smaller than the paper's (see EXAMPLES, HEAD_EXAMPLES and EVAL_EXAMPLES), with one epoch and one
seed.

The learning rates are those at which this base learns (LOG.md, 2026-11-26): full 1e-4; LoRA 1e-3 at rank 8
and 2e-3 at rank 1. Rank 64 keeps alpha * rate as at rank 8, with alpha = 2 * rank. The paper's product of
2.4e-3 is a seventh of that and creates hardly any intruders here.

An interrupted run resumes when it is started again. Each method is published when it is complete.

    python -m benchmarks.chain --work WORK --base MODEL --data TASKS --text FILE [--only lora_r8]
    python -m benchmarks.chain --table
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.common import RESULTS, environment
from intruscope.forgetting.named_tasks import named_task
from intruscope.forgetting.texts import read_texts
from intruscope.plots.figures import write_figures
from intruscope.plots.sequence import ChainLine, comparison_figure
from intruscope.sequence.chain import chain
from intruscope.sequence.records import ChainSettings, ChainTask, chain_json
from intruscope.train.settings import TuneSettings
from intruscope.weights.output import write_atomically

if TYPE_CHECKING:
    from intruscope.progress import Progress

TASKS = ("mnli", "qqp", "sst2", "siqa", "winogrande", "fever")
EXAMPLES, HEAD_EXAMPLES, EVAL_EXAMPLES = 2400, 600, 400
BATCH, MAX_LENGTH, SEED = 32, 64, 0
NUM_SEQUENCES = 60
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "rate": 1e-4},
    "lora_r1": {"method": "lora", "rate": 2e-3, "options": {"rank": 1, "alpha": 2.0}},
    "lora_r8": {"method": "lora", "rate": 1e-3, "options": {"rank": 8, "alpha": 16.0}},
    "lora_r64": {"method": "lora", "rate": 1.25e-4, "options": {"rank": 64, "alpha": 128.0}},
}
LABELS = {"full": "full", "lora_r1": "LoRA r = 1", "lora_r8": "LoRA r = 8", "lora_r64": "LoRA r = 64"}
PICTURES = Path(__file__).parents[1] / "docs" / "images"


def run(name: str, options: argparse.Namespace) -> None:
    """Run one method over all tasks and write its figures to a small file."""
    if (RESULTS / f"chain_{name}.json").exists():
        return
    settings = ChainSettings(
        training=TuneSettings(
            **METHODS[name], examples=EXAMPLES, epochs=1, batch=BATCH, max_length=MAX_LENGTH, bf16=True,
            seed=SEED, save_every=25, watch_every=0,
        ),
        num_head_examples=HEAD_EXAMPLES,
        num_eval_examples=EVAL_EXAMPLES,
        max_sequences=NUM_SEQUENCES,
        workers=0,
    )  # fmt: skip
    tasks = []
    for task in options.tasks.split(","):
        train, held_out = (named_task(task, split=split, folder=options.data) for split in ("train", "eval"))
        tasks.append(ChainTask(name=task, train=train, held_out=held_out))
    started = time.process_time()
    report = chain(
        str(options.base),
        tasks=tasks,
        out=options.work / name,
        settings=settings,
        text=read_texts([options.text]) if options.text is not None else None,
        on_progress=_reporter(name),
    )
    publish(name, chain_json(report), time.process_time() - started)


def _reporter(name: str) -> Any:
    """Print a line at the end of every part, with its processor seconds."""
    last = {"what": "", "at": time.process_time()}

    def report(event: Progress) -> None:
        what = event.stage
        if event.done >= event.total and what != last["what"]:
            now = time.process_time()
            print(f"{name}  {what}: {now - float(last['at']):.0f} s", flush=True)
            last.update(what=what, at=now)

    return report


def publish(name: str, report: dict[str, Any], seconds: float) -> None:
    """Write the figures of one chain without its matrices and maps: a few kilobytes."""
    stages = []
    for stage in report["stages"]:
        weights = {key: value for key, value in stage["weights"].items() if key != "matrices"}
        stages.append(
            {**{key: value for key, value in stage.items() if key != "similarity"}, "weights": weights}
        )
    kept = ("base", "environment", "base_files")
    plan = {key: value for key, value in report["plan"].items() if key not in kept}
    record = {
        "environment": environment(),
        "processor_seconds_of_the_last_part": round(seconds, 1),
        "method": name,
        "plan": plan,
        "tasks": report["tasks"],
        "cells": [_cell(cell) for cell in report["cells"]],
        "stages": stages,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomically(
        RESULTS / f"chain_{name}.json",
        lambda stream: stream.write(json.dumps(record, indent=1).encode() + b"\n"),
    )
    print(f"{name}: published", flush=True)


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    """One stage and task: accuracy with its interval, and the paired differences."""
    found: dict[str, Any] = {
        "stage": cell["stage"],
        "task": cell["task"],
        "accuracy": [round(cell["accuracy"][key], 5) for key in ("estimate", "low", "high")],
        "converged": cell["head"]["converged"],
    }
    for name in ("against_baseline", "against_own", "against_best"):
        against = cell[name]
        if against is not None:
            difference = against["difference"]
            found[name] = {
                "stage": against["stage"],
                "difference": [round(difference[key], 5) for key in ("estimate", "low", "high")],
                "mcnemar_p": against["mcnemar_p"],
            }
    return found


def published() -> dict[str, dict[str, Any]]:
    """The published results of the methods that are complete."""
    files = {name: RESULTS / f"chain_{name}.json" for name in METHODS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def table(records: dict[str, dict[str, Any]]) -> str:
    """The rows of docs/sequence.md, one per method."""
    lines = [
        "| method | mean accuracy at the end | backward transfer | below the base at the end | intruders | "
        "update, % of the base | effective rank | forgetting, nats/token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, record in records.items():
        last = record["stages"][-1]
        transfer, weights = last["transfer"], last["weights"]
        end = [cell for cell in record["cells"] if cell["stage"] == last["stage"]]
        below = [cell["task"] for cell in end if cell["against_baseline"]["difference"][2] < 0.0]
        forgetting = last["forgetting"]
        lines.append(
            f"| {LABELS[name]} | {_points(transfer['average_accuracy'])} | "
            f"{_points(transfer['backward_transfer'])} | {', '.join(below) or 'none'} | "
            f"{weights['num_intruders']} of {weights['num_candidates']} | "
            f"{100 * weights['relative_update_norm']:.1f} | {weights['effective_rank']:.1f} | "
            f"{_nats(forgetting['change']) if forgetting else ''} |"
        )
    return "\n".join(lines)


def _points(interval: dict[str, float]) -> str:
    value, low, high = (100.0 * interval[key] for key in ("estimate", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _nats(interval: dict[str, float]) -> str:
    return f"{interval['estimate']:+.3f} ({interval['low']:+.3f} to {interval['high']:+.3f})"


def picture(records: dict[str, dict[str, Any]]) -> None:
    """All methods side by side, for docs/sequence.md."""

    def three(interval: dict[str, float]) -> tuple[float, float, float]:
        return interval["estimate"], interval["low"], interval["high"]

    lines = [
        ChainLine(
            label=LABELS[name],
            average=tuple(three(stage["transfer"]["average_accuracy"]) for stage in record["stages"]),
            kept=tuple(three(stage["transfer"]["backward_transfer"]) for stage in record["stages"][1:]),
            intruders=tuple(stage["weights"]["num_intruders"] for stage in record["stages"]),
        )
        for name, record in records.items()
    ]
    tasks = next(iter(records.values()))["tasks"]
    write_figures(lambda: [("chain", comparison_figure(tasks, lines))], PICTURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of the runs; interrupted runs resume there")
    parser.add_argument("--base", type=Path, help="the masked MiniLM")
    parser.add_argument("--data", type=Path, help="folder of the tasks")
    parser.add_argument("--text", type=Path, help="text that the base never saw")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--only", choices=METHODS, help="one method")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table and draw the picture")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
        for name in METHODS if options.only is None else (options.only,):
            run(name, options)
    if options.table:
        records = published()
        print(table(records))
        picture(records)


if __name__ == "__main__":
    main()
