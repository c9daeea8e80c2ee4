"""The model card of the shipped model or of its larger twin, made from the figures of its training."""

from __future__ import annotations

from typing import Any

_HEAD = """# The small model of the Intruscope demo

A causal language model of Python source code, small enough to fine-tune in a minute on a laptop. It
has no other use.
"""

_LARGE_HEAD = """# The larger twin of the Intruscope demo model

A causal language model of Python source code, to be fine-tuned in studies. It has no other use.
"""

_TABLE = """
| | |
|---|---|
"""

_TAIL = """
To reproduce: `python -m intruscope.demo.pretrain{option} --out DIR`. The same text, seed, torch build,
processor and thread count give the same weights; otherwise the last digits differ.

A file is held out if the first byte of the SHA-256 of its path within the library is divisible by 16.
Every Python version therefore holds out the same files.

## Licence

The code that trained the model is licensed under Apache-2.0. The weights and the tokenizer are derived
from the source of the Python standard library, which is Copyright (c) Python Software Foundation and
licensed under the PSF License Agreement version 2 (<https://docs.python.org/3/license.html>). Parts of
the library have further notices of their own, listed there.
"""


def model_card(figures: dict[str, Any], *, is_large: bool) -> str:
    """Make the card as Markdown.

    Args:
        figures: The content of ``recipe.json``, as ``pretrain`` writes it.
        is_large: Make the card of the larger twin.
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
