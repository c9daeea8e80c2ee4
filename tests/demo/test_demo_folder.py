"""Does the output appear whole or not at all, and is nothing but our own output ever replaced?"""

from __future__ import annotations

import json

import pytest

from intruscope.demo.folder import MANIFEST, replaced_whole
from intruscope.errors import OutputConflict, ResourceExhausted


def make(out, content: str) -> None:
    with replaced_whole(out) as building:
        (building / "inner").mkdir()
        (building / "inner" / "file.txt").write_text(content)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_with_a_manifest_and_is_replaced_by_a_second_run(tmp_path) -> None:
    out = tmp_path / "new" / "out"
    make(out, "first")
    assert list(json.loads((out / MANIFEST).read_text())["sha256"]) == ["inner/file.txt"]
    make(out, "second")
    assert (out / "inner" / "file.txt").read_text() == "second"
    assert names(out.parent) == ["out"]
    assert (out / "inner" / "file.txt").stat().st_mode & 0o444


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_what_was_there(tmp_path, interruption) -> None:
    out = tmp_path / "out"
    for expected in ([], ["out"]):
        with pytest.raises(interruption), replaced_whole(out) as building:
            (building / "half").write_text("half")
            raise interruption
        assert names(tmp_path) == expected
        make(out, "first")
    assert names(out) == [MANIFEST, "inner"]


def test_foreign_folders_and_files_are_refused_and_untouched(tmp_path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("a file")
    ours = tmp_path / "ours"
    make(ours, "first")
    (ours / "inner" / "mine.txt").write_text("added by hand")
    for out, clause in ((foreign, MANIFEST), (file, "this is a file"), (ours, "inner/mine.txt")):
        with pytest.raises(OutputConflict, match=clause) as caught:
            make(out, "second")
        assert caught.value.exit_code == 7
        assert "--out" in str(caught.value)
    assert (foreign / "thesis.txt").read_text() == "years of work"
    assert file.read_text() == "a file"
    assert (ours / "inner" / "file.txt").read_text() == "first"
    assert names(tmp_path) == ["file", "foreign", "ours"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "other/1", "sha256": {}}', "[" * 100_000])
def test_a_broken_manifest_makes_no_folder_ours(tmp_path, text) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(OutputConflict):
        make(tmp_path, "second")


def test_an_empty_folder_is_taken(tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make(out, "first")
    assert names(out) == [MANIFEST, "inner"]


def test_a_full_disk_is_a_resource_and_leaves_nothing(tmp_path) -> None:
    with pytest.raises(ResourceExhausted, match="No space") as caught, replaced_whole(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert caught.value.exit_code == 6
    assert names(tmp_path) == []
