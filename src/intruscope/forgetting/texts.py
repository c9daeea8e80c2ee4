"""Text to measure on: files, globs, columns of tables, datasets on the hub; hashed and named.

What is read is kept as *documents*: a text file is one document, and so is a row of a table. How documents
become sequences is decided elsewhere (:mod:`intruscope.forgetting.windows`).
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
        name: As given; a glob gives one source per file.
        sha256: Hash of its documents in UTF-8, joined by NUL; for a text file, the hash of its bytes.
        num_documents: Number of rows of a table; 1 for a text file.
        num_bytes: Number of UTF-8 bytes in its documents.
    """

    name: str
    sha256: str
    num_documents: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text, and whether it is a row of a table (its line breaks then separate nothing)."""

    text: str
    source: int
    is_row: bool


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All text of a measurement, in order.

    Attributes:
        documents: At least one, none of them empty.
        sources: Where they come from.
        sha256: Hash of all documents in UTF-8, joined by NUL.
    """

    documents: tuple[Document, ...]
    sources: tuple[TextSource, ...]
    sha256: str


def read_texts(names: Sequence[str | Path], *, field: str | None = None) -> Corpus:
    """Read all text that the names refer to.

    Args:
        names: Paths, globs, or ``hf:org/name[@revision][:config][:split]``, which the datasets package loads.
            An existing path always wins. Files ending in .jsonl .json .parquet .csv .tsv are tables.
        field: Column that holds the text, in tables; by default text, content or sentence, or else the only
            column of text.

    Raises:
        UsageError: a name refers to nothing, or the column must be named.
        MalformedInput: not UTF-8, damaged, or without any text.
    """
    if not names:
        raise UsageError("no text given", remedy="name a file with --text FILE")
    documents: list[Document] = []
    sources: list[TextSource] = []
    for name, path in _expanded(names):
        rows = _hub_rows(name, field) if path is None else _file_rows(path, field)
        is_row = path is None or path.suffix.lower() in TABLES
        kept = [row for row in rows if row.strip()]
        if not kept:
            fact = "this is without any text"
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
    """Each name with the file it refers to; None for a dataset on the hub."""
    for given in names:
        name = str(given)
        path = Path(name)
        if path.exists():
            if path.is_dir():
                fact = "this is a folder, not a text file"
                raise UsageError(fact, remedy=f"name its files, for example '{name}/*.txt'", file=name)
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
                "no such file",
                remedy="check the path; a dataset on the hub is written hf:org/name:split",
                file=name,
            )


def decode(data: bytes, *, file: Path | str) -> str:
    """Decode UTF-8 text, without a byte-order mark.

    Raises:
        MalformedInput: another encoding, or not text at all.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        fact = "the encoding is UTF-16, not UTF-8"
        raise MalformedInput(fact, remedy="convert it: iconv -f UTF-16 -t UTF-8", file=file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedInput(
            f"the encoding is not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start})",
            remedy="convert it, for example: iconv -f LATIN1 -t UTF-8",
            file=file,
        ) from None
    at = text.find("\0")
    if at >= 0:
        fact = f"this is not text: character {at} is NUL"
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
        MalformedInput: damaged, or rows that are not objects.
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
        fact = "the rows of this JSON file are not objects"
        raise MalformedInput(fact, remedy="write one {...} per row", file=path)
    return rows


def _json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f"line {line}" if line else f"line {getattr(error, 'lineno', 1)}"
        reason = getattr(error, "msg", "nested too deeply, or a number of thousands of digits")
        fact = f"{place} is not valid JSON ({reason})"
        raise MalformedInput(fact, remedy="correct the file", file=path) from None


def _delimited_rows(text: str, delimiter: str, path: Path) -> list[dict[str, Any]]:
    import csv
    import io

    # Tab-separated files of sentences use no quoting: a quotation mark is part of the sentence.
    quoting: Any = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, quoting=quoting, strict=True)
    csv.field_size_limit(1 << 30)
    try:
        rows = list(reader)
    except csv.Error as error:
        fact = f"line {reader.line_num} is not valid {path.suffix[1:]} ({error})"
        raise MalformedInput(fact, remedy="correct the file", file=path) from None
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            fact = f"row {number} does not have {len(reader.fieldnames or ())} cells, as the header has"
            raise MalformedInput(fact, remedy="correct the file", file=path)
    return rows


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        fact = f"cannot read this Parquet file ({printable(error)})"
        raise MalformedInput(fact, remedy="check that the file is complete", file=path) from None
    return rows


def _column(rows: Sequence[dict[str, Any]], field: str | None, *, file: str) -> list[str]:
    names = list(dict.fromkeys(name for row in rows[:100] for name in row))
    shown = ", ".join(printable(name) for name in names[:12]) or "none"
    if field is None:
        usual = [name for name in _USUAL_FIELDS if name in names]
        strings = [name for name in names if rows and isinstance(rows[0].get(name), str)]
        found = usual or (strings if len(strings) == 1 else [])
        if not found:
            fact = f"cannot tell which column holds the text (columns: {shown})"
            raise UsageError(fact, remedy="name the column with --field", file=file)
        field = found[0]
    if field not in names:
        fact = f"there is no column '{printable(field)}'; the columns are {shown}"
        raise UsageError(fact, remedy="check --field", file=file)
    values = [row.get(field) for row in rows]
    wrong = next((value for value in values if value is not None and not isinstance(value, str)), None)
    if wrong is not None:
        fact = f"the column '{printable(field)}' holds {printable(repr(wrong))}, which is not text"
        raise MalformedInput(fact, remedy="name another column with --field", file=file)
    return [value for value in values if value is not None]


def _hub_rows(name: str, field: str | None) -> list[str]:
    return _column(read_hub_table(name), field, file=name)


def read_hub_table(name: str) -> list[dict[str, Any]]:
    """The rows of ``hf:org/name[@revision][:config][:split]``; by default the only split, or else test.

    Raises:
        UsageError: the datasets package is not installed, or there is no such dataset, config or split.
    """
    from importlib.util import find_spec

    if find_spec("datasets") is None:
        fact = "loading a dataset from the hub needs the package datasets, which is not installed"
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
    except Exception as error:  # the package raises all kinds
        fact = f"this dataset could not be loaded ({type(error).__name__}: {printable(error)})"
        remedy = "check the name, hf:org/name:split or hf:org/name:config:split, and the connection"
        raise UsageError(fact, remedy=remedy, file=name) from error
    finally:
        if not bars:
            datasets.enable_progress_bars()
    if isinstance(loaded, dict):
        splits = list(loaded)
        if len(splits) > 1 and "test" not in splits:
            fact = f"this dataset has several splits: {', '.join(map(printable, splits))}"
            raise UsageError(fact, remedy=f"name one, for example {name}:{printable(splits[0])}", file=name)
        loaded = loaded["test" if "test" in splits else splits[0]]
    rows: list[dict[str, Any]] = loaded.to_list()
    return rows
