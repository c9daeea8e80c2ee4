"""Methods on a GPU, pretended or real: put on before the model is moved there, as with Trainer, or after."""

from __future__ import annotations

import methods_models as tiny
import pytest
import torch

from intruscope.methods import registered
from intruscope.methods.contract import Setting
from pretend_device import pretend_device, real_device

pytestmark = pytest.mark.filterwarnings("ignore")
METHODS = {method.name: method for method in registered()}


def _update(name, device, monkeypatch, *, moved_before):
    """The update of one matrix after three real steps."""
    base = tiny.fresh("linear")
    setting = Setting(total_steps=3, batches=tiny.batches(), kept=tiny.batches(2), tuned=tiny.tuned(base))
    if moved_before:
        base = base.to(device)
    method = METHODS[name]
    attached = method.attach(base, setting, method.options())
    attached.model.to(device)
    batches = [{key: value.to(device) for key, value in batch.items()} for batch in tiny.batches(1)]
    with monkeypatch.context() as patched:
        patched.setattr(tiny, "batches", lambda _: batches)
        tiny.train(attached, steps=3)
    assert all(p.device.type == device for _, p in attached.trainable())
    return attached.update(attached.names[0]).cpu()


@pytest.mark.parametrize(
    ("name", "moved_before"),
    [
        ("full", False),
        ("lora", False),
        ("pissa", False),
        ("osf", False),
        ("chain", False),
        ("construct", True),
    ],
)
def test_a_method_does_on_a_gpu_what_it_does_on_the_cpu(name, moved_before, monkeypatch):
    expected = _update(name, "cpu", monkeypatch, moved_before=moved_before)
    with pretend_device() as there:
        got = _update(name, "cuda", monkeypatch, moved_before=moved_before)
    assert there.num_operations > 100
    assert expected.norm() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", [name for name in METHODS if name != "lora_experts"]
)  # its update is not static
def test_every_method_does_so_on_a_real_one(name, monkeypatch):
    with real_device():
        got = _update(name, "cuda", monkeypatch, moved_before=False)
    expected = _update(name, "cpu", monkeypatch, moved_before=False)
    assert expected.norm() > 1e-3
    # As a whole: Adam's first steps are signs, and a gradient near zero may have either one.
    assert (got - expected).norm() <= 1e-2 * expected.norm()
