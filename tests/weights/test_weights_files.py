"""Bad files and bad headers: the exit code, the message's parts, and that nothing was written."""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from intruscope.errors import IntruscopeError, MalformedInput
from intruscope.weights.layout import base_matrices
from intruscope.weights.safetensors_file import read_header
from intruscope.weights.source import open_model

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_read_bit_for_bit_in_their_dtype(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(5, 7, generator=generator).to(dtype),
        "experts": torch.randn(4, 3, 2, generator=generator).to(dtype),
        "scalar": torch.tensor(2.5, dtype=dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stored = pickle.loads(pickle.dumps(read_header(tmp_path / "model.safetensors")))
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        got = stored[name].read()
        assert got.dtype == dtype
        assert torch.equal(got, tensor), name
    assert torch.equal(stored["experts"].read_leading(2, 1)[0], tensors["experts"][2])
    assert torch.equal(stored["a"].leading(2).read(), tensors["a"][:2])


def _header(**changes):
    return {"w": {**ENTRY, **changes}}


DEEP = b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
BAD_HEADERS = {
    "length past the file": ((_header(), b"\0" * 24, 2**20), "cut off"),
    "length 2^63": ((_header(), b"\0" * 24, 2**63), "length is 9223372036854775808 bytes"),
    "length over 100 MB": ((_header(), b"\0" * 24, 100_000_001), "at most 100000000"),
    "not JSON": ((b"{nonsense}", b""), "not valid JSON"),
    "not UTF-8": ((b'{"\xff": 1}', b""), "not UTF-8"),
    "not an object": ((b"[1, 2]", b""), "opening brace"),
    "deep": ((DEEP, b""), "nested too deeply"),
    "NaN": ((b'{"w": NaN}', b""), "NaN"),
    "1e999": ((b'{"w": 1e999}', b""), "1e999"),
    "huge integer": ((b'{"w": ' + b"9" * 5000 + b"}", b""), "5,000 digits"),
    "duplicate key": ((b'{"w": {}, "w": {}}', b""), "'w' occurs twice"),
    "duplicate inner key": ((b'{"w": {"dtype": "F32", "dtype": "F16"}}', b""), "'dtype' occurs twice"),
    "overlap": (({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 36]}}, b"\0" * 36), "overlap"),
    "same place twice": (({"a": ENTRY, "b": ENTRY}, b"\0" * 24), "overlap"),
    "hole": (({"a": ENTRY, "b": {**ENTRY, "data_offsets": [28, 52]}}, b"\0" * 52), "hole"),
    "hole at the start": ((_header(data_offsets=[4, 28]), b"\0" * 28), "hole"),
    "trailing bytes": ((_header(), b"\0" * 25), "1 bytes follow the data"),
    "truncated": ((_header(), b"\0" * 23), "the file is cut off"),
    "overflowing shape": ((_header(shape=[2**62, 2**62]), b"\0" * 24), "too large"),
    "overflow hidden by zero": ((_header(shape=[2**62, 2**62, 0], data_offsets=[0, 0]), b""), "too large"),
    "negative size": ((_header(shape=[-2, -3]), b"\0" * 24), "non-negative"),
    "boolean size": ((_header(shape=[True, 6]), b"\0" * 24), "non-negative"),
    "fractional size": ((_header(shape=[2.0, 3]), b"\0" * 24), "non-negative"),
    "too many axes": ((_header(shape=[1] * 1000 + [6]), b"\0" * 24), "at most 64"),
    "shape and bytes differ": ((_header(shape=[2, 4]), b"\0" * 24), "needs 32 bytes"),
    "end before begin": ((_header(data_offsets=[24, 0]), b"\0" * 24), "-24 bytes"),
    "three offsets": ((_header(data_offsets=[0, 12, 24]), b"\0" * 24), "[begin, end]"),
    "unknown dtype": ((_header(dtype="F31"), b"\0" * 24), "F31"),
    "dtype of another kind": ((_header(dtype=["F32"]), b"\0" * 24), "safetensors has no dtype"),
    "missing field": (({"w": {"dtype": "F32", "shape": [1]}}, b""), "not exactly dtype, shape"),
    "added field": ((_header(strides=[3, 1]), b"\0" * 24), "exactly dtype, shape"),
    "metadata of numbers": (({"__metadata__": {"a": 1}}, b""), "metadata"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_bad_header_is_malformed_input(tmp_path, raw_safetensors, refused, case):
    (header, data, *length), says = BAD_HEADERS[case]
    path = raw_safetensors(tmp_path / "model.safetensors", header, data, length=length[0] if length else None)
    error = refused(lambda: read_header(path), 4, says=says)
    assert error.file == path


@pytest.mark.parametrize("count", [0, 7])
def test_a_file_without_room_for_a_length_is_malformed(tmp_path, refused, count):
    (tmp_path / "model.safetensors").write_bytes(b"\1" * count)
    refused(lambda: open_model(tmp_path), 4, says=f"only {count} bytes")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n"


@pytest.mark.parametrize(
    ("content", "says", "remedy"),
    [
        (LFS, "git-LFS pointer", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML", "download"),
        (b"\n  <html><body>404</body></html>            ", "HTML", "download"),
        (b"PK\x03\x04" + b"x" * 60, "zip", "convert"),
        (b"GGUF\3\0\0\0" + b"x" * 60, "GGUF", "safetensors"),
    ],
)
def test_another_kind_of_file_is_named_for_what_it_is(tmp_path, refused, content, says, remedy):
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(lambda: open_model(tmp_path), 4, says=says, remedy=remedy)


def test_an_unfinished_download_gives_expected_and_actual_bytes(tmp_path, raw_safetensors, refused):
    path = raw_safetensors(tmp_path / "abc.incomplete", _header(), b"\0" * 20)
    size = path.stat().st_size
    error = refused(lambda: read_header(path), 4, says="download has not finished")
    assert f"{size} of {size + 4} bytes" in error.fact


@pytest.mark.parametrize("kind", ["FIFO", "folder", "socket", "character device"])
def test_special_files_are_refused_without_blocking(tmp_path, refused, sharded, kind):
    path = tmp_path / "two.safetensors"
    folder = sharded()
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        path = Path("/dev/zero")
    refused(lambda: read_header(path), 4, says=f"this is a {kind}, not a regular file")
    if kind != "character device":
        refused(lambda: open_model(folder), 4, says=kind, remedy="ordinary files")
        path.rename(tmp_path / "config.json")
        refused(lambda: open_model(tmp_path / "one.safetensors"), 4, says=kind)


def test_a_foreign_name_is_escaped_in_the_message(tmp_path, raw_safetensors, refused):
    name = "\x1b[31m../../x\u202e</script>\0"
    path = raw_safetensors(tmp_path / "model.safetensors", {name: {**ENTRY, "dtype": "?"}}, b"\0" * 24)
    error = refused(lambda: read_header(path), 4, says="dtype", tensor=name)
    assert "\x1b" not in str(error)
    assert "\u202e" not in str(error)


@pytest.mark.parametrize("change", ["shrunk", "grown", "replaced", "rewritten", "removed"])
def test_a_file_changed_after_planning_is_noticed(tmp_path, refused, change):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.arange(6.0).reshape(2, 3)}, path)
    stored = read_header(path)["w"]
    content = path.read_bytes()
    if change == "shrunk":
        os.truncate(path, len(content) - 4)
    elif change == "grown":
        path.write_bytes(content + b"\0")
    elif change == "replaced":
        other = tmp_path / "other"
        other.write_bytes(content)
        os.utime(other, ns=(stored.stamp.mtime_ns, stored.stamp.mtime_ns))
        other.replace(path)
    elif change == "rewritten":
        path.write_bytes(content)
        os.utime(path, ns=(stored.stamp.mtime_ns + 1, stored.stamp.mtime_ns + 1))
    else:
        path.unlink()
    remedy = "check the path" if change == "removed" else "leave the inputs alone"
    what = "size" if change in {"shrunk", "grown"} else "content or identity"
    says = "could not be opened" if change == "removed" else f"changed its {what} since the scan was planned"
    refused(stored.read, 4, says=says, remedy=remedy)


def test_integers_and_fp8_are_listed_but_not_decoded(tmp_path, refused):
    tensors = {"i": torch.arange(6).reshape(2, 3), "f8": torch.zeros(2, 3).to(torch.float8_e4m3fn)}
    save_file(tensors, tmp_path / "model.safetensors")
    stored = read_header(tmp_path / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in stored.items()} == {"i": "I64", "f8": "F8_E4M3"}
    refused(stored["f8"].read, 4, says="F64, F32, F16 and BF16 can be read", tensor="f8")


def _try(path: Path) -> None:
    try:
        tensors = read_header(path)
        for tensor in tensors.values():
            if tensor.decodable:
                assert tuple(tensor.read().shape) == tensor.shape
    except IntruscopeError as error:
        assert error.exit_code == 4
        assert error.fact


def _valid_file(folder: Path) -> bytes:
    save_file(
        {"a.weight": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, folder / "seed.safetensors"
    )
    return (folder / "seed.safetensors").read_bytes()


def test_truncation_at_every_byte_is_one_of_our_errors(tmp_path):
    content = _valid_file(tmp_path)
    for length in range(len(content)):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(content[:length])
        with pytest.raises(MalformedInput):
            read_header(path)


def test_every_header_byte_flipped_is_read_or_one_of_our_errors(tmp_path):
    content = _valid_file(tmp_path)
    (length,) = struct.unpack("<Q", content[:8])
    for position in range(8 + length):
        for mask in (0x01, 0x80, 0xFF):
            changed = bytearray(content)
            changed[position] ^= mask
            (tmp_path / "flip.safetensors").write_bytes(changed)
            _try(tmp_path / "flip.safetensors")


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(data=st.data())
def test_any_header_is_read_or_one_of_our_errors(tmp_path, raw_safetensors, data):
    number = st.one_of(st.integers(-2, 10), st.integers(), st.booleans(), st.floats(), st.none(), st.text())
    entry = st.one_of(
        number,
        st.fixed_dictionaries(
            {
                "dtype": st.one_of(st.sampled_from(["F32", "BF16", "F4", "BOOL"]), number),
                "shape": st.one_of(st.lists(number, max_size=3), number),
                "data_offsets": st.one_of(st.lists(number, max_size=3), st.just([0, 24]), number),
            }
        ),
    )
    header = data.draw(st.dictionaries(st.text(max_size=5), entry, max_size=3))
    body = data.draw(st.binary(max_size=30))
    _try(raw_safetensors(tmp_path / "any.safetensors", json.dumps(header).encode(), body))


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_one_of_our_errors(tmp_path, content):
    (tmp_path / "any.safetensors").write_bytes(content)
    _try(tmp_path / "any.safetensors")


# Shards


@pytest.fixture
def sharded(tmp_path):
    """A model in two shards; returns a function that writes the index with changes."""
    save_file({"a.weight": torch.ones(2, 3)}, tmp_path / "one.safetensors")
    save_file({"b.weight": torch.full((3, 2), 2.0)}, tmp_path / "two.safetensors")

    def write(**changes):
        weight_map = {"a.weight": "one.safetensors", "b.weight": "two.safetensors", **changes}
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return tmp_path

    return write


def test_shards_are_one_model(sharded):
    source = open_model(sharded())
    assert torch.equal(source.tensors["b.weight"].read(), torch.full((3, 2), 2.0))
    assert [Path(str(record["path"])).name for record in source.inputs] == [
        "model.safetensors.index.json",
        "one.safetensors",
        "two.safetensors",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "C:x.safetensors",
        "..\\x.safetensors",
        "a/../one.safetensors",
        "..",
        "",
    ],
)
def test_a_shard_outside_the_folder_is_unsafe_and_not_opened(sharded, refused, name, monkeypatch):
    folder = sharded(**{"b.weight": name})
    opened = []
    real_open = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *args, **kw: opened.append(str(path)) or real_open(path, *args, **kw)
    )
    refused(lambda: open_model(folder), 3, says="name is a path", tensor=name)
    assert {Path(path).name for path in opened if str(folder) in path} == {"model.safetensors.index.json"}


def test_a_pickle_shard_in_a_safetensors_index_is_unsafe(sharded, refused):
    folder = sharded(**{"b.weight": "two.bin"})
    says = "does not end in .safetensors"
    refused(lambda: open_model(folder, allow_pickle=True), 3, says=says, tensor="two.bin")


def test_a_link_out_of_the_folder_is_unsafe_but_the_hubs_cache_is_not(tmp_path, refused):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a.weight": torch.ones(2, 3)}, blobs / "deadbeef")
    (snapshot / "one.safetensors").symlink_to("../../blobs/deadbeef")
    index = json.dumps({"weight_map": {"a.weight": "one.safetensors"}})
    (snapshot / "model.safetensors.index.json").write_text(index)
    assert torch.equal(open_model(snapshot).tensors["a.weight"].read(), torch.ones(2, 3))

    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "one.safetensors").symlink_to(blobs / "deadbeef")
    (plain / "model.safetensors.index.json").write_text(index)
    refused(lambda: open_model(plain), 3, says="symbolic link that leaves the folder")


@pytest.mark.parametrize(("name", "length"), [("x" * 5000, 5012), ("é" * 150, 312), ("\ud800" * 300, 312)])
def test_a_shard_name_that_no_file_can_have_is_malformed(sharded, refused, name, length):
    folder = sharded(c=f"{name}.safetensors")
    refused(lambda: open_model(folder), 4, says=f"{length:,} bytes")


def test_missing_shards_are_listed(sharded, refused):
    folder = sharded(**{f"t{i}": f"shard{i:02}.safetensors" for i in range(20)})
    refused(lambda: open_model(folder), 4, says="shard07.safetensors and 12 more")


def test_a_few_missing_shards_are_all_listed(sharded, refused):
    folder = sharded(c="three.safetensors", d="four.safetensors")
    error = refused(lambda: open_model(folder), 4, says="2 of 4 shards")
    assert "three.safetensors" in error.fact
    assert "four.safetensors" in error.fact


def test_a_shard_that_lacks_or_adds_a_tensor_is_malformed(sharded, refused, tmp_path):
    folder = sharded(c="two.safetensors")
    refused(lambda: open_model(folder), 4, says="lacks 1 of", tensor="c")
    save_file({"b.weight": torch.ones(3, 2), "extra": torch.ones(1)}, tmp_path / "two.safetensors")
    folder = sharded()
    refused(lambda: open_model(folder), 4, says="holds 1 tensors that the index", tensor="extra")


def test_a_tensor_in_two_shards_is_malformed(sharded, refused, tmp_path):
    save_file({"a.weight": torch.ones(2, 3), "b.weight": torch.ones(3, 2)}, tmp_path / "two.safetensors")
    folder = sharded()
    refused(lambda: open_model(folder), 4, says="also in one.safetensors", tensor="a.weight")


def test_an_index_that_disagrees_with_the_single_file_is_malformed(sharded, refused, tmp_path):
    save_file({"a.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    folder = sharded()
    refused(lambda: open_model(folder), 4, says="first difference: b.weight")


def test_an_index_without_a_map_is_malformed(tmp_path, refused):
    for content in ('{"weight_map": []}', '{"weight_map": {"a": 1}}', "{}"):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        refused(lambda: open_model(tmp_path), 4, says="weight_map")


# Configurations and other formats


@pytest.fixture
def small_model(tmp_path):
    save_file({"layers.0.q_proj.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "1e999"),
        ('{"a": ' + "7" * 5000 + "}", "5,000 digits"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-LFS pointer"),
        ("[]", "list"),
        ("", "not valid JSON"),
    ],
)
def test_a_bad_config_is_malformed(small_model, refused, text, says):
    (small_model / "config.json").write_text(text)
    error = refused(lambda: open_model(small_model), 4, says=says)
    assert error.file == small_model / "config.json"


def test_code_named_by_a_config_is_never_imported(small_model, monkeypatch):
    monkeypatch.syspath_prepend(small_model)
    (small_model / "config.json").write_text(
        json.dumps(
            {
                "auto_map": {"AutoConfig": "evil.Evil"},
                "trust_remote_code": True,
                "model_type": "evil",
                "tokenizer_class": "evil.Evil",
                "num_hidden_layers": 10**9,
            }
        )
    )
    (small_model / "evil.py").write_text("raise SystemExit('imported')")
    source = open_model(small_model)
    assert list(base_matrices(source).matrices) == ["layers.0.q_proj.weight"]
    assert "evil" not in sys.modules


def test_what_training_leaves_is_never_opened(small_model, refused):
    for name in (
        "optimizer.pt",
        "optimizer.bin",
        "rng_state.pth",
        "training_args.bin",
        "scheduler.pt",
        "scaler.pt",
    ):
        os.mkfifo(small_model / name)  # opening one would block
    assert list(open_model(small_model).tensors) == ["layers.0.q_proj.weight"]
    for name in ("optimizer.bin", "optimizer.pt", "rng_state.pth", "training_args.bin"):
        path = small_model / name
        refused(lambda path=path: open_model(path, allow_pickle=True), 4, says="the state of a training run")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.gguf", "GGUF"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("model.onnx", "ONNX"),
        ("adapter_model.safetensors", "adapter"),
        ("notes.txt", "is model.safetensors or its index"),
        ("x.incomplete", "unfinished download"),
    ],
)
def test_a_folder_of_another_format_is_refused_by_name(tmp_path, refused, name, says):
    (tmp_path / name).write_bytes(b"x")
    refused(lambda: open_model(tmp_path), 4, says=says)


def test_a_pipeline_is_refused_with_the_folder_to_give(tmp_path, refused):
    (tmp_path / "model_index.json").write_text("{}")
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    refused(lambda: open_model(tmp_path), 4, says="diffusers pipeline", remedy=str(tmp_path / "unet"))
    save_file({"w": torch.ones(1)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert list(open_model(tmp_path / "unet").tensors) == ["w"]


def test_a_path_that_does_not_exist_is_never_taken_for_a_hub_id(tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: open_model(Path("gpt2")), 4, says="No such file")


def test_a_folder_that_may_not_be_read_is_malformed(tmp_path, refused, monkeypatch):
    (tmp_path / "closed").mkdir()
    listed = os.listdir

    def closed(path="."):  # root, who runs many test machines, may read everything
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", closed)
    refused_here = {"says": "could not be listed (Permission denied)", "remedy": "permissions"}
    refused(lambda: open_model(tmp_path / "closed"), 4, **refused_here)


def test_several_files_without_an_index_are_refused(tmp_path, refused):
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"w": torch.ones(1)}, tmp_path / name)
    refused(lambda: open_model(tmp_path), 4, says="several weight files", remedy="name the file")


def test_a_link_that_leads_nowhere_is_malformed(sharded, refused, tmp_path):
    folder = sharded()
    (tmp_path / "two.safetensors").unlink()
    (tmp_path / "two.safetensors").symlink_to(tmp_path / "gone")
    refused(
        lambda: open_model(folder), 4, says="missing: two.safetensors", remedy="download the missing files"
    )


@pytest.mark.parametrize("name", ["../x.bin", "/etc/x.bin", "C:x.bin", "..\\x.bin", "x.safetensors"])
def test_an_index_of_pickles_is_checked_alike(tmp_path, refused, name):
    index = {"weight_map": {"a.weight": name}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    refused(lambda: open_model(tmp_path), 3, says="PyTorch pickle", remedy="--allow-pickle")
    refused(lambda: open_model(tmp_path, allow_pickle=True), 3, says="the shard's name", tensor=name)
