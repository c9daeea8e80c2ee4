"""Are the texts split by a fixed rule into disjoint parts, and named by a hash that moves when they do?"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from intruscope.demo.texts import (
    EXCLUDED_FOLDERS,
    Text,
    digest,
    is_held_out,
    language_reference,
    library_texts,
)
from intruscope.errors import UsageError


def test_library_parts_are_disjoint_and_hold_nothing_excluded() -> None:
    train = {text.name for text in library_texts(held_out=False)}
    held_out = {text.name for text in library_texts(held_out=True)}
    assert not train & held_out
    assert 0.03 < len(held_out) / len(train | held_out) < 0.12
    for name in train | held_out:
        assert EXCLUDED_FOLDERS.isdisjoint(name.split("/"))
        assert "topics" not in name


def test_the_rule_is_on_the_path_alone() -> None:
    # Computed by `printf PATH | sha256sum`; were the rule to change, the shipped model would be tested on
    # what it was trained on.
    assert not is_held_out("json/decoder.py")
    assert is_held_out("uuid.py")
    assert all(is_held_out(text.name) for text in library_texts(held_out=True))
    assert not any(is_held_out(text.name) for text in library_texts(held_out=False))


def test_contents_are_those_of_the_files(tmp_path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "test").mkdir()
    for i in range(200):
        (tmp_path / "package" / f"m{i}.py").write_text(f"value = {i}\n" * 60)
    (tmp_path / "test" / "test_m.py").write_text("value = 0\n" * 60)
    (tmp_path / "tiny.py").write_text("x = 1\n")
    both = [*library_texts(held_out=False, root=tmp_path), *library_texts(held_out=True, root=tmp_path)]
    assert {text.name for text in both} == {f"package/m{i}.py" for i in range(200)}
    assert all(text.content == (tmp_path / text.name).read_text() for text in both)


def test_a_python_without_source_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="0 source files") as caught:
        library_texts(held_out=True, root=tmp_path)
    assert caught.value.exit_code == 2
    assert "full python3" in caught.value.remedy


def test_a_python_without_the_reference_is_refused(monkeypatch) -> None:
    stripped = ModuleType("pydoc_data.topics")
    stripped.topics = {}
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", stripped)
    with pytest.raises(UsageError, match=r"pydoc_data\.topics"):
        language_reference()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UsageError, match="has only 0 chapters"):
        language_reference()


def test_the_reference_is_split_by_chapter_and_seed() -> None:
    train, test = language_reference(seed=0)
    names = {text.name for text in train}, {text.name for text in test}
    assert not names[0] & names[1]
    assert len(train) == round(0.85 * (len(train) + len(test)))
    assert language_reference(seed=0) == (train, test)
    assert language_reference(seed=1)[1] != test


def test_the_digest_sees_names_contents_order_and_borders() -> None:
    first, second = Text(name="a", content="bc"), Text(name="d", content="")
    others = [
        [second, first],
        [first],
        [Text(name="ab", content="c"), second],
        [Text(name="a", content="bd"), second],
    ]
    reference = digest([first, second])
    assert reference == digest([first, second])
    assert len({reference, *(digest(other) for other in others)}) == 5
