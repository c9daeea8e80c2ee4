"""PyTorch files: off by default, places instead of unpickling, and everything odd refused with code 3."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile

import pytest
import torch

from intruscope.weights.pickle_file import read_pickle
from intruscope.weights.source import open_model


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    tied = torch.randn(5, 7, generator=generator)
    return {
        "a.weight": tied,
        "b.weight": tied,
        "c.weight": torch.randn(9, 4, generator=generator).bfloat16(),
        "d.weight": torch.randn(6, 3, generator=generator)[2:],
        "ids": torch.arange(4),
    }


@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_tensors_are_read_by_their_place_in_the_archive(tmp_path, state, wrapper):
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "pytorch_model.bin")
    stored = pickle.loads(pickle.dumps(open_model(tmp_path, allow_pickle=True).tensors))
    assert set(stored) == set(state)
    for name in set(state) - {"ids"}:
        assert torch.equal(stored[name].read(), state[name]), name
    assert stored["a.weight"].offset == stored["b.weight"].offset


def test_sharded_pickles_are_one_model(tmp_path, state):
    for number, names in enumerate((["a.weight"], ["c.weight", "ids"])):
        torch.save({name: state[name] for name in names}, tmp_path / f"pytorch_model-{number}.bin")
    weight_map = {
        name: f"pytorch_model-{0 if name[0] == 'a' else 1}.bin" for name in ("a.weight", "c.weight", "ids")
    }
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    stored = open_model(tmp_path, allow_pickle=True).tensors
    assert torch.equal(stored["c.weight"].read(), state["c.weight"])


def test_without_leave_a_pickle_is_unsafe_and_not_opened(tmp_path, refused):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        refused(lambda path=path: open_model(path), 3, says="pickle", remedy="--allow-pickle")


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def _archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, body in members.items():
            archive.writestr(name, body)


def _bomb_archive(path, **more):
    _archive(path, {"archive/data.pkl": pickle.dumps(_Bomb(), 2), "archive/version": b"3\n", **more})


def _torch_script(path):
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    _archive(path, {**members, "archive/code/__torch__.py": b"x"})


def _legacy(path):
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def _tar(path):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


def _bad_crc(path):
    torch.save({"w": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.arange(1000.0).numpy().tobytes())
    content[place + 40] ^= 1
    path.write_bytes(content)


def _compressed(path):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2000)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    _archive(path, members, zipfile.ZIP_DEFLATED)


def _encrypted(path):
    """Flag every member as encrypted, in its own header and in the directory."""
    torch.save({"w": torch.ones(2)}, path)
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(mark, at + 4)
    path.write_bytes(content)


def _cut(path):
    torch.save({"w": torch.arange(1000.0)}, path)
    path.write_bytes(path.read_bytes()[:-100])


ODD = {
    "a call": (_bomb_archive, "more than tensors"),
    "encrypted": (_encrypted, "encrypted"),
    "TorchScript": (_torch_script, "TorchScript"),
    "legacy pickle": (_legacy, "legacy pickle"),
    "legacy tar": (_tar, "legacy tar"),
    "bad checksum": (_bad_crc, "is wrong"),
    "compressed": (_compressed, "compressed"),
    "cut off": (_cut, "archive is damaged"),
    "two pickles": (lambda path: _bomb_archive(path, **{"other/data.pkl": b""}), "exactly one pickle"),
    "no pickle": (lambda path: _archive(path, {"a": b""}), "exactly one pickle"),
    "garbage": (lambda path: path.write_bytes(b"garbage" * 50), "not a PyTorch archive"),
    "empty": (lambda path: path.write_bytes(b""), "not a PyTorch archive"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_pickle_is_unsafe_and_runs_nothing(tmp_path, refused, case, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, says = ODD[case]
    make(tmp_path / "pytorch_model.bin")
    refused(lambda: open_model(tmp_path, allow_pickle=True), 3, says=says)
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_without_tensors_or_with_strided_ones_is_malformed(tmp_path, refused):
    path = tmp_path / "model.pt"
    torch.save([1, 2], path)
    refused(lambda: read_pickle(path), 4, says="without named tensors")
    torch.save({"w": torch.ones(3, 4).T}, path)
    refused(lambda: read_pickle(path), 4, says="not contiguous", tensor="w")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(lambda: read_pickle(path), 4, says="git-LFS", remedy="git lfs pull")


def test_an_old_torch_is_refused(tmp_path, refused, monkeypatch):
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    refused(lambda: read_pickle(tmp_path / "model.pt"), 3, says="2.9.1", remedy="update torch")
