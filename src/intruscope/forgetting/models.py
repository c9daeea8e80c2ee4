"""From two models, by name or in memory, to one live pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intruscope.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from intruscope.adapters.folder import AdapterSource
    from intruscope.adapters.live import LivePair
    from intruscope.weights.source import ModelSource

DType = Literal["float32", "bfloat16", "float16", "float64"]


def load_pair(
    base: str | Path | nn.Module,
    tuned: str | Path | nn.Module | None = None,
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
    from intruscope.adapters.live_loading import load_modules
    from intruscope.adapters.live_models import require
    from intruscope.spectra.scan import open_sources
    from intruscope.weights.source import open_model

    require("transformers")
    options: dict[str, Any] = {"device": choose_device(device), "dtype": dtype, "tokenizer": tokenizer}
    if tuned is None or isinstance(tuned, (str, Path)):
        if not isinstance(base, (str, Path)):
            raise UsageError(
                "the base is in memory and the tuned model is given by name",
                remedy="give both by name, or load the tuned model too",
            )
        before, after = open_sources(
            str(base), None if tuned is None else str(tuned), allow_pickle=allow_pickle
        )
        return load_opened(before, after, **options)
    if isinstance(base, (str, Path)):
        return load_modules(open_model(str(base), allow_pickle=allow_pickle), tuned, **options)
    return load_modules(base, tuned, **options)


def load_opened(
    base: ModelSource,
    tuned: ModelSource | AdapterSource,
    *,
    device: str = "auto",
    dtype: DType = "float32",
    tokenizer: Any = None,
) -> LivePair:
    """Load models that are opened already; for the other arguments and errors see :func:`load_pair`."""
    from intruscope.adapters.live_loading import load_sources

    return load_sources(base, tuned, device=choose_device(device), dtype=dtype, tokenizer=tokenizer)


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
