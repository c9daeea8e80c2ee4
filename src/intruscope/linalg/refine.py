"""Leading singular triplets made exact to second order: one Rayleigh-Ritz step in float64.

A Krylov run in float32 leaves residuals near 1e-7 of the norm, and a vector whose neighbour lies that
close turns freely. But what mixes two *computed* vectors is visible: their compression UᵀAV, formed
with float64 products, rotates them apart, and only what leaks out of the whole computed space, past its
far larger gap, is left as error.

Let X hold the halves (u, v)/√2 of C triplets with UᵀAV = S diagonal, and let E_v = A V − U S,
E_u = Aᵀ U − V S, both orthogonal to the computed space by construction. With ρ ≥ ‖E_v‖, ‖E_u‖ and every
other singular value below ``floor``, an exact eigenvector of [0 A; Aᵀ 0] near s_j has no more than ρ/δ_j
outside the space, δ_j = s_j − floor − 3ρ, and no more than ρ²/(δ_j |s_i − s_j|) along another X_i.

Source: the block perturbation argument of Stewart & Sun 1990, chapter V, for the Jordan-Wielandt form;
eigenvalues to second order after Li & Li 2005.

Shape suffixes: M rows, N columns, C triplets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from intruscope.linalg import clusters

if TYPE_CHECKING:
    from torch import Tensor

    from intruscope.linalg.operators import Operator


@dataclass(frozen=True, kw_only=True)
class Triplets:
    """Leading singular triplets of a matrix that are known to be all there are above a floor.

    Attributes:
        values: Descending, float64 (C,).
        left_MC, right_NC: Unit columns, float64.
        sine_error: Bound on the sine of the angle between each vector (either half) and the exact one;
            for members of a cluster, between the computed and exact subspaces (C,). One where nothing
            is known.
        cluster: Equal numbers mark vectors that cannot be told apart (C,).
    """

    values: Tensor
    left_MC: Tensor
    right_NC: Tensor
    sine_error: Tensor
    cluster: Tensor


def refine(operator: Operator, left_MC: Tensor, right_NC: Tensor, *, floor: float) -> Triplets | None:
    """Rotate computed leading triplets to where float64 products put them.

    Args:
        operator: A (M x N).
        left_MC: Approximate left singular vectors, the leading C without a gap in between.
        right_NC: The right ones.
        floor: No singular value but the leading C lies above it.

    Returns:
        The triplets with their errors, or None when the space leaks too much to say anything.

    Cost: one product and one transposed product with C columns in float64.
    """
    left, _ = torch.linalg.qr(left_MC.double())
    right, _ = torch.linalg.qr(right_NC.double())
    image = operator.times_double(right)
    rotation, values, other_t = torch.linalg.svd(left.T @ image)
    left, right = left @ rotation, right @ other_t.T
    leak_v = image @ other_t.T - left * values
    leak_u = operator.transposed.times_double(left) - right * values
    # Float64 products of this length carry a rounding of their own.
    rounding = 8.0 * torch.finfo(torch.float64).eps * math.sqrt(max(operator.shape)) * float(values[0])
    rho = rounding + max(float(torch.linalg.matrix_norm(leak)) for leak in (leak_v, leak_u))
    if float(values[-1]) <= floor + rho:
        return None
    reach = (values - floor - 3.0 * rho).clamp(min=torch.finfo(torch.float64).tiny)
    outside = (rho / reach).clamp(max=1.0)
    shift = (rho * outside).clamp(max=2.0 * float(values[0]))
    groups = clusters.runs(values, shift)
    label = clusters.labels(groups, len(values))
    apart = (values.unsqueeze(0) - values.unsqueeze(1)).abs() - shift.unsqueeze(1)
    same = label.unsqueeze(0) == label.unsqueeze(1)
    inside = torch.where(same, 0.0, shift.unsqueeze(1) / apart.clamp(min=rounding))
    mirrored = math.sqrt(len(values)) * shift / values
    sine = (outside.square() + inside.square().sum(dim=1) + mirrored.square()).sqrt()
    members = torch.bincount(label)[label].double()
    return Triplets(
        values=values,
        left_MC=left,
        right_NC=right,
        # Either half turns by up to √2 of the pair; d orthogonal members add up to √d.
        sine_error=(math.sqrt(2.0) * members.sqrt() * sine).clamp(max=1.0),
        cluster=label,
    )
