"""Claim: no verdict differs from two dense float64 SVDs at any epsilon from .3 to .9, and every bound holds.

Matrices: planted intruders, heavy-tailed entries (Student t), power-law spectra, a Gaussian bulk with
outliers; square, wide, tall; several update sizes; both sides. Counts wrong, undecided and degenerate
verdicts and violated bounds, and publishes the largest residual ratio.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.common import heavy_tailed, lora_factors, publish
from intruscope.linalg.analysis import analyse

GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def student(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    chi = sum(torch.randn(rows, columns, generator=generator).square() for _ in range(3))
    return torch.randn(rows, columns, generator=generator) * (3 / chi).sqrt() / columns**0.5


def power_law(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator))[0]
    return (left * torch.arange(1, size + 1).pow(-0.5)) @ right.T


KINDS = {"outliers": heavy_tailed, "student": student, "power_law": power_law}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shapes", nargs="*", default=["300x300", "1100x1100", "1100x1700", "1700x1100", "1800x1800"]
    )
    parser.add_argument("--sizes", nargs="*", type=float, default=[0.05, 0.2, 0.5, 1.0])
    given = parser.parse_args()
    tally = {"decisions": 0, "wrong": 0, "undecided": 0, "degenerate": 0, "bounds": 0, "violated": 0}
    certificates: dict[str, int] = {}
    worst_ratio = 0.0
    for text in given.shapes:
        rows, columns = (int(side) for side in text.split("x"))
        for make in KINDS.values():
            for size in given.sizes:
                generator = torch.Generator().manual_seed(rows + columns)
                base = make(rows, columns, generator)
                scale = size * float(torch.linalg.matrix_norm(base, 2))
                a, b = lora_factors(rows, columns, 16, scale, generator)
                found = analyse(base, left_OR=b, right_RI=a, sides=("left", "right"))
                worst_ratio = max(worst_ratio, found.spectrum.residual_ratio)
                left0, _, right0 = torch.linalg.svd(base.double(), full_matrices=False)
                left1, _, right1 = torch.linalg.svd(
                    base.double() + b.double() @ a.double(), full_matrices=False
                )
                truth = {
                    "left": (left0.T @ left1[:, :10]).abs().amax(dim=0),
                    "right": (right0 @ right1[:10].T).abs().amax(dim=0),
                }
                for side, exact in truth.items():
                    seen = found.sides[side]
                    tally["bounds"] += 10
                    tally["violated"] += int(
                        ((exact < seen.lower - 1e-9) | (exact > seen.upper + 1e-9)).sum()
                    )
                    for certificate in seen.certificates:
                        certificates[certificate] = certificates.get(certificate, 0) + 1
                    for epsilon in GRID:
                        intruder, aligned = seen.upper < epsilon, seen.lower >= epsilon
                        tally["decisions"] += 10
                        tally["degenerate"] += int((seen.degenerate & ~intruder).sum())
                        tally["undecided"] += int((~intruder & ~aligned & ~seen.degenerate).sum())
                        tally["wrong"] += int(
                            ((intruder & (exact >= epsilon)) | (aligned & (exact < epsilon))).sum()
                        )
    publish("verdicts", {**tally, "certificates": certificates, "largest_residual_ratio": worst_ratio})


if __name__ == "__main__":
    main()
