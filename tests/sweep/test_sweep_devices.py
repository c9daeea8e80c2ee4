"""Measuring on a GPU, pretended or real: the CPU's numbers, and no operation on tensors of two devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intruscope.engine.settings import RunOptions
from intruscope.errors import UsageError
from intruscope.forgetting.forget import forget
from intruscope.forgetting.models import choose_device, load_pair
from intruscope.forgetting.tasks import load_task
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut
from intruscope.repair.interventions import intervene
from intruscope.repair.survey import survey
from intruscope.sweep.live import LiveBench
from pretend_device import pretend_device, real_device


def _measurements(files, device, edits):
    pair = load_pair(files / "base", files / "adapter", device=device)
    language = pair.language_model()
    assert language.model.device.type == device
    sequences = cut(read_texts([files / "text.txt"]), language, max_sequences=4)
    bench = LiveBench(pair, sequences, protocol="fast", task=load_task(files / "task.tsv"))
    return [bench.base_text(), bench.edited(edits), bench.interpolated(0.5)]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_cells_on_a_gpu_are_those_of_the_cpu(kind, files):
    found = survey(str(files / "base"), str(files / "adapter"), options=RunOptions(workers=0))
    edits = intervene(found, kind="intruders", strength=0.2)
    assert any(edit.num_directions for edit in edits)
    expected = _measurements(files, "cpu", edits)
    with pretend_device(kind) as there:
        got = _measurements(files, kind, edits)
    assert there.num_operations > 100
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one.text_nats, other.text_nats, rtol=1e-6)
        assert one.task_scores == other.task_scores
    assert expected[1].text_nats != expected[2].text_nats


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_forgetting_on_a_gpu_is_that_of_the_cpu_and_says_where(kind, files):
    options = {"text": files / "text.txt", "protocol": "fast", "max_sequences": 4, "num_resamples": 100}
    expected = forget(files / "base", files / "adapter", device="cpu", **options)
    with pretend_device(kind):
        got = forget(files / "base", files / "adapter", device=kind, **options)
    assert got.settings.device == f"{kind}:0"
    assert got.forgetting.estimate == pytest.approx(expected.forgetting.estimate, rel=1e-5)


@pytest.mark.gpu
def test_a_real_gpu_gives_the_numbers_of_the_cpu(files):
    found = survey(str(files / "base"), str(files / "adapter"), options=RunOptions(workers=0))
    edits = intervene(found, kind="intruders", strength=0.2)
    options = {"text": files / "text.txt", "protocol": "exact", "max_sequences": 4, "num_resamples": 100}
    with real_device():
        cells = _measurements(files, "cuda", edits)
        got = forget(files / "base", files / "adapter", device="cuda", **options)
    for one, other in zip(cells, _measurements(files, "cpu", edits), strict=True):
        np.testing.assert_allclose(one.text_nats, other.text_nats, rtol=1e-5)
    expected = forget(files / "base", files / "adapter", device="cpu", **options)
    assert got.settings.device == "cuda:0"
    for one, other in ((got.base_loss, expected.base_loss), (got.tuned_loss, expected.tuned_loss)):
        assert one.nats_per_token.estimate == pytest.approx(other.nats_per_token.estimate, rel=1e-6)
    assert got.forgetting.estimate == pytest.approx(expected.forgetting.estimate, abs=1e-6)


def test_a_device_that_is_not_here_or_holds_no_numbers_is_refused():
    for device in ("meta", "cuda:63", "nonsense"):
        with pytest.raises(UsageError, match=f"--device is {device}"):
            choose_device(device)


def test_the_pretence_finds_what_a_gpu_would():
    with pretend_device() as there:
        tensor = torch.zeros(3, device="cuda")
        assert tensor.device == there.device
        assert (tensor + 1).device == there.device
        assert tensor.cpu().device == torch.device("cpu")
        assert torch.nn.Linear(3, 2).to("cuda")(tensor).device == there.device
        with pytest.raises(RuntimeError, match="same device"):
            tensor + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            tensor.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, generator=torch.Generator(), device="cuda")
    with pretend_device("mps"), pytest.raises(TypeError, match="float64"):
        torch.zeros(3, device="mps").double()
