"""The card of the shipped model or of its larger twin, written from the figures of its own training."""

from __future__ import annotations

from typing import Any

_HEAD = """# The small model of the Intruscope demonstration

A causal language model of Python source, small enough to fine-tune in a minute on a laptop. It has
no other use.
"""

_LARGE_HEAD = """# The larger twin of the model of the Intruscope demonstration

A causal language model of Python source, to be fine-tuned in studies. It has no other use.
"""

_TABLE = """
| | |
|---|---|
"""

_TAIL = """
Made by `python -m intruscope.demo.pretrain{option} --out DIR`. The same text, seed, torch build, processor
and thread count give the same weights; elsewhere the last digits differ.

Held out are the files whose path within the library has a SHA-256 with a first byte divisible by 16,
so that every Python version leaves out the same ones.

## Licence

The code that made it is Apache-2.0. The weights and the tokenizer are derived from the source of the
Python standard library, which is Copyright (c) Python Software Foundation and licensed under the PSF
License Agreement version 2 (<https://docs.python.org/3/license.html>); parts of the library carry
further notices of their own, listed there.
"""


def model_card(figures: dict[str, Any], *, is_large: bool) -> str:
    """The card as Markdown.

    Args:
        figures: What ``pretrain`` writes to ``recipe.json``.
        is_large: Of the larger twin.
    """
    recipe = figures["recipe"]
    shape = recipe["architecture"]
    rows = (
        (
            "architecture",
            f"Llama, {shape['num_layers']} layers, {shape['width']} wide, feed-forward "
            f"{shape['feed_forward']}, {shape['num_heads']} heads, tied embeddings",
        ),
        ("parameters", f"{figures['num_parameters']:,}, stored in bfloat16"),
        ("tokenizer", f"byte-level BPE, {shape['vocabulary']} tokens, learned from the training files"),
        (
            "data",
            f"source of the standard library of Python {figures['python']}: "
            f"{figures['num_train_files']} files, {figures['num_train_tokens']:,} tokens",
        ),
        (
            "left out",
            "tests, `idlelib`, `lib2to3`, `turtledemo`, `encodings`, `pydoc_data`; and "
            f"{len(figures['held_out_files'])} held-out files, listed in `recipe.json`",
        ),
        (
            "training",
            f"{recipe['num_steps']:,} steps of {recipe['batch']} x {recipe['context']} tokens, AdamW, one "
            f"cycle to {recipe['learning_rate']:g}, weight decay {recipe['weight_decay']:g}, "
            f"{figures['precision']}, seed {recipe['seed']}",
        ),
        (
            "held-out loss",
            f"{figures['held_out_loss']:.3f} nats per token over {figures['num_held_out_tokens']:,} tokens",
        ),
        ("training text, SHA-256", f"`{figures['train_sha256']}`"),
        ("held-out text, SHA-256", f"`{figures['held_out_sha256']}`"),
        ("weights, SHA-256", f"`{figures['weights_sha256']}`"),
    )
    table = "".join(f"| {key} | {value} |\n" for key, value in rows)
    tail = _TAIL.format(option=" --large" if is_large else "")
    return (_LARGE_HEAD if is_large else _HEAD) + _TABLE + table + tail
