"""New values for tensors that are stored whole: in checkpoints, and in modules saved beside an adapter.

Float64 inside, one rounding into the stored dtype. Parts of a fused tensor that are not edited keep their
values.

Shape suffixes: O out, I in.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from intruscope.adapters.updates import TokensUpdate
from intruscope.adapters.vectors import trained_vectors
from intruscope.errors import UnsupportedFormat, printable
from intruscope.repair.factors import MERGED_REMEDY, low_rank_modules
from intruscope.weights.pairing import CheckpointUpdate
from intruscope.weights.source import ModelSource
from intruscope.writing.changed import tensor_twins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.repair.edits import MatrixEdit
    from intruscope.repair.records import RepairRecord
    from intruscope.weights.matrices import MatrixPair
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView
    from intruscope.writing.checkpoint import NewTensors


def new_checkpoint_tensors(plan: RepairRecord, source: ModelSource) -> NewTensors:
    """How to compute each stored tensor of a repaired checkpoint that is not copied.

    Args:
        plan: For a checkpoint.
        source: The model whose files are written anew: the tuned one, or the base of an adapter.
    """
    changed = plan.changed
    renew: NewTensors = {}
    if plan.merges:
        renew = _merged_tensors(plan, source)
    else:
        places: dict[str, list[tuple[TensorView, MatrixPair]]] = {}
        for pair in plan.survey.pairing.pairs:
            if pair.name in changed and isinstance(pair.update, CheckpointUpdate):
                places.setdefault(pair.update.tuned.tensor.name, []).append((pair.update.tuned, pair))
        for name, found in places.items():
            shared = next((view.name for view, _ in found if view.is_stand_in), None)
            if shared is not None:
                raise UnsupportedFormat(
                    f"{printable(shared)} shares its matrix with another module and cannot be repaired alone",
                    remedy="leave it out with --which, or untie the two before",
                    file=source.path,
                    tensor=name,
                )
            renew[name] = partial(edited_whole, source.tensors[name], found, changed)
        twins = tensor_twins(plan.survey.base, source, plan.survey.pairing)
        for name, twin in twins.items():
            if name in changed:
                renew[twin.name] = partial(_moved, plan, name, twin)
    return renew


def _moved(plan: RepairRecord, name: str, twin: StoredTensor) -> torch.Tensor:
    numbers = twin.read()
    return plan.changed[name].applied(plan.survey.base.tensors[name].read(), numbers).to(numbers.dtype)


def _merged_tensors(plan: RepairRecord, source: ModelSource) -> NewTensors:
    adapter, changed = plan.survey.tuned, plan.changed
    assert not isinstance(adapter, ModelSource)
    grouped: dict[str, list[MatrixPair]] = {}
    for pair in plan.survey.pairing.pairs:
        grouped.setdefault(pair.base.tensor.name, []).append(pair)
    renew: NewTensors = {
        name: partial(_merged_whole, source.tensors[name], pairs, changed) for name, pairs in grouped.items()
    }
    scalings = {
        module.name: module.scaling
        for module in (low_rank_modules(source, adapter, plan.survey.pairing) if _has_biases(adapter) else ())
    }
    for vector in trained_vectors(adapter, source):
        assert vector.target is not None
        scaling = None if vector.module is None else scalings[vector.module]
        renew[vector.target] = partial(_merged_vector, plan, vector.target, vector.tensor, scaling)
    return renew


def _has_biases(adapter: AdapterSource) -> bool:
    return any(".lora_" in key and key.endswith(".bias") for key in adapter.tensors)


def _merged_vector(
    plan: RepairRecord, target: str, stored: StoredTensor, scaling: float | None
) -> torch.Tensor:
    base = plan.survey.base.tensors[target].read()
    numbers = stored.read().double()
    tuned = numbers if scaling is None else base.double() + scaling * numbers
    edit = plan.changed.get(target)
    return (tuned if edit is None else edit.applied(base, tuned)).to(base.dtype)


def edited_whole(
    stored: StoredTensor, places: Sequence[tuple[TensorView, MatrixPair]], edits: Mapping[str, MatrixEdit]
) -> torch.Tensor:
    """A tensor that holds the tuned matrices themselves, edited.

    Args:
        stored: The whole tensor.
        places: Where in it each matrix lies, and the pair that it is of.
        edits: By matrix.

    Raises:
        MalformedInput: a file changed since planning.
    """
    whole = stored.read()
    for view, pair in places:
        edit = edits.get(pair.name)
        if edit is not None:
            tuned_OI = view.load()
            base_OI = pair.base.load() if edit.update_scale != 1.0 else tuned_OI
            # In a resized vocabulary the tokens that both sides have come first.
            view.place(edit.applied(base_OI, tuned_OI), whole[: view.tensor.shape[0]])
    return whole


def _merged_whole(
    stored: StoredTensor, pairs: Sequence[MatrixPair], edits: Mapping[str, MatrixEdit]
) -> torch.Tensor:
    """A tensor of the base with an adapter's update, and its edit, in every matrix that has one.

    Args:
        stored: The base's tensor.
        pairs: The pairs of its matrices.
        edits: By matrix.

    Raises:
        MalformedInput: a file changed since planning.
    """
    whole = stored.read()
    for pair in pairs:
        base_OI, tuned_OI = pair.load_float64()
        edit = edits.get(pair.name)
        pair.base.place(tuned_OI if edit is None else edit.applied(base_OI, tuned_OI), whole)
    return whole


def edited_tokens(pair: MatrixPair, edit: MatrixEdit) -> torch.Tensor:
    """The trained rows of an embedding, moved towards the base's.

    Raises:
        UnsupportedFormat: the edit changes rows that were not trained.
        MalformedInput: a file changed since planning.
    """
    update = pair.update
    assert isinstance(update, TokensUpdate)
    if edit.num_directions:
        fact = f"the edit changes every row of {printable(pair.name)}, but the adapter stores only "
        fact += f"{len(update.indices)} of them"
        raise UnsupportedFormat(fact, remedy=MERGED_REMEDY, file=update.rows.path, tensor=update.rows.name)
    rows = update.rows.read()
    base_OI = pair.base.load()
    for row, word in enumerate(update.indices):
        if word < base_OI.shape[1]:
            rows[row] = edit.applied(base_OI[:, word], rows[row]).to(rows.dtype)
    return rows
