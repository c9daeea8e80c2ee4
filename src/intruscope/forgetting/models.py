"""Two models, by name or in memory, to one live pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intruscope.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from intruscope.adapters.live import LivePair

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
        base: Model before: a path, ``org/name@revision``, ``base+adapter``, an adapter alone, or a
            transformers model in memory, which is copied.
        tuned: Model after: a full checkpoint or an adapter by name, or a transformers model or PeftModel in
            memory, which is copied.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or any torch device.
        dtype: Of weights and computation.
        tokenizer: One, or the folder of one; that beside the base by default.
        allow_pickle: Also read PyTorch files, restricted to tensors.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`.
    """
    from intruscope.adapters.live_loading import load_modules, load_sources
    from intruscope.adapters.live_models import require
    from intruscope.spectra.scan import open_sources
    from intruscope.weights.source import open_model

    require("transformers")
    options: dict[str, Any] = {"device": choose_device(device), "dtype": dtype, "tokenizer": tokenizer}
    if tuned is None or isinstance(tuned, (str, Path)):
        if not isinstance(base, (str, Path)):
            raise UsageError(
                "got the base in memory and the tuned model by name, expected both in memory or both named",
                remedy="name the base, or load the tuned model too",
            )
        before, after = open_sources(
            str(base), None if tuned is None else str(tuned), allow_pickle=allow_pickle
        )
        return load_sources(before, after, **options)
    if isinstance(base, (str, Path)):
        return load_modules(open_model(str(base), allow_pickle=allow_pickle), tuned, **options)
    return load_modules(base, tuned, **options)


def choose_device(device: str) -> str:
    """The torch device that a name stands for.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        fact = f"--device is {device}, which is not here, expected auto or cpu"
        raise UsageError(fact, remedy="leave --device out") from error
    return device
