"""The recipe of the shipped model: a small causal language model of Python's standard library.

``python -m intruscope.demo.pretrain --out DIR`` makes it again: a byte-level BPE of 4,096 tokens, a
Llama of 4 layers, 256 wide, tied embeddings, 1,500 steps of 32 x 128 tokens with AdamW and one cycle
to 3e-3. On another Python version the text differs, and so does the model.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.demo.texts import TextSplit, library_source

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096
BLOCK = 128
END = "<|end|>"


def make_tokenizer(documents: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, bos_token=END, pad_token=END)


def make_model(seed: int) -> LlamaForCausalLM:
    """A fresh model of the demonstration's shape, 4.2 million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def pretrain(out: Path, *, steps: int, batch: int, peak_rate: float, seed: int) -> dict[str, object]:
    """Train tokenizer and model, write both to ``out``, and return the record of the run."""
    import torch
    from torch.optim.lr_scheduler import OneCycleLR

    from intruscope.demo.finetune import blocks_of, mean_loss, train_steps, use_bfloat16

    source = library_source()
    tokenizer = make_tokenizer(source.train)
    train, held_out = blocks_of(source.train, tokenizer, BLOCK), blocks_of(source.held_out, tokenizer, BLOCK)
    model = make_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = OneCycleLR(optimizer, max_lr=peak_rate, total_steps=steps, pct_start=0.1)
    bfloat16 = use_bfloat16(model, train[:batch])
    started = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            spent = time.monotonic() - started
            sys.stderr.write(f"step {step}/{steps} loss {loss:.3f} after {spent:.0f} s\n")

    train_steps(
        model,
        train,
        optimizer,
        schedule,
        steps=steps,
        batch=batch,
        seed=seed,
        bfloat16=bfloat16,
        on_step=report,
    )
    model = model.to(torch.bfloat16)
    stored = model.to(torch.float32)
    loss, num_tokens = mean_loss(stored, held_out[:512])
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = _record(source, steps, batch, peak_rate, seed, bfloat16, loss, num_tokens)
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _record(
    source: TextSplit,
    steps: int,
    batch: int,
    peak_rate: float,
    seed: int,
    bfloat16: bool,
    loss: float,
    num_tokens: int,
) -> dict[str, object]:
    import torch
    import transformers

    return {
        "text": source.name,
        "text_sha256": source.sha256,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "steps": steps,
        "batch": batch,
        "block": BLOCK,
        "peak_learning_rate": peak_rate,
        "seed": seed,
        "bfloat16_autocast": bfloat16,
        "held_out_files": list(source.held_out_names),
        "held_out_loss_nats_per_token": round(loss, 4),
        "held_out_tokens": num_tokens,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    made = pretrain(
        given.out, steps=given.steps, batch=given.batch, peak_rate=given.peak_rate, seed=given.seed
    )
    sys.stderr.write(f"held-out loss {made['held_out_loss_nats_per_token']} nats per token\n")
