"""FourierFT (arXiv 2405.03003): ΔW is the real part of the inverse transform of a few spectral coefficients.

Which entries of the spectrum they are follows from a seed: the first of a random permutation of all.

Shape suffixes: F rows of the whole matrix, I in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kind import AdapterKind, ClosedForm, integer, number

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from intruscope.adapters.kind import BaseWeight, Parts, Shapes
    from intruscope.weights.matrices import DenseUpdate


def decode(parts: Parts, base: BaseWeight, options: Mapping[str, Any]) -> DenseUpdate:
    """The tuned matrix; see the module."""
    import torch

    coefficients = parts["fourierft_spectrum"]
    generator = torch.Generator().manual_seed(options["random_loc_seed"])
    places = torch.randperm(base.num_out * base.num_in, generator=generator)[: len(coefficients)]
    spectrum_FI = coefficients.new_zeros(base.num_out * base.num_in)
    spectrum_FI[places] = coefficients
    delta_FI = torch.fft.ifft2(spectrum_FI.reshape(base.num_out, base.num_in)).real
    return base.plus(delta_FI * options["scaling"])


def sizes(shapes: Shapes, options: Mapping[str, Any]) -> tuple[None, None]:  # noqa: ARG001
    """Neither size: a few coefficients fit any matrix that has as many entries."""
    (_,) = shapes["fourierft_spectrum"]
    return None, None


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    return {
        "scaling": number(raw, "scaling", path, default=150.0),
        "random_loc_seed": integer(raw, "random_loc_seed", path, default=777),
    }


KIND = AdapterKind(
    name="FOURIERFT",
    title="FourierFT",
    words={"fourierft_spectrum": "fourierft_spectrum"},
    update=ClosedForm(decode=decode, sizes=sizes),
    required=frozenset({"fourierft_spectrum"}),
    read_options=_read_options,
)
