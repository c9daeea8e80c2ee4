"""What each verb writes: one table, checked before any work is done, written whole after it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.cli.command import Parameter
from intruscope.cli.screen import emit, show
from intruscope.errors import OutputConflict
from intruscope.options import Option

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.records.report import Report

STDOUT = "-"


@dataclass(frozen=True, kw_only=True)
class Output:
    """One option of a verb that names a file or folder to write.

    Attributes:
        help: For ``--help``.
        writer: ``module:function`` below ``intruscope``, called with the report and the path; for ``json``
            it is called with the report and gives the record.
        is_folder: It is a folder of pictures.
    """

    help: str
    writer: str
    is_folder: bool = False

    def __call__(self, *arguments: Any) -> Any:
        """Call the writer."""
        return _imported(self.writer)(*arguments)


@dataclass(frozen=True, kw_only=True)
class Written:
    """Everything that a verb writes.

    Attributes:
        files: By option.
        summary: ``module:function`` below ``intruscope``, which gives what the terminal shows.
        width: Columns of the summary where it goes to a file or a pipe.
    """

    files: Mapping[str, Output]
    summary: str
    width: int = 80


def _json(writer: str, what: str = "report") -> Output:
    return Output(help=f"Write the {what} as JSON; - writes it to standard output.", writer=writer)


_REPORT = _json("records.report:Report.to_json")


def _page(writer: str) -> Output:
    return Output(help="Write a self-contained HTML page.", writer=writer)


def _csv(row: str) -> Output:
    return Output(help=f"Write one row per {row} as CSV.", writer="cli.outputs:write_rows_csv")


def _parquet(row: str | None = None, writer: str = "cli.outputs:write_rows_parquet") -> Output:
    rows = "the same rows" if row is None else f"one row per {row}"
    return Output(help=f"Write {rows} as Parquet.", writer=writer)


def _plots(writer: str) -> Output:
    return Output(help="Write the figures as PNG and SVG into this folder.", writer=writer, is_folder=True)


TABLE = {
    "diagnose": Written(
        files={
            "json": _REPORT,
            "html": _page("report.diagnose_page:write_diagnose_html"),
        },
        summary="report.diagnose:diagnose_summary",
        width=100,
    ),
    "scan": Written(
        files={
            "json": _REPORT,
            "html": _page("cli.scan:write_page"),
            "csv": _csv("singular vector"),
            "parquet": _parquet(),
            "plots": _plots("cli.scan:write_figures"),
        },
        summary="report.terminal:summary",
    ),
    "inspect": Written(
        files={
            "json": _REPORT,
            "csv": _csv("module"),
            "parquet": _parquet(),
        },
        summary="report.inspect:inspect_summary",
        width=110,
    ),
    "compare": Written(
        files={
            "json": _REPORT,
            "html": _page("report.compare_page:write_compare_html"),
            "csv": _csv("pair of fine-tunes and matrix"),
            "parquet": _parquet(),
            "plots": _plots("report.compare_plots:write_compare_plots"),
        },
        summary="report.compare_tables:compare_summary",
        width=120,
    ),
    "verify": Written(
        files={
            "json": _REPORT,
            "csv": _csv("module"),
            "parquet": _parquet(),
        },
        summary="report.verify:verify_summary",
        width=100,
    ),
    "layers": Written(
        files={"json": _json("report.layers:layers_json", "list")},
        summary="report.layers:layers_table",
        width=140,  # most names keep to one line for grep
    ),
    "methods": Written(
        files={"json": _json("report.methods:methods_json", "list")},
        summary="report.methods:methods_table",
        width=160,
    ),
    "forget": Written(
        files={
            "json": _REPORT,
            "html": _page("report.where:write_where_html"),
            "parquet": _parquet("part of the update", "report.where:write_where_parquet"),
            "plots": _plots("report.where:write_where_plots"),
        },
        summary="report.forgetting:forgetting_summary",
        width=100,
    ),
    "knowledge": Written(
        files={
            "json": _REPORT,
            "html": _page("report.knowledge_page:write_knowledge_html"),
            "csv": _csv("fact"),
            "parquet": _parquet(),
        },
        summary="report.knowledge:knowledge_summary",
        width=120,
    ),
    "repair": Written(
        files={"json": _json("repair.manifest:plan_record", "plan")}, summary="report.repair:repair_table"
    ),
    "extract": Written(
        files={
            "json": _json("extract.write:plan_record", "plan"),
            "plots": _plots("report.extract:write_curve"),
        },
        summary="report.extract:extract_table",
    ),
    "merge": Written(
        files={
            "json": _REPORT,
            "parquet": _parquet("module and fine-tune"),
        },
        summary="report.merge:merge_table",
        width=100,
    ),
    "sweep": Written(
        files={
            "json": _REPORT,
            "html": _page("report.sweep_page:write_sweep_html"),
            "parquet": _parquet("measured model"),
            "plots": _plots("report.sweep_plots:write_sweep_plots"),
        },
        summary="report.sweep_tables:sweep_summary",
        width=100,
    ),
    "guide": Written(
        files={
            "json": _REPORT,
            "csv": _csv("completion"),
        },
        summary="report.guidance:guide_summary",
        width=110,
    ),
    "chain": Written(
        files={"json": _json("sequence.records:chain_json")},
        summary="report.sequence:chain_summary",
        width=100,
    ),
    "profile": Written(
        files={
            "json": _json("report.profile:profile_json"),
            "plots": _plots("report.profile:write_profile_plots"),
        },
        summary="report.profile:profile_summary",
        width=110,
    ),
}
"""What each verb writes."""


def _imported(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = attrgetter(function)(import_module(f"intruscope.{module}"))
    return found


@dataclass(frozen=True)
class Writes:
    """The outputs of a verb as parameters, for ``Annotated``.

    Attributes:
        verb: Of the table.
    """

    verb: str

    def parameters(self) -> Iterator[Parameter]:
        """One per output, and ``--force`` where a folder may hold something."""
        for name, output in TABLE[self.verb].files.items():
            hint = str if name == "json" else Path
            known = Option(help=output.help, panel="Output", metavar="FOLDER" if output.is_folder else "FILE")
            yield Parameter(name=name, hint=hint, default=None, required=False, option=known)
        if "plots" in TABLE[self.verb].files:
            known = Option(
                help="Write figures into a folder that is not empty.", panel="Output", needs=("--plots",)
            )
            yield Parameter(name="force", hint=bool, default=False, required=False, option=known)

    def make(self, given: dict[str, Any]) -> Outputs:
        """Those that were asked for."""
        force = given.pop("force", False)
        return Outputs(verb=self.verb, given=given, force=force)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Outputs that were asked for.

    Attributes:
        verb: Of the table.
        given: File or folder by option; ``json`` may be ``-``.
        force: Write into folders that are not empty.
    """

    verb: str
    given: Mapping[str, str | Path]
    force: bool = False

    @property
    def on_stdout(self) -> bool:
        """Whether standard output is for JSON alone."""
        return self.given.get("json") == STDOUT

    def path(self, name: str) -> Path | None:
        """Where an output goes; None where it was not asked for or goes to standard output."""
        found = self.given.get(name)
        return None if found in (None, STDOUT) else Path(str(found))

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file and folder that may be written."""
        return tuple(path for path in map(self.path, self.given) if path is not None)

    def check(
        self,
        models: Sequence[str | None],
        *,
        others: Sequence[Path | None] = (),
        files: Sequence[str | None] = (),
    ) -> None:
        """Refuse outputs that would overwrite an input or another result, as far as names can tell.

        Args:
            models: As the user named them.
            others: Further files and folders that will be written; None for those not asked for.
            files: Texts and tasks that are read; names that are not paths (patterns, datasets) are ignored.

        Raises:
            OutputConflict: an output would do so, or two outputs are the same file.
            UsageError: a model's name is invalid.
        """
        from intruscope.weights.names import parse_name
        from intruscope.weights.output import check_output

        inputs = [Path(name) for name in files if name and os.path.exists(name)]  # noqa: PTH110 - any string
        for model in models:
            name = parse_name(model) if model is not None else None
            inputs += [part.path for part in (name, name.adapter if name else None) if part and part.path]
        targets = (*self.paths, *(other for other in others if other is not None))
        for path in targets:
            check_output(path, inputs)
        seen: set[Path] = set()
        for path in targets:
            if path.resolve() in seen:
                raise OutputConflict("two outputs have this name", remedy="give each its own file", file=path)
            seen.add(path.resolve())
        for option, path in ((o, p) for o in self.given if (p := self.path(o)) is not None):
            if TABLE[self.verb].files[option].is_folder:
                _check_folder(path, force=self.force)
            elif path.is_dir():
                raise OutputConflict("this is a folder, not a file", remedy="name a file", file=path)

    def without(self, options: Sequence[str]) -> Outputs:
        """The same, less some options."""
        return replace(self, given={o: path for o, path in self.given.items() if o not in options})

    def write(self, *report: object, quiet: bool = False) -> None:
        """Write everything that was asked for, each file whole or not at all, and show the summary.

        Args:
            *report: What the writers and the summary are called with.
            quiet: No summary.

        Raises:
            OutputConflict: a target may not be written.
            ResourceExhausted: there is no room for one.
        """
        written = TABLE[self.verb]
        for option, output in written.files.items():
            if option not in self.given:
                continue
            if option == "json":
                write_record(output(*report), str(self.given[option]))
            else:
                output(*report, self.path(option))
        if not quiet and not self.on_stdout:
            show(_imported(written.summary)(*report), width=written.width)


def check_beside(outputs: Sequence[Path], folder: Path | None) -> None:
    """Refuse outputs inside the folder of a new model, which appears whole, with its own files only.

    Args:
        outputs: Other files and folders that will be written.
        folder: Of the model; None where none is written.

    Raises:
        OutputConflict: one lies in it.
    """
    for output in outputs:
        if folder is not None and output.resolve().is_relative_to(folder.resolve()):
            raise OutputConflict(
                "this file would be inside the output folder",
                remedy="choose a place beside it; the manifest in the folder holds the same",
                file=output,
            )


def write_record(record: dict[str, Any], json: str | None) -> None:
    """Write a plan's record as JSON to a file, or to standard output where that is ``-``.

    Args:
        record: Plain data.
        json: As the user named it; None to write nothing.

    Raises:
        OutputConflict, ResourceExhausted: the file cannot be written.
    """
    from intruscope.weights.output import json_text, write_json_file

    if json == STDOUT:
        emit(json_text(record))
    elif json is not None:
        write_json_file(record, Path(json))


def write_rows_csv(report: Report, path: Path) -> None:
    """A report's table as CSV."""
    from intruscope.records.tables import write_csv

    write_csv(report.columns, report.rows(), path)


def write_rows_parquet(report: Report, path: Path) -> None:
    """A report's table as Parquet."""
    from intruscope.records.tables import write_parquet

    write_parquet(report.columns, report.rows(), path)


def _check_folder(folder: Path, *, force: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputConflict("this is a file, not a folder", remedy="name a folder for --plots", file=folder)
    if any(folder.iterdir()) and not force:
        raise OutputConflict(
            "the folder for plots is not empty", remedy="choose another folder, or add --force", file=folder
        )
