"""What computing in bfloat16 would cost here."""

from __future__ import annotations

import platform

import torch

_ONEDNN = ("x86_64", "AMD64")  # where torch asks it for bfloat16


def is_bfloat16_slow() -> bool:
    """Whether bfloat16 is computed by slow stand-ins: on a processor below AVX-512, without an accelerator.

    On one with AVX2 alone a training step took thirteen times as long as in float32 (docs/tune.md).
    """
    if torch.accelerator.is_available() or platform.machine() not in _ONEDNN:
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()  # what torch's own layers ask
