"""Text to measure on: files, globs, fields of tables, datasets of the hub; hashed and named.

What is read is kept as *documents*: a text file is one, a row of a table is one. How documents become
sequences is a choice of its own (:mod:`intruscope.forgetting.windows`).
"""

from __future__ import annotations

import glob
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, UsageError, printable
from intruscope.weights.stored import read_whole_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_TEXT_BYTES = 4 << 30
HUB_PREFIX = "hf:"
TABLES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
_USUAL_FIELDS = ("text", "content", "sentence")


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """One file or dataset that was read.

    Attributes:
        name: As it was named; a glob gives one source per file.
        sha256: Of its documents in UTF-8, joined by NUL; of a text file alone, that of its bytes.
        num_documents: Rows of a table; 1 for a text file.
        num_bytes: UTF-8 bytes of its documents.
    """

    name: str
    sha256: str
    num_documents: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text, and whether it is a row of a table (then its line breaks separate nothing)."""

    text: str
    source: int
    is_row: bool


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All text of a measurement, in order.

    Attributes:
        documents: At least one, none of them empty.
        sources: Where they are from.
        sha256: Of all documents in UTF-8, joined by NUL.
    """

    documents: tuple[Document, ...]
    sources: tuple[TextSource, ...]
    sha256: str


def read_texts(names: Sequence[str | Path], *, field: str | None = None) -> Corpus:
    """Read everything that the names lead to.

    Args:
        names: A path; a glob; or ``hf:org/name[@revision][:config][:split]``, loaded by the datasets package.
            An existing path always wins. Files ending in .jsonl .json .parquet .csv .tsv are tables.
        field: Column of the tables; by default the only text column among text, content, sentence.

    Raises:
        UsageError: a name leads nowhere, or a field must be named.
        MalformedInput: not UTF-8, damaged, or without any text.
    """
    if not names:
        raise UsageError("got no text, expected a file", remedy="name one with --text FILE")
    documents: list[Document] = []
    sources: list[TextSource] = []
    for name, path in _expanded(names):
        rows = _hub_rows(name, field) if path is None else _file_rows(path, field)
        is_row = path is None or path.suffix.lower() in TABLES
        kept = [row for row in rows if row.strip()]
        if not kept:
            fact = f"got {len(rows)} documents without any text, expected some"
            raise MalformedInput(fact, remedy="give a file with text in it, or another --field", file=name)
        encoded = [row.encode("utf-8", "surrogatepass") for row in kept]
        documents += [Document(text=row, source=len(sources), is_row=is_row) for row in kept]
        sources.append(
            TextSource(
                name=name,
                sha256=hashlib.sha256(b"\0".join(encoded)).hexdigest(),
                num_documents=len(kept),
                num_bytes=sum(map(len, encoded)),
            )
        )
    whole = hashlib.sha256()
    for index, document in enumerate(documents):
        whole.update((b"\0" if index else b"") + document.text.encode("utf-8", "surrogatepass"))
    return Corpus(documents=tuple(documents), sources=tuple(sources), sha256=whole.hexdigest())


def _expanded(names: Sequence[str | Path]) -> Iterable[tuple[str, Path | None]]:
    """Each name with the file it leads to; None for a dataset of the hub."""
    for given in names:
        name = str(given)
        path = Path(name)
        if path.exists():
            if path.is_dir():
                fact = "got a folder, expected a file or a pattern"
                raise UsageError(fact, remedy=f"name its files, for instance '{name}/*.txt'", file=name)
            yield name, path
        elif name.startswith(HUB_PREFIX):
            yield name, None
        elif glob.has_magic(name):
            found = sorted(p for p in glob.glob(name, recursive=True) if Path(p).is_file())  # noqa: PTH207
            if not found:
                raise UsageError("no file matches this pattern", remedy="check the pattern", file=name)
            yield from ((p, Path(p)) for p in found)
        else:
            raise UsageError(
                "got no such file, expected text",
                remedy="check the path; a dataset of the hub is named hf:org/name:split",
                file=name,
            )


def decode(data: bytes, *, file: Path | str) -> str:
    """UTF-8 text, a byte-order mark taken off.

    Raises:
        MalformedInput: another encoding, or no text at all.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        fact = "got UTF-16, expected UTF-8"
        raise MalformedInput(fact, remedy="convert it: iconv -f UTF-16 -t UTF-8", file=file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedInput(
            f"got byte 0x{data[error.start]:02x} at position {error.start}, expected UTF-8",
            remedy="convert it, for instance: iconv -f LATIN1 -t UTF-8",
            file=file,
        ) from None
    at = text.find("\0")
    if at >= 0:
        fact = f"got a NUL at character {at}, expected text"
        raise MalformedInput(fact, remedy="check that this is a text file", file=file)
    return text


def _file_rows(path: Path, field: str | None) -> list[str]:
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        return [decode(read_whole_file(path, max_bytes=MAX_TEXT_BYTES), file=path)]
    return _column(read_table(path), field, file=str(path))


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a table: jsonl, json (a list of objects, or an object of them), parquet, csv, tsv.

    Raises:
        MalformedInput: damaged, or rows that are no objects.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path)
    text = decode(read_whole_file(path, max_bytes=MAX_TEXT_BYTES), file=path)
    if suffix in (".csv", ".tsv"):
        return _delimited_rows(text, "," if suffix == ".csv" else "\t", path)
    if suffix == ".json":
        value = _json(text, path, 0)
        rows = list(value.values()) if isinstance(value, dict) else value
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = [_json(line, path, number) for number, line in lines if line.strip()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        fact = "got JSON values that are no objects, expected one object for each row"
        raise MalformedInput(fact, remedy="write one {...} per row", file=path)
    return rows


def _json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f"line {line}" if line else f"line {getattr(error, 'lineno', 1)}"
        reason = getattr(error, "msg", "nested too deep, or a number of thousands of digits")
        fact = f"got no valid JSON in {place} ({reason}), expected JSON"
        raise MalformedInput(fact, remedy="correct the file", file=path) from None


def _delimited_rows(text: str, delimiter: str, path: Path) -> list[dict[str, Any]]:
    import csv
    import io

    # Tab-separated files of sentences quote nothing: a quotation mark is a character of the sentence.
    quoting: Any = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, quoting=quoting, strict=True)
    csv.field_size_limit(1 << 30)
    try:
        rows = list(reader)
    except csv.Error as error:
        fact = f"got a row that is no {path.suffix[1:]} (line {reader.line_num}: {error}), expected one"
        raise MalformedInput(fact, remedy="correct the file", file=path) from None
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            fact = f"got another number of cells in row {number}, expected {len(reader.fieldnames or ())}"
            raise MalformedInput(fact, remedy="correct the file", file=path)
    return rows


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        fact = f"got no Parquet that can be read ({printable(error)}), expected a whole file"
        raise MalformedInput(fact, remedy="write it again", file=path) from None
    return rows


def _column(rows: Sequence[dict[str, Any]], field: str | None, *, file: str) -> list[str]:
    names = list(dict.fromkeys(name for row in rows[:100] for name in row))
    shown = ", ".join(printable(name) for name in names[:12]) or "none"
    if field is None:
        usual = [name for name in _USUAL_FIELDS if name in names]
        strings = [name for name in names if rows and isinstance(rows[0].get(name), str)]
        found = usual or (strings if len(strings) == 1 else [])
        if not found:
            fact = f"got a table with the fields {shown}, expected to be told which one holds the text"
            raise UsageError(fact, remedy="name it with --field", file=file)
        field = found[0]
    if field not in names:
        fact = f"got no field '{printable(field)}', expected one of {shown}"
        raise UsageError(fact, remedy="check --field", file=file)
    values = [row.get(field) for row in rows]
    wrong = next((value for value in values if value is not None and not isinstance(value, str)), None)
    if wrong is not None:
        fact = f"got {printable(repr(wrong))} in the field '{printable(field)}', expected text"
        raise MalformedInput(fact, remedy="name another field with --field", file=file)
    return [value for value in values if value is not None]


def _hub_rows(name: str, field: str | None) -> list[str]:
    return _column(read_hub_table(name), field, file=name)


def read_hub_table(name: str) -> list[dict[str, Any]]:
    """The rows of ``hf:org/name[@revision][:config][:split]``; the only split, or else test, by default.

    Raises:
        UsageError: the datasets package is absent, or there is no such dataset, config or split.
    """
    from importlib.util import find_spec

    if find_spec("datasets") is None:
        fact = "the package datasets is not installed, expected it for a dataset of the hub"
        raise UsageError(fact, remedy="install it with: pip install 'intruscope[lab]'", file=name)
    import datasets

    given, *rest = name.removeprefix(HUB_PREFIX).split(":")
    path, _, revision = given.partition("@")
    config = rest[0] if len(rest) > 1 else None
    split = rest[-1] if rest else None
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(path, config, split=split, revision=revision or None)
    except Exception as error:  # the package raises of every kind
        fact = f"could not be loaded ({type(error).__name__}: {printable(error)}), expected a dataset"
        remedy = "write hf:org/name:split or hf:org/name:config:split, and check the connection"
        raise UsageError(fact, remedy=remedy, file=name) from error
    finally:
        if not bars:
            datasets.enable_progress_bars()
    if isinstance(loaded, dict):
        splits = list(loaded)
        if len(splits) > 1 and "test" not in splits:
            fact = f"got the splits {', '.join(map(printable, splits))}, expected to be told which one"
            raise UsageError(fact, remedy=f"write {name}:{printable(splits[0])}", file=name)
        loaded = loaded["test" if "test" in splits else splits[0]]
    rows: list[dict[str, Any]] = loaded.to_list()
    return rows
