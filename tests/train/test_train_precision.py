"""Where bfloat16 has no instructions it is slow, and whoever asks for it is told before he waits."""

import platform
from types import SimpleNamespace

import pytest
import torch

from intruscope.cli.checks import warn_of_bfloat16
from intruscope.train.precision import is_bfloat16_slow


def on(monkeypatch, *, machine="x86_64", accelerator=False, onednn=False):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(
        torch.ops, "mkldnn", SimpleNamespace(_is_mkldnn_bf16_supported=lambda: onednn), raising=False
    )


def test_torch_is_asked_as_it_asks_itself():
    assert is_bfloat16_slow() in (True, False)  # the operator is there in the version that is installed


@pytest.mark.parametrize(
    ("place", "slow"),
    [({}, True), ({"onednn": True}, False), ({"accelerator": True}, False), ({"machine": "arm64"}, False)],
)
def test_the_user_is_told_where_it_is_slow_only(place, slow, monkeypatch, capsys):
    on(monkeypatch, **place)
    assert is_bfloat16_slow() is slow
    warn_of_bfloat16(False)
    assert capsys.readouterr().err == ""
    warn_of_bfloat16(True)
    assert ("no fast bfloat16; without --bf16" in capsys.readouterr().err) is slow
