"""OFT (arXiv 2306.07280): W' = W Rᵀ with a block-diagonal rotation R of the inputs.

Each block is the Cayley transform of a skew-symmetric matrix of which the upper triangle is stored. By
default PEFT replaces the inverse in it by a few terms of a Neumann series, which rotates only approximately.
``coft`` first projects the skew-symmetric matrix into a ball. For an embedding, whose width is rotated,
W' = W R.

Shape suffixes: B blocks, E entries above the diagonal, I in, O out; D the block's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm, flag, integer, number
from intruscope.errors import UnsupportedFormat
from intruscope.weights.matrices import DenseUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> DenseUpdate:
    """The tuned matrix; see the module."""
    is_embedding = "oft_embedding_R" in parts
    stored_BE = parts["oft_embedding_R" if is_embedding else "oft_R"]
    rotations_BDD = _rotations(stored_BE, options)
    # Of an embedding the rows here are the width, which is what is rotated.
    target = base.matrix_OI.T if is_embedding else base.matrix_OI
    size = rotations_BDD.shape[1]
    if options["block_share"]:
        rotations_BDD = rotations_BDD.expand(target.shape[1] // size, size, size)
    blocks = target.reshape(target.shape[0], -1, size)
    turned = _turn(blocks, rotations_BDD if is_embedding else rotations_BDD.transpose(1, 2))
    return DenseUpdate(tuned_OI=(turned.T if is_embedding else turned).contiguous())


def _turn(blocks_OBD: torch.Tensor, rotations_BDD: torch.Tensor) -> torch.Tensor:
    """Each block of columns times its matrix: (O, B x D)."""
    import torch

    turned: torch.Tensor = torch.einsum("obd,bde->obe", blocks_OBD, rotations_BDD)
    return turned.flatten(1)


def _rotations(stored_BE: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
    import torch

    size = _block_size(stored_BE.shape[1])
    rows, columns = torch.triu_indices(size, size, 1)
    skew = stored_BE.new_zeros(stored_BE.shape[0], size, size)
    skew[:, rows, columns] = stored_BE
    skew = skew - skew.transpose(1, 2)
    if options["coft"]:
        radius = options["eps"] / stored_BE.shape[0] ** 0.5
        norms = torch.linalg.vector_norm(skew, dim=(1, 2), keepdim=True)
        skew = torch.where(norms <= radius, skew, radius * skew / norms)
    eye = torch.eye(size, dtype=skew.dtype).expand_as(skew)
    terms = options["num_cayley_neumann_terms"]
    if not options["use_cayley_neumann"]:
        rotations: torch.Tensor = torch.linalg.solve(eye + skew, eye - skew, left=False)
        return rotations
    # (I + Q)(I + Q + Q² + ...) as PEFT ends it (tuners/oft/layer.py): every power twice, the last one once.
    last = terms - 1 if terms < 3 else max(3, terms - 1)
    total, power = eye.clone(), eye
    for exponent in range(1, last + 1):
        power = power @ skew
        total = total + power * (1.0 if exponent == last and exponent > 2 else 2.0)
    return total


def _block_size(num_entries: int) -> int:
    """D of D (D - 1) / 2 entries."""
    size: int = round((1 + (1 + 8 * num_entries) ** 0.5) / 2)
    if size * (size - 1) // 2 != num_entries:
        raise ValueError("not the number of entries of a triangle")
    return size


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(out, in) of the whole matrix; the side that is not rotated is unknown."""
    is_embedding = "oft_embedding_R" in shapes
    num_blocks, num_entries = shapes["oft_embedding_R" if is_embedding else "oft_R"]
    size = None if options["block_share"] else num_blocks * _block_size(num_entries)
    return (size, None) if is_embedding else (None, size)


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    if "oft_block_size" not in raw:
        raise UnsupportedFormat(
            "the adapter is from a PEFT before 0.14, whose OFT was another method under the same keys",
            remedy="merge it with the PEFT that wrote it, and scan that checkpoint",
            file=path,
            tensor="oft_block_size",
        )
    return {
        "coft": flag(raw, "coft", path),
        "eps": number(raw, "eps", path, default=6e-5),
        "block_share": flag(raw, "block_share", path),
        "use_cayley_neumann": flag(raw, "use_cayley_neumann", path, default=True),
        "num_cayley_neumann_terms": integer(raw, "num_cayley_neumann_terms", path, default=5, least=1),
    }


KIND = AdapterKind(
    name="OFT",
    title="OFT",
    words={"oft_R": "oft_R", "oft_embedding_R": "oft_embedding_R"},
    update=ClosedForm(decode=decode, sizes=sizes, conv=True, embedding=True, additive=False),
    required=frozenset(),
    read_options=_read_options,
)
