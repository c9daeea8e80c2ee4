"""The construction: its exact error law, and the closest matrix of a rank in a model."""

import copy

import pytest
import torch
from our_methods import LINEAR, MODELS, assert_peft_alone_runs_it, llama, train

from intruscope.errors import ShapeMismatch, UsageError
from intruscope.extract import construct_adapters
from intruscope.methods import find
from intruscope.methods.contract import Setting

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def layers(num, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(width, width, generator=generator, dtype=torch.float64) for _ in range(num)]


def product(weights):
    result = weights[0]
    for weight in weights[1:]:
        result = weight @ result
    return result


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_error_is_the_singular_value_after_all_ranks(num_layers, rank):
    frozen = layers(num_layers)
    (target,) = layers(1, seed=9)
    made = construct_adapters(frozen, target, rank)
    adapted = [weight + up @ down for weight, (up, down) in zip(frozen, made.factors, strict=True)]
    assert all(up.shape == (12, rank) and down.shape == (rank, 12) for up, down in made.factors)
    values = torch.linalg.svdvals(target - product(frozen))
    left = torch.linalg.svdvals(target - product(adapted))
    assert made.error == pytest.approx(float(values[num_layers * rank]), rel=1e-12)
    # Not only the norm: what is left are all the singular values that the ranks did not reach.
    expected = torch.cat([values[num_layers * rank :], torch.zeros(num_layers * rank)])
    torch.testing.assert_close(left, expected, rtol=1e-7, atol=1e-8)


def test_enough_rank_reaches_the_target():
    frozen, (target,) = layers(3), layers(1, seed=9)
    made = construct_adapters(frozen, target, 4)
    adapted = [weight + up @ down for weight, (up, down) in zip(frozen, made.factors, strict=True)]
    assert made.error == 0.0
    torch.testing.assert_close(product(adapted), target, rtol=1e-7, atol=1e-7)


def test_one_layer_of_any_shape_is_the_truncated_decomposition():
    weight, target = torch.randn(7, 11, dtype=torch.float64), torch.randn(7, 11, dtype=torch.float64)
    made = construct_adapters([weight], target, 3)
    left, values, right = torch.linalg.svd(target - weight, full_matrices=False)
    up, down = made.factors[0]
    torch.testing.assert_close(up @ down, left[:, :3] @ torch.diag(values[:3]) @ right[:3])
    assert made.error == pytest.approx(float(values[3]))


def test_bad_chains_are_refused():
    frozen, (target,) = layers(2), layers(1, seed=9)
    with pytest.raises(UsageError, match="condition number"):
        construct_adapters([frozen[0], torch.ones_like(frozen[1])], target, 1)
    for bad in ([], [frozen[0], torch.randn(12, 5)], [torch.randn(12, 5)]):
        with pytest.raises(ShapeMismatch, match="square"):
            construct_adapters(bad, target, 1)


def attached(base, tuned, setting, rank):
    method = find("construct")
    return method.attach(base, Setting(targets=setting.targets, tuned=tuned), method.options({"rank": rank}))


@pytest.mark.parametrize(("make", "setting"), MODELS)
def test_adapters_of_a_model_are_the_closest_of_their_rank(make, setting, tmp_path):
    torch.manual_seed(0)
    base = make().eval()
    before = copy.deepcopy(base)
    tuned = copy.deepcopy(base)
    train(tuned)
    done = attached(base, tuned, setting, 3)
    assert set(done.errors) == set(done.names)
    for name in done.names:
        update = tuned.get_submodule(name).weight.double() - before.get_submodule(name).weight.double()
        update = (update.T if "c_" in name else update).detach()
        left, values, right = torch.linalg.svd(update, full_matrices=False)
        closest = left[:, :3] @ torch.diag(values[:3]) @ right[:3]
        torch.testing.assert_close(done.update(name).double(), closest, rtol=1e-5, atol=1e-6)
        assert done.errors[name] == pytest.approx(float(values[3]), rel=1e-9)
        rest = torch.linalg.matrix_norm(update - done.update(name).double(), ord=2)
        assert float(rest) == pytest.approx(done.errors[name], rel=1e-5)
    assert_peft_alone_runs_it(done, make, tmp_path / "saved")


def test_a_tuned_model_is_asked_for_and_must_fit():
    import transformers

    with pytest.raises(UsageError, match="no tuned model given"):
        attached(llama(), None, LINEAR, 2)
    with pytest.raises(UsageError, match="has no such matrix"):
        attached(llama(), torch.nn.Linear(2, 2), LINEAR, 2)
    other = llama().config.to_dict() | {"hidden_size": 32, "head_dim": 8}
    with pytest.raises(ShapeMismatch, match="in the tuned model"):
        attached(llama(), transformers.LlamaForCausalLM(transformers.LlamaConfig(**other)), LINEAR, 2)
