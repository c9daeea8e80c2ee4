"""What a verification looks at, from headers alone: adapted matrices to judge, other tensors to compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from intruscope.adapters.experts import ExpertUpdate
from intruscope.adapters.folder import AdapterSource
from intruscope.adapters.kinds.lora import LoraUpdate
from intruscope.adapters.updates import SavedUpdate
from intruscope.adapters.vectors import trained_vectors
from intruscope.verify.causes import ScaleFacts
from intruscope.verify.records import ModuleCheck, OtherTensor
from intruscope.verify.tasks import Check, Compare, Term, VectorUpdate
from intruscope.weights.pairing import CheckpointUpdate
from intruscope.weights.prefixes import find_prefixes
from intruscope.weights.source import ModelSource
from intruscope.weights.views import TensorView
from intruscope.writing.changed import tensor_twins

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from intruscope.adapters.opening import OpenedPair
    from intruscope.weights.matrices import MatrixPair, StoredUpdate
    from intruscope.weights.stored import StoredTensor

_PARAMETERS = (".bias", ".weight")
"""Ends of the names of parameters; vectors of other names are buffers, which a model may leave out."""


@dataclass(frozen=True, kw_only=True)
class VerifyPlan:
    """Everything that a verification does.

    Attributes:
        checks: Adapted matrices and vectors, in the order of the base.
        compares: All other tensors that both models have.
        settled: Adapted modules that cannot be judged, with the reason.
        others: Tensors that one model alone has, or that cannot be compared.
        complete: Every tensor of the adapters and of both models is somewhere in here.
    """

    checks: tuple[Check, ...]
    compares: tuple[Compare, ...]
    settled: tuple[ModuleCheck, ...]
    others: tuple[OtherTensor, ...]
    complete: bool


def make_plan(
    base: ModelSource, adapters: Sequence[tuple[OpenedPair, float]], merged: OpenedPair
) -> VerifyPlan:
    """Plan a verification.

    Args:
        base: The opened base.
        adapters: Each adapter on the base, with its weight.
        merged: The merged model on the same base.
    """
    return _Planner(base, adapters, merged).plan()


class _Planner:
    """Assigns every tensor of both models to a check, a comparison or a remark.

    Args:
        base, adapters, merged: As for :func:`make_plan`.
    """

    def __init__(
        self, base: ModelSource, adapters: Sequence[tuple[OpenedPair, float]], merged: OpenedPair
    ) -> None:
        assert isinstance(merged.tuned, ModelSource)
        self._base, self._adapters, self._merged = base, adapters, merged.tuned
        self._pairing = merged.pairing
        names = [
            (pair.base.tensor.name, pair.update.tuned.tensor.name)
            for pair in merged.pairing.pairs
            if isinstance(pair.update, CheckpointUpdate) and not pair.base.is_stand_in
        ]
        self._prefixes = find_prefixes([one for one, _ in names], [other for _, other in names])
        self._by_name = {name.removeprefix(self._prefixes[1]): t for name, t in self._merged.tensors.items()}
        self._settled: list[ModuleCheck] = []
        self._checked: set[str] = set()  # tensors of the merged model
        self._looked_at: set[str] = set()  # tensors of the base
        self._gaps = {e.tensor for e in merged.pairing.coverage if e.gap}

    def plan(self) -> VerifyPlan:
        """Everything."""
        checks = [*self._matrices(), *self._vectors(), *self._new_modules()]
        compares, others = self._rest({check.name for check in checks})
        gaps = [
            e for pair, _ in self._adapters for e in pair.pairing.coverage if e.gap and e.origin != "base"
        ]
        return VerifyPlan(
            checks=tuple(checks),
            compares=tuple(compares),
            settled=tuple(self._settled),
            others=tuple(others),
            complete=not gaps,
        )

    def _twin(self, name: str) -> StoredTensor | None:
        return self._by_name.get(name.removeprefix(self._prefixes[0]))

    def _place(self, view: TensorView) -> StoredTensor | None:
        """The merged tensor of a base matrix; of one that shares its tensor, its own if it has one now."""
        own = f"{view.name.partition('[')[0]}.weight"
        return (self._twin(own) if view.is_stand_in else None) or self._twin(view.tensor.name)

    def _matrices(self) -> Iterator[Check]:
        found: dict[str, tuple[MatrixPair, list[Term], list[ScaleFacts]]] = {}
        for opened, weight in self._adapters:
            for pair in opened.pairing.pairs:
                _, terms, scales = found.setdefault(pair.name, (pair, [], []))
                terms.append(Term(update=pair.update, weight=weight))
                facts = _scale_facts(pair.update, opened.tuned, weight)
                scales.extend([facts] if facts is not None else [])
        order = {pair.name: at for at, pair in enumerate(self._pairing.pairs)}
        sharing: dict[tuple[str, int | None], list[str]] = {}
        for name, (pair, _, _) in found.items():
            place = self._place(pair.base)
            if place is not None and pair.base.rows is None:
                sharing.setdefault((place.name, pair.base.expert), []).append(name)
        for name in sorted(found, key=lambda name: order.get(name, len(order))):
            pair, terms, scales = found[name]
            self._looked_at.add(pair.base.tensor.name)
            twin = self._place(pair.base)
            merged = None if twin is None else _fitted(pair.base, twin)
            if twin is None or merged is None or not twin.decodable:
                self._settle(pair, twin)
                continue
            self._checked.add(twin.name)
            foreign = [
                replace(term, flipped=found[other][0].base.transposed != pair.base.transposed)
                for other in sharing.get((twin.name, pair.base.expert), ())
                if other != name
                for term in found[other][1]
            ]
            yield Check(
                name=name,
                kind=pair.kind,
                layer=pair.layer,
                base=pair.base,
                merged=merged,
                terms=tuple(terms),
                foreign=tuple(foreign),
                scales=tuple(scales) if len(scales) == len(terms) else (),
            )

    def _settle(self, pair: MatrixPair, twin: StoredTensor | None) -> None:
        """A module that the merged model does not store as the base does."""
        status, reason = "open", ""
        if twin is None:
            elsewhere = [entry for entry in self._pairing.coverage if entry.gap and entry.origin == "tuned"]
            if elsewhere:
                reason = "the merged model names its tensors otherwise, so that this one was not found"
            else:
                status = "missing"
        elif not twin.decodable:
            reason = f"the merged model stores it as {twin.dtype}, which is not read"
        else:
            reason = f"its shape is {list(twin.shape)}, but {list(pair.base.tensor.shape)} in the base"
        self._settled.append(
            ModuleCheck(
                name=pair.name,
                kind=pair.kind,
                layer=pair.layer,
                shape=pair.base.shape,
                dtype=None if twin is None else twin.dtype,
                status=status,  # type: ignore[arg-type]
                cause="the merged model does not store this matrix" if status == "missing" else None,
                reason=reason,
            )
        )

    def _vectors(self) -> Iterator[Check]:
        terms: dict[str, list[Term]] = {}
        for opened, weight in self._adapters:
            for target, update in _vector_updates(opened, self._base):
                terms.setdefault(target, []).append(Term(update=update, weight=weight))
        for target, found in terms.items():
            before, twin = self._base.tensors[target], self._twin(target)
            self._looked_at.add(target)
            if twin is None or twin.shape != before.shape or not (before.decodable and twin.decodable):
                reason = "the merged model does not store it in this shape"
                self._settled.append(
                    ModuleCheck(
                        name=target,
                        kind="vector",
                        layer=None,
                        shape=_column(before),
                        dtype=None if twin is None else twin.dtype,
                        status="open",
                        reason=reason,
                    )
                )
                continue
            self._checked.add(twin.name)
            yield Check(
                name=target,
                kind="vector",
                layer=None,
                base=_vector_view(target, before),
                merged=_vector_view(target, twin),
                terms=tuple(found),
            )

    def _new_modules(self) -> Iterator[Check]:
        """Tensors that an adapter holds whole and that the base does not have: heads of a task."""
        for opened, weight in self._adapters:
            if not isinstance(opened.tuned, AdapterSource) or weight != 1.0:
                continue
            keys = [e.tensor for e in opened.pairing.coverage if e.origin == "adapter" and e.head == "new"]
            keys += [v.tensor.name for v in trained_vectors(opened.tuned, self._base) if v.target is None]
            for key in dict.fromkeys(keys):
                tensor, twin = opened.tuned.tensors[key], self._ending(key)
                if twin is None or twin.shape != tensor.shape or twin.name in self._checked:
                    continue
                if not (tensor.decodable and twin.decodable):
                    continue
                self._checked.add(twin.name)
                name = twin.name.removesuffix(".weight")
                yield Check(
                    name=name,
                    kind="head" if len(tensor.shape) > 1 else "vector",
                    layer=None,
                    base=None,
                    merged=_vector_view(name, twin),
                    terms=(Term(update=SavedUpdate(tuned=_vector_view(name, tensor)), weight=1.0),),
                )

    def _ending(self, key: str) -> StoredTensor | None:
        """The merged tensor that a key of an adapter is for, by its last words."""
        words = [word for word in key.split(".") if word not in ("base_model", "model", "modules_to_save")]
        for length in range(len(words), 1, -1):
            end = ".".join(words[-length:])
            found = [t for name, t in self._merged.tensors.items() if f".{name}".endswith(f".{end}")]
            if len(found) == 1:
                return found[0]
        return None

    def _rest(self, checked: set[str]) -> tuple[list[Compare], list[OtherTensor]]:
        compares: list[Compare] = []
        others: list[OtherTensor] = []
        seen = set(self._checked)
        by_tensor: dict[str, list[MatrixPair]] = {}
        for pair in self._pairing.pairs:
            by_tensor.setdefault(pair.base.tensor.name, []).append(pair)
        for name, tensor in self._base.tensors.items():
            pairs = [
                pair
                for pair in by_tensor.get(name, [])
                if pair.name not in checked and isinstance(pair.update, CheckpointUpdate)
            ]
            if pairs:
                found = [self._compare(pair, whole=len(pairs) == len(by_tensor[name])) for pair in pairs]
                compares += [each for each in found if each is not None]
                seen |= {p.update.tuned.tensor.name for p in pairs if isinstance(p.update, CheckpointUpdate)}
                continue
            if name in self._looked_at or name in self._base.parts or name in by_tensor:
                continue
            twin = self._twin(name)
            if twin is None:
                others.append(self._alone(name, tensor, "base"))
            elif twin.name not in seen:
                seen.add(twin.name)
                if twin.shape == tensor.shape:
                    compares.append(Compare(name=name, base=tensor, merged=twin))
                else:
                    reason = f"{list(tensor.shape)} in the base, {list(twin.shape)} in the merged model"
                    others.append(OtherTensor(name=name, status="resized", reason=reason))
        more, resized = self._resized(by_tensor)
        compares += more
        others += resized
        for name, tensor in self._merged.tensors.items():
            if name not in seen and name not in self._merged.parts:
                others.append(self._alone(name, tensor, "tuned"))
        return compares, others

    def _compare(self, pair: MatrixPair, *, whole: bool) -> Compare | None:
        assert isinstance(pair.update, CheckpointUpdate)
        merged = pair.update.tuned
        twin = self._twin(pair.base.tensor.name)
        if merged.tensor.name in self._checked and pair.base.rows is None and pair.base.expert is None:
            return None  # judged under the name of a module that shares it
        apart = twin is not None and twin.name != merged.tensor.name and twin.shape == merged.tensor.shape
        one: StoredTensor | TensorView = pair.base
        other: StoredTensor | TensorView = merged
        if whole and pair.base.rows is None and pair.base.expert is None:
            one, other = pair.base.tensor, merged.tensor
        return Compare(name=pair.name, base=one, merged=other, also=twin if apart else None)

    def _resized(self, by_tensor: Mapping[str, list[MatrixPair]]) -> tuple[list[Compare], list[OtherTensor]]:
        """Vocabularies of another size: their further words are an adapter's, or nothing explains them."""
        compares, others = [], []
        for name, pairs in by_tensor.items():
            before, after = self._base.tensors.get(name), self._twin(name)
            if before is None or after is None or before.shape == after.shape or pairs[0].base.is_stand_in:
                continue
            saved = self._saved_whole(pairs[0].name, after.shape)
            if saved is not None:
                compares.append(Compare(name=name, base=saved, merged=after))
                continue
            reason = f"{list(before.shape)} in the base, {list(after.shape)} in the merged model"
            others.append(OtherTensor(name=name, status="resized", reason=reason))
        return compares, others

    def _saved_whole(self, matrix: str, shape: tuple[int, ...]) -> StoredTensor | None:
        """The tensor of this shape that an adapter stores for a matrix; None if there is none."""
        for opened, weight in self._adapters:
            for entry in opened.pairing.coverage:
                if entry.origin == "adapter" and matrix in entry.matrices and weight == 1.0:
                    found = opened.tuned.tensors[entry.tensor]
                    if found.shape == shape:
                        return found
        return None

    def _alone(self, name: str, tensor: StoredTensor, origin: str) -> OtherTensor:
        """A tensor that one model alone has."""
        entries = [entry for entry in self._pairing.coverage if entry.origin == origin]
        own = next((entry for entry in entries if entry.tensor == name), None)
        owner = name.rpartition(".")[0]
        # A head that the files explain may come and go with its bias.
        head = next((e for e in entries if e.head is not None and e.tensor.rpartition(".")[0] == owner), None)
        is_gap = own is not None and own.gap
        is_parameter = tensor.decodable and name.endswith(_PARAMETERS)
        where = "the base" if origin == "base" else "the merged model"
        return OtherTensor(
            name=name,
            status="dropped" if origin == "base" else "new",
            reason=head.reason if head is not None else f"only {where} has it",
            expected=not is_gap and (head is not None or not is_parameter),
        )


def _fitted(view: TensorView, twin: StoredTensor) -> TensorView | None:
    """The same matrix of the merged tensor; of a larger vocabulary the words that the view has."""
    shape = view.tensor.shape
    if twin.shape != shape:
        if len(shape) != 2 or twin.shape[1:] != shape[1:] or twin.shape[0] < shape[0]:
            return None
        twin = twin.leading(shape[0])
    return replace(view, tensor=twin)


def _column(tensor: StoredTensor) -> tuple[int, int]:
    return _vector_view(tensor.name, tensor).shape


def _vector_view(name: str, tensor: StoredTensor) -> TensorView:
    """A tensor as a matrix: a vector is one column."""
    return TensorView(name=name, kind="vector", layer=None, scope="other", tensor=tensor)


def _scale_facts(update: StoredUpdate, adapter: Any, weight: float) -> ScaleFacts | None:
    config = getattr(adapter, "config", None)
    options = getattr(config, "options", {})
    is_rslora = bool(options.get("use_rslora")) if options else False
    if isinstance(update, (LoraUpdate, ExpertUpdate)) and getattr(update, "magnitude", None) is None:
        rank = update.rank if isinstance(update, ExpertUpdate) else update.up.shape[1]
        return ScaleFacts(rank=rank, scaling=update.scaling, is_rslora=is_rslora, weight=weight)
    return None


def _vector_updates(opened: OpenedPair, base: ModelSource) -> Iterator[tuple[str, VectorUpdate]]:
    """Biases and norms that an adapter or a checkpoint trained, with the base's tensor."""
    if isinstance(opened.tuned, ModelSource):
        for name, twin in tensor_twins(base, opened.tuned, opened.pairing).items():
            yield name, VectorUpdate(tensor=twin)
        return
    adapter = opened.tuned
    for vector in trained_vectors(adapter, base):
        if vector.target is None or ".original_module." in vector.tensor.name:
            continue
        scaling = None
        if vector.module is not None and adapter.config is not None:
            scaling = adapter.config.scales_of([vector.module])[vector.module].scaling
        yield vector.target, VectorUpdate(tensor=vector.tensor, scaling=scaling)
