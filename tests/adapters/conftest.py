from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import save_file

from intruscope.errors import IntruscopeError

if TYPE_CHECKING:
    import torch

_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def real_adapters() -> Path:
    if not (_DATA / "adapters").is_dir():
        pytest.skip("real: ../shared/data/adapters is absent")
    return _DATA / "adapters"


@pytest.fixture
def write_adapter(tmp_path):
    """Write a PEFT folder from tensors and changes to a plain config (None removes a field)."""

    def write(
        tensors: dict[str, torch.Tensor], *, folder: str = "adapter", text: bytes | None = None, **config
    ):
        path = tmp_path / folder
        path.mkdir(exist_ok=True, parents=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, path / "adapter_model.safetensors")
        fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
        kept = {k: v for k, v in fields.items() if v is not None}
        (path / "adapter_config.json").write_bytes(json.dumps(kept).encode() if text is None else text)
        return path

    return write


@pytest.fixture
def adapter_refused(tmp_path):
    """Run a call that must be refused; check code and message, and that no input was written."""

    def hashes() -> dict[str, str]:
        files = (f for f in sorted(tmp_path.rglob("*")) if f.is_file())
        return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    def check(call, exit_code: int, *, says: str, remedy: str = ""):
        before = hashes()
        with pytest.raises(IntruscopeError) as caught:
            call()
        error = caught.value
        assert error.exit_code == exit_code, error
        assert error.file is not None, error
        assert error.fact, error
        assert says in str(error), error
        assert error.remedy, error
        assert remedy in error.remedy, error
        assert str(error).isprintable()
        assert hashes() == before
        return error

    return check
