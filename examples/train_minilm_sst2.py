"""Train a sentiment classifier with plain transformers and PEFT, and save each run as its users would.

    python examples/train_minilm_sst2.py --model MODEL --data SST2 --out RUNS

MODEL is a BERT-like encoder (all-MiniLM-L6-v2 takes minutes on two cores), SST2 a folder with
``train_full.tsv`` and ``dev.tsv`` (sentence, tab, label). Writes one folder per run under RUNS and prints
the commands that scan them. Needs the ``lab`` extra. Nothing here knows Intruscope.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
)
from transformers.utils import logging

MAX_TOKENS = 40
WARMUP_FRACTION = 0.06
# By name, since "all-linear" would also adapt the pooler, which is no part of the body.
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
    """One way to fine-tune; rank 0 is full fine-tuning."""

    rank: int
    learning_rate: float
    use_dora: bool = False
    use_rslora: bool = False


RUNS = {
    "full": Run(rank=0, learning_rate=1e-4),
    "lora": Run(rank=8, learning_rate=2e-3),
    "lora-r1": Run(rank=1, learning_rate=4e-3),
    "dora": Run(rank=8, learning_rate=2e-3, use_dora=True),
    # Scaled by alpha / sqrt(rank), which is 2.8 times as much as alpha / rank at rank 8.
    "rslora": Run(rank=8, learning_rate=7e-4, use_rslora=True),
}


def read_tsv(path: Path) -> list[tuple[str, int]]:
    """Sentences and labels; the first line is a heading."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(sentence, int(label)) for sentence, label in rows if label.isdigit()]


def batches(examples: list[tuple[str, int]], tokenizer: Any, size: int) -> list[dict[str, torch.Tensor]]:
    """Tokenised batches in the given order."""
    result = []
    for start in range(0, len(examples), size):
        sentences, labels = zip(*examples[start : start + size], strict=True)
        batch = tokenizer(
            list(sentences), truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt"
        )
        result.append({**batch, "labels": torch.tensor(labels)})
    return result


def build(model: Path, run: Run, seed: int) -> Any:
    """The classifier, all of it but the embeddings trained, or under an adapter on its linear layers."""
    torch.manual_seed(seed)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=2, dtype=torch.float32, local_files_only=model.exists()
    )
    if run.rank == 0:
        classifier.get_input_embeddings().requires_grad_(False)
        return classifier
    config = LoraConfig(
        r=run.rank,
        lora_alpha=2 * run.rank,
        target_modules=list(LINEAR_LAYERS),
        use_dora=run.use_dora,
        use_rslora=run.use_rslora,
        task_type="SEQ_CLS",
    )
    with warnings.catch_warnings():
        # PEFT still asks for an attribute that newer transformers have renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return get_peft_model(classifier, config)


def accuracy(model: Any, data: list[dict[str, torch.Tensor]]) -> float:
    """Share of sentences labelled right."""
    model.eval()
    right = total = 0
    with torch.no_grad():
        for batch in data:
            right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
            total += len(batch["labels"])
    return right / total


def train(
    model: Any,
    examples: list[tuple[str, int]],
    tokenizer: Any,
    *,
    learning_rate: float,
    epochs: int = 1,
    batch: int = 32,
    seed: int = 0,
) -> list[float]:
    """AdamW with warm-up and linear decay, as in the paper; the loss of each step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    num_steps = epochs * -(-len(examples) // batch)
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP_FRACTION * num_steps), num_steps)
    order = random.Random(seed)
    examples = list(examples)
    losses: list[float] = []
    model.train()
    for _ in range(epochs):
        order.shuffle(examples)
        for part in batches(examples, tokenizer, batch):
            loss = model(**part).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) % 50 == 0:
                print(f"  step {len(losses)}/{num_steps} loss {losses[-1]:.3f}", flush=True)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", choices=sorted(RUNS), default=["full", "lora", "dora"])
    parser.add_argument("--sentences", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    examples = read_tsv(options.data / "train_full.tsv")
    random.Random(options.seed).shuffle(examples)
    dev = batches(read_tsv(options.data / "dev.tsv"), tokenizer, 64)
    for name in options.runs:
        run = RUNS[name]
        start = time.perf_counter()
        model = build(options.model, run, options.seed)
        train(
            model,
            examples[: options.sentences],
            tokenizer,
            learning_rate=run.learning_rate,
            epochs=options.epochs,
            batch=options.batch,
            seed=options.seed,
        )
        figures = {
            "run": name,
            **asdict(run),
            "sentences": options.sentences,
            "epochs": options.epochs,
            "seed": options.seed,
            "dev_accuracy": accuracy(model, dev),
            "seconds": round(time.perf_counter() - start),
        }
        folder = options.out / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
        print(figures, flush=True)
    print("\nNow scan them:")
    for name in options.runs:
        print(f"  intruscope scan {options.model} {options.out / name}")


if __name__ == "__main__":
    main()
