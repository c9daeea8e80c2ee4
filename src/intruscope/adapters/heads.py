"""Modules that an adapter trains and its base does not store: shared with another matrix, or a new head."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from intruscope.errors import printable
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.adapters.kind import AdaptedModule
    from intruscope.weights.heads import SharedWords
    from intruscope.weights.views import TensorView


def shared_matrix(name: str, module: AdaptedModule, shared: SharedWords) -> TensorView | None:
    """What a module that the base does not store computes with: the matrix of words that it shares.

    Args:
        name: Of the module, without prefixes.
        module: What the adapter holds of it.
        shared: The base's words.

    Returns:
        The matrix under the module's own name; None where the module shares none.
    """
    roles = module.roles
    whole = roles.get("saved") or roles.get("replaced")
    if whole is not None and len(whole.shape) == 2:
        num_words, width = whole.shape
    elif "down" in roles:
        first, second = roles["up"].shape[0], math.prod(roles["down"].shape[1:])
        num_words, width = (second, first) if module.is_embedding else (first, second)
    elif "tokens" in roles and len(roles["tokens"].shape) == 2:
        return shared.stand_in(name, width=roles["tokens"].shape[1], num_words=None)
    else:
        return None
    exact = shared.stand_in(name, width=width, num_words=num_words)
    resized = whole is not None and exact is None
    return shared.stand_in(name, width=width, num_words=None) if resized else exact


def sharing_findings(
    modules: Mapping[str, AdaptedModule],
    places: Mapping[str, TensorView],
    shared: SharedWords,
    bare: Mapping[str, str],
) -> list[Finding]:
    """Where PEFT's merge differs from what PEFT runs, because modules share one matrix of words.

    PEFT 0.21 runs factors on the module that has them. Its merge adds them to the parameter, and so to every
    module that shares it. Words trained by index on the embedding also change the head that is tied to it;
    those trained on the head alone do not change the embedding. A module stored whole is untied by the merge.

    Args:
        modules: Of the adapter.
        places: The base matrix of each module that has one.
        shared: The base's words.
        bare: Names without prefixes.
    """
    by_tensor: dict[str, list[str]] = {}
    for name, view in places.items():
        if shared.is_shared(view.tensor.name):
            by_tensor.setdefault(view.tensor.name, []).append(name)
    findings = []
    for tensor, names in by_tensor.items():
        for name in names:
            module = modules[name]
            source = printable(tensor.removesuffix(".weight"))
            if bare[name].rpartition(".")[2] == "shared" and "tokens" not in module.roles:
                findings.append(_finding("unused-module", name, _UNUSED))
            elif "down" in module.roles:
                findings.append(_finding("tied-head", name, f"has factors and shares {source} {_MERGED}"))
            elif "tokens" in module.roles and (places[name].kind == "head" or len(names) > 1):
                if _same_words([modules[each] for each in names]):
                    continue
                findings.append(
                    _finding("tied-head", name, f"has words trained by index and shares {source} {_MERGED}")
                )
    return findings


_MERGED = (
    "with other modules: PEFT runs them on this module alone, but merge_and_unload changes every module that "
    "shares the matrix unless they are untied before"
)
_UNUSED = (
    "is not run: encoder and decoder look words up in modules of their own that only share its matrix. So in "
    "PEFT its update has no effect until merge_and_unload and a reload spread it to them"
)


def _same_words(modules: list[AdaptedModule]) -> bool:
    """Whether tied modules hold the same trained words, as PEFT stores them for a resized vocabulary."""
    rows = [module.roles.get("tokens") for module in modules]
    if len(rows) < 2 or any(row is None for row in rows):
        return False
    first = [bytes(piece) for piece in rows[0].raw()] if rows[0] is not None else []
    return all(row is not None and [bytes(piece) for piece in row.raw()] == first for row in rows[1:])


def _finding(code: str, module: str, what: str) -> Finding:
    return Finding(code=code, severity="warning", message=f"{printable(module)} {what}")


def unsaved_finding(module: str) -> Finding:
    """Factors on a new layer whose own weight is stored nowhere."""
    message = (
        f"{printable(module)} has factors, but neither the base nor the adapter stores the matrix under "
        "them, so every load fills it with new random numbers; train it whole (modules_to_save), or leave it "
        "out"
    )
    return Finding(code="unsaved-head", severity="warning", message=message)
