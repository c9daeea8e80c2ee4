"""The looks of a run as a file: a line that says what is watched, then one line a look.

Each line is written in one piece and flushed, so that it is there whole or not at all; a line that a crash
cut is dropped when the run is resumed, as are looks past the checkpoint that it resumes from.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, OutputConflict, ResourceExhausted
from intruscope.train.looks import MatrixLook, VectorLook
from intruscope.weights.output import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCHEMA = "intruscope.watch/1"


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything that was seen at one step.

    Attributes:
        step: Number of optimiser steps done.
        epoch: Epoch, as the Trainer counts it.
        seconds: Duration of the look in the slowest process.
        matrices: One for each watched matrix.
        loss: Nats per token of the fixed text, if one is measured.
        forgetting: Rise of the loss since the first look.
        sequence_nats: Nats of each sequence of the text, from which the interval of the forgetting is
            computed; empty without one.
    """

    step: int
    epoch: float | None
    seconds: float
    matrices: tuple[MatrixLook, ...]
    loss: float | None = None
    forgetting: float | None = None
    sequence_nats: tuple[float, ...] = ()

    @property
    def intruders(self) -> tuple[VectorLook, ...]:
        """All of them."""
        return tuple(
            vector for matrix in self.matrices for vector in matrix.vectors if vector.verdict == "intruder"
        )

    @property
    def num_born(self) -> int:
        """Intruders that were none at the look before."""
        return sum(vector.born for vector in self.intruders)

    @property
    def num_hosts(self) -> int:
        """Matrices with an intruder."""
        return sum(any(v.verdict == "intruder" for v in matrix.vectors) for matrix in self.matrices)

    @property
    def rising(self) -> float | None:
        """Largest value of an intruder over the largest of its matrix; None without intruders."""
        shares = [
            vector.singular_value / matrix.vectors[0].singular_value
            for matrix in self.matrices
            for vector in matrix.vectors
            if vector.verdict == "intruder"
        ]
        return max(shares, default=None)


class LookFile:
    """The file of one run, open for more.

    Args:
        path: Path of the file; its folder is created.
        header: What is watched, and how; plain data.
        step: Where the run starts; past 0 the looks up to there are kept.

    Raises:
        OutputConflict: a run that starts anew would write over another's looks, or a resumed one watches
            something else than before.
        MalformedInput: what is there is no file of looks.
        ResourceExhausted: it cannot be written.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, step: int) -> None:
        self.path = path
        self.looks: list[Look] = []
        header = {"schema": SCHEMA, **header}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if step == 0:
                raise OutputConflict(
                    "the file already holds the looks of another run",
                    remedy="give IntruderWatch another folder, or remove the file",
                    file=path,
                )
            before, looks = read_looks(path)
            if before != json.loads(json.dumps(header)):
                raise OutputConflict(
                    "the file holds the looks of a run that was watched with other settings",
                    remedy="give IntruderWatch another folder",
                    file=path,
                )
            self.looks = [look for look in looks if look.step <= step]
        lines = [_line(header), *(_line(_record(look)) for look in self.looks)]

        def write(stream: IO[bytes]) -> None:
            stream.writelines(lines)

        write_atomically(path, write)

    def append(self, look: Look) -> None:
        """Add one look; on return it is on disk.

        Raises:
            ResourceExhausted: there is no room; earlier looks are intact.
        """
        self.looks.append(look)
        line = _line(_record(look))
        try:
            with self.path.open("r+b") as stream:
                end = stream.seek(0, os.SEEK_END)
                try:
                    stream.write(line)
                    stream.flush()
                    os.fsync(stream.fileno())
                except OSError:
                    stream.truncate(end)
                    raise
        except OSError as error:
            raise ResourceExhausted(
                f"the look could not be written ({error.strerror}); earlier looks are intact",
                remedy="free some disk space",
                file=self.path,
            ) from error


def read_looks(path: Path) -> tuple[dict[str, Any], list[Look]]:
    """The header and all whole looks of a file.

    Raises:
        MalformedInput: it is no such file.
    """
    header: dict[str, Any] = {}
    looks = []
    *lines, _ = path.read_bytes().split(b"\n")  # what follows the last line break was cut
    try:
        header, *records = (json.loads(line) for line in lines)
        if header.get("schema") != SCHEMA:
            raise ValueError(header.get("schema"))
        looks = [_look(record) for record in records]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedInput(
            f"this is not a file of looks in the format {SCHEMA} ({error})",
            remedy="give IntruderWatch another folder, or remove the file",
            file=path,
        ) from None
    return header, looks


def figures(look: Look) -> dict[str, float]:
    """What of a look goes to the Trainer's log."""
    found = {
        "intruders/count": float(len(look.intruders)),
        "intruders/born": float(look.num_born),
        "intruders/matrices": float(look.num_hosts),
        "intruders/seconds": look.seconds,
    }
    turned = _turned(look.matrices)
    more = {
        "intruders/largest": look.rising,
        "intruders/turned": turned,
        "intruders/text_loss": look.loss,
        "intruders/forgetting": look.forgetting,
    }
    return found | {name: value for name, value in more.items() if value is not None}


def _turned(matrices: Sequence[MatrixLook]) -> float | None:
    """Mean degrees that the leading vectors turned since the last look."""
    turned = [v.turned for matrix in matrices for v in matrix.vectors if v.turned is not None]
    return sum(turned) / len(turned) if turned else None


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _record(look: Look) -> dict[str, Any]:
    """As :func:`dataclasses.asdict`, which copies every number: a tenth of the time of a look."""
    matrices = [{**vars(m), "vectors": [vars(vector) for vector in m.vectors]} for m in look.matrices]
    return {**vars(look), "matrices": matrices}


def _look(record: dict[str, Any]) -> Look:
    matrices = tuple(
        MatrixLook(
            name=matrix["name"],
            how=matrix["how"],
            vectors=tuple(VectorLook(**vector) for vector in matrix["vectors"]),
        )
        for matrix in record["matrices"]
    )
    nats = tuple(record.get("sequence_nats", ()))
    return Look(**{**record, "matrices": matrices, "sequence_nats": nats})
