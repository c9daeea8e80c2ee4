"""Matrices that only one of two models has: a head that the files explain, or weights that were missed.

A fine-tune for another task comes with a head that the base never had, and without the base's own. Nothing
can be compared there, and nothing was missed. That holds only outside the *body* (the repeated blocks, the
embeddings, and whatever lies beside these inside one module), and only where the files say why: another
class in ``architectures``, a tied embedding, or, of an adapter, its task. A matrix of the body under a head's
name hides nothing: the base's own then has no counterpart, and that is a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.errors import printable
from intruscope.weights.fused import Config
from intruscope.weights.layout import block_index, matrix_kind
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intruscope.weights.matrices import CoverageEntry
    from intruscope.weights.stored import StoredTensor

_MAX_NAMED = 6


@dataclass(frozen=True)
class Body:
    """Where the blocks and embeddings of a model lie: modules below one root.

    Attributes:
        root: Words of the deepest module that holds all of them; ``("bert",)``, say, or none.
        parts: The words after it that lead to one of them: ``encoder``, ``embeddings``.
    """

    root: tuple[str, ...]
    parts: frozenset[str]

    @classmethod
    def of(cls, modules: Iterable[str]) -> Body:
        """Find it among names of modules or weights; what is in no block and no embedding is ignored."""
        paths = {path for path in map(_path_to_body, modules) if path}
        parents = [path[:-1] for path in paths]
        root: list[str] = []
        for words in zip(*parents, strict=False):
            if len(set(words)) > 1:
                break
            root.append(words[0])
        return cls(tuple(root), frozenset(path[len(root)] for path in paths))

    def holds(self, module: str) -> bool:
        """Whether a module is part of it; all are where none was found, since nothing tells a head apart."""
        words = tuple(module.split("."))
        if not self.parts or _path_to_body(module):
            return True
        depth = len(self.root)
        return words[:depth] == self.root and not self.parts.isdisjoint(words[depth : depth + 1])


def _path_to_body(module: str) -> tuple[str, ...]:
    """The words up to the container of its block, or to the embedding that it is; none otherwise."""
    module = module.removesuffix(".weight")
    words = module.split(".")
    layer, in_block = block_index(module)
    if layer is not None:
        return tuple(words[: words.index(next(word for word in words if word.isdigit()))])
    if in_block or matrix_kind(module, in_block=False) == "embedding":
        return tuple(words)
    return ()


def other_task(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> str | None:
    """What the two configs say of different heads; None where they say nothing, or the same class.

    Args:
        base: The base's own ``config.json``; empty where it has none.
        tuned: Likewise.
    """
    before, after = Config(dict(base)).architectures, Config(dict(tuned)).architectures
    if not after or set(after) == set(before):
        return None
    told = f"a head of another task: the tuned model is a {printable(', '.join(after))}"
    return f"{told}, the base a {printable(', '.join(before))}" if before else told


def tied_shapes(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> frozenset[tuple[int, ...]]:
    """Stored shapes of the heads of words that a model can have without storing one: its embeddings'.

    Args:
        config: Its config; none where that says that it ties no head.
        tensors: Of the model.
    """
    if config.get("tie_word_embeddings", True) is False:
        return frozenset()
    return frozenset(
        tensor.shape
        for name, tensor in tensors.items()
        if matrix_kind(name.removesuffix(".weight"), in_block=False) == "embedding"
    )


def head_findings(
    coverage: Iterable[CoverageEntry],
    base: Mapping[str, StoredTensor],
    tuned: Mapping[str, StoredTensor],
) -> list[Finding]:
    """One finding for all new heads and one for all that were dropped.

    Args:
        coverage: The ledger.
        base: Tensors of the base.
        tuned: Tensors of the tuned model or of the adapter.
    """
    heads = [entry for entry in coverage if entry.head is not None]
    findings = []
    for kind, word, tensors in (
        ("new", "new head, not compared", tuned),
        ("dropped", "head of the base, not in the tuned model", base),
    ):
        named = [entry for entry in heads if entry.head == kind]
        if named:
            shown = [f"{printable(e.tensor)} {tensors[e.tensor].shape}" for e in named[:_MAX_NAMED]]
            more = f" and {len(named) - len(shown)} more" if len(named) > len(shown) else ""
            reasons = "; ".join(dict.fromkeys(entry.reason for entry in named))
            message = f"{word}: {', '.join(shown)}{more} ({reasons})"
            findings.append(Finding(code=f"{kind}-head", severity="info", message=message))
    return findings
