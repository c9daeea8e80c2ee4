"""One expert's factors of many: the right columns, without the other experts' in memory."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from intruscope.adapters.experts import ExpertUpdate
from intruscope.weights import stored
from intruscope.weights.safetensors_file import read_header

_MIB = 1 << 20


@pytest.mark.parametrize(("num_out", "dtype"), [(7, torch.float32), (9_001, torch.bfloat16)])
@pytest.mark.parametrize("swapped", [False, True])
def test_an_expert_costs_its_own_factors_and_not_those_of_all(num_out, dtype, swapped, tmp_path, monkeypatch):
    num_experts, rank, num_in = 96, 8, 5
    down = torch.randn(num_experts * rank, num_in).to(dtype)
    up = torch.randn(num_out, rank * num_experts).to(dtype)
    save_file({"A": down, "B": up}, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    sizes: list[int] = []
    real = stored.read_exactly

    def counting(descriptor, offset, length, **place):
        sizes.append(length)
        return real(descriptor, offset, length, **place)

    monkeypatch.setattr(stored, "read_exactly", counting)
    for expert in (0, 37, num_experts - 1):
        update = ExpertUpdate(
            down=header["A"],
            up=header["B"],
            rank=rank,
            expert=expert,
            scaling=1.5,
            swapped=swapped,
            rows=None,
        )
        found = update.load(torch.empty(0))
        # PEFT's own reading of B: (out, rank, experts).
        left = 1.5 * up.reshape(num_out, rank, num_experts)[:, :, expert].float()
        right = down.reshape(num_experts, rank, num_in)[expert].float()
        if swapped:
            left, right = right.T, left.T
        assert torch.equal(found.left_OR, left)
        assert torch.equal(found.right_RI, right)
        assert found.left_OR.untyped_storage().nbytes() == found.left_OR.nbytes
        assert update.estimated_bytes < 2 * (header["A"].num_bytes + header["B"].num_bytes) / 96 + 4.1 * _MIB
    if num_out > 1000:
        assert header["B"].num_bytes > 12 * _MIB
        assert max(sizes) <= 4 * _MIB
    assert sum(sizes) == 3 * (header["B"].num_bytes + header["A"].num_bytes // num_experts)
