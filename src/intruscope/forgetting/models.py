"""From two models, by name or in memory, to one live pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.errors import UsageError

if TYPE_CHECKING:
    from intruscope.adapters.live import LivePair
    from intruscope.adapters.opening import ModelLike
    from intruscope.forgetting.settings import DType


def load_pair(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    device: str = "auto",
    dtype: DType = "float32",
    tokenizer: Any = None,
    allow_pickle: bool = False,
) -> LivePair:
    """Load a base and its fine-tune as one live model.

    Args:
        base: The base model: a path, ``org/name@revision``, ``base+adapter``, an adapter alone, or a
            transformers model in memory, which is copied.
        tuned: The tuned model: a full checkpoint or an adapter by name, or a transformers model or PeftModel
            in memory, which is copied.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or any torch device.
        dtype: Precision of weights and computation.
        tokenizer: A tokenizer, or the folder of one; by default the one beside the base.
        allow_pickle: Also read PyTorch files, restricted to tensors.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    from intruscope.adapters.live_loading import load_modules, load_opened
    from intruscope.adapters.live_models import require
    from intruscope.adapters.opening import open_pair

    require("transformers")
    options: dict[str, Any] = {"device": choose_device(device), "dtype": dtype, "tokenizer": tokenizer}
    opened = open_pair(base, tuned, allow_pickle=allow_pickle)
    if opened.tuned_module is not None:
        before = opened.base if opened.base_module is None else opened.base_module
        return load_modules(before, opened.tuned_module, **options)
    if opened.in_memory:
        raise UsageError(
            "one model is in memory and the other is given by name",
            remedy="give both by name, or load both",
        )
    return load_opened(opened, **options)


def choose_device(device: str) -> str:
    """The torch device that a name stands for.

    Raises:
        UsageError: this machine has no such device.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        fact = f"--device is {device}, which this machine does not have"
        raise UsageError(fact, remedy="use --device auto or --device cpu") from error
    return device
