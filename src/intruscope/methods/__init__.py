"""Fine-tuning methods: each a small file with its paper, defaults and their sources, cost and update.

``find("lora")`` gives one, ``registered()`` all. Builds on transformers and PEFT models in memory; knows
nothing of training loops, and prints nothing. A file whose name ends in ``_layers`` defines torch modules and
is imported when a model is built, never before.
"""

from __future__ import annotations

from intruscope.methods.registry import find, registered

__all__ = ["find", "registered"]
