"""From several models to the tasks of a comparison, by headers alone: a base and fine-tunes, or adapters."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from intruscope.adapters.alone import TOKENS, WHOLE, open_alone
from intruscope.adapters.folder import AdapterSource, find_adapter
from intruscope.adapters.in_memory import has_adapter
from intruscope.adapters.opening import OpenedPair, is_named
from intruscope.adapters.several import FineTunes, check_same_base, open_fine_tunes, unique_labels
from intruscope.compare.matrix_task import MatrixTask
from intruscope.errors import ShapeMismatch, UsageError, printable
from intruscope.weights.matrices import Finding, Pairing
from intruscope.weights.names import parse_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.adapters.alone import AloneAdapter
    from intruscope.adapters.opening import ModelLike
    from intruscope.compare.settings import CompareSettings
    from intruscope.weights.matrices import MatrixPair
    from intruscope.weights.source import ModelSource

    Matrices: TypeAlias = Mapping[str, tuple[MatrixPair | None, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """Several fine-tunes, known from headers.

    Attributes:
        fine_tunes: With their base; None for adapters without one.
        sources: Each fine-tune.
        labels: A short, unique name for each.
        matrices: For each matrix its pair in each fine-tune; None where one leaves it alone.
        pairing: Everything that the result depends on, as one plan: it tells the journal of this comparison
            from others.
        findings: What the reader must know.
        complete: Everything that should be compared can be.
    """

    fine_tunes: FineTunes | None
    sources: tuple[ModelSource | AdapterSource, ...]
    labels: tuple[str, ...]
    matrices: Matrices
    pairing: Pairing
    findings: tuple[Finding, ...]
    complete: bool

    @property
    def base(self) -> str | None:
        """Name of the base."""
        return None if self.fine_tunes is None else self.fine_tunes.base.name

    def tasks(self, settings: CompareSettings) -> list[MatrixTask]:
        """One for each matrix."""
        found = []
        for name, pairs in self.matrices.items():
            first = next(pair for pair in pairs if pair is not None)
            found.append(
                MatrixTask(
                    name=name,
                    kind=first.kind,
                    layer=first.layer,
                    scope=first.scope,
                    shape=first.base.shape,
                    labels=self.labels,
                    pairs=pairs,
                    has_base=self.fine_tunes is not None,
                    settings=settings,
                )
            )
        return found


def open_models(
    models: Sequence[ModelLike], *, allow_pickle: bool = False, same_base: bool = False
) -> Opened:
    """Open a base and its fine-tunes, or adapters alone.

    Args:
        models: The first is the base, unless it is an adapter: then all must be.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        same_base: Trust that all adapters are of one base, although their configs name different ones.

    Raises:
        UsageError: fewer than two fine-tunes, a full checkpoint without a base, or adapters of different
            bases.
        ShapeMismatch: adapters have different shapes for one module.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.
    """
    if not models:
        raise UsageError("no models are given", remedy="name two adapters, or a base and two fine-tunes")
    if _is_adapter(models[0], allow_pickle=allow_pickle):
        return _alone(models, allow_pickle=allow_pickle, same_base=same_base)
    if len(models) < 3:
        raise UsageError(
            f"{_name(models[0])} is a full model and is taken as the base, which leaves "
            f"{'one fine-tune' if len(models) == 2 else 'no fine-tune'}; a comparison needs at least two",
            remedy="run intruscope compare BASE A B, or name two adapters",
        )
    opened = open_fine_tunes(models[0], models[1:], allow_pickle=allow_pickle, same_base=same_base)
    findings = []
    for label, member in zip(opened.labels, opened.members, strict=True):
        findings += [_of(label, finding) for finding in member.pairing.findings]
        if not member.pairing.complete:
            message = (
                f"some weights of {printable(label)} could not be matched or decoded and are not compared"
            )
            findings.append(Finding(code="incomplete", severity="warning", message=message))
    matrices = opened.matrices()
    return Opened(
        fine_tunes=opened,
        sources=tuple(member.tuned for member in opened.members),
        labels=opened.labels,
        matrices=matrices,
        pairing=_as_one(
            opened.base.name,
            opened.labels,
            matrices,
            inputs=[record for member in opened.members for record in member.pairing.inputs],
            in_memory=any(member.in_memory for member in opened.members),
        ),
        findings=(*findings, *_findings(matrices, opened.labels)),
        complete=all(member.pairing.complete for member in opened.members),
    )


def _is_adapter(model: ModelLike, *, allow_pickle: bool) -> bool:
    if isinstance(model, OpenedPair):
        return isinstance(model.tuned, AdapterSource)
    if is_named(model):
        name = parse_name(str(model))
        return name.adapter is not None or find_adapter(name, allow_pickle=allow_pickle) is not None
    return isinstance(model, AdapterSource) or has_adapter(model)


def _name(model: ModelLike) -> str:
    return printable(model) if is_named(model) else f"the {type(model).__name__}"


def _alone(models: Sequence[ModelLike], *, allow_pickle: bool, same_base: bool) -> Opened:
    """Adapters without their base."""
    if len(models) < 2:
        raise UsageError(
            f"only one adapter is given ({_name(models[0])}), and a comparison needs at least two",
            remedy="name another adapter of the same base; intruscope inspect describes a single one",
        )
    for model in models[1:]:
        if not _is_adapter(model, allow_pickle=allow_pickle):
            raise UsageError(
                f"{_name(model)} is a full checkpoint, and its update is its difference from the base",
                remedy="name the base first: intruscope compare BASE A B",
            )
    adapters = [open_alone(model, allow_pickle=allow_pickle) for model in models]
    labels = unique_labels([adapter.source.name for adapter in adapters])
    if not same_base:
        check_same_base([adapter.source for adapter in adapters], labels)
    found: dict[str, list[MatrixPair | None]] = {}
    findings: list[Finding] = []
    for place, (label, adapter) in enumerate(zip(labels, adapters, strict=True)):
        findings += [_of(label, finding) for finding in adapter.findings]
        findings += _unread(label, adapter)
        for pair in adapter.pairs:
            found.setdefault(pair.name, [None] * len(adapters))[place] = pair
    names = sorted(found, key=lambda name: _layer(found[name]))
    matrices = {name: tuple(found[name]) for name in names}
    _check_shapes(matrices, labels)
    return Opened(
        fine_tunes=None,
        sources=tuple(adapter.source for adapter in adapters),
        labels=labels,
        matrices=matrices,
        pairing=_as_one(
            "no base",
            labels,
            matrices,
            inputs=[record for adapter in adapters for record in adapter.source.inputs],
            in_memory=any(adapter.source.path is None for adapter in adapters),
        ),
        findings=(*findings, *_findings(matrices, labels)),
        complete=all(each.reason in (WHOLE, TOKENS) for adapter in adapters for each in adapter.unread),
    )


def _layer(pairs: Sequence[MatrixPair | None]) -> float:
    """Adapters store their tensors by name, so that layer 10 comes before layer 2."""
    layer = next(pair for pair in pairs if pair is not None).layer
    return math.inf if layer is None else layer


def _unread(label: str, adapter: AloneAdapter) -> list[Finding]:
    """What cannot be compared without the base, a line for each reason."""
    reasons = Counter(module.reason for module in adapter.unread)
    return [
        Finding(
            code="needs-base",
            severity="warning",
            message=f"{count} {'module' if count == 1 else 'modules'} of {printable(label)} cannot be "
            f"compared without the base: {reason}",
        )
        for reason, count in reasons.items()
    ]


def _check_shapes(matrices: Matrices, labels: Sequence[str]) -> None:
    for name, pairs in matrices.items():
        shapes = {
            label: pair.base.shape for label, pair in zip(labels, pairs, strict=True) if pair is not None
        }
        if len(set(shapes.values())) > 1:
            given = ", ".join(f"{printable(label)}: {list(shape)}" for label, shape in shapes.items())
            raise ShapeMismatch(
                f"the adapters have different shapes for one module ({given})",
                remedy="compare adapters of the same base",
                tensor=name,
            )


def _findings(matrices: Matrices, labels: Sequence[str]) -> list[Finding]:
    if not matrices:
        return [
            Finding(code="nothing-to-compare", severity="warning", message="no fine-tune changes any matrix")
        ]
    if any(sum(pair is not None for pair in pairs) > 1 for pairs in matrices.values()):
        return []
    message = (
        f"no matrix is changed by more than one of {', '.join(map(printable, labels))}, so they cannot "
        "interact; if they should, check that they are of one base and name their modules alike"
    )
    return [Finding(code="no-common-matrix", severity="warning", message=message)]


def _of(label: str, finding: Finding) -> Finding:
    return Finding(
        code=finding.code,
        severity=finding.severity,
        message=f"{printable(label)}: {finding.message}",
        matrix=finding.matrix,
    )


def _as_one(
    base: str,
    labels: Sequence[str],
    matrices: Matrices,
    *,
    inputs: Sequence[dict[str, object]],
    in_memory: bool,
) -> Pairing:
    return Pairing(
        base=base,
        tuned=", ".join(labels),
        pairs=tuple(pair for pairs in matrices.values() for pair in pairs if pair is not None),
        coverage=(),
        findings=(),
        inputs=tuple(inputs),
        complete=True,
        in_memory=in_memory,
    )
