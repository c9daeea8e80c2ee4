"""The pictures of one or several scans, as PNG and SVG."""

from __future__ import annotations

import io
import secrets
import shutil
from typing import IO, TYPE_CHECKING, Any

from intruscope.errors import IntruscopeError, OutputConflict
from intruscope.plots.draw import (
    alignment_figure,
    curve_figure,
    effective_rank_figure,
    heat_map_figure,
    similarity_figure,
)
from intruscope.plots.style import picture_style
from intruscope.weights.output import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from intruscope.spectra.records import ScanReport

_FORMATS: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}
"""Formats, with the metadata that would make the same picture differ between two runs."""


def write_plots(reports: Sequence[tuple[str, ScanReport]], folder: Path) -> tuple[str, ...]:
    """Write every picture that the records have figures for.

    Args:
        reports: Label and scan; several share a picture, so that they can be compared.
        folder: Made if it does not exist. Where it exists, pictures of the same names are replaced
            and nothing else in it is touched.

    Returns:
        Names of the files: ``heat-map``, ``epsilon-curve``, ``alignment``, ``effective-rank`` and
        ``similarity`` (numbered where there are several scans), each as ``.png`` and ``.svg``.

    Raises:
        OutputConflict, ResourceExhausted: nothing new is left in the folder.
    """
    return write_figures(lambda: _figures(reports), folder)


def write_figures(draw: Callable[[], Iterable[tuple[str, Any]]], folder: Path) -> tuple[str, ...]:
    """Draw in the one style and write each picture as PNG and SVG.

    Args:
        draw: Gives names and matplotlib figures; called within the style.
        folder: As in :func:`write_plots`.

    Returns:
        Names of the files.

    Raises:
        OutputConflict, ResourceExhausted: nothing new is left in the folder.
    """
    files: dict[str, bytes] = {}
    with picture_style():
        for name, figure in draw():
            if figure.get_layout_engine() is not None:
                figure.draw_without_rendering()
                figure.set_layout_engine(None)  # laid out once; it is the slow part
            for suffix, metadata in _FORMATS.items():
                stream = io.BytesIO()
                figure.savefig(stream, format=suffix, metadata=metadata)
                files[f"{name}.{suffix}"] = stream.getvalue()
    _publish(files, folder)
    return tuple(files)


def _figures(reports: Sequence[tuple[str, ScanReport]]) -> Iterator[tuple[str, Any]]:
    for name, draw in (
        ("heat-map", heat_map_figure),
        ("epsilon-curve", curve_figure),
        ("alignment", alignment_figure),
        ("effective-rank", effective_rank_figure),
    ):
        figure = draw(reports)
        if figure is not None:
            yield name, figure
    for number, (label, report) in enumerate(reports, start=1):
        figure = similarity_figure(label, report)
        if figure is not None:
            yield "similarity" if len(reports) == 1 else f"similarity-{number}", figure


def _publish(files: Mapping[str, bytes], folder: Path) -> None:
    """All files, or none that was not there before."""
    folder = folder.resolve()
    exists = folder.is_dir()
    building = folder if exists else folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    fresh: list[Path] = []
    try:
        if not exists:
            building.mkdir()
        for name, content in files.items():
            target = building / name
            if not target.exists():
                fresh.append(target)
            write_atomically(target, _writer(content))
        if not exists:
            building.rename(folder)
        fresh.clear()
    except IntruscopeError:
        raise
    except OSError as error:
        raise OutputConflict(
            f"the folder could not be made ({error.strerror})",
            remedy="choose another folder",
            file=folder,
        ) from error
    finally:
        for path in fresh:
            path.unlink(missing_ok=True)
        if not exists:
            shutil.rmtree(building, ignore_errors=True)


def _writer(content: bytes) -> Any:
    def write(stream: IO[bytes]) -> None:
        stream.write(content)

    return write
