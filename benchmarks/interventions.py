"""Claim: scaling the top intruders down reduces forgetting more than a plain shrink of the same size.

The result has the form of the paper's Table 3 (strength .1 .3 .5 .7 .9; change in accuracy, change in
forgetting), with all controls and paired intervals. The models are a masked MiniLM tuned with LoRA of rank 1
and 8 on SST-2, MNLI and QQP (see ``examples/train_minilm.py``; up to three seeds), and the shipped demo
model. Forgetting is measured on text that the base never saw. Each seed uses different sequences of the text
and different examples of the task, so pooling seeds also pools samples.

Measurements are kept in the work folder, one grid point at a time, and an interrupted run resumes there.
Whatever is complete is published.

    python -m benchmarks.interventions --work WORK --base MODEL --runs RUNS --tasks TASKS --text FILE
    python -m benchmarks.interventions --work WORK --demo --publish
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.interventions_table import GRID, publish
from intruscope.engine.settings import RunOptions
from intruscope.forgetting.intervals import wilson
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.tasks import ClassificationTask, Task, load_task
from intruscope.forgetting.texts import Corpus, read_texts
from intruscope.records.plain import plain
from intruscope.repair.survey import survey
from intruscope.spectra.records import ScanSettings
from intruscope.sweep.measure import measure_pair
from intruscope.sweep.settings import MeasureOptions
from intruscope.weights.output import write_json_file

SEEDS = (0, 1, 2, 3)
"""The last seed replaces one that learned nothing."""
NUM_SEQUENCES, NUM_EXAMPLES, MAX_TOKENS = 20, 100, 48
LABELS = {"mnli": ("contradiction", "entailment", "neutral")}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fine-tune, and the data it is measured on.

    Attributes:
        name: Unique; the name of its file in the work folder.
        group: Cases with the same group are pooled: all seeds of one task and rank.
        learned: Whether training learned anything; see :func:`has_learned`.
    """

    name: str
    group: str
    seed: int
    base: Path
    tuned: Path
    task: Task
    text: Corpus
    measuring: MeasureOptions
    training: dict[str, Any]
    learned: bool = True

    @property
    def row(self) -> dict[str, Any]:
        """What the judges of the studies read of a run, before any figure."""
        task, _, rank = self.group.rpartition(" r=")
        return {"arm": f"lora_r{rank}", "task": task, "seed": self.seed, "status": "ok"}


def minilm_cases(base: Path, runs: Path, tasks: Path, text: Path, work: Path) -> list[Case]:
    """The LoRA runs that exist, ordered by seed."""
    cases = []
    lines = text.read_text(encoding="utf-8").splitlines()
    for seed in SEEDS:
        part = work / f"text-s{seed}.txt"
        if not part.exists():
            part.write_text("\n".join(lines[seed :: len(lines) // NUM_SEQUENCES]) + "\n", encoding="utf-8")
        for task in ("sst2", "mnli", "qqp"):
            for rank in (1, 8):
                folder = runs / f"{task}-r{rank}-s{seed}"
                if (folder / "figures.json").exists():
                    training = json.loads((folder / "figures.json").read_text())
                    whole = _whole_task(tasks, task)
                    cases.append(
                        Case(
                            name=folder.name,
                            group=f"{task} r={rank}",
                            seed=seed,
                            base=base,
                            tuned=folder,
                            task=_some_examples(whole, seed),
                            text=read_texts([part]),
                            measuring=MeasureOptions(max_tokens=MAX_TOKENS, device="cpu"),
                            training=training,
                            learned=has_learned(training["dev_accuracy"], whole),
                        )
                    )
    return cases


def _whole_task(tasks: Path, name: str) -> ClassificationTask:
    file = next(path for path in (tasks / name / "dev.tsv", tasks / name / "dev.json") if path.exists())
    task = load_task(file, labels=LABELS.get(name))
    assert isinstance(task, ClassificationTask)
    return task


def _some_examples(task: ClassificationTask, seed: int) -> Task:
    step = len(task.labels) // NUM_EXAMPLES
    chosen = range(seed, len(task.labels), step)[:NUM_EXAMPLES]
    return replace(
        task, texts=tuple(task.texts[i] for i in chosen), labels=tuple(task.labels[i] for i in chosen)
    )


def has_learned(accuracy: float, task: ClassificationTask) -> bool:
    """The rule of the studies: the accuracy's 95% interval lies above the most common label's share."""
    num = len(task.labels)
    return wilson(round(accuracy * num), num).low > max(Counter(task.labels).values()) / num


def demo_cases(work: Path) -> list[Case]:
    """The shipped model, tuned with LoRA on the language reference as in the demo."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from intruscope.demo.finetune import LoopSettings, encode, train, with_lora
    from intruscope.demo.run import BATCH, CONTEXT, LORA_LEARNING_RATE, LORA_RANK, MODEL, NUM_STEPS
    from intruscope.demo.texts import language_reference, library_texts

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    held_out = work / "demo-source.txt"
    held_out.write_text("\n\n".join(each.content for each in library_texts(held_out=True)), encoding="utf-8")
    measuring = MeasureOptions(context=CONTEXT, max_sequences=64, device="cpu")
    cases = []
    for seed in SEEDS:
        chapters, test = language_reference(seed=seed)
        folder, test_file = work / f"demo-adapter-s{seed}", work / f"demo-task-s{seed}.txt"
        test_file.write_text("\n\n".join(each.content for each in test)[:60_000], encoding="utf-8")
        settings = LoopSettings(
            learning_rate=LORA_LEARNING_RATE, num_steps=NUM_STEPS, batch=BATCH, context=CONTEXT, seed=seed
        )
        if not folder.exists():
            model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).requires_grad_(False)
            model = with_lora(model, rank=LORA_RANK, seed=seed)
            train(model, encode(tokenizer, chapters), settings, precision="float32")
            model.save_pretrained(folder, save_embedding_layers=False)
        cases.append(
            Case(
                name=f"demo-r{LORA_RANK}-s{seed}",
                group=f"demo LM r={LORA_RANK}",
                seed=seed,
                base=MODEL,
                tuned=folder,
                task=load_task(test_file),
                text=read_texts([held_out]),
                measuring=measuring,
                training=asdict(settings),
            )
        )
    return cases


def measure_case(case: Case, work: Path) -> None:
    """Measure the grid of one fine-tune and save it as one file."""
    path = work / f"{case.name}.measured.json"
    if path.exists():
        return
    started = time.perf_counter()
    folder = work / case.name
    folder.mkdir(exist_ok=True)
    found = survey(
        str(case.base),
        str(case.tuned),
        settings=ScanSettings(),
        options=RunOptions(workers=0, work_dir=folder / "survey"),
    )
    pair = load_pair(case.base, case.tuned, device="cpu")
    measured = measure_pair(
        found,
        pair,
        task=case.task,
        text=case.text,
        settings=replace(GRID, seed=case.seed),
        measuring=case.measuring,
        options=RunOptions(work_dir=folder / "sweep"),
    )
    record = {
        "group": case.group,
        "seed": case.seed,
        "training": case.training,
        "learned": case.learned,
        "num_intruders": sum(len(matrix.intruders) for matrix in found.matrices),
        "num_matrices": len(found.matrices),
        "text_sha256": case.text.sha256,
        "task_sha256": case.task.sha256,
        "metric": measured.metric,
        "protocol": measured.protocol,
        "base_text": plain(measured.base_text),
        "tuned": plain(measured.tuned),
        "cells": [plain(cell) for cell in measured.cells],
        "by_key": {key: plain(value) for key, value in measured.by_key.items()},
    }
    write_json_file(record, path)
    print(
        f"{case.name}: {len(measured.cells)} grid points in {time.perf_counter() - started:.0f} s", flush=True
    )


def case_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that name fine-tunes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="the masked MiniLM")
    parser.add_argument("--runs", type=Path, help="output folder of examples/train_minilm.py")
    parser.add_argument("--tasks", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument(
        "--only", default="", help="only runs whose name contains this; lets several processes share the work"
    )
    parser.add_argument("--demo", action="store_true", help="measure the shipped model")
    return parser


def learned_cases(given: argparse.Namespace) -> list[Case]:
    """The fine-tunes that the options name and that learned something, those of the shipped model first."""
    given.work.mkdir(parents=True, exist_ok=True)
    cases = demo_cases(given.work) if given.demo else []
    if given.runs is not None:
        cases += minilm_cases(given.base, given.runs, given.tasks, given.text, given.work)
    return [case for case in cases if given.only in case.name and case.learned]


def main() -> None:
    parser = case_parser(__doc__)
    parser.add_argument("--publish", action="store_true", help="pool the measurements and write the results")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.base is not None:
        for case in minilm_cases(options.base, options.runs, options.tasks, options.text, options.work):
            if options.only in case.name:
                measure_case(case, options.work)
    if options.demo:
        for case in demo_cases(options.work):
            measure_case(case, options.work)
    if options.publish:
        publish(options.work)


if __name__ == "__main__":
    main()
