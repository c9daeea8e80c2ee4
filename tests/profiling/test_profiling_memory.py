"""Memory of tensors against counting by hand, and of the process against what is allocated in it."""

import subprocess
import sys

import pytest
import torch

from intruscope.profiling.memory import MemoryMeter, TensorMeter

MIB = 2**20


def test_tensors_count_while_they_live_and_storage_counts_once():
    held = torch.zeros(MIB // 4)  # a MiB
    with TensorMeter([held, held.view(2, -1)]) as meter:
        assert meter.peak == MIB
        first = held + 1
        view = first[: MIB // 8].view(-1, 2)
        assert meter.peak == 2 * MIB
        second = view * 2  # half a MiB
        del first
        assert meter.peak == 2.5 * MIB  # the view still holds it
        del view, second
        held.add_(1)
        third = held.double()  # two
        assert meter.peak == 3 * MIB
        del third
        torch.cat([held, held, held])
    assert meter.peak == 4 * MIB


def test_a_step_s_peak_is_what_its_graph_holds():
    """x -> x w1 -> relu -> x w2, by hand: weights, moments of AdamW, activations, then gradients."""
    torch.manual_seed(0)
    width, rows = 256, 512
    weights = [torch.randn(width, width, requires_grad=True) for _ in range(2)]
    frozen = [w.detach().clone().requires_grad_(i == 1) for i, w in enumerate(weights)]
    peaks = {}
    for name, (one, two) in (("full", weights), ("last", frozen)):
        x = torch.randn(rows, width)
        with TensorMeter([x, one, two]) as meter:
            (torch.relu(x @ one) @ two).sum().backward()
        peaks[name] = meter.peak / 4
    matrix, activation = width * width, rows * width
    # At its highest: both weights, x, the product, the relu and the output or a gradient of the same size.
    assert peaks["full"] >= 2 * matrix + 4 * activation
    assert peaks["full"] <= 4 * matrix + 5 * activation + 2
    assert peaks["full"] - peaks["last"] >= matrix  # no gradient for the frozen weight


def test_modes_do_not_change_what_is_computed():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    x = torch.randn(4, 8)
    model(x).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with TensorMeter(model.parameters()):
        model(x).square().sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be set back on Linux alone")
def test_the_peak_of_the_process_is_set_back():
    code = (
        "from intruscope.profiling.memory import MemoryMeter\n"
        "import torch\n"
        "meter = MemoryMeter('cpu')\n"
        "before = meter.now()\n"
        "torch.ones(50 * 2**18)\n"
        "high = meter.peak() - before\n"
        "meter.restart()\n"
        "kept = torch.ones(10 * 2**18)\n"
        "torch.ones(10 * 2**18)\n"
        "print(high, meter.peak() - before, meter.now() - before)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    high, later, now = (int(each) / MIB for each in said.split())
    assert 50 <= high < 70
    assert 20 <= later < 40
    assert 10 <= now < 20


def test_on_a_cpu_a_step_is_run_once_to_see_its_tensors():
    calls = []
    found = MemoryMeter("cpu").tensor_peak(lambda: calls.append(torch.ones(MIB)), [torch.zeros(MIB)])
    assert len(calls) == 1 and found == 8 * MIB
