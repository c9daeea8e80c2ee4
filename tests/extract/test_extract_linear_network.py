"""The law of a chain's error, for many chains, and its first case beside an extraction."""

import numpy as np
import pytest
import torch
from extract_models import INLINE
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from intruscope.errors import MalformedInput, ShapeMismatch, UsageError
from intruscope.extract import construct_adapters, extract


def product(weights):
    made = weights[0]
    for weight in weights[1:]:
        made = weight @ made
    return made


@settings(max_examples=60, deadline=None)
@given(
    num_layers=st.integers(1, 4),
    rank=st.integers(1, 5),
    width=st.integers(2, 14),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_error_is_the_singular_value_after_all_ranks(num_layers, rank, width, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    # Well conditioned, as trained layers with skips are not by chance: the law asks for inverses.
    frozen = [
        (torch.eye(width) + 0.4 * torch.randn(width, width, generator=generator) / width**0.5).to(dtype)
        for _ in range(num_layers)
    ]
    target = torch.randn(width, width, generator=generator).to(dtype)
    made = construct_adapters(frozen, target, rank)
    adapted = [weight.double() + up @ down for weight, (up, down) in zip(frozen, made.factors, strict=True)]
    missing = (target.double() - product([weight.double() for weight in frozen])).numpy()
    values = np.linalg.svd(missing, compute_uv=False)
    used = num_layers * rank
    expected = values[used] if used < width else 0.0
    assert made.error == pytest.approx(expected, rel=1e-10, abs=1e-14)
    left = np.linalg.norm((target.double() - product(adapted)).numpy(), 2)
    conditions = max(float(torch.linalg.cond(m)) for m in [*adapted, *(w.double() for w in frozen)])
    assert left == pytest.approx(expected, rel=1e-9, abs=1e-13 * conditions**num_layers * values[0])
    for up, down in made.factors:
        assert up.dtype == down.dtype == torch.float64
        assert np.linalg.matrix_rank((up @ down).numpy()) <= rank


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), rank=st.integers(1, 14), seed=st.integers(0, 99))
def test_one_layer_of_any_shape_is_the_truncated_update(rows, columns, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, target = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(2))
    made = construct_adapters([weight], target, rank)
    left, values, right = np.linalg.svd((target - weight).numpy(), full_matrices=False)
    ((up, down),) = made.factors
    closest = (left[:, :rank] * values[:rank]) @ right[:rank]
    np.testing.assert_allclose((up @ down).numpy(), closest, atol=1e-12)


def test_one_layer_is_what_an_extraction_writes(tmp_path):
    generator = torch.Generator().manual_seed(4)
    before, after = (torch.randn(24, 16, generator=generator) for _ in range(2))
    name = "model.layers.0.mlp.up_proj.weight"
    for folder, tensor in (("base", before), ("tuned", after)):
        (tmp_path / folder).mkdir()
        save_file({name: tensor}, tmp_path / folder / "model.safetensors")
    plan = extract(str(tmp_path / "base"), str(tmp_path / "tuned"), rank=5, options=INLINE)
    plan.apply(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    up, down = (stored[f"base_model.model.model.layers.0.mlp.up_proj.lora_{x}.weight"] for x in "BA")
    made = construct_adapters([before], after, 5)
    expected = made.factors[0][0] @ made.factors[0][1]
    torch.testing.assert_close((up @ down).double(), expected, rtol=1e-5, atol=1e-6)
    (matrix,) = plan.matrices
    assert matrix.spectral_low == pytest.approx(made.error, rel=1e-9)


def test_no_adapters_of_the_rank_come_closer():
    """Gradient steps from the construction do not beat it: it is the minimum, not only a bound."""
    torch.manual_seed(0)
    frozen = [
        torch.eye(6, dtype=torch.float64) + 0.2 * torch.randn(6, 6, dtype=torch.float64) for _ in range(2)
    ]
    target = torch.randn(6, 6, dtype=torch.float64)
    made = construct_adapters(frozen, target, 1)
    factors = [f.clone().requires_grad_() for pair in made.factors for f in pair]
    optimizer = torch.optim.SGD(factors, lr=1e-3)
    best = np.inf
    for _ in range(50):
        optimizer.zero_grad()
        adapted = [w + factors[2 * i] @ factors[2 * i + 1] for i, w in enumerate(frozen)]
        loss = torch.linalg.matrix_norm(target - product(adapted), ord=2)
        best = min(best, float(loss.detach()))
        loss.backward()
        optimizer.step()
    assert best >= made.error * (1 - 1e-9)


def test_chains_without_meaning_are_refused():
    square, target = torch.eye(4), torch.randn(4, 4)
    with pytest.raises(UsageError, match="rank is 0"):
        construct_adapters([square], target, 0)
    with pytest.raises(MalformedInput, match="NaN or infinity"):
        construct_adapters([square, square * float("nan")], target, 1)
    with pytest.raises(ShapeMismatch, match="several square ones"):
        construct_adapters([torch.randn(5, 4), torch.randn(4, 5)], target, 1)
    with pytest.raises(UsageError, match="condition number"):
        construct_adapters([square, torch.ones(4, 4)], target, 1)
