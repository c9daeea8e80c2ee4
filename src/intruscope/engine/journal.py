"""One durable record per finished task, so that an interrupted run resumes where it stopped.

A journal is a folder: ``plan.json`` identifies the run, and ``records.jsonl`` grows by one line per task,
with a checksum, flushed to disk before the task counts as done. A line that was cut off by a crash or damaged
later fails its checksum, and its task is computed again. A lock held for the life of the process keeps a
second run out; it is the kernel's, so it ends with its holder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intruscope.errors import IntruscopeError, OutputConflict, ResourceExhausted, printable

_MAX_DIFFERENCES = 8
_MAX_SHOWN = 48


def plan_hash(plan: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of everything that can change a result."""
    return hashlib.sha256(_canonical(plan)).hexdigest()


def default_folder(digest: str) -> Path:
    """The default folder of a plan's journal: one folder per plan in the user's cache.

    Raises:
        ResourceExhausted: this user has no home folder.
    """
    return cache_folder() / digest[:32]


def cache_folder() -> Path:
    """The folder of all journals that were not given another: ``INTRUSCOPE_CACHE``, or the user's cache.

    Raises:
        ResourceExhausted: this user has no home folder.
    """
    given = os.environ.get("INTRUSCOPE_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(given) if given else (Path(cache) if cache else Path.home() / ".cache") / "intruscope"
    except RuntimeError:
        raise ResourceExhausted(
            "there is no home folder for the journal", remedy="give a folder with --work, or set HOME"
        ) from None
    return root / "scans"


@dataclass(frozen=True, kw_only=True)
class CachedRun:
    """The journal of one run in the user's cache.

    Attributes:
        folder: Where it is.
        num_bytes: Size of its files.
        idle_seconds: Time since the run was last started or recorded a result.
        models: Folders of the run's inputs, base first.
    """

    folder: Path
    num_bytes: int
    idle_seconds: float
    models: tuple[str, ...]


def cached_runs() -> list[CachedRun]:
    """All journals in the user's cache, the one used last first; folders with anything else are left out.

    Raises:
        ResourceExhausted: this user has no home folder, or the cache cannot be listed.
    """
    root = cache_folder()
    try:
        folders = [path for path in root.iterdir() if _is_journal(path)] if root.is_dir() else []
    except OSError as error:
        raise _cannot_write(root, error) from error
    return sorted(map(_cached_run, folders), key=lambda run: run.idle_seconds)


def prune_cache(*, days: float) -> list[CachedRun]:
    """Remove the journals that were not used for some days, except those of runs in progress.

    Args:
        days: Minimum age, from when a run was last started or recorded a result.

    Returns:
        What was removed.

    Raises:
        ResourceExhausted: see :func:`cached_runs`.
    """
    return [run for run in cached_runs() if run.idle_seconds >= days * 86400 and _removed(run.folder)]


def _is_journal(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else set()
    return "lock" in names and names <= _OURS


def _cached_run(folder: Path) -> CachedRun:
    stats = [path.stat() for path in folder.iterdir()]
    try:
        inputs = json.loads((folder / "plan.json").read_bytes())["inputs"]
        models = tuple(dict.fromkeys(str(Path(each["path"]).parent) for each in inputs))
    except (OSError, ValueError, LookupError, TypeError):
        models = ()
    return CachedRun(
        folder=folder,
        num_bytes=sum(each.st_size for each in stats),
        idle_seconds=max(0.0, time.time() - max(each.st_mtime for each in stats)),
        models=models,
    )


def _removed(folder: Path) -> bool:
    """Remove a journal that no run holds."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in sorted(_OURS - {"lock"}):
            (folder / name).unlink(missing_ok=True)
        (folder / "lock").unlink()
        folder.rmdir()
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The intact records of a journal, also while a run is adding to it; empty if there are none."""
    path = folder / "records.jsonl"
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return dict(found for found in (_checked(line) for line in lines if line) if found is not None)


class Journal:
    """An open journal; use as a context manager.

    Args:
        folder: Created if it does not exist.
        plan: Identity of the run: version, settings, inputs, task keys. Plain data.
        fresh: Discard the plan and the records that the folder holds.

    Raises:
        OutputConflict: another run is using it, it belongs to another plan (the message names the fields that
            differ), or the folder holds something else.
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
            os.utime(folder / "lock")  # last used now
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
                "this is a file, not a folder for the journal", remedy="choose another --work", file=folder
            )
        folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(p.name for p in folder.iterdir() if p.name not in _OURS)
        if foreign:
            raise OutputConflict(
                f"the folder holds {printable(foreign[0])}, which is not part of a journal",
                remedy="choose an empty folder for --work",
                file=folder,
            )
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputConflict(
                "another run is using this journal",
                remedy="wait for it to finish, or choose another folder with --work",
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
                more = f" and {hidden} more fields" if hidden > 0 else ""
                raise OutputConflict(
                    "the journal is of another command"
                    if isinstance(before, dict) and before.get("purpose") != now.get("purpose")
                    else "the journal is of a run that differs in "
                    f"{', '.join(found[:_MAX_DIFFERENCES]) or 'its plan'}{more}",
                    remedy="choose another folder with --work, or start over with --fresh",
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
        """Add one record; it is on disk on return.

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
        f"the journal cannot be written ({error.strerror}); its earlier records are intact",
        remedy="free some space and run the same command again"
        if full
        else "choose a writable folder with --work",
        file=folder,
    )
