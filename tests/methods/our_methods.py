"""Tiny models with one of our methods on them, and what each of them must be able to do."""

import sys
from pathlib import Path

import pytest
import torch

from intruscope.methods import find
from intruscope.methods.contract import Setting

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
from peft_models import gpt2, llama, train

__all__ = ["gpt2", "llama", "train"]

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
