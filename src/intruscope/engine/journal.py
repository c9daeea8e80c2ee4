"""One durable record per finished task, so that an interrupted run goes on where it stopped.

A journal is a folder: ``plan.json`` says what the run is, ``records.jsonl`` grows by one line a task,
each with the checksum of its content, flushed to disk before the task counts as done. A line that was
cut by a crash, or damaged later, fails its checksum and its task is computed again. A lock held for
the life of the process keeps a second run out; it is the kernel's, so it dies with its holder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from intruscope.errors import IntruscopeError, OutputConflict, ResourceExhausted, printable

_MAX_DIFFERENCES = 8
_MAX_SHOWN = 48


def plan_hash(plan: dict[str, Any]) -> str:
    """Sha256 of the canonical JSON of everything that can change a result."""
    return hashlib.sha256(_canonical(plan)).hexdigest()


def default_folder(digest: str) -> Path:
    """Where a plan's journal lies when nobody says: the user's cache, one folder a plan.

    Raises:
        ResourceExhausted: this user has no home.
    """
    given = os.environ.get("INTRUSCOPE_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(given) if given else (Path(cache) if cache else Path.home() / ".cache") / "intruscope"
    except RuntimeError:
        raise ResourceExhausted(
            "there is no home folder to keep a journal in", remedy="give --work a folder, or set HOME"
        ) from None
    return root / "scans" / digest[:32]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The whole records of a journal, also while a run is adding to it; none where there are none."""
    path = folder / "records.jsonl"
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return dict(found for found in (_checked(line) for line in lines if line) if found is not None)


class Journal:
    """An open journal; use as a context manager.

    Args:
        folder: Made if it does not exist.
        plan: What the run is: version, settings, inputs, task keys. Plain data.
        fresh: Forget the plan and the records that it holds.

    Raises:
        OutputConflict: another run holds it, it belongs to another plan (the fields that differ are
            named), or the folder holds something else.
        ResourceExhausted: it cannot be written.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], *, fresh: bool = False) -> None:
        self.folder = folder
        self.records: dict[str, dict[str, Any]] = {}
        self.num_damaged = 0
        try:
            self._claim(folder)
            if fresh:  # only now that no other run can be using them
                for name in _OURS - {"lock"}:
                    (folder / name).unlink(missing_ok=True)
            self._check_plan(plan)
            self._load()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, IntruscopeError):
                raise _cannot_write(folder, error) from error
            raise

    _lock: int = -1
    _stream: int = -1

    def _claim(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise OutputConflict(
                "is a file, expected a folder for the journal", remedy="choose another --work", file=folder
            )
        folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(p.name for p in folder.iterdir() if p.name not in _OURS)
        if foreign:
            raise OutputConflict(
                f"holds {printable(foreign[0])}, which is not part of a journal",
                remedy="choose an empty folder for --work",
                file=folder,
            )
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputConflict(
                "another run is using this journal",
                remedy="wait for it, or give --work another folder",
                file=folder,
            ) from None

    def _check_plan(self, plan: dict[str, Any]) -> None:
        path = self.folder / "plan.json"
        if path.exists():
            try:
                before = json.loads(path.read_bytes())
            except ValueError:
                before = {}
            now = json.loads(_canonical(plan))
            if before != now:
                found = [printable(difference) for difference in _differences(before, now)]
                hidden = len(found) - _MAX_DIFFERENCES
                more = f" and {hidden} fields more" if hidden > 0 else ""
                raise OutputConflict(
                    f"holds a run that differs in {', '.join(found[:_MAX_DIFFERENCES]) or 'its plan'}{more}",
                    remedy="give --work another folder, or --fresh to start this one over",
                    file=self.folder,
                )
            return
        temporary = self.folder / "plan.json.tmp"
        with temporary.open("wb") as stream:
            stream.write(_canonical(plan))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)

    def _load(self) -> None:
        path = self.folder / "records.jsonl"
        content = path.read_bytes() if path.exists() else b""
        for line in content.split(b"\n"):
            if not line:
                continue
            found = _checked(line)
            if found is None:
                self.num_damaged += 1
            else:
                self.records[found[0]] = found[1]
        self._stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        if content and not content.endswith(b"\n"):
            _write_all(self._stream, b"\n")

    def append(self, key: str, record: dict[str, Any]) -> None:
        """Keep one record; on return it is on disk.

        Raises:
            ResourceExhausted: the disk is full; earlier records are intact.
        """
        body = _canonical([key, record])
        line = hashlib.sha256(body).hexdigest()[:32].encode() + b" " + body + b"\n"
        try:
            _write_all(self._stream, line)
            os.fsync(self._stream)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        self.records[key] = json.loads(body)[1]

    def close(self) -> None:
        """Release the journal."""
        for name in ("_stream", "_lock"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                os.close(descriptor)
                setattr(self, name, -1)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_OURS = {"lock", "plan.json", "plan.json.tmp", "records.jsonl"}


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _checked(line: bytes) -> tuple[str, dict[str, Any]] | None:
    digest, _, body = line.partition(b" ")
    if hashlib.sha256(body).hexdigest()[:32].encode() != digest:
        return None
    key, record = json.loads(body)
    return key, record


def _differences(before: Any, after: Any, place: str = "") -> list[str]:
    """What differs: the place of each value within the plan, with both values where they are short."""
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        before, after = dict(enumerate(before)), dict(enumerate(after))
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            difference
            for key in dict.fromkeys([*before, *after])
            if before.get(key) != after.get(key)
            for difference in _differences(
                before.get(key), after.get(key), f"{place}.{key}" if place else f"{key}"
            )
        ]
    old, new = (json.dumps(value) for value in (before, after))
    return [f"{place} ({old} there, {new} now)" if max(len(old), len(new)) <= _MAX_SHOWN else place]


def _cannot_write(folder: Path, error: OSError) -> ResourceExhausted:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    return ResourceExhausted(
        f"the journal cannot be written ({error.strerror}); what it already holds is intact",
        remedy="free some space and run the same command again" if full else "give --work a writable folder",
        file=folder,
    )
