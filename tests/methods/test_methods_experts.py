"""The mixture of experts against loops over tokens and experts in float64."""

import pytest
import torch
from our_methods import LINEAR, MODELS, assert_trains_on, attached, llama, logits, tokens, train

from intruscope.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

OPTIONS = {"rank": 2, "alpha": 6, "num_experts": 5, "num_active": 2, "dropout": 0.0}


def layer_in_double(make=llama, setting=LINEAR, **options):
    done = attached("lora_experts", make, setting, **{**OPTIONS, **options})
    train(done.model)
    layer = done.model.base_model.model.get_submodule(done.names[0]).double()
    downs, ups = layer.lora_A["default"], layer.lora_B["default"]
    return layer, downs, ups


def naive(layer, x, downs, ups, gates=None):
    """Token by token, expert by expert: (output, gates)."""
    rows, all_gates = [], []
    for position, token in enumerate(x):
        shares = torch.softmax(torch.stack([(w * token).sum() for w in downs.router]), 0)
        chosen = sorted(range(5), key=lambda n: -shares[n].item())[:2]
        total = sum(shares[n] for n in chosen)
        gate = [shares[n] / total if n in chosen else shares[n] * 0 for n in range(5)]
        given = gate if gates is None else gates[position]
        terms = [given[n] * (ups.weight[n] @ (downs.weight[n] @ token)) for n in range(5)]
        rows.append(layer.base_layer(token) + 3.0 * sum(terms))
        all_gates.append(torch.stack(gate))
    return torch.stack(rows), torch.stack(all_gates)


@pytest.mark.parametrize(("make", "setting"), MODELS)
def test_output_is_the_sum_over_the_active_experts(make, setting):
    layer, downs, ups = layer_in_double(make, setting)
    x = torch.randn(6, layer.in_features, dtype=torch.float64)
    expected, gates = naive(layer, x, downs, ups)
    assert ((gates > 0).sum(1) == 2).all()
    torch.testing.assert_close(layer(x[None])[0], expected)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_factors_get_their_gradient_by_the_root_of_the_gate_and_all_else_the_true_one():
    layer, downs, ups = layer_in_double()
    x = torch.randn(4, layer.in_features, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, layer.out_features, dtype=torch.float64)
    ours = torch.autograd.grad((layer(x) * weights).sum(), [x, downs.router, downs.weight, ups.weight])
    output, gates = naive(layer, x, downs, ups)
    true = torch.autograd.grad((output * weights).sum(), [x, downs.router])
    rooted, _ = naive(layer, x, downs, ups, gates=gates.detach().sqrt())
    scaled = torch.autograd.grad((rooted * weights).sum(), [downs.weight, ups.weight])
    for mine, expected in zip(ours, (*true, *scaled), strict=True):
        torch.testing.assert_close(mine, expected)


def test_preconditioned_gradients_are_those_of_explicit_inverses():
    from intruscope.methods.experts_layers import precondition

    _, downs, ups = layer_in_double()
    down, up = downs.weight, ups.weight
    grads = [torch.randn_like(down), torch.randn_like(up)]
    down.grad, up.grad = grads[0].clone(), grads[1].clone()
    precondition(down, up, 1e-2)
    eye = 1e-2 * torch.eye(2).double()
    for n in range(5):
        torch.testing.assert_close(down.grad[n], torch.linalg.inv(up[n].T @ up[n] + eye) @ grads[0][n])
        torch.testing.assert_close(up.grad[n], grads[1][n] @ torch.linalg.inv(down[n] @ down[n].T + eye))


def test_a_zero_factor_leaves_the_gradient_of_the_other_as_it_is():
    from intruscope.methods.experts_layers import precondition

    _, downs, ups = layer_in_double()
    down, up = downs.weight, ups.weight
    with torch.no_grad():
        up[0] = 0
        up[1] = 1e-5
    gradient = torch.randn_like(down)
    down.grad, up.grad = gradient.clone(), torch.zeros_like(up)
    precondition(down, up, 1e-6)
    assert torch.equal(down.grad[:2], gradient[:2])  # without a guard: a million times it
    assert not torch.isclose(down.grad[2:], gradient[2:]).any(-1).all()


def test_a_step_is_adamw_on_preconditioned_gradients_with_a_slow_router():
    from intruscope.methods.experts_layers import precondition

    ours, twin = (attached("lora_experts", llama, LINEAR, **OPTIONS) for _ in range(2))
    for done in (ours, twin):
        train(done.model)
        done.model.double()
        done.model(input_ids=tokens(), labels=tokens()).loss.backward()
    ours.optimizer(lr=1e-3, weight_decay=0.1).step()
    for name in twin.names:
        layer = twin.model.base_model.model.get_submodule(name)
        precondition(layer.lora_A["default"].weight, layer.lora_B["default"].weight, 1e-6)
    routers = [p for name, p in twin.trainable() if name.endswith("router")]
    factors = [p for name, p in twin.trainable() if name.endswith("weight")]
    torch.optim.AdamW(factors, lr=1e-3, weight_decay=0.1).step()
    torch.optim.AdamW(routers, lr=3e-6, weight_decay=0.0).step()
    for (name, mine), (_, theirs) in zip(ours.trainable(), twin.trainable(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=name)


def test_has_no_static_update_but_each_experts_and_their_mean(tmp_path):
    done = attached("lora_experts", llama, LINEAR, **OPTIONS)
    base = logits(done.model.get_base_model())
    train(done.model)
    assert not torch.allclose(logits(done.model), base)
    name = done.names[0]
    for refused in (lambda: done.update(name), done.merged, done.model.merge_adapter):
        with pytest.raises(UsageError, match="depends on the input"):
            refused()
    layer = done.model.base_model.model.get_submodule(name)
    downs, ups = layer.lora_A["default"], layer.lora_B["default"]
    each = torch.stack([3 * b @ a for a, b in zip(downs.weight, ups.weight, strict=True)]).detach()
    torch.testing.assert_close(done.expert_updates(name), each)
    seen = []
    layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1).double()))
    words = tokens() + 1  # the padding's vector is zero: its gates are a tie
    mean = done.mean_update(name, [{"input_ids": words}, {"input_ids": words[:1]}])
    _, gates = naive(layer.double(), torch.cat(seen), downs, ups)
    expected = torch.einsum("n,noi->oi", gates.mean(0), each.double()).detach()
    torch.testing.assert_close(mean.double(), expected, rtol=1e-4, atol=1e-5)


def test_saves_and_loads(tmp_path):
    done = attached("lora_experts", llama, LINEAR, **OPTIONS)
    train(done.model)
    done.save(tmp_path / "saved")
    again = assert_trains_on("lora_experts", done, llama, tmp_path / "saved")
    assert again.options == done.options
    assert torch.equal(logits(again.model.eval()), logits(done.model.eval()))


def test_refuses_more_active_experts_than_there_are():
    with pytest.raises(UsageError, match="num_active is 9, and there are only 5 experts"):
        attached("lora_experts", llama, LINEAR, **{**OPTIONS, "num_active": 9})
