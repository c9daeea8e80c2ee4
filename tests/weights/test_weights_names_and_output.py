"""Names as people write them, and outputs that appear whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from intruscope.errors import OutputConflict, ResourceExhausted, UsageError
from intruscope.weights.names import parse_name
from intruscope.weights.output import (
    check_output,
    check_room,
    whole_folder,
    write_atomically,
    write_json_file,
)


def test_hub_ids_with_and_without_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = parse_name("org/name@v1.0")
    assert (name.hub_id, name.revision, name.path, name.adapter) == ("org/name", "v1.0", None, None)
    assert parse_name("gpt2").hub_id == "gpt2"
    assert parse_name("gpt2").revision is None


def test_an_existing_path_wins_over_at_and_plus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("org/name@v1", "a+b", "a", "x+y"):
        Path(folder).mkdir(parents=True)
        assert parse_name(folder).path == Path(folder)
        assert parse_name(folder).adapter is None


def test_base_plus_adapter_splits_where_the_paths_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("x+y", "lora"):
        Path(folder).mkdir()
    name = parse_name("x+y+lora")
    assert name.path == Path("x+y")
    assert name.adapter is not None
    assert name.adapter.path == Path("lora")
    name = parse_name("org/name@main+me/lora@v2")
    assert (name.hub_id, name.revision) == ("org/name", "main")
    assert name.adapter is not None
    assert (name.adapter.hub_id, name.adapter.revision) == ("me/lora", "v2")


@pytest.mark.parametrize("given", ["", "a b", "org/name@", "org/..", "C:\\x", "a\0b", "x" * 5000])
def test_what_is_neither_path_nor_id_is_a_usage_error(given):
    with pytest.raises(UsageError, match="not a valid hub id") as caught:
        parse_name(given)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("given", ["./llama", "/llama", "../x", "a/b/c", "~/llama", "models/lama", "lama/"])
def test_a_path_that_is_not_there_is_never_sought_on_the_hub(tmp_path, monkeypatch, given):
    """Also what has the form of an id, where the folder that it begins with is here."""
    (tmp_path / "models" / "llama").mkdir(parents=True)
    (tmp_path / "lama").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"no such file or folder: {given}") as caught:
        parse_name(given)
    if given == "models/lama":
        assert "did you mean models/llama? (for the model of that name on the hub" in caught.value.remedy
        assert parse_name(f"{given}@main").hub_id == given


def test_a_path_object_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x+y").mkdir()
    assert parse_name(Path("x+y")) == parse_name("x+y")
    for given in (Path("gpt2"), Path("x+y", "lora"), Path("x+y+x+y")):
        with pytest.raises(UsageError, match="no such file or folder"):
            parse_name(given)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_an_output_that_touches_an_input_is_refused(tmp_path, model, refused):
    (tmp_path / "link.json").hardlink_to(model / "model.safetensors")
    (tmp_path / "soft").symlink_to(model)
    bad = [
        model,
        model / "report.json",
        model / "model.safetensors",
        tmp_path / "link.json",
        tmp_path / "soft" / "report.json",
        tmp_path / "elsewhere" / ".." / "model" / "r.json",
    ]
    (tmp_path / "elsewhere").mkdir()
    for output in bad:
        refused(lambda output=output: check_output(output, [model]), 7, says="input")
    refused(lambda: check_output(tmp_path / "link.json", [model / "model.safetensors"]), 7, says="hard link")
    refused(lambda: check_output(tmp_path / "no" / "r.json", [model]), 7, says="does not exist")
    check_output(tmp_path / "report.json", [model])
    check_output(tmp_path / "model-report.json", [model, model / "model.safetensors"])


def test_a_file_is_replaced_whole_with_the_umasks_mode(tmp_path):
    target = tmp_path / "report.json"
    target.write_bytes(b"old")
    mask = os.umask(0o027)
    try:
        write_atomically(target, lambda stream: stream.write(b"new"))
    finally:
        os.umask(mask)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_writer_that_fails_leaves_the_old_file_and_no_trace(tmp_path, refused):
    target = tmp_path / "report.json"
    target.write_bytes(b"old")

    def full(stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    error = refused(lambda: write_atomically(target, full), 6, says="No space left", remedy="free some space")
    assert isinstance(error, ResourceExhausted)

    def bug(stream):
        stream.write(b"half")
        raise KeyError("bug")

    with pytest.raises(KeyError):
        write_atomically(target, bug)
    assert target.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_folder_in_the_way_or_missing_is_a_conflict(tmp_path, refused):
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "folder", tmp_path / "missing" / "r.json"):
        error = refused(lambda target=target: write_atomically(target, lambda stream: None), 7, says="")
        assert isinstance(error, OutputConflict)


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    with whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_bytes(b"1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_bytes() == b"1"
    with pytest.raises(OutputConflict, match="not empty"), whole_folder(tmp_path / "out"):
        raise AssertionError("unreachable")
    with pytest.raises(ResourceExhausted, match="No space left"), whole_folder(tmp_path / "full") as folder:
        (folder / "a").write_bytes(b"1")
        raise OSError(28, "No space left on device")
    with (
        pytest.raises(OutputConflict, match="could not be written"),
        whole_folder(tmp_path / "no" / "out"),
    ):
        raise AssertionError("unreachable")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with whole_folder(Path()) as folder:
        (folder / "b").write_bytes(b"2")
    assert (tmp_path / "here" / "b").read_bytes() == b"2"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["here", "out"]


UNFINISHED = """
import sys, os
from pathlib import Path
from intruscope.weights.output import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_bytes(b"x" * 1000)
    print(folder.parent, flush=True)
    sys.stdin.readline()
    os._exit(9)  # as a kill: nothing is cleaned up
"""


def unfinished(target):
    """A process that fills a folder, and the hidden folder that it fills."""
    command = [sys.executable, "-c", UNFINISHED, str(target)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    """And nothing else: not what a run still fills, another target's, another machine's, nor a stranger's."""
    target = tmp_path / "out"
    (killed, left), (running, busy), (other, elsewhere) = map(unfinished, [target, target, tmp_path / "out2"])
    assert all(path.is_dir() for path in (left, busy, elsewhere))
    for process in (killed, other):
        process.communicate("\n", timeout=30)
    foreign = {tmp_path / f".out.{name}.tmp" for name in ("mine", "host", "link")}
    for path in foreign - {tmp_path / ".out.link.tmp"}:
        path.mkdir()
    (tmp_path / ".out.host.tmp" / "intruscope.lock").write_text("intruscope on another-machine\n")
    (tmp_path / ".out.link.tmp").symlink_to(elsewhere)
    try:
        with whole_folder(target) as folder:
            (folder / "whole").write_bytes(b"1")
        assert not left.exists()
        assert [path.name for path in target.iterdir()] == ["whole"]
        assert set(tmp_path.iterdir()) == {target, busy, elsewhere, *foreign}
        assert (busy / "content" / "half").read_bytes() == b"x" * 1000
        assert (elsewhere / "content" / "half").exists()
    finally:
        running.communicate("\n", timeout=30)
    check_room(tmp_path / "out2", 1)
    assert not elsewhere.exists()


def test_a_pipe_or_a_device_is_written_to_and_never_replaced(tmp_path, refused):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        read = threads.submit(pipe.read_bytes)
        write_json_file({"a": 1}, pipe)
        assert json.loads(read.result(timeout=30)) == {"a": 1}
    assert pipe.is_fifo()
    full = tmp_path / "full"
    try:  # a device of its own, so that a fault of ours would replace that one
        os.mknod(full, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        full.write_bytes(b"")
    except PermissionError:
        pytest.skip("devices cannot be made here")
    os.unlink(pipe)
    error = refused(lambda: write_json_file({"a": 1}, full), 6, says="No space left")
    assert error.remedy == "free some space or choose another place"
    assert full.is_char_device()
    link = tmp_path / "link"
    link.symlink_to(full)
    refused(lambda: write_json_file({"a": 1}, link), 6, says="No space left")
    assert full.is_char_device()


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("there")
    for number in (1, 2):
        write_json_file({"a": number}, tmp_path / "link")
        assert json.loads((tmp_path / "there").read_bytes()) == {"a": number}
    assert (tmp_path / "link").is_symlink()
