"""Heads and embeddings that one of two models does not store: shared, explained, or missed.

A language model often uses one matrix of words both as its embedding and as its head, and stores it once.
:class:`SharedWords` finds the matrix that such a module computes with.

A fine-tune for another task comes with a head that the base never had, and without the base's own. Nothing
can be compared there, and nothing was missed. That holds only outside the *body* (the repeated blocks, the
embeddings, and whatever lies beside these inside one module), and only where the files say why: another class
in ``architectures``, or, for an adapter, its task. A matrix of the body under the name of a head hides
nothing: the base's own then has no counterpart, and that is a gap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.errors import printable
from intruscope.weights.fused import Config
from intruscope.weights.layout import block_index, matrix_kind
from intruscope.weights.matrices import Finding
from intruscope.weights.views import TensorView

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intruscope.weights.matrices import CoverageEntry
    from intruscope.weights.stored import StoredTensor

_MAX_NAMED = 6
_WORD_HEAD = re.compile(
    r"(^|\.)(lm_head|embed_out|decoder|output|vocab_projector|proj_out|generator_lm_head|lm_loss)$"
)
_WORD_EMBEDDING = re.compile(
    r"(^|\.)(wte|shared|embed_in|embed_tokens|tokens_embed|tok_embeddings?|word_embeddings?|embeddings?)$"
)
_ONE_EMBEDDING = {"shared", "embed_tokens"}
_OTHER_TASK = re.compile(
    r"Classification|QuestionAnswering|MultipleChoice|Detection|Segmentation|NextSentence"
)


def is_word_matrix(view: TensorView) -> bool:
    """Whether rows of the stored tensor are words, so that a resized vocabulary has a common beginning."""
    return view.kind == "embedding" or _WORD_HEAD.search(view.name) is not None


def ties_words(config: Mapping[str, Any]) -> bool:
    """Whether a head of words that a model does not store is its embedding.

    Older configs leave the default out. Then the class decides: a language model without a head of its own
    must tie it, while a bare body (``LlamaModel``) may have had one that was left behind.

    Args:
        config: The model's ``config.json``.
    """
    stated = config.get("tie_word_embeddings")
    if stated is None and isinstance(config.get("text_config"), dict):
        stated = config["text_config"].get("tie_word_embeddings")
    return stated is True if stated is not None else _has_word_head(Config(dict(config)).architectures)


def _has_word_head(classes: Iterable[str]) -> bool:
    return any(
        name.endswith("LMHeadModel") or not (name.endswith("Model") or _OTHER_TASK.search(name))
        for name in classes
    )


class SharedWords:
    """The matrix of words that modules of one model share, for those that the model does not store.

    Args:
        config: Of the model.
        matrices: That it stores.
        needs_head: The model itself must be of a class with a head of words, as a checkpoint must be whose
            head is asked for; an adapter's names show that its model has one.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        matrices: Mapping[str, tuple[TensorView, ...]],
        *,
        needs_head: bool,
    ) -> None:
        classes = Config(dict(config)).architectures
        self.ties = ties_words(config) and (not (needs_head and classes) or _has_word_head(classes))
        words = [v[0] for v in matrices.values() if len(v[0].tensor.shape) == 2 and _is_of_words(v[0])]
        self._embeddings = [view.tensor for view in words if view.kind == "embedding"]
        self._heads = [view.tensor for view in words if view.kind != "embedding"]

    def stand_in(self, name: str, *, width: int, num_words: int | None) -> TensorView | None:
        """What a module that is not stored computes with.

        Args:
            name: The module's, without prefixes.
            width: Columns of its stored matrix.
            num_words: Rows of it; None where any number fits.

        Returns:
            The shared matrix under the module's name and in its role; None where the module is no head and no
            embedding of words, or the model shares none, or several fit.
        """
        leaf = name.rpartition(".")[2]
        is_head = _WORD_HEAD.search(name) is not None
        if is_head:
            found = self._embeddings if self.ties else []
        elif leaf in _ONE_EMBEDDING:
            # Encoder and decoder look words up in one matrix, whatever the config says about the head.
            found = [t for t in self._embeddings if {leaf, _leaf(t)} == _ONE_EMBEDDING]
        else:
            found = []
        if not found and self.ties and not self._embeddings and _WORD_EMBEDDING.search(name):
            found = self._heads
        found = [t for t in found if t.shape[1] == width and num_words in (None, t.shape[0])]
        if len(found) != 1:
            return None
        kind = "head" if is_head else "embedding"
        return TensorView(
            name=name, kind=kind, layer=None, scope="other", tensor=found[0], transposed=not is_head
        )

    def is_shared(self, tensor: str) -> bool:
        """Whether modules of other names compute with this stored tensor too."""
        names = {t.name for t in self._embeddings}
        if self.ties and not self._heads:
            return tensor in names
        return any(t.name == tensor and _leaf(t) == "shared" for t in self._embeddings)

    def has(self, shape: tuple[int, ...]) -> bool:
        """Whether the model stores an embedding of words of this shape."""
        return any(tensor.shape == shape for tensor in self._embeddings)


def _leaf(tensor: StoredTensor) -> str:
    return tensor.name.removesuffix(".weight").rpartition(".")[2]


def _is_of_words(view: TensorView) -> bool:
    name = view.name
    if view.kind == "embedding":
        return _WORD_EMBEDDING.search(name) is not None
    return view.kind == "head" and _WORD_HEAD.search(name) is not None


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
        """Whether a module is part of it; every module is where no body was found."""
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
    """What the two configs say about different heads; None where they name no class, or the same one.

    Args:
        base: The base's own ``config.json``; empty where it has none.
        tuned: Likewise.
    """
    before, after = Config(dict(base)).architectures, Config(dict(tuned)).architectures
    if not after or set(after) == set(before):
        return None
    reason = f"a head for another task: the tuned model is a {printable(', '.join(after))}"
    return f"{reason}, the base a {printable(', '.join(before))}" if before else reason


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
        ("dropped", "head of the base that the tuned model does not have", base),
    ):
        named = [entry for entry in heads if entry.head == kind]
        if named:
            shown = [f"{printable(e.tensor)} {tensors[e.tensor].shape}" for e in named[:_MAX_NAMED]]
            more = f" and {len(named) - len(shown)} more" if len(named) > len(shown) else ""
            reasons = "; ".join(dict.fromkeys(entry.reason for entry in named))
            message = f"{word}: {', '.join(shown)}{more} ({reasons})"
            findings.append(Finding(code=f"{kind}-head", severity="info", message=message))
    return findings
