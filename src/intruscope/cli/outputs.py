"""The output files of a scan: checked before any work is done, written whole after it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.cli.screen import emit
from intruscope.errors import OutputConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.spectra.records import ScanReport


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The requested outputs.

    Attributes:
        json: File, or ``-`` for standard output.
        csv: File.
        parquet: File.
        html: File.
        plots: Folder.
        with_maps: Similarity maps were requested; large ones need a file of their own.
    """

    json: str | None
    csv: Path | None
    parquet: Path | None
    html: Path | None
    plots: Path | None
    with_maps: bool

    @property
    def json_file(self) -> Path | None:
        """Where the JSON goes, unless it goes to standard output."""
        return None if self.json in (None, "-") else Path(str(self.json))

    @property
    def maps_file(self) -> Path | None:
        """Beside the page, or else beside the JSON."""
        report = self.html or self.json_file
        if report is None or not self.with_maps or (report.exists() and not report.is_file()):
            return None  # beside a pipe or a device there is no place for it
        return report.with_name(f"{report.stem}.maps.npz")

    @property
    def _files(self) -> list[Path]:
        files = (self.json_file, self.csv, self.parquet, self.html, self.maps_file)
        return [path for path in files if path is not None]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Everything that may be written."""
        return (*self._files, *([self.plots] if self.plots else []))

    def check(
        self,
        models: Sequence[str | None],
        *,
        work: Path | None = None,
        force: bool = False,
        files: Sequence[str] = (),
    ) -> None:
        """Refuse outputs that would overwrite an input or another result, as far as names can tell.

        Args:
            models: As the user named them.
            work: Folder of the journal, if given.
            force: Write into folders that are not empty.
            files: Texts and tasks that are read; names that are not paths (patterns, datasets) are ignored.

        Raises:
            OutputConflict: an output would do so, or two outputs are the same file.
            UsageError: a model's name is invalid.
        """
        from intruscope.weights.names import parse_name
        from intruscope.weights.output import check_output

        inputs = [Path(name) for name in files if os.path.exists(name)]  # noqa: PTH110 - takes any string
        for model in models:
            name = parse_name(model) if model is not None else None
            inputs += [part.path for part in (name, name.adapter if name else None) if part and part.path]
        for path in (*self.paths, *([work] if work else [])):
            check_output(path, inputs)
        seen: set[Path] = set()
        for path in self.paths:
            if path.resolve() in seen:
                raise OutputConflict(
                    "two outputs have this name",
                    remedy="give each its own file",
                    file=path,
                )
            seen.add(path.resolve())
        for path in self._files:
            if path.is_dir():
                raise OutputConflict("this is a folder, not a file", remedy="name a file", file=path)
        _check_plots(self.plots, force=force)

    def write(self, report: ScanReport, *, on_notice: Callable[[str], None]) -> None:
        """Write everything, each file whole or not at all.

        Args:
            report: The scan.
            on_notice: Called with a sentence if maps are written to a file of their own.

        Raises:
            OutputConflict: a target is not writable.
            ResourceExhausted: there is no space for one.
        """
        compact = report
        if self.maps_file is not None:
            from intruscope.report.maps import move_large_maps

            compact = move_large_maps(report, self.maps_file)
            if compact is not report:
                on_notice(f"the similarity maps are in {self.maps_file}")
        if self.json == "-":
            import json

            emit(json.dumps(report.to_json(), allow_nan=False) + "\n")
        elif self.json_file is not None:
            compact.save(self.json_file)
        if self.csv is not None:
            from intruscope.records.tables import write_csv

            write_csv(report.columns, report.rows(), self.csv)
        if self.parquet is not None:
            from intruscope.records.tables import write_parquet

            write_parquet(report.columns, report.rows(), self.parquet)
        if self.html is not None:
            from intruscope.report.html import write_html

            write_html([(report.tuned, compact)], self.html, title="Intruder dimensions")
        if self.plots is not None:
            from intruscope.plots.figures import write_plots

            write_plots([(report.tuned, report)], self.plots)


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

    if json == "-":
        emit(json_text(record))
    elif json is not None:
        write_json_file(record, Path(json))


def _check_plots(folder: Path | None, *, force: bool) -> None:
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise OutputConflict("this is a file, not a folder", remedy="name a folder for --plots", file=folder)
    if any(folder.iterdir()) and not force:
        raise OutputConflict(
            "the folder for plots is not empty", remedy="choose another folder, or add --force", file=folder
        )
