"""Train text classifiers with plain transformers and PEFT, and save each run in the usual way.

    python examples/train_minilm.py --model MODEL --data TASKS --out RUNS --tasks sst2 --runs full r8

MODEL is a BERT-like encoder (all-MiniLM-L6-v2 takes minutes on two cores). TASKS is a folder with one folder
per task: ``sst2`` with ``train_full.tsv`` and ``dev.tsv`` (sentence, tab, label), ``mnli`` and ``qqp`` with
``train.json`` and ``dev.json`` (records of text_a, text_b, label). The script writes one folder per task, run
and seed under RUNS, skips folders that exist, and prints the commands that scan them. Requires the ``lab``
extra. It does not use Intruscope.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
)
from transformers.utils import logging

MAX_TOKENS = 48
WARMUP_FRACTION = 0.06
# The default of transformers' Trainer; without it, some runs stay at chance at these learning rates.
MAX_GRADIENT_NORM = 1.0
# By name, because "all-linear" would also adapt the pooler, which is not part of the body.
LINEAR_LAYERS = (
    "query",
    "key",
    "value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One fine-tuning setting; rank 0 is full fine-tuning."""

    rank: int
    learning_rate: float
    use_dora: bool = False
    use_rslora: bool = False


# The learning rates are several times the paper's (alpha * lr = 2.4e-3). At the paper's rates, this base
# creates hardly any intruders on so little data.
RUNS = {
    "full": Run(rank=0, learning_rate=1e-4),
    "r8": Run(rank=8, learning_rate=2e-3),
    "r1": Run(rank=1, learning_rate=4e-3),
    "dora": Run(rank=8, learning_rate=2e-3, use_dora=True),
    # The scale alpha / sqrt(rank) is 2.8 times alpha / rank at rank 8.
    "rslora": Run(rank=8, learning_rate=7e-4, use_rslora=True),
}


class Example(NamedTuple):
    """A text or a pair of texts, and the number of its label."""

    text: str
    second: str | None
    label: int


def read_tsv(path: Path) -> list[Example]:
    """Read sentences and labels; the first line is a header."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Example(sentence, None, int(label)) for sentence, label in rows if label.isdigit()]


def read_json(path: Path) -> list[Example]:
    """Read pairs of texts; labels are numbered in alphabetical order."""
    rows = json.loads(path.read_text(encoding="utf-8")).values()
    numbers = {label: number for number, label in enumerate(sorted({row["label"] for row in rows}))}
    return [Example(row["text_a"], row["text_b"], numbers[row["label"]]) for row in rows]


def read_task(folder: Path) -> tuple[list[Example], list[Example]]:
    """Read the training and the test examples."""
    if (folder / "train.json").exists():
        return read_json(folder / "train.json"), read_json(folder / "dev.json")
    return read_tsv(folder / "train_full.tsv"), read_tsv(folder / "dev.tsv")


def batches(examples: list[Example], tokenizer: Any, size: int) -> list[dict[str, torch.Tensor]]:
    """Tokenised batches in the given order."""
    result = []
    for start in range(0, len(examples), size):
        texts, seconds, labels = zip(*examples[start : start + size], strict=True)
        pairs = (list(texts),) if None in seconds else (list(texts), list(seconds))
        batch = tokenizer(*pairs, truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt")
        result.append({**batch, "labels": torch.tensor(labels)})
    return result


def shuffled_by_length(examples: list[Example], order: random.Random, size: int) -> list[Example]:
    """Shuffle the examples so that each batch has texts of similar length and needs little padding."""
    examples = list(examples)
    order.shuffle(examples)
    window = 32 * size
    parts = []
    for start in range(0, len(examples), window):
        near = sorted(
            examples[start : start + window], key=lambda example: len(example.text + (example.second or ""))
        )
        parts += [near[first : first + size] for first in range(0, len(near), size)]
    order.shuffle(parts)
    return [example for part in parts for example in part]


def build(model: Path, run: Run, seed: int, num_labels: int = 2) -> Any:
    """Build the classifier: trainable except for the embeddings, or with an adapter on its linear layers."""
    torch.manual_seed(seed)
    classifier, loading = AutoModelForSequenceClassification.from_pretrained(
        model,
        num_labels=num_labels,
        dtype=torch.float32,
        local_files_only=model.exists(),
        output_loading_info=True,
    )
    if run.rank == 0:
        classifier.get_input_embeddings().requires_grad_(False)
        return classifier
    # A pooler that the base lacks is initialised at random. Unless it is saved, each load draws another one.
    new = {name.split(".")[-3] for name in loading["missing_keys"] if ".pooler." in name}
    config = LoraConfig(
        r=run.rank,
        lora_alpha=2 * run.rank,
        target_modules=list(LINEAR_LAYERS),
        use_dora=run.use_dora,
        use_rslora=run.use_rslora,
        modules_to_save=["classifier", *sorted(new)],
        task_type="SEQ_CLS",
    )
    with warnings.catch_warnings():
        # PEFT still uses an attribute that newer versions of transformers have renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return get_peft_model(classifier, config)


def accuracy(model: Any, data: list[dict[str, torch.Tensor]]) -> float:
    """Fraction of texts that get the right label."""
    model.eval()
    right = total = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for batch in data:
            right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
            total += len(batch["labels"])
    return right / total


def train(
    model: Any,
    examples: list[Example],
    tokenizer: Any,
    *,
    learning_rate: float,
    epochs: int = 1,
    batch: int = 16,
    seed: int = 0,
) -> list[float]:
    """Train with AdamW, warm-up and linear decay, as in the paper. Returns the loss of each step.

    Runs in bfloat16 autocast, which is slow on processors without bfloat16 instructions.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    num_steps = epochs * -(-len(examples) // batch)
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP_FRACTION * num_steps), num_steps)
    order = random.Random(seed)
    losses: list[float] = []
    model.train()
    for _ in range(epochs):
        for part in batches(shuffled_by_length(examples, order, batch), tokenizer, batch):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**part).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) % 100 == 0:
                print(f"  step {len(losses)}/{num_steps} loss {losses[-1]:.3f}", flush=True)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["sst2"])
    parser.add_argument("--runs", nargs="+", choices=sorted(RUNS), default=["full", "r8", "dora"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--learning-rate", type=float, help="overrides the learning rate of each run")
    parser.add_argument("--examples", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    # Seeds are the outer loop, so an interrupted series still covers every task and run.
    wanted = [(task, name, seed) for seed in options.seeds for task in options.tasks for name in options.runs]
    for task, name, seed in wanted:
        folder = options.out / f"{task}-{name}-s{seed}"
        if not folder.exists():
            train_one(options, tokenizer, task=task, name=name, seed=seed, folder=folder)
    print("\nNow scan them:")
    for task, name, seed in wanted:
        print(f"  intruscope scan {options.model} {options.out / f'{task}-{name}-s{seed}'}")


def train_one(
    options: argparse.Namespace, tokenizer: Any, *, task: str, name: str, seed: int, folder: Path
) -> None:
    """Train one run and save it with its figures; the folder appears when it is complete."""
    run = RUNS[name]
    if options.learning_rate is not None:
        run = replace(run, learning_rate=options.learning_rate)
    examples, held_out = read_task(options.data / task)
    random.Random(seed).shuffle(examples)
    start = time.perf_counter()
    model = build(options.model, run, seed, num_labels=1 + max(example.label for example in held_out))
    losses = train(
        model,
        examples[: options.examples],
        tokenizer,
        learning_rate=run.learning_rate,
        epochs=options.epochs,
        batch=options.batch,
        seed=seed,
    )
    figures = {
        "task": task,
        "run": name,
        **asdict(run),
        "examples": min(options.examples, len(examples)),
        "epochs": options.epochs,
        "batch": options.batch,
        "steps": len(losses),
        "seed": seed,
        "dev_accuracy": accuracy(model, batches(held_out, tokenizer, 64)),
        "seconds": round(time.perf_counter() - start),
    }
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    partial.rename(folder)
    print(figures, flush=True)


if __name__ == "__main__":
    main()
