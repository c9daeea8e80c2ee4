"""Is the training loop right: the loss it lowers, the parameters it touches, the seeds it obeys?"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from intruscope.demo.finetune import (
    LoopSettings,
    _scheduler,
    evaluate,
    evaluation_windows,
    faster_precision,
    next_token_loss,
    train,
    train_linear_weights,
    with_lora,
)
from intruscope.demo.pretrain import Architecture, new_model
from pretend_device import real_device

TINY = Architecture(vocabulary=32, num_layers=2, width=16, feed_forward=24, num_heads=2, max_positions=32)


@pytest.fixture
def model():
    return new_model(TINY, seed=0)


@pytest.fixture
def tokens():
    return torch.arange(5).repeat(60)


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class Successor(nn.Module):
    """Puts probability e/(e + V - 1) on the successor of each token it reads."""

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=nn.functional.one_hot((input_ids + 1) % 32, 32).float())


def test_the_loss_is_of_the_next_token_by_hand() -> None:
    windows = torch.arange(12).reshape(2, 6)
    right = math.log(math.e + 31) - 1
    assert next_token_loss(Successor(), windows).item() == pytest.approx(right, rel=1e-6)
    # The same tokens backwards, or predicted in place, would be wrong every time.
    assert next_token_loss(Successor(), windows.flip(1)).item() == pytest.approx(right + 1, rel=1e-6)


def test_evaluation_is_a_mean_over_tokens_whatever_the_batch(model) -> None:
    windows = torch.randint(32, (7, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logs = model(input_ids=windows).logits.log_softmax(-1)
    naive = -sum(logs[s, t, windows[s, t + 1]].item() for s in range(7) for t in range(8)) / 56
    assert evaluate(model, windows, batch=3) == pytest.approx(naive, rel=1e-5)
    assert evaluate(model, windows, batch=7) == pytest.approx(naive, rel=1e-5)


def test_evaluation_windows_predict_no_token_twice() -> None:
    windows = evaluation_windows(torch.arange(1000), context=16, max_windows=20)
    predicted = windows[:, 1:].flatten()
    assert windows.shape == (20, 17)
    assert len(predicted.unique()) == predicted.numel()
    assert windows[0, 0] == 0 and windows[-1, -1] > 960
    assert evaluation_windows(torch.arange(50), context=16, max_windows=20).shape == (3, 17)


def test_training_lowers_the_loss_and_obeys_its_seed(tokens) -> None:
    def losses(seed: int) -> list[float]:
        settings = LoopSettings(learning_rate=1e-2, num_steps=30, batch=4, context=8, seed=seed)
        return train(new_model(TINY, seed=0), tokens, settings, precision="float32")

    first = losses(0)
    assert first[0] == pytest.approx(math.log(32), rel=0.1)
    assert first[-1] < 0.5 * first[0]
    assert losses(0) == first
    assert losses(1) != first


def test_full_fine_tuning_moves_every_linear_weight_and_nothing_else(model, tokens) -> None:
    before = weights_of(model)
    train_linear_weights(model.requires_grad_(False))
    settings = LoopSettings(learning_rate=1e-2, num_steps=2, batch=4, context=8)
    train(model, tokens, settings, precision="float32")
    moved = {name for name, value in weights_of(model).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    assert len(moved) == 14


def test_lora_starts_as_nothing_and_leaves_the_base_as_it_was(model, tokens) -> None:
    windows = tokens[:36].reshape(4, 9)
    before, base_loss = weights_of(model), evaluate(model, windows)
    tuned = with_lora(model, rank=2, seed=0)
    assert evaluate(tuned, windows) == pytest.approx(base_loss, rel=1e-6)
    settings = LoopSettings(learning_rate=1e-2, num_steps=20, batch=4, context=8)
    train(tuned, tokens, settings, precision="float32")
    assert evaluate(tuned, windows) < base_loss - 0.1
    with tuned.disable_adapter():
        assert evaluate(tuned, windows) == pytest.approx(base_loss, rel=1e-6)
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): parameter
        for name, parameter in tuned.named_parameters()
        if "lora_" not in name
    }
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    adapted = {name for name, _ in tuned.named_modules() if name.endswith("lora_B.default")}
    assert len(adapted) == 14
    assert tuned.peft_config["default"].lora_alpha == 4


def test_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = with_lora(new_model(TINY, seed=1), rank=2, seed=3)
    assert torch.equal(torch.rand(3), expected)
    second = with_lora(new_model(TINY, seed=1), rank=2, seed=3)
    third = with_lora(new_model(TINY, seed=1), rank=2, seed=4)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(first.get_parameter(key), second.get_parameter(key))
    assert not torch.equal(first.get_parameter(key), third.get_parameter(key))


def test_the_linear_schedule_by_hand() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = _scheduler(optimizer, LoopSettings(learning_rate=1.0, num_steps=50))
    rates = []
    for _ in range(50):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[3] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1 / 47)
    assert scheduler.get_last_lr()[0] == 0


def test_the_faster_mode_is_chosen_by_the_clock(monkeypatch) -> None:
    for slow in (1, 2):
        ticks = iter([t for mode in (1, 2) for i in range(4) for t in (0.0, 5.0 if mode == slow else 1.0)])
        monkeypatch.setattr("time.perf_counter", lambda ticks=ticks: next(ticks))
        assert faster_precision(width=4, outputs=8) == ("bfloat16" if slow == 1 else "float32")


@pytest.mark.gpu
def test_a_real_gpu_trains_as_the_cpu_does(tokens) -> None:
    settings = LoopSettings(learning_rate=1e-2, num_steps=20, batch=4, context=8)
    expected = train(new_model(TINY, seed=0), tokens, settings, precision="float32")
    with real_device():
        losses = train(new_model(TINY, seed=0).cuda(), tokens, settings, precision="float32")
        half = train(new_model(TINY, seed=0).cuda(), tokens, settings, precision="bfloat16")
    assert losses == pytest.approx(expected, rel=1e-3)
    assert half == pytest.approx(expected, rel=0.1) and half != losses
