"""Our own methods against naive float64 twins: values, gradients, starts, ranks, and what PEFT loads alone.

The contract suite checks what all methods have in common; here is what makes each of them that method.
"""

import sys
from pathlib import Path

import pytest
import torch

from intruscope.methods import find
from intruscope.methods.contract import Setting

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
from peft_models import gpt2, llama, train

# What transformers and PEFT warn of among themselves.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LINEAR = Setting(targets=("q_proj", "up_proj", "down_proj"), seed=3)  # square, tall and wide
CONV1D = Setting(targets=("c_attn", "c_proj"), seed=3)
MODELS = [pytest.param(llama, LINEAR, id="linear"), pytest.param(gpt2, CONV1D, id="conv1d")]


def attached(name, make, setting, **options):
    torch.manual_seed(0)
    method = find(name)
    return method.attach(make().eval(), setting, method.options(options))


def factor_state(done, name):
    """A layer's own tensors in float64, by the part of their name that tells them apart."""
    layer = done.model.base_model.model.get_submodule(name)
    state = {key: value.double() for key, value in layer.state_dict().items() if "lora_" in key}
    return {key.replace(".default", "").removeprefix("lora_"): value for key, value in state.items()}


def tokens():
    return torch.arange(12).reshape(2, 6) % 40


def logits(model):
    with torch.no_grad():
        return model(input_ids=tokens()).logits


def assert_peft_alone_runs_it(done, make, folder):
    """The saved adapter, loaded by PEFT on a fresh base, computes what the trained model computes."""
    from peft import PeftModel

    done.save(folder)
    torch.manual_seed(0)
    alone = PeftModel.from_pretrained(make(), str(folder)).eval()
    torch.testing.assert_close(logits(alone), logits(done.model.eval()), rtol=1e-4, atol=1e-5)
    return alone


def assert_trains_on(name, done, make, folder):
    """What is loaded again holds every number that was saved."""
    torch.manual_seed(0)
    again = find(name).load(make().eval(), folder)
    ours, theirs = done.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [n for n, _ in again.trainable()] == [n for n, _ in done.trainable()]
    return again


@pytest.mark.parametrize(("make", "setting"), MODELS)
class TestMelora:
    def test_update_is_the_block_diagonal_of_the_small_products(self, make, setting, tmp_path):
        done = attached("melora", make, setting, rank=2, num_blocks=4, alpha=6)
        train(done.model)
        for name in done.names:
            state = factor_state(done, name)
            expected = torch.block_diag(
                *(3.0 * b @ a for a, b in zip(state["A.weight"], state["B.weight"], strict=True))
            )
            torch.testing.assert_close(done.update(name).double(), expected, rtol=1e-5, atol=1e-6)
            assert torch.linalg.matrix_rank(expected) == 2 * 4
        assert_peft_alone_runs_it(done, make, tmp_path / "saved")
        assert_trains_on("melora", done, make, tmp_path / "saved")

    def test_has_the_parameters_of_one_adapter_of_its_rank(self, make, setting):
        done = attached("melora", make, setting, rank=2, num_blocks=4)
        shapes = [done.update(name).shape for name in done.names]
        assert sum(p.numel() for _, p in done.trainable()) == sum(2 * (o + i) for o, i in shapes)


def test_melora_refuses_blocks_that_do_not_divide_a_side():
    from intruscope.errors import UsageError

    with pytest.raises(UsageError, match="got 5 blocks for a matrix of 16 x 16"):
        attached("melora", llama, LINEAR, num_blocks=5)


@pytest.mark.parametrize("scale", ["scalar", "per_output"])
@pytest.mark.parametrize(("make", "setting"), MODELS)
def test_multilora_sums_scaled_products_and_starts_at_zero(make, setting, scale, tmp_path):
    done = attached("multilora", make, setting, rank=2, num_adapters=3, alpha=6, scale=scale)
    for name in done.names:
        state = factor_state(done, name)
        assert not done.update(name).any()
        assert all(state[key].any() for key in ("A.weight", "B.weight"))  # so that the scale can move
    train(done.model)
    for name in done.names:
        state = factor_state(done, name)
        downs = state["A.weight"].chunk(3)
        terms = zip(state["B.scale"], state["B.weight"], downs, strict=True)
        expected = 3.0 * sum(torch.diag(c.expand(b.shape[0])) @ b @ a for c, b, a in terms)
        torch.testing.assert_close(done.update(name).double(), expected, rtol=1e-4, atol=1e-5)
        assert state["B.scale"].shape[1] == (expected.shape[0] if scale == "per_output" else 1)
    assert_peft_alone_runs_it(done, make, tmp_path / "saved")
    assert_trains_on("multilora", done, make, tmp_path / "saved")
