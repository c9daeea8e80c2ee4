"""The recipes of the shipped model and of a larger one: ``python -m intruscope.demo.pretrain --out DIR``.

A Llama of 4.2M parameters, or of 21M, on the source of the standard library; the card that it writes beside
the weights says more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.demo.card import model_card
from intruscope.demo.texts import Text, digest, library_texts
from intruscope.errors import OutputConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenizers import Tokenizer

    from intruscope.demo.finetune import LoopSettings, Precision

log = logging.getLogger(__name__)

NUM_EVALUATION_WINDOWS = 256
_REPORT_EVERY = 25


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Shape of the shipped model."""

    vocabulary: int = 4096
    num_layers: int = 4
    width: int = 256
    feed_forward: int = 688
    num_heads: int = 4
    max_positions: int = 256


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The whole recipe; equal recipes on equal text, machine and thread count give equal weights."""

    architecture: Architecture = field(default_factory=Architecture)
    num_steps: int = 1500
    batch: int = 8
    context: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 0

    def loop(self) -> LoopSettings:
        """The part that the training loop reads."""
        from intruscope.demo.finetune import LoopSettings

        return LoopSettings(
            learning_rate=self.learning_rate,
            num_steps=self.num_steps,
            batch=self.batch,
            context=self.context,
            schedule="one-cycle",
            weight_decay=self.weight_decay,
            seed=self.seed,
        )


LARGE = Recipe(
    architecture=Architecture(num_layers=6, width=512, feed_forward=1376, num_heads=8),
    num_steps=900,
    batch=128,
    learning_rate=1.5e-3,
    weight_decay=0.1,
)
"""Of the base of the scale ``midi``: twice as wide, read about six times over; a minute on a GPU."""


def train_tokenizer(texts: Sequence[Text], vocabulary: int) -> Tokenizer:
    """A byte-level BPE: any text goes in and comes back unchanged.

    Args:
        texts: What the merges are learned from.
        vocabulary: Number of tokens, the end-of-text token included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from intruscope.demo.finetune import END_OF_TEXT

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.content for text in texts), trainer=trainer)
    return tokenizer


def new_model(architecture: Architecture, *, seed: int) -> Any:
    """A freshly initialised ``LlamaForCausalLM`` in float32; the caller's random state is left as it was."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=architecture.vocabulary,
        hidden_size=architecture.width,
        intermediate_size=architecture.feed_forward,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        num_key_value_heads=architecture.num_heads,
        max_position_embeddings=architecture.max_positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pretrain(
    out: Path, recipe: Recipe, *, device: str = "cpu", on_step: Callable[[int, float], None] | None = None
) -> dict[str, Any]:
    """Train tokenizer and model, and save them with a card that says how.

    Args:
        out: New or empty folder.
        recipe: What to train.
        device: Of torch. The CPU takes the faster of float32 and bfloat16 autocast, others the latter.
        on_step: Called after each step with its number (from 1) and its loss in nats.

    Returns:
        The figures written to ``recipe.json``.

    Raises:
        OutputConflict: ``out`` holds something already.
        UsageError: this Python does not carry its library as source.
    """
    if out.exists() and any(out.iterdir()):
        raise OutputConflict("the folder is not empty", remedy="name a new folder with --out", file=out)
    import torch

    from intruscope.demo.finetune import encode, evaluate, evaluation_windows, faster_precision, train

    train_texts, held_out_texts = library_texts(held_out=False), library_texts(held_out=True)
    tokenizer = train_tokenizer(train_texts, recipe.architecture.vocabulary)
    tokens, held_out_tokens = encode(tokenizer, train_texts), encode(tokenizer, held_out_texts)
    model = new_model(recipe.architecture, seed=recipe.seed)
    precision: Precision = (
        faster_precision(width=recipe.architecture.width, outputs=recipe.architecture.vocabulary)
        if device == "cpu"
        else "bfloat16"
    )
    log.info("%d tokens to train on, %d held out, %s", len(tokens), len(held_out_tokens), precision)
    start = time.perf_counter()
    losses = train(model.to(device), tokens, recipe.loop(), precision=precision, on_step=on_step)
    model = model.cpu().to(torch.bfloat16)
    windows = evaluation_windows(held_out_tokens, context=recipe.context, max_windows=NUM_EVALUATION_WINDOWS)
    # Measured on the weights as they are stored, that is after rounding to bfloat16.
    held_out_loss = evaluate(model.float(), windows)
    figures = {
        "recipe": asdict(recipe),
        "precision": precision,
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(device),
        "python": platform.python_version(),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_train_files": len(train_texts),
        "num_train_tokens": len(tokens),
        "train_sha256": digest(train_texts),
        "held_out_files": [text.name for text in held_out_texts],
        "held_out_sha256": digest(held_out_texts),
        "num_held_out_tokens": windows[:, 1:].numel(),
        "held_out_loss": round(held_out_loss, 4),
        "last_train_loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
        "seconds": round(time.perf_counter() - start),
    }
    _save(out, model.to(torch.bfloat16), tokenizer, figures)
    return figures


def _save(out: Path, model: Any, tokenizer: Tokenizer, figures: dict[str, Any]) -> None:
    """Weights, tokenizer, figures, and last the card that names them."""
    from transformers import PreTrainedTokenizerFast

    from intruscope.demo.finetune import END_OF_TEXT

    out.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    ).save_pretrained(out)
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)  # nobody generates with this model
    figures["weights_sha256"] = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    (out / "recipe.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    is_large = figures["recipe"]["architecture"] == asdict(LARGE.architecture)
    (out / "README.md").write_text(model_card(figures, is_large=is_large), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m intruscope.demo.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the model")
    parser.add_argument("--large", action="store_true", help="the base of the scale midi instead")
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = replace(LARGE if options.large else Recipe(), seed=options.seed)
    recipe = replace(recipe, num_steps=options.steps or recipe.num_steps)
    start = time.perf_counter()

    def report(step: int, loss: float) -> None:
        """One line now and then."""
        if step % _REPORT_EVERY == 0:
            log.info("step %d: loss %.3f, %.0f s", step, loss, time.perf_counter() - start)

    figures = pretrain(options.out, recipe, device=options.device, on_step=report)
    log.info("held-out loss %.3f nats per token; saved to %s", figures["held_out_loss"], options.out)


if __name__ == "__main__":
    main()
