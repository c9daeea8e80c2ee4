"""EMR-Merging (arXiv 2405.17461), as ``intruscope merge`` writes it: ΔW_t = l_t M_t * τ_u.

The unified update τ_u of all tasks lies once, in the folder above those of the tasks. A task has a mask M_t
for each module, packed as bits, and one rescaler l_t. The update may be written in bases that all tasks
share, ΔW_t = l_t U (M_t * τ_u) V: then it has low rank.

Shape suffixes: F rows of the whole matrix, K and L sizes of the bases, I in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm, number

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import DenseUpdate, LowRankUpdate

UNIFIED_NAME = "emr_unified.safetensors"
PEFT_TYPE = "EMR"


def packed(mask: torch.Tensor) -> torch.Tensor:
    """A mask as bits, eight to a byte, row by row."""
    import numpy as np
    import torch

    return torch.from_numpy(np.packbits(mask.flatten().numpy()))


def unpacked(bits: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The mask that :func:`packed` packed."""
    import numpy as np
    import torch

    flat = np.unpackbits(bits.numpy(), count=math.prod(shape))
    return torch.from_numpy(flat).bool().reshape(shape)


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> LowRankUpdate | DenseUpdate:
    """The update of one task; see the module."""
    unified_KL = parts["unified"]
    mask_KL = unpacked(parts["mask"], tuple(unified_KL.shape))
    masked = unified_KL * mask_KL * options["rescaler"]
    if "left" not in parts:
        return base.plus(masked)
    left_FK = parts["left"]
    if "right" not in parts:
        return base.low_rank(left_FK, masked)
    return base.low_rank(left_FK @ masked, parts["right"])


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[int | None, int | None]:  # noqa: ARG001
    """(out, in) of the whole matrix; every part must fit the next."""
    num_rows, num_columns = shapes["unified"]
    if shapes["mask"] != (math.ceil(num_rows * num_columns / 8),):
        raise ValueError("the mask has another size than the unified update")
    if "right" in shapes and "left" not in shapes:
        raise ValueError("a right basis without a left one")
    for role, axis, size in (("left", 1, num_rows), ("right", 0, num_columns)):
        if role in shapes and shapes[role][axis] != size:
            raise ValueError(f"the {role} basis does not fit the unified update")
    num_out = shapes["left"][0] if "left" in shapes else num_rows
    num_in = shapes["right"][1] if "right" in shapes else num_columns
    return num_out, num_in


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    return {"rescaler": number(raw, "rescaler", path, default=1.0)}


KIND = AdapterKind(
    name=PEFT_TYPE,
    title="EMR-Merging",
    words={"emr_mask": "mask", "emr_unified": "unified", "emr_left": "left", "emr_right": "right"},
    update=ClosedForm(decode=decode, sizes=sizes, conv=True, embedding=True),
    required=frozenset({"mask", "unified"}),
    read_options=_read_options,
    file_above=UNIFIED_NAME,
)
