"""Two checkpoints side by side: which matrices are the same one before and after, and what is left over.

Names must be equal, up to one prefix that a whole side carries (``bert.``, ``model.``). Every tensor of both
sides ends up in the coverage ledger.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from intruscope.errors import MalformedInput, ShapeMismatch, printable
from intruscope.weights.heads import Body, SharedWords, head_findings, is_word_matrix, other_task
from intruscope.weights.layout import base_matrices
from intruscope.weights.matrices import (
    CoverageEntry,
    DenseUpdate,
    Finding,
    MatrixPair,
    Pairing,
    StoredUpdate,
)
from intruscope.weights.orientation import orientation_findings
from intruscope.weights.prefixes import NameMatch, match_names

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import torch

    from intruscope.weights.source import ModelSource
    from intruscope.weights.views import TensorView


@dataclass(frozen=True, kw_only=True)
class CheckpointUpdate(StoredUpdate):
    """The tuned matrix is stored whole in another file."""

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
        The plan. ``complete`` is False when weights cannot be decoded, when their orientation is unknown, or
        when they exist on one side only and are no head that the files explain (see
        :mod:`intruscope.weights.heads`).

    Raises:
        MalformedInput: nothing matches, or the names fit more than one part of the base.
        ShapeMismatch: a matrix has another shape on the other side and is neither embedding nor head.
    """
    base_listing = base_matrices(base if base.config else replace(base, config=tuned.config))
    tuned_listing = base_matrices(
        tuned if tuned.config else replace(tuned, config=base.config), origin="tuned"
    )
    before = {name.removesuffix(".weight"): views[0] for name, views in base_listing.matrices.items()}
    after = {name.removesuffix(".weight"): views[0] for name, views in tuned_listing.matrices.items()}
    found = match_names(before, after, fits=lambda one, other: _same_shape(before[one], after[other]))
    check_one_place(found, tuned="tuned model", file=tuned.path)
    bare_base = {name: name.removeprefix(found.base) for name in base.tensors}
    bare_tuned = {name: name.removeprefix(found.tuned) for name in tuned.tensors}
    tuned_of = {bare_tuned[name]: name for name in tuned_listing.matrices}
    plan = _Plan()
    plan.findings.extend(prefix_findings(found, tuned="tuned model"))
    twins = {name: tuned_of.get(bare_base[name]) for name in base_listing.matrices}
    matched = {twin for twin in twins.values() if twin is not None}
    if not matched:
        raise _no_match(base, tuned)
    heads = _Heads(base, tuned, [bare_tuned[name] for name in matched])
    stored = {"base": set(bare_base.values()), "tuned": set(bare_tuned.values())}
    shared = {
        "base": SharedWords(base.config or tuned.config, base_listing.matrices, needs_head=True),
        "tuned": SharedWords(tuned.config or base.config, tuned_listing.matrices, needs_head=True),
    }
    for name, base_views in base_listing.matrices.items():
        twin = twins[name]
        bare = bare_base[name]
        if twin is not None:
            notes = (base_listing.notes.get(name, ""), tuned_listing.notes.get(twin, ""))
            is_head = base_views[0].kind == "head" and not heads.body.holds(bare_tuned[twin])
            plan.add_match(name, base_views, twin, tuned_listing.matrices[twin], notes, is_head=is_head)
            continue
        is_stored = bare in stored["tuned"]
        other = None if is_stored else _stand_in(bare, base_views[0], shared["tuned"], shared["base"])
        if other is not None:
            plan.add_shared(base_views[0], other, shared_by="tuned")
        else:
            plan.add_unmatched(bare, base_views[0], "base", heads, is_stored=is_stored)
    for name, views in tuned_listing.matrices.items():
        if name in matched:
            continue
        bare = bare_tuned[name]
        is_stored = bare in stored["base"]
        other = None if is_stored else _stand_in(bare, views[0], shared["base"], shared["tuned"])
        if other is not None:
            plan.add_shared(other, views[0], shared_by="base")
        else:
            plan.add_unmatched(bare, views[0], "tuned", heads, is_stored=is_stored)
    for listing in (base_listing, tuned_listing):
        plan.coverage.extend(listing.skipped)
    coverage = plan.ledger()
    gaps = plan.num_gaps + len(base_listing.gaps) + len(tuned_listing.gaps)
    if gaps:
        message = f"{gaps} tensors that hold weights could not be compared; the ledger names them"
        plan.findings.append(Finding(code="incomplete-coverage", severity="warning", message=message))
    return Pairing(
        base=base.full_name,
        tuned=tuned.full_name,
        pairs=tuple(plan.pairs),
        coverage=tuple(coverage),
        findings=(
            *base.findings,
            *tuned.findings,
            *plan.findings,
            *_rounding_findings(base, tuned),
            *orientation_findings(coverage),
            *head_findings(coverage, base.tensors, tuned.tensors),
        ),
        inputs=(*base.inputs, *tuned.inputs),
        complete=gaps == 0,
        in_memory=base.path is None or tuned.path is None,
    )


def _rounding_findings(base: ModelSource, tuned: ModelSource) -> list[Finding]:
    """Where one side alone is quantised, the update contains the whole rounding error, of full rank."""
    if (base.packed is None) == (tuned.packed is None):
        return []
    side = "base" if base.packed is not None else "tuned model"
    message = (
        f"only the {side} is quantised ({base.packed or tuned.packed}), so that every update contains its "
        "rounding error: compare both in one format"
    )
    return [Finding(code="quantisation-error", severity="warning", message=message)]


def _same_shape(base: TensorView, tuned: TensorView) -> bool:
    """Whether two tensors can be the same one; the vocabulary may have been resized, and a head replaced."""
    if base.kind == "head" or tuned.kind == "head":
        return True
    one, other = base.tensor.shape, tuned.tensor.shape
    return one == other or (base.kind == "embedding" and one[1:] == other[1:])


def _stand_in(name: str, view: TensorView, shared: SharedWords, own: SharedWords) -> TensorView | None:
    """What the other model, which stores no matrix of this name, computes with in its place."""
    if len(view.tensor.shape) != 2:
        return None
    name = name.removesuffix(".weight")
    num_words, width = view.tensor.shape
    found = shared.stand_in(name, width=width, num_words=num_words)
    if found is None and own.has(view.tensor.shape):  # the vocabulary was resized
        found = shared.stand_in(name, width=width, num_words=None)
    return found


class _Heads:
    """Which matrices are heads that one side has and the other need not have.

    What only the tuned model has must be explained: it could be anything. What only the base has leaves no
    part of the tuned model unseen, so a head that is gone needs no other reason (such as the pooler, which is
    dropped when a language model is saved again). A head of words does: it may have been lost.

    Attributes:
        body: What both have in common that is no head.
    """

    def __init__(self, base: ModelSource, tuned: ModelSource, matched: Iterable[str]) -> None:
        self.body = Body.of(matched)
        self._task = other_task(base.config, tuned.config)

    def why(self, name: str, view: TensorView, origin: Literal["base", "tuned"]) -> str | None:
        """Why only one side has a head of this name (without prefix); None where nothing says so."""
        if self.body.holds(name):
            return None
        if self._task is not None:
            return self._task
        if origin == "tuned" or view.kind != "head" or is_word_matrix(view):
            return None
        return "a head that the tuned model does not have"


class _Plan:
    """The pairs and ledger lines found so far."""

    def __init__(self) -> None:
        self.pairs: list[MatrixPair] = []
        self.coverage: list[CoverageEntry] = []
        self.findings: list[Finding] = []
        self.num_gaps = 0
        self._shared: list[tuple[str, str, str]] = []

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

    def add_unmatched(
        self,
        name: str,
        view: TensorView,
        origin: Literal["base", "tuned"],
        heads: _Heads,
        *,
        is_stored: bool,
    ) -> None:
        """A matrix that only one side stores, or that the other stores too in a form that is not read."""
        other = "tuned" if origin == "base" else "base"
        why = None if is_stored else heads.why(name, view, origin)
        missing = f"the tensor in the {other} model is not read" if is_stored else f"not in the {other} model"
        self.skip(view.tensor.name, origin, why or missing, is_head=why is not None)

    def add_shared(self, base: TensorView, tuned: TensorView, *, shared_by: Literal["base", "tuned"]) -> None:
        """A matrix of words that one side stores and the other shares with another module."""
        own, other = (tuned, base) if shared_by == "base" else (base, tuned)
        of = printable(other.tensor.name.removesuffix(".weight"))
        model, storing = ("base", "tuned model") if shared_by == "base" else ("tuned model", "base")
        reason = f"the {model} computes it with {of}, which it shares; the {storing} stores its own"
        num_base, num_tuned = base.tensor.shape[0], tuned.tensor.shape[0]
        if num_base != num_tuned:
            common = min(num_base, num_tuned)
            base, tuned = (replace(view, tensor=view.tensor.leading(common)) for view in (base, tuned))
            reason += f"; resized from {num_base} to {num_tuned} rows, the first {common} are compared"
        name = own.name
        self._pair(replace(base, name=name), tuned)
        origin: Literal["base", "tuned"] = "tuned" if shared_by == "base" else "base"
        entry = CoverageEntry(
            tensor=own.tensor.name, origin=origin, status="compared", reason=reason, matrices=(name,)
        )
        self.coverage.append(entry)
        self._shared.append((shared_by, other.tensor.name, name))
        message = f"{printable(name)}: {reason}"
        self.findings.append(Finding(code="tied-differently", severity="info", message=message))

    def ledger(self) -> list[CoverageEntry]:
        """Its lines, where a shared matrix names all that it was compared as."""
        lines = []
        for entry in self.coverage:
            more = tuple(
                m for side, tensor, m in self._shared if (side, tensor) == (entry.origin, entry.tensor)
            )
            lines.append(
                replace(entry, matrices=(*entry.matrices, *more), status="compared") if more else entry
            )
        return lines

    def _pair(self, base: TensorView, tuned: TensorView) -> None:
        self.pairs.append(
            MatrixPair(
                name=base.name,
                kind=base.kind,
                layer=base.layer,
                scope=base.scope,
                base=base,
                update=CheckpointUpdate(tuned=tuned),
                estimated_bytes=base.estimated_bytes + tuned.estimated_bytes,
            )
        )

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
        """Pair the parts of two tensors of one name; a head of another size is skipped."""
        base_shape, tuned_shape = base_views[0].tensor.shape, tuned_views[0].tensor.shape
        reason = "; ".join(dict.fromkeys(note for note in notes if note))
        if base_shape != tuned_shape:
            kind = base_views[0].kind
            if kind != "embedding" and not is_head:
                raise ShapeMismatch(
                    f"the tensor has shape {list(tuned_shape)}, but {list(base_shape)} in the base",
                    remedy="check that the tuned model was made from this base",
                    file=tuned_views[0].tensor.path,
                    tensor=tuned_name,
                )
            if not is_word_matrix(base_views[0]) or len(base_shape) != 2 or base_shape[1:] != tuned_shape[1:]:
                sizes = f"{list(base_shape)} in the base, {list(tuned_shape)} in the tuned model"
                reason = f"the {kind} has another size: {sizes}"
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
                f"the tensor holds {len(tuned_views)} matrices, but {len(base_views)} in the base",
                remedy="check that both config.json are of the same model type and head counts",
                file=tuned_views[0].tensor.path,
                tensor=tuned_name,
            )
        for base_view, tuned_view in zip(base_views, tuned_views, strict=True):
            self._pair(base_view, tuned_view)
        matrices = tuple(view.name for view in base_views)
        sides: tuple[tuple[str, Literal["base", "tuned"]], ...] = ((base_name, "base"), (tuned_name, "tuned"))
        for name, side in sides:
            self.coverage.append(
                CoverageEntry(tensor=name, origin=side, status="compared", reason=reason, matrices=matrices)
            )


def prefix_findings(found: NameMatch, *, tuned: str) -> list[Finding]:
    """What was taken off to match the names; a warning where that is the name of a tower.

    Args:
        found: How the names agree.
        tuned: What the second side is: ``tuned model``, ``adapter``.
    """
    carried = [
        f"the names of the {side} begin with '{printable(prefix)}'"
        for side, prefix in (("base", found.base), (tuned, found.tuned))
        if prefix
    ]
    if not carried:
        return []
    message = f"{' and '.join(carried)}; this prefix was removed to match them"
    if not found.towers:
        return [Finding(code="prefix", severity="info", message=message)]
    named = " and ".join(map(printable, found.towers))
    message += (
        f". It names a tower ({named}) that the other side does not name: check that this is the right one"
    )
    return [Finding(code="prefix", severity="warning", message=message)]


def check_one_place(found: NameMatch, *, tuned: str, file: Path | None) -> None:
    """Refuse names that fit several places of the base.

    Args:
        found: How the names agree.
        tuned: What the second side is: ``tuned model``, ``adapter``.
        file: Of that side.

    Raises:
        MalformedInput: they fit more than one.
    """
    if found.rivals:
        places = " and ".join(
            f"'{printable(place)}'" if place else "the names as they are" for place in found.places
        )
        raise MalformedInput(
            f"the names of the {tuned} fit more than one part of the base ({places})",
            remedy=f"give as the base the part that the {tuned} was made from",
            file=file,
        )


def _no_match(base: ModelSource, tuned: ModelSource) -> MalformedInput:
    def common(listed: ModelSource) -> str:
        counts = Counter(".".join(name.split(".")[:2]) for name in listed.tensors)
        shown = ", ".join(f"{printable(prefix)} ({count})" for prefix, count in counts.most_common(3))
        return shown or "no tensors"

    return MalformedInput(
        f"no tensor name matches the base: the tuned model has {common(tuned)}; the base has {common(base)}",
        remedy="check that the tuned model was made from this base",
        file=tuned.path,
    )
