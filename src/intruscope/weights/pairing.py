"""Two checkpoints side by side: which matrices are the same one before and after, and what is left over.

Names are matched exactly, up to one prefix that a whole side carries (``bert.``, ``model.``,
``base_model.model.``). Every tensor of both sides ends in the coverage ledger.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from intruscope.errors import MalformedInput, ShapeMismatch, printable
from intruscope.weights.heads import Body, head_findings, other_task, tied_shapes
from intruscope.weights.layout import base_matrices
from intruscope.weights.matrices import (
    CoverageEntry,
    DenseUpdate,
    Finding,
    MatrixPair,
    Pairing,
    StoredUpdate,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from intruscope.weights.source import ModelSource
    from intruscope.weights.views import TensorView

_MAX_PREFIX_WORDS = 3
_WORD_HEADS = ("lm_head", "embed_out", "decoder", "output")


@dataclass(frozen=True, kw_only=True)
class CheckpointUpdate(StoredUpdate):
    """The tuned matrix lies whole in another file."""

    tuned: TensorView

    def load(self, base_OI: torch.Tensor) -> DenseUpdate:  # noqa: ARG002 - a whole matrix needs no base
        """Read the tuned matrix in its stored dtype.

        Raises:
            MalformedInput: its file changed since planning.
        """
        return DenseUpdate(tuned_OI=self.tuned.load())


def pair_checkpoints(base: ModelSource, tuned: ModelSource) -> Pairing:
    """Plan the comparison of two whole checkpoints, from their headers.

    Args:
        base: The model before.
        tuned: The model after. Where only one of both has a config, it is used for both.

    Returns:
        The plan. ``complete`` is False when weights cannot be decoded, or exist on one side only and are no
        head that the files explain (see :mod:`intruscope.weights.heads`).

    Raises:
        MalformedInput: nothing matches.
        ShapeMismatch: a matrix has another shape on the other side and is neither embedding nor head.
    """
    base_listing = base_matrices(base if base.config else replace(base, config=tuned.config))
    tuned_listing = base_matrices(
        tuned if tuned.config else replace(tuned, config=base.config), origin="tuned"
    )
    base_prefix, tuned_prefix = find_prefixes(base_listing.matrices, tuned_listing.matrices)
    tuned_of = {name.removeprefix(tuned_prefix): name for name in tuned_listing.matrices}
    plan = _Plan()
    if base_prefix or tuned_prefix:
        plan.findings.append(_prefix_finding(base_prefix, tuned_prefix))
    twins = {name: tuned_of.get(name.removeprefix(base_prefix)) for name in base_listing.matrices}
    matched = {twin for twin in twins.values() if twin is not None}
    if not matched:
        raise _no_match(base, tuned)
    heads = _Heads(base, tuned, [name.removeprefix(tuned_prefix) for name in matched])
    stored = {
        "base": {name.removeprefix(base_prefix) for name in base.tensors},
        "tuned": {name.removeprefix(tuned_prefix) for name in tuned.tensors},
    }
    for name, base_views in base_listing.matrices.items():
        twin = twins[name]
        if twin is None:
            bare = name.removeprefix(base_prefix)
            plan.add_lonely(bare, base_views[0], "base", heads, is_stored=bare in stored["tuned"])
            continue
        notes = (base_listing.notes.get(name, ""), tuned_listing.notes.get(twin, ""))
        is_head = base_views[0].kind == "head" and not heads.body.holds(twin.removeprefix(tuned_prefix))
        plan.add_match(name, base_views, twin, tuned_listing.matrices[twin], notes, is_head=is_head)
    for name, views in tuned_listing.matrices.items():
        if name not in matched:
            bare = name.removeprefix(tuned_prefix)
            plan.add_lonely(bare, views[0], "tuned", heads, is_stored=bare in stored["base"])
    for listing in (base_listing, tuned_listing):
        plan.coverage.extend(listing.skipped)
    gaps = plan.num_gaps + len(base_listing.gaps) + len(tuned_listing.gaps)
    if gaps:
        message = f"{gaps} tensors that hold weights could not be compared; the ledger names them"
        plan.findings.append(Finding(code="incomplete-coverage", severity="warning", message=message))
    return Pairing(
        base=base.full_name,
        tuned=tuned.full_name,
        pairs=tuple(plan.pairs),
        coverage=tuple(plan.coverage),
        findings=(
            *base.findings,
            *tuned.findings,
            *plan.findings,
            *head_findings(plan.coverage, base.tensors, tuned.tensors),
        ),
        inputs=(*base.inputs, *tuned.inputs),
        complete=gaps == 0,
        in_memory=base.path is None or tuned.path is None,
    )


def is_word_matrix(view: TensorView) -> bool:
    """Whether rows of the stored tensor are words, so that a resized vocabulary has a common beginning."""
    return view.kind == "embedding" or view.name.rpartition(".")[2] in _WORD_HEADS


class _Heads:
    """Which matrices are heads that one side has and the other need not have.

    What only the tuned model has must be explained: it could be anything. What only the base has leaves
    nothing of the tuned model unseen, so that of a head other than the words' (the pooler, say, that goes
    when a language model is saved anew) its absence is enough.

    Attributes:
        body: What both have in common that is no head.
    """

    def __init__(self, base: ModelSource, tuned: ModelSource, matched: Iterable[str]) -> None:
        self.body = Body.of(matched)
        self._task = other_task(base.config, tuned.config)
        self._tied = {
            "base": tied_shapes(base.config or tuned.config, base.tensors),
            "tuned": tied_shapes(tuned.config or base.config, tuned.tensors),
        }

    def why(self, name: str, view: TensorView, origin: Literal["base", "tuned"]) -> str | None:
        """Why only one side has a head of this name (without prefix); None where nothing says so."""
        if self.body.holds(name):
            return None
        if self._task is not None:
            return self._task
        other = "tuned" if origin == "base" else "base"
        if is_word_matrix(view):
            if view.tensor.shape in self._tied[other]:
                return f"a head that the {other} model ties to its embedding"
            return None
        return "a head that the tuned model is without" if origin == "base" and view.kind == "head" else None


class _Plan:
    """The lines of a plan while it grows."""

    def __init__(self) -> None:
        self.pairs: list[MatrixPair] = []
        self.coverage: list[CoverageEntry] = []
        self.findings: list[Finding] = []
        self.num_gaps = 0

    def skip(self, name: str, origin: Literal["base", "tuned"], reason: str, *, is_head: bool) -> None:
        """A gap, unless it is a head that one side alone has."""
        head: Literal["new", "dropped"] = "new" if origin == "tuned" else "dropped"
        self.num_gaps += not is_head
        self.coverage.append(
            CoverageEntry(
                tensor=name,
                origin=origin,
                status="skipped",
                reason=reason,
                gap=not is_head,
                head=head if is_head else None,
            )
        )

    def add_lonely(
        self,
        name: str,
        view: TensorView,
        origin: Literal["base", "tuned"],
        heads: _Heads,
        *,
        is_stored: bool,
    ) -> None:
        """A matrix that only one side has, or that is stored on the other too and cannot be read there."""
        other = "tuned" if origin == "base" else "base"
        why = None if is_stored else heads.why(name, view, origin)
        missing = f"the {other} model's is not read" if is_stored else f"no such tensor in the {other} model"
        self.skip(view.tensor.name, origin, why or missing, is_head=why is not None)

    def add_match(
        self,
        base_name: str,
        base_views: tuple[TensorView, ...],
        tuned_name: str,
        tuned_views: tuple[TensorView, ...],
        notes: tuple[str, str],
        *,
        is_head: bool,
    ) -> None:
        """Pair the parts of two tensors of one name; a head may be of another size, and is then skipped."""
        base_shape, tuned_shape = base_views[0].tensor.shape, tuned_views[0].tensor.shape
        reason = "; ".join(dict.fromkeys(note for note in notes if note))
        if base_shape != tuned_shape:
            kind = base_views[0].kind
            if kind != "embedding" and not is_head:
                raise ShapeMismatch(
                    f"got the shape {list(tuned_shape)}, expected {list(base_shape)} as in the base",
                    remedy="check that the tuned model was made from this base",
                    file=tuned_views[0].tensor.path,
                    tensor=tuned_name,
                )
            if not is_word_matrix(base_views[0]) or len(base_shape) != 2 or base_shape[1:] != tuned_shape[1:]:
                sizes = f"{list(base_shape)} in the base, {list(tuned_shape)} in the tuned model"
                reason = f"the {kind} is of another size: {sizes}"
                self.skip(base_name, "base", reason, is_head=is_head)
                self.skip(tuned_name, "tuned", reason, is_head=is_head)
                return
            common = min(base_shape[0], tuned_shape[0])
            base_views = tuple(replace(v, tensor=v.tensor.leading(common)) for v in base_views)
            tuned_views = tuple(replace(v, tensor=v.tensor.leading(common)) for v in tuned_views)
            reason = f"resized from {base_shape[0]} to {tuned_shape[0]} rows; the first {common} are compared"
            self.findings.append(
                Finding(code="resized", severity="info", message=f"{printable(base_name)}: {reason}")
            )
        if [v.shape for v in base_views] != [v.shape for v in tuned_views]:
            raise ShapeMismatch(
                f"got {len(tuned_views)} matrices in this tensor, expected {len(base_views)} as in the base",
                remedy="check that both config.json are of the same model type and head counts",
                file=tuned_views[0].tensor.path,
                tensor=tuned_name,
            )
        for base_view, tuned_view in zip(base_views, tuned_views, strict=True):
            self.pairs.append(
                MatrixPair(
                    name=base_view.name,
                    kind=base_view.kind,
                    layer=base_view.layer,
                    scope=base_view.scope,
                    base=base_view,
                    update=CheckpointUpdate(tuned=tuned_view),
                    estimated_bytes=base_view.estimated_bytes + tuned_view.estimated_bytes,
                )
            )
        matrices = tuple(view.name for view in base_views)
        sides: tuple[tuple[str, Literal["base", "tuned"]], ...] = ((base_name, "base"), (tuned_name, "tuned"))
        for name, side in sides:
            self.coverage.append(
                CoverageEntry(tensor=name, origin=side, status="compared", reason=reason, matrices=matrices)
            )


def find_prefixes(base: Iterable[str], tuned: Iterable[str]) -> tuple[str, str]:
    """The prefix to take off each side so that the most names agree; none when names agree as they are.

    Candidates are the first one to three words of the names. Taking off a prefix must leave every name
    of that side unique. One side is tried before both.
    """
    base_names, tuned_names = list(base), list(tuned)
    if set(base_names) <= set(tuned_names) or set(tuned_names) <= set(base_names):
        return "", ""  # nothing could agree better
    base_candidates, tuned_candidates = _candidates(base_names), _candidates(tuned_names)
    one_side = [("", ""), *((p, "") for p in base_candidates), *(("", p) for p in tuned_candidates)]
    both = [(b, t) for b in base_candidates for t in tuned_candidates]
    for tries in (one_side, both):
        stripped_base = {b: _stripped(base_names, b) for b, _ in tries}
        stripped_tuned = {t: _stripped(tuned_names, t) for _, t in tries}
        counts = {pair: len(stripped_base[pair[0]] & stripped_tuned[pair[1]]) for pair in tries}
        best = max(tries, key=lambda pair: counts[pair], default=("", ""))
        if counts.get(best):
            return best
    return "", ""


def _candidates(names: list[str]) -> list[str]:
    """Dotted prefixes of one to three words, the most common first, at most sixteen."""
    counts: Counter[str] = Counter()
    for name in names:
        words = name.split(".")[:-1]
        for length in range(1, min(_MAX_PREFIX_WORDS, len(words)) + 1):
            if not any(word.isdigit() for word in words[:length]):
                counts[".".join(words[:length]) + "."] += 1
    return [prefix for prefix, _ in counts.most_common(16)]


def _stripped(names: list[str], prefix: str) -> set[str]:
    stripped = {name.removeprefix(prefix) for name in names}
    return stripped if len(stripped) == len(names) else set()


def _prefix_finding(base_prefix: str, tuned_prefix: str) -> Finding:
    carried = [
        f"the {side} model's names begin with '{printable(prefix)}'"
        for side, prefix in (("base", base_prefix), ("tuned", tuned_prefix))
        if prefix
    ]
    message = f"{' and '.join(carried)}; this prefix was taken off to match them"
    return Finding(code="prefix", severity="info", message=message)


def _no_match(base: ModelSource, tuned: ModelSource) -> MalformedInput:
    def common(listed: ModelSource) -> str:
        counts = Counter(".".join(name.split(".")[:2]) for name in listed.tensors)
        shown = ", ".join(f"{printable(prefix)} ({count})" for prefix, count in counts.most_common(3))
        return shown or "no tensors"

    return MalformedInput(
        f"got no tensor name in common: tuned has {common(tuned)}, expected the base's {common(base)}",
        remedy="check that the tuned model was made from this base",
        file=tuned.path,
    )
