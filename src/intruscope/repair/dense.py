"""New numbers for tensors that are stored whole: of checkpoints, and of modules saved beside an adapter.

Float64 inside, one rounding into the stored dtype. Parts of a fused tensor that are not edited keep their
numbers.

Shape suffixes: O out, I in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.adapters.updates import TokensUpdate
from intruscope.errors import UnsupportedFormat, printable
from intruscope.repair.factors import MERGED_REMEDY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from intruscope.repair.edits import MatrixEdit
    from intruscope.weights.matrices import MatrixPair
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView


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
            # A resized vocabulary: the words that both sides have come first.
            view.place(edit.applied(base_OI, tuned_OI), whole[: view.tensor.shape[0]])
    return whole


def merged_whole(
    stored: StoredTensor, pairs: Sequence[MatrixPair], edits: Mapping[str, MatrixEdit]
) -> torch.Tensor:
    """A tensor of the base with an adapter's update, and its edit, in every matrix that has one.

    Args:
        stored: The base's tensor.
        pairs: Of its matrices.
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
    """The trained rows of an embedding, moved towards the base.

    Raises:
        UnsupportedFormat: the edit reaches words that were not trained.
        MalformedInput: a file changed since planning.
    """
    update = pair.update
    assert isinstance(update, TokensUpdate)
    if edit.num_directions:
        fact = f"got an edit of all words of {printable(pair.name)}, of which the adapter stores "
        fact += f"{len(update.indices)}, expected one of these alone"
        raise UnsupportedFormat(fact, remedy=MERGED_REMEDY, file=update.rows.path, tensor=update.rows.name)
    rows = update.rows.read()
    base_OI = pair.base.load()
    for row, word in enumerate(update.indices):
        if word < base_OI.shape[1]:
            rows[row] = edit.applied(base_OI[:, word], rows[row]).to(rows.dtype)
    return rows
