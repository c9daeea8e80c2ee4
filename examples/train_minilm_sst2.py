"""Train a sentiment classifier three ways with plain transformers and PEFT, and save each as its users would.

    python examples/train_minilm_sst2.py --model MODEL --data SST2 --out RUNS

MODEL is a BERT-like encoder (all-MiniLM-L6-v2 takes minutes on two cores), SST2 a folder with
``train_full.tsv`` and ``dev.tsv`` (sentence, tab, label). Writes ``full``, ``lora-r8`` and ``lora-r1``
under RUNS and prints the commands that scan them. Needs the ``lab`` extra. Nothing here knows Intruscope.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

MAX_TOKENS = 40
WARMUP_FRACTION = 0.06
# name: rank (0 is full fine-tuning) and learning rate
RUNS = {"full": (0, 1e-4), "lora-r8": (8, 2e-3), "lora-r1": (1, 4e-3)}


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


def build(model: Path, rank: int, seed: int) -> Any:
    """The classifier, all of it trained or under a LoRA adapter on its linear layers, alpha = 2 rank."""
    torch.manual_seed(seed)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=2, dtype=torch.float32, local_files_only=model.exists()
    )
    if rank == 0:
        classifier.get_input_embeddings().requires_grad_(False)
        return classifier
    # By name, since "all-linear" would also adapt the pooler, which is no part of the body.
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=[
            "query",
            "key",
            "value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ],
        task_type="SEQ_CLS",
    )
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


def train(model: Any, examples: list[tuple[str, int]], tokenizer: Any, rate: float, options: Any) -> None:
    """AdamW with warm-up and linear decay, as in the paper."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    num_steps = options.epochs * -(-len(examples) // options.batch)
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP_FRACTION * num_steps), num_steps)
    order = random.Random(options.seed)
    model.train()
    step = 0
    for _ in range(options.epochs):
        order.shuffle(examples)
        for batch in batches(examples, tokenizer, options.batch):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 50 == 0:
                print(f"  step {step}/{num_steps} loss {loss.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", choices=sorted(RUNS), default=list(RUNS))
    parser.add_argument("--sentences", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    examples = read_tsv(options.data / "train_full.tsv")
    random.Random(options.seed).shuffle(examples)
    dev = batches(read_tsv(options.data / "dev.tsv"), tokenizer, 64)
    for name in options.runs:
        rank, rate = RUNS[name]
        start = time.perf_counter()
        model = build(options.model, rank, options.seed)
        train(model, examples[: options.sentences], tokenizer, rate, options)
        figures = {
            "run": name,
            "rank": rank,
            "learning_rate": rate,
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
