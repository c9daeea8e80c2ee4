"""Heads that an adapter trains and its base does not store: tied to the embedding, or new."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from intruscope.errors import printable
from intruscope.weights.fused import Config
from intruscope.weights.heads import is_word_matrix
from intruscope.weights.matrices import Finding
from intruscope.weights.views import TensorView

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intruscope.adapters.keys import AdaptedModule
    from intruscope.weights.source import ModelSource
    from intruscope.weights.stored import StoredTensor


def tied_head(
    name: str, module: AdaptedModule, embeddings: Mapping[tuple[int, ...], list[StoredTensor]]
) -> TensorView | None:
    """The base's matrix of a head that it does not store: the one embedding of its sizes.

    Args:
        name: Of the module, without prefixes.
        module: What the adapter holds of it.
        embeddings: From :func:`tied_embeddings`.

    Returns:
        The embedding as a head, (words, width); None where the module is no head of words, or not exactly one
        embedding is of these sizes.
    """
    roles = module.roles
    whole = roles.get("saved") or roles.get("replaced")
    if whole is not None:
        shape = whole.shape
    elif "down" in roles:
        shape = (roles["up"].shape[0], math.prod(roles["down"].shape[1:]))
    else:
        return None
    found = embeddings.get(shape, [])
    if len(found) != 1:
        return None
    view = TensorView(name=name, kind="head", layer=None, scope="other", tensor=found[0])
    return view if is_word_matrix(view) else None


def tied_embeddings(
    matrices: Mapping[str, tuple[TensorView, ...]], base: ModelSource
) -> dict[tuple[int, ...], list[StoredTensor]]:
    """The embeddings of a base that ties its head to one of them, by their stored shape; none of another."""
    found: dict[tuple[int, ...], list[StoredTensor]] = {}
    for views in matrices.values() if _ties(base) else ():
        if views[0].kind == "embedding":
            found.setdefault(views[0].tensor.shape, []).append(views[0].tensor)
    return found


def _ties(base: ModelSource) -> bool:
    """Whether a base that stores no head has one all the same.

    Older configs leave the default out. Then its class tells: a language model without a head of its own must
    tie it, while a bare body (``LlamaModel``) may have had one that was left behind.
    """
    told = base.config.get("tie_word_embeddings")
    if told is not None:
        return told is True
    classes = Config(base.config).architectures
    return any(name.endswith("LMHeadModel") or not name.endswith("Model") for name in classes)


def tied_finding(module: str) -> Finding:
    """PEFT 0.21 merges factors of tied words into the one parameter that both share."""
    message = (
        f"{printable(module)} has factors, and the base ties it to its embedding: PEFT runs them on the head "
        "alone, but merge_and_unload moves the embedding too unless the two are untied before"
    )
    return Finding(code="tied-head", severity="warning", message=message)


def unsaved_finding(module: str) -> Finding:
    """Factors on a new layer whose own weight lies nowhere."""
    message = (
        f"{printable(module)} has factors, and neither base nor adapter stores the matrix under them, so "
        "that every load draws another; train it whole (modules_to_save), or leave it out"
    )
    return Finding(code="unsaved-head", severity="warning", message=message)
