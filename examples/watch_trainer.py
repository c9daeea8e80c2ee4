"""Watch intruder dimensions appear in a run of transformers' Trainer.

    python examples/watch_trainer.py BASE TEXT OUT [--full] [--steps 200]

BASE is a causal language model with its tokenizer. TEXT is the training text. The watch is a single line
below. --forget names a text of another kind; every look measures forgetting on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from intruscope.train import IntruderWatch

CONTEXT = 64


def windows(tokenizer: object, text: str) -> list[dict[str, list[int]]]:
    """Split the text into windows of equal length."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    pieces = [ids[first : first + CONTEXT] for first in range(0, len(ids) - CONTEXT + 1, CONTEXT)]
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--forget", type=Path)
    parser.add_argument("--full", action="store_true", help="train all weights instead of LoRA")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=50)
    given = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(given.base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(given.base)
    if not given.full:
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(given.out),
            max_steps=given.steps,
            per_device_train_batch_size=8,
            learning_rate=2e-4 if given.full else 2e-3,
            report_to=[],
            save_strategy="no",
        ),
        train_dataset=windows(tokenizer, given.text.read_text(encoding="utf-8")),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    trainer.add_callback(IntruderWatch(trainer, every=given.every, text=given.forget))
    trainer.train()
    print(f"The looks, and a picture if intruders grew, are in {given.out / 'intruders'}")


if __name__ == "__main__":
    main()
