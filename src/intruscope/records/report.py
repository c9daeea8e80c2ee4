"""The base of all reports: what a notebook can do with any of them."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - decoding reads the hints when it runs
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from intruscope.errors import MalformedInput, printable
from intruscope.records.plain import decode, plain
from intruscope.records.tables import Cell, arrow_table, data_frame
from intruscope.weights.output import write_json_file
from intruscope.weights.stored import read_whole_file
from intruscope.weights.strict_json import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

_MAX_BYTES = 2**31


class Report:
    """A frozen dataclass that can be saved, loaded, tabulated and shown in a notebook.

    A report says what its schema is called, what its rows are, and how it looks; everything else is here.
    """

    schema: ClassVar[str]
    """Name and version of its JSON, as ``intruscope.scan/1``."""
    columns: ClassVar[Mapping[str, str]]
    """Names of its table's columns in order, with their Arrow types."""

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """The rows of its table, a cell for each of :attr:`columns`."""
        raise NotImplementedError

    def notebook(self) -> Sequence[str]:
        """Pieces of HTML that a notebook shows, made by :mod:`intruscope.records.notebook`."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The public JSON object of this report.

        Returns:
            Plain dicts, lists, strings, numbers, booleans and None; no NaN. ``json.loads`` of its
            ``json.dumps`` equals it.
        """
        return {"schema": self.schema, **self._arranged(plain(self))}

    @classmethod
    def from_json(cls, data: Any, *, file: Path | str | None = None) -> Self:
        """Rebuild a report; the exact inverse of :meth:`to_json`.

        Args:
            data: What ``json.loads`` gave.
            file: Where it is from, for messages.

        Raises:
            MalformedInput: another schema, or a field that is missing, unknown or of another type.
        """
        found = data.get("schema") if isinstance(data, dict) else None
        if found != cls.schema:
            what = "no Intruscope report" if found is None else f"a report of schema {printable(found)}"
            raise MalformedInput(
                f"this is {what}; {cls.__name__} reads {cls.schema}",
                remedy=f"give a file that {cls.__name__}.save or --json of this version wrote",
                file=file,
            )
        try:
            return decode(cls, cls._fields({name: item for name, item in data.items() if name != "schema"}))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise MalformedInput(
                f"the report does not fit its schema {cls.schema}: {printable(error)}",
                remedy="write it again with this version",
                file=file,
            ) from error

    def save(self, path: Path | str) -> Path:
        """Write the report as JSON, whole or not at all; :meth:`load` reads it back without loss.

        The file is indented ASCII, so names with any characters survive.

        Returns:
            The path.

        Raises:
            OutputConflict, ResourceExhausted: the file cannot be written.
            ValueError: a figure is NaN or infinite, which no record may hold.
        """
        path = Path(path)
        write_json_file(self.to_json(), path)
        return path

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a report that :meth:`save` or the command's ``--json`` wrote.

        Raises:
            MalformedInput: no such file, no JSON, another schema, or a field that does not fit it.
        """
        path = Path(path)
        return cls.from_json(
            parse_json_object(read_whole_file(path, max_bytes=_MAX_BYTES), file=path), file=path
        )

    def to_arrow(self) -> pa.Table:
        """The report's rows as a ``pyarrow.Table`` with :attr:`columns`."""
        return arrow_table(self.columns, self.rows())

    def to_pandas(self) -> Any:
        """The report's rows as a ``pandas.DataFrame`` with :attr:`columns`.

        Raises:
            UsageError: pandas is not installed; :meth:`to_arrow` needs nothing more.
        """
        return data_frame(self.columns, self.rows())

    def _repr_html_(self) -> str:
        from intruscope.records.notebook import framed

        return framed(self.notebook())

    def _arranged(self, laid_out: dict[str, Any]) -> dict[str, Any]:
        """The public object from the plain fields, where it says more than they do or says it elsewhere."""
        return laid_out

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The plain fields from the public object: undoes :meth:`_arranged`."""
        return data
