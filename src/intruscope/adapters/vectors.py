"""What an adapter trained that is no matrix: biases and norms, each with the base's tensor it is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.adapters.keys import ORIGINAL, PEFT_PREFIX, SECOND_COPY, sort_keys
from intruscope.adapters.pairing import ModuleMatch, adapted_matrices

if TYPE_CHECKING:
    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.source import ModelSource
    from intruscope.weights.stored import StoredTensor

_WRAPPERS = frozenset({"base_layer", "modules_to_save"})


@dataclass(frozen=True, kw_only=True)
class TrainedVector:
    """One stored tensor of an adapter that goes into no matrix.

    Attributes:
        tensor: As stored.
        target: Stored name of the base's tensor; None where the base stores none of that name (a new head's
            bias).
        module: The low-rank module whose scaling multiplies it (``lora_bias``: it is added to the base's
            bias); None where it replaces the base's tensor.
    """

    tensor: StoredTensor
    target: str | None
    module: str | None


def trained_vectors(adapter: AdapterSource, base: ModelSource) -> tuple[TrainedVector, ...]:
    """Every tensor that an adapter trained and that is in no matrix.

    Raises:
        IntruscopeError: keys that cannot be read; see :func:`intruscope.adapters.keys.sort_keys`.
    """
    modules, skipped = sort_keys(adapter)
    # What else is skipped and no vector is a further copy of a matrix that all modules share.
    vectors = [
        key
        for key, reason in skipped.items()
        if reason not in (SECOND_COPY, ORIGINAL) and len(adapter.tensors[key].shape) < 2
    ]
    named = {key: _plain_name(key) for key in vectors}
    prefixes = ModuleMatch(modules, adapted_matrices(base, adapter).matrices, base, adapter).prefixes
    stored = {name.removeprefix(prefixes.base): name for name in base.tensors}
    found = []
    for key, (name, module) in named.items():
        target = stored.get(name.removeprefix(prefixes.tuned))
        found.append(TrainedVector(tensor=adapter.tensors[key], target=target, module=module))
    return tuple(found)


def _plain_name(key: str) -> tuple[str, str | None]:
    """The name in the model, and the low-rank module that a bias belongs to."""
    words = key.removeprefix(PEFT_PREFIX).split(".")
    factor = next((i for i, word in enumerate(words) if word in ("lora_A", "lora_B")), None)
    if factor is not None:
        module = ".".join(words[:factor])
        return f"{module}.bias", module
    if "modules_to_save" in words:
        at = words.index("modules_to_save")
        # modules_to_save.weight, or modules_to_save.<adapter name>.weight
        words = words[: at + 1] + words[-1:]
    return ".".join(word for word in words if word not in _WRAPPERS), None
