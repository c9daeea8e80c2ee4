from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from weights_models import LLAMA

from intruscope.errors import IntruscopeError
from intruscope.weights import architecture
from intruscope.weights.source import open_model

_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def real_models() -> Path:
    """The folder of real models; the test is skipped by name where it is absent."""
    if not (_DATA / "models" / "minilm").is_dir():
        pytest.skip("real: ../shared/data/models/minilm is absent")
    return _DATA / "models"


@pytest.fixture
def snapshot():
    """A function from a folder to the hashes of its regular files, to show that no input was written."""

    def hashes(folder: Path) -> dict[str, str]:
        return {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }

    return hashes


@pytest.fixture
def refused(snapshot, tmp_path):
    """Run a call that must be refused; check code, the parts of the message, and that nothing was written."""

    def check(call, exit_code: int, *, says: str, remedy: str = "", tensor: str | None = None):
        before = snapshot(tmp_path)
        with pytest.raises(IntruscopeError) as caught:
            call()
        error = caught.value
        assert error.exit_code == exit_code, error
        assert error.file is not None, error  # what
        assert error.fact, error  # what is wrong
        assert error.remedy, error  # what to do next
        assert says in error.fact, error
        assert remedy in error.remedy, error
        if tensor is not None:
            assert error.tensor == tensor, error
        assert str(error).isprintable()
        assert snapshot(tmp_path) == before
        return error

    return check


@pytest.fixture
def raw_safetensors():
    """Write a safetensors file from a header given as data or as bytes, without any library's checks."""

    def write(
        path: Path, header: dict[str, Any] | bytes, data: bytes = b"", *, length: int | None = None
    ) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
        return path

    return write


@pytest.fixture
def model(tmp_path):
    """Save tensors (by shape, or given) as a model folder and open it."""

    def make(name, tensors, config=LLAMA):
        folder = tmp_path / name
        folder.mkdir()
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        saved = {
            key: value if isinstance(value, torch.Tensor) else torch.randn(value, generator=generator)
            for key, value in tensors.items()
        }
        save_file(saved, folder / "model.safetensors")
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        return open_model(folder)

    return make


@pytest.fixture
def asked_here(monkeypatch):
    """transformers is asked in this process, which has imported it, and not in one of its own."""

    def ask(config):
        try:
            return tuple(architecture._built(json.loads(config)).items())
        except Exception:
            return ()  # as of a process that ends with an error

    monkeypatch.setattr(architecture, "_ask", ask)
