"""Text from every place it may lie, hashed; and what is no text is refused by name."""

import hashlib
import json

import pyarrow
import pyarrow.parquet
import pytest

from intruscope.errors import IntruscopeError
from intruscope.forgetting.texts import read_texts

ROWS = ["It was a dark\nand stormy night", "café — 氷", "the end"]


def write_tables(folder):
    """The same rows in every form of table."""
    records = [{"id": i, "body": row, "kind": "a"} for i, row in enumerate(ROWS)]
    (folder / "t.jsonl").write_text("\n".join(json.dumps(r) for r in records) + "\n", encoding="utf-8")
    (folder / "t.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "keyed.json").write_text(json.dumps({str(r["id"]): r for r in records}), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "t.parquet")
    quoted = "\n".join(f'{r["id"]},"{r["body"]}",a' for r in records)
    (folder / "t.csv").write_text("id,body,kind\n" + quoted, encoding="utf-8")


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "keyed.json", "t.parquet", "t.csv"])
def test_a_field_of_a_table(name, tmp_path):
    write_tables(tmp_path)
    corpus = read_texts([tmp_path / name], field="body")
    assert [d.text for d in corpus.documents] == ROWS
    assert all(d.is_row for d in corpus.documents)
    (source,) = corpus.sources
    assert source.num_documents == 3
    assert source.sha256 == corpus.sha256 == hashlib.sha256("\0".join(ROWS).encode()).hexdigest()
    assert source.num_bytes == sum(len(row.encode()) for row in ROWS)


def test_a_dataset_by_name(tmp_path, monkeypatch):
    """The datasets package loads folders by the same call as names of the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "set"
    data.mkdir()
    for split in ("train", "test"):
        records = [{"text": f"{split} {row}"} for row in ROWS]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), data / f"{split}.parquet")
    for name in (f"hf:{data}:test", f"hf:{data}"):
        assert [d.text for d in read_texts([name]).documents] == [f"test {row}" for row in ROWS]
    assert read_texts([f"hf:{data}:train"]).documents[2].text == "train the end"
    with pytest.raises(IntruscopeError, match="could not be loaded") as caught:
        read_texts([f"hf:{data}:nowhere"])
    assert caught.value.exit_code == 2


def test_files_and_patterns_in_order_with_their_hashes(tmp_path):
    for name, text in (("b.txt", "second\n"), ("a.txt", "first\n"), ("c.md", "other")):
        (tmp_path / name).write_bytes(text.encode())
    corpus = read_texts([tmp_path / "c.md", str(tmp_path / "*.txt")])
    assert [d.text for d in corpus.documents] == ["other", "first\n", "second\n"]
    assert [s.sha256 for s in corpus.sources] == [
        hashlib.sha256(text).hexdigest() for text in (b"other", b"first\n", b"second\n")
    ]
    assert read_texts([tmp_path / "a.txt"]).sha256 == hashlib.sha256(b"first\n").hexdigest()
    assert corpus.sha256 != read_texts([str(tmp_path / "*.txt"), tmp_path / "c.md"]).sha256
    assert [d.source for d in corpus.documents] == [0, 1, 2]


def test_the_usual_fields_and_the_only_text_are_found(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "x", "text": "one"}\n{"title": "y", "text": "two"}\n')
    assert [d.text for d in read_texts([tmp_path / "a.jsonl"]).documents] == ["one", "two"]
    (tmp_path / "b.jsonl").write_text('{"n": 1, "words": "one"}\n')
    assert [d.text for d in read_texts([tmp_path / "b.jsonl"]).documents] == ["one"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfword")
    assert read_texts([tmp_path / "a.txt"]).documents[0].text == "word"


def test_a_path_wins_over_a_pattern(tmp_path):
    (tmp_path / "a[1].txt").write_text("named so")
    assert read_texts([tmp_path / "a[1].txt"]).documents[0].text == "named so"


@pytest.mark.parametrize(
    ("name", "data", "code", "says", "remedy"),
    [
        ("a.txt", b"", 4, "without any text", "with text"),
        ("a.txt", b" \n\t\n", 4, "without any text", "with text"),
        ("a.txt", "naïve".encode("latin-1"), 4, "not UTF-8 .byte 0xef at position 2", "iconv"),
        ("a.txt", "text".encode("utf-16"), 4, "is UTF-16, not UTF-8", "iconv"),
        ("a.txt", b"te\0xt", 4, "character 2 is NUL", "text file"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', 4, "line 2 is not valid JSON", "correct"),
        ("a.jsonl", b'"text"\n', 4, "not objects", "row"),
        ("a.jsonl", b'{"a": "x", "b": "y"}\n', 2, "columns: a, b", "--field"),
        ("a.jsonl", b'{"text": 3}\n', 4, "column 'text' holds 3, which is not text", "--field"),
        ("a.parquet", b"PAR1", 4, "cannot read this Parquet", "complete"),
        ("a.csv", b"text,n\nword\n", 4, "row 2 does not have 2 cells", "correct"),
    ],
)
def test_refused(name, data, code, says, remedy, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(IntruscopeError, match=says) as caught:
        read_texts([tmp_path / name])
    assert caught.value.exit_code == code
    assert remedy in caught.value.remedy
    assert str(caught.value.file) == str(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "says"),
    [("none.txt", "no such file"), ("*.none", "no file matches"), (".", "is a folder")],
)
def test_names_that_lead_nowhere(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IntruscopeError, match=says) as caught:
        read_texts([name])
    assert caught.value.exit_code == 2


def test_another_field_is_refused_with_those_there_are(tmp_path):
    write_tables(tmp_path)
    with pytest.raises(IntruscopeError, match="no column 'text'; the columns are id, body, kind"):
        read_texts([tmp_path / "t.json"], field="text")
