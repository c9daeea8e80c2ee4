"""Claim: time grows with the width to a power of at most 2.2 (a dense SVD: 3) and is close to the minimum.

One square matrix per width, in one process and one thread. The minimum is the time to read every weight once
and multiply it once by 32 vectors. The exponent is the slope of a straight line through the logarithms.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from benchmarks.common import heavy_tailed, lora_factors, median_seconds, publish
from intruscope.linalg.analysis import analyse


def measure(width: int, repeats: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(width)
    base = heavy_tailed(width, width, generator)
    a, b = lora_factors(width, width, 16, 6.0, generator)
    vectors = torch.randn(32, width, generator=generator)
    stored = base.to(torch.bfloat16)
    seconds = median_seconds(lambda: analyse(base, left_OR=b, right_RI=a), repeats)
    floor = median_seconds(lambda: vectors @ stored.to(torch.float32), repeats)
    found = analyse(base, left_OR=b, right_RI=a)
    return {
        "width": width,
        "seconds": round(seconds, 3),
        "floor_seconds": round(floor, 3),
        "times_floor": round(seconds / floor, 1),
        "residual_ratio": found.spectrum.residual_ratio,
        "certificates": sorted(set(found.sides["left"].certificates)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", nargs="*", type=int, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [measure(width, given.repeats) for width in given.widths]
    exponent = np.polyfit(np.log([r["width"] for r in rows]), np.log([r["seconds"] for r in rows]), 1)[0]
    publish("growth", {"threads": given.threads, "exponent": round(float(exponent), 2), "rows": rows})


if __name__ == "__main__":
    main()
