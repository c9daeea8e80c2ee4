"""The paper's small facts against slow float64, and against PEFT's own LoRA under a plain optimiser."""

import numpy as np
import pytest
import torch

from intruscope.studies.toys import first_step_full, first_step_lora, least_aligned, toy_intruder


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_toy_is_what_torch_finds():
    matrix = gaussian(60, 60)
    found = toy_intruder(matrix.numpy(), 1.5, seed=3)
    direction = torch.from_numpy(np.random.default_rng(3).normal(size=60))
    direction /= torch.linalg.vector_norm(direction)
    before, values, _ = torch.linalg.svd(matrix)
    after, new, _ = torch.linalg.svd(matrix + 1.5 * values[0] * direction[:, None] * direction[None])
    assert found.alignment == pytest.approx(float((before.T @ after[:, 0]).abs().max()))
    assert found.overlap == pytest.approx(float((after[:, 0] @ direction).abs()))
    assert found.singular_value == pytest.approx(float(new[0]))
    assert found.largest_before == pytest.approx(float(values[0]))


def test_above_the_largest_value_it_intrudes_and_far_below_it_does_not():
    matrix = gaussian(200, 200).numpy()
    strong = [toy_intruder(matrix, 1.5, seed=seed) for seed in range(3)]
    weak = [toy_intruder(matrix, 0.1, seed=seed) for seed in range(3)]
    assert all(each.alignment < 0.5 and each.overlap > 0.85 for each in strong)
    assert all(each.alignment > 0.9 and each.overlap < 0.3 for each in weak)
    assert all(each.singular_value > each.largest_before for each in strong)


@pytest.mark.parametrize("width", [2, 9, 50])
def test_the_bound_is_met_by_one_vector_and_undercut_by_none(width):
    basis = torch.linalg.qr(gaussian(width, width)).Q.numpy()
    best = least_aligned(basis)
    assert np.linalg.norm(best) == pytest.approx(1.0)
    assert np.allclose(np.abs(basis.T @ best), width**-0.5)
    others = gaussian(width, 500, seed=1).numpy()
    others /= np.linalg.norm(others, axis=0)
    assert np.abs(basis.T @ others).max(axis=0).min() >= width**-0.5 - 1e-12


def test_beside_a_thin_basis_a_vector_can_meet_none():
    thin = torch.linalg.qr(gaussian(30, 12)).Q.numpy()
    beside = least_aligned(thin)
    assert np.linalg.norm(beside) == pytest.approx(1.0)
    assert np.abs(thin.T @ beside).max() < 1e-13


def stepped(rank, alpha, rate):
    """One plain step of full fine-tuning and of PEFT's LoRA on the same layer, inputs and loss."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    start = torch.nn.Linear(5, 7, bias=False).double()
    inputs, targets = gaussian(11, 5, seed=1), gaussian(11, 7, seed=2)

    def step(model, parameters):
        optimizer = torch.optim.SGD(parameters, lr=rate)
        (model(inputs) - targets).square().sum().backward()
        optimizer.step()

    full = torch.nn.Linear(5, 7, bias=False).double()
    full.load_state_dict(start.state_dict())
    step(full, full.parameters())
    gradient = full.weight.grad.clone()
    holder = torch.nn.Sequential(start)
    lora = get_peft_model(
        holder, LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"]), autocast_adapter_dtype=False
    ).double()
    layer = lora.base_model.model[0]
    before_RI = layer.lora_A["default"].weight.detach().clone()
    step(lora, [p for p in lora.parameters() if p.requires_grad])
    update = (alpha / rank) * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    return gradient, before_RI, (full.weight - start.weight).detach(), update.detach()


@pytest.mark.parametrize(("rank", "alpha"), [(1, 2.0), (3, 6.0), (3, 8.0)])
def test_first_steps_are_those_of_an_optimiser(rank, alpha):
    gradient, start_RI, full, lora = (each.numpy() for each in stepped(rank, alpha, 1e-3))
    assert np.allclose(first_step_full(gradient, 1e-3), full, rtol=0, atol=1e-14)
    assert np.allclose(first_step_lora(gradient, start_RI, alpha=alpha, rate=1e-3), lora, rtol=0, atol=1e-14)
    assert np.abs(lora).max() > 1e-5
