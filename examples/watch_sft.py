"""Watch intruder dimensions appear in a run of TRL's SFTTrainer (pip install trl).

    python examples/watch_sft.py BASE TEXT OUT [--steps 200]

BASE is a causal language model with its tokenizer. Each line of TEXT is one example.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from intruscope.train import IntruderWatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=50)
    given = parser.parse_args()

    lines = [line for line in given.text.read_text(encoding="utf-8").splitlines() if line.strip()]
    trainer = SFTTrainer(
        model=given.base,
        args=SFTConfig(
            output_dir=str(given.out),
            max_steps=given.steps,
            per_device_train_batch_size=8,
            learning_rate=2e-3,
            max_length=64,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"text": lines}),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.add_callback(IntruderWatch(trainer, every=given.every))
    trainer.train()
    print(f"The looks, and a picture if intruders grew, are in {given.out / 'intruders'}")


if __name__ == "__main__":
    main()
