"""The demonstration's output folder: it appears whole, and replaces only one of its own."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.errors import OutputConflict, ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST = "demo-manifest.json"
SCHEMA = "intruscope.demo/1"


def require_own_or_free(out: Path) -> None:
    """Refuse a place that holds anything but an earlier demonstration, untouched by others.

    Raises:
        OutputConflict: a file, a folder without our manifest, or one with files that we did not write.
    """
    if not out.exists() and not out.is_symlink():
        return
    remedy = "name another folder with --out, or move this one away"
    if not out.is_dir():
        raise OutputConflict("this is a file, and the demonstration needs a folder", remedy=remedy, file=out)
    if not any(out.iterdir()):
        return
    written = _manifest_files(out)
    if written is None:
        raise OutputConflict(
            f"the folder is not empty and was not made by a demonstration (it has no {MANIFEST})",
            remedy=remedy,
            file=out,
        )
    foreign = sorted(_files(out) - written - {MANIFEST})
    if foreign:
        raise OutputConflict(
            f"the folder holds {len(foreign)} files that the demonstration did not write, "
            f"such as {foreign[0]!r}",
            remedy=remedy,
            file=out,
        )


@contextmanager
def replaced_whole(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``out``; on success it becomes ``out``, on any exception it goes.

    Args:
        out: The folder to make or replace; checked by ``require_own_or_free`` before and after.

    Raises:
        OutputConflict: ``out`` is not ours to replace, or its parent may not be written.
        ResourceExhausted: the disk is full.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link and replace its target
    require_own_or_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise OutputConflict(
            f"the folder cannot be made here ({error.strerror})",
            remedy="name another folder with --out",
            file=out,
        ) from error
    try:
        yield building
        _write_manifest(building)
        building.chmod(0o777 & ~_umask())  # mkdtemp makes folders that only their owner may read
        require_own_or_free(out)
        _swap(building, out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceExhausted(
            f"the disk is full ({error.strerror}); the demonstration needs about 100 MB",
            remedy="free some space, or name a folder on another disk with --out",
            file=out,
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _swap(building: Path, out: Path) -> None:
    """Put the finished folder in place; the earlier one is removed only after it stands."""
    if out.exists():
        earlier = building.with_suffix(".earlier")
        out.rename(earlier)
        building.rename(out)
        shutil.rmtree(earlier)
    else:
        building.rename(out)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _files(folder: Path) -> set[str]:
    """Relative paths of everything in a folder that is not a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _write_manifest(folder: Path) -> None:
    """Names and hashes of all files, written last."""
    mode = 0o666 & ~_umask()
    hashes = {}
    for name in sorted(_files(folder)):
        (folder / name).chmod(mode)  # safetensors writes files that only their owner may read
        hashes[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    content = {"schema": SCHEMA, "sha256": hashes}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _manifest_files(folder: Path) -> set[str] | None:
    """The files that an earlier demonstration wrote here; None if there was none."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return set(content["sha256"]) if content["schema"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
