"""Where a record is from: what a run read, every setting behind its figures, the code and the versions.

A run's key is a hash of what distinguishes it within a study. Whether a record that was made elsewhere *is*
that run depends on more: the bytes that it read, the recipe of its training, and how its scale measures. All
of it is kept with every record and compared before one is taken. Code and versions are kept and reported, not
compared.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.engine.environment import LAB, environment
from intruscope.errors import printable
from intruscope.studies.grid import Chain, Checkpoint, MergeSet, Run
from intruscope.studies.measure import CONTROLS, STRENGTHS
from intruscope.studies.training import part_settings, tune_settings
from intruscope.studies.weights import EPSILON, K
from intruscope.train.settings import TuneSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intruscope.studies.grid import Work
    from intruscope.studies.records import Record
    from intruscope.studies.scale import Scale

Origin = dict[str, Any]
_NO_FIGURE_DEPENDS_ON = ("save_every", "report_to")
_CODE_CHARS = 8


def origin_of(work: Work, scale: Scale, inputs: Mapping[str, str]) -> Origin:
    """The origin of a record that is made now, by this process.

    Args:
        work: What is done.
        scale: That it belongs to.
        inputs: SHA-256 of what it reads, by name (:func:`inputs_read`).

    Returns:
        ``inputs``, ``resolved`` (:func:`resolved`), ``code_sha256`` and ``environment``, plain data.
    """
    return {
        "inputs": dict(inputs),
        "resolved": resolved(work, scale),
        "code_sha256": code_digest(),
        "environment": run_environment(),
    }


def run_environment() -> dict[str, Any]:
    """The versions that a run's figures depend on, and the GPU if there is one."""
    import torch

    device = {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {**environment(LAB), **device}


def inputs_read(work: Work, digests: Mapping[str, str]) -> dict[str, str]:
    """What of a base's digests one piece of work reads: the base, the text, and its own tasks.

    Args:
        work: The piece.
        digests: Of its base (:func:`intruscope.studies.inputs.digests`).
    """
    if isinstance(work, Checkpoint):
        return {}
    tasks = work.tasks if isinstance(work, (Chain, MergeSet)) else (work.task,)
    return {
        name: digest
        for name, digest in digests.items()
        if name == "text" or name.startswith("base/") or name.rpartition("/")[0] in tasks
    }


def resolved(work: Work, scale: Scale) -> dict[str, Any]:
    """Every setting behind the figures of one piece of work, also those that its key leaves to its scale.

    Args:
        work: The piece.
        scale: That it belongs to.

    Returns:
        ``training`` and ``measuring``, plain data; both empty for a checkpoint.
    """
    if isinstance(work, Checkpoint):
        return {"training": {}, "measuring": {}}
    base = scale.base(work.base)
    if isinstance(work, MergeSet):
        trained = _that_counts(asdict(part_settings(work, 0)))
        trained |= {"steps": work.steps, "max_length": work.max_lengths}
        return _plain({"training": trained, "measuring": {"k": K, "epsilon": EPSILON}})
    is_watched = isinstance(work, Run) and bool(work.look_every)
    training = asdict(tune_settings(work, look_every=work.look_every if isinstance(work, Run) else 0))
    measuring: dict[str, Any] = {"k": K, "epsilon": EPSILON}
    if isinstance(work, Chain):
        measuring |= {"sweep_sequences": base.sweep_sequences}
    else:
        measuring |= {"text_sequences": base.text_sequences}
        measuring |= {"look_examples": base.look_examples} if is_watched else {}
        if work.interventions:
            measuring |= {
                "sweep_sequences": base.sweep_sequences,
                "sweep_examples": base.sweep_examples,
                "strengths": STRENGTHS,
                "controls": CONTROLS,
            }
    return _plain({"training": _that_counts(training), "measuring": measuring})


def _that_counts(training: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in training.items() if name not in _NO_FIGURE_DEPENDS_ON}


def difference(work: Work, scale: Scale, inputs: Mapping[str, str], record: Record) -> str | None:
    """What keeps a record with the right key from being this piece of work; None where nothing does.

    A setting of training that did not exist when the record was made counts as its default.

    Args:
        work: What is wanted.
        scale: That it belongs to.
        inputs: What it would read here.
        record: From elsewhere.

    Returns:
        A few words, such as ``other inputs (sst2/train)``.
    """
    origin = record.get("origin")
    if origin is None or not inputs or not origin["inputs"]:
        return "no hashes of what was read"
    others = sorted(
        name for name in {*inputs, *origin["inputs"]} if inputs.get(name) != origin["inputs"].get(name)
    )
    if others:
        return f"other inputs ({', '.join(others)})"
    now, then = resolved(work, scale), origin["resolved"]
    since = {name: value for name, value in _defaults().items() if name not in then["training"]}
    changed = [
        name
        for part, before in (("training", {**since, **then["training"]}), ("measuring", then["measuring"]))
        for name in sorted({*now[part], *before} - set(_NO_FIGURE_DEPENDS_ON))
        if now[part].get(name) != before.get(name)
    ]
    return f"other settings ({', '.join(changed)})" if changed else None


def _defaults() -> dict[str, Any]:
    return _plain(asdict(TuneSettings(method="")))


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: lists for tuples."""
    found: dict[str, Any] = json.loads(json.dumps(data))
    return found


@functools.cache
def code_digest() -> str:
    """SHA-256 over the package's own source files, by name: what a version number alone does not tell."""
    root = Path(__file__).parents[1]
    state = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        state.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()


def origin_lines(records: Iterable[Record]) -> list[str]:
    """A line for each place that records are from, and each code and environment that made them.

    Args:
        records: With ``taken_from`` where they are from elsewhere.
    """
    found = Counter((record.get("taken_from"), _made_by(record.get("origin"))) for record in records)
    return [
        f"{count} run{'' if count == 1 else 's'} "
        + (f"taken from {printable(place)}" if place is not None else "made here")
        + f", by {how}"
        for (place, how), count in sorted(found.items(), key=lambda item: (item[0][0] or "", item[0][1]))
    ]


def _made_by(origin: Origin | None) -> str:
    if origin is None:
        return "an unknown version"
    versions = ", ".join(f"{name} {version}" for name, version in origin["environment"].items())
    return f"code {origin['code_sha256'][:_CODE_CHARS]} ({versions})"
