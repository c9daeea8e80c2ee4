"""Chains against their twin: a float64 base into which each link is added, and a new adapter after each."""

import pytest
import torch
from our_methods import (
    CONV1D,
    LINEAR,
    MODELS,
    assert_peft_alone_runs_it,
    assert_trains_on,
    attached,
    factor_state,
    gpt2,
    llama,
    logits,
    tokens,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

KINDS = pytest.mark.parametrize(
    ("name", "options"),
    [("chain", {}), ("rac", {"frozen": "A"}), ("rac", {"frozen": "B"})],
    ids=["chain", "rac-A", "rac-B"],
)


def product(done, matrix):
    """Of the link that is trained: 3 B A for alpha / rank = 3."""
    state = factor_state(done, matrix)
    return 3.0 * state["B.weight"] @ state["A.weight"]


def base_weights(done):
    return {key: value.clone() for key, value in done.model.state_dict().items() if "lora_" not in key}


@KINDS
@pytest.mark.parametrize(("make", "setting"), MODELS)
def test_links_add_up_and_the_base_is_never_written(name, options, make, setting, tmp_path):
    done = attached(name, make, setting, rank=2, alpha=6, num_links=3, **options)
    drawn, trained = ("B", "A") if options.get("frozen") == "B" else ("A", "B")
    base = base_weights(done)
    (links,) = done.callbacks()
    sums = {matrix: torch.zeros_like(done.update(matrix)).double() for matrix in done.names}
    draws = []
    for link in range(3):
        state = {matrix: factor_state(done, matrix) for matrix in done.names}
        assert not any(state[matrix][f"{trained}.weight"].any() for matrix in done.names)
        draws += [state[matrix][f"{drawn}.weight"] for matrix in done.names]
        done.model.set_adapter("default")  # PEFT switches everything on here
        train(done.model)
        for matrix in done.names:
            same = torch.equal(
                factor_state(done, matrix)[f"{drawn}.weight"], state[matrix][f"{drawn}.weight"]
            )
            assert same == (name == "rac")
            sums[matrix] += product(done, matrix)
            torch.testing.assert_close(done.update(matrix).double(), sums[matrix], rtol=1e-4, atol=1e-4)
        if link < 2:
            before = logits(done.model)
            links.tie()
            torch.testing.assert_close(logits(done.model), before, rtol=1e-4, atol=1e-5)
            assert links.num_tied == link + 1
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i] if a.shape == b.shape)
    assert all(torch.equal(base[key], value) for key, value in base_weights(done).items())
    assert_peft_alone_runs_it(done, make, tmp_path / "saved")
    again = assert_trains_on(name, done, make, tmp_path / "saved")
    assert again.callbacks()[0].num_tied == 2


@KINDS
def test_a_training_step_is_that_of_lora_on_the_merged_base(name, options):
    """After a link is tied, gradients equal those of a fresh LoRA on a float64 base that holds the sum."""
    done = attached(name, llama, LINEAR, rank=2, alpha=6, **options)
    train(done.model)
    done.model.double()
    done.callbacks()[0].tie()
    merged = done.merged().double()
    done.model.double()
    loss = done.model(input_ids=tokens(), labels=tokens()).loss
    loss.backward()
    # The full gradient G of the merged model gives both: dB = s G A^T, dA = s B^T G.
    for matrix in done.names:
        merged.get_submodule(matrix).weight.requires_grad_()
    merged(input_ids=tokens(), labels=tokens()).loss.backward()
    for matrix in done.names:
        gradient_OI = merged.get_submodule(matrix).weight.grad
        layer = done.model.base_model.model.get_submodule(matrix)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        for factor, expected in ((up, 3 * gradient_OI @ down.T), (down, 3 * up.T @ gradient_OI)):
            if factor.requires_grad:
                torch.testing.assert_close(factor.grad, expected.detach(), rtol=1e-4, atol=1e-8)
            else:
                assert factor.grad is None


def test_links_are_tied_when_their_share_of_the_steps_is_over_and_the_optimiser_begins_anew():
    done = attached("chain", gpt2, CONV1D, num_links=3)
    (links,) = done.callbacks()
    optimizer = done.optimizer(lr=0.01)
    tied, moments = [], []
    for step in range(1, 11):
        done.model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state = type("State", (), {"global_step": step, "max_steps": 10})
        links.on_step_end(None, state, None, optimizer=optimizer)
        tied.append(links.num_tied)
        moments.append(len(optimizer.state))
    assert tied == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert [count > 0 for count in moments] == [step not in (3, 7) for step in range(1, 11)]


def test_draws_are_the_same_again_after_an_interruption(tmp_path):
    from intruscope.methods import find

    done = attached("rac", llama, LINEAR, num_links=3)
    done.callbacks()[0].tie()
    done.save(tmp_path / "saved")
    again = find("rac").load(llama(), tmp_path / "saved")
    for one in (done, again):
        one.callbacks()[0].tie()
    matrix = done.names[0]
    assert torch.equal(factor_state(done, matrix)["A.weight"], factor_state(again, matrix)["A.weight"])


def test_a_small_link_is_not_lost_in_a_base_of_low_precision():
    done = attached("chain", lambda: llama().to(torch.bfloat16), LINEAR, rank=2, alpha=6)
    with torch.no_grad():
        for name, parameter in done.trainable():
            parameter.copy_(1e-4 * torch.ones_like(parameter) if "lora_B" in name else parameter)
    before = {matrix: product(done, matrix) for matrix in done.names}
    done.callbacks()[0].tie()
    for matrix in done.names:
        assert before[matrix].abs().max() < 1e-3  # below what bfloat16 resolves beside most weights
        torch.testing.assert_close(done.update(matrix).double(), before[matrix], rtol=1e-3, atol=1e-8)
