"""What a merge refuses before any weight is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from intruscope.adapters.folder import AdapterSource
from intruscope.errors import UnsupportedFormat, UsageError, nearest, printable
from intruscope.merge.rules import RULES, weights_of
from intruscope.writing.checkpoint import check_copyable
from intruscope.writing.placing import check_mergeable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.adapters.several import FineTunes
    from intruscope.merge.gather import Member, Row
    from intruscope.merge.records import Writes
    from intruscope.merge.settings import MergeSettings

NO_HEADS = "none"


def check_settings(asked: MergeSettings, count: int) -> None:
    """Refuse settings that do not fit each other or the number of fine-tunes.

    Raises:
        UsageError: they do not.
    """
    rule = RULES[asked.rule]
    weights = weights_of(asked.options, count) if count else ()
    if not all(map(math.isfinite, weights)) or (weights and not any(weights)):
        raise UsageError(
            "the weights must be finite numbers, and not all 0", remedy="give for example --weights 0.5,0.5"
        )
    if asked.rule == "mean" and weights and abs(sum(weights)) <= 1e-9 * max(map(abs, weights)):
        raise UsageError("the weights sum to 0, so there is no mean", remedy="change them, or use --rule sum")
    if rule.space is not None and asked.space not in (None, rule.space):
        raise UsageError(
            f"the rule {rule.name} is defined in the space {rule.space} only, not in {asked.space}",
            remedy=f"leave --space out, or use --rule ties --space {asked.space}",
        )
    if asked.rank is not None and asked.merged:
        raise UsageError(
            "--rank writes an adapter and --merged a checkpoint", remedy="leave out one of the two"
        )
    if rule.task_specific and asked.task is None and (asked.merged or asked.rank is not None):
        raise UsageError(
            f"the rule {rule.name} makes one model per fine-tune, and no task says which one to write",
            remedy="add --task LABEL, or leave --merged and --rank out to write the files for all tasks",
        )
    if rule.task_specific and asked.task is None and asked.heads is not None:
        raise UsageError(
            "--heads chooses for one model, and with the rule emr each task keeps its own heads",
            remedy="leave --heads out, or add --task LABEL",
        )
    if asked.task is not None and not rule.task_specific:
        raise UsageError(
            f"--task chooses one model of the rule emr, and the rule {rule.name} makes a single model",
            remedy="leave --task out, or use --rule emr",
        )


def check_task(asked: MergeSettings, labels: Sequence[str]) -> None:
    """Refuse a task that is no fine-tune.

    Raises:
        UsageError: there is none of that label.
    """
    if asked.task is not None:
        _check_label(asked.task, labels, "--task")


def _check_label(given: str, labels: Sequence[str], option: str) -> None:
    if given not in labels:
        raise UsageError(
            f"{option} {printable(given)} is none of the fine-tunes ({', '.join(map(printable, labels))})",
            remedy=nearest(given, labels, what="fine-tune") or f"give one of these labels to {option}",
        )


def check_heads(asked: MergeSettings, members: Sequence[Member]) -> Member | None:
    """The fine-tune whose heads are kept.

    Returns:
        None where the base's are kept, where nobody has any, or where EMR-Merging keeps those of all. The
        model of one of its tasks keeps the heads of that fine-tune, unless told otherwise.

    Raises:
        UsageError: there are heads and nobody chose, or the chosen fine-tune does not exist.
    """
    chosen = asked.heads or asked.task
    if chosen is None:
        if not any(member.heads for member in members) or RULES[asked.rule].task_specific:
            return None
        having = "; ".join(
            f"{printable(member.label)}: {', '.join(map(printable, member.heads[:3])) or 'none'}"
            + (" ..." if len(member.heads) > 3 else "")
            for member in members
        )
        raise UsageError(
            f"some fine-tunes have heads or modules that are saved whole, which are never merged ({having})",
            remedy="choose whose to keep with --heads LABEL, or --heads none for the base's",
        )
    if chosen == NO_HEADS and NO_HEADS not in {member.label for member in members}:
        return None
    _check_label(chosen, [member.label for member in members], "--heads")
    return next(member for member in members if member.label == chosen)


def check_adapter(rows: Sequence[Row]) -> None:
    """Refuse what a LoRA adapter cannot hold.

    Raises:
        UnsupportedFormat: PEFT cannot put factors on a module.
        UsageError: the fine-tunes name a module of the model differently.
    """
    for row in rows:
        targets = [target for target in row.targets if target is not None]
        unable = next((target for target in targets if target.kind is None), None)
        if unable is not None:
            raise UnsupportedFormat(
                f"a LoRA adapter cannot hold {printable(row.name)}: {unable.reason}",
                remedy="write a checkpoint with --merged (intruscope extract makes an adapter of that)",
            )
        called = sorted({target.module for target in targets})
        if len(called) > 1:
            raise UsageError(
                f"the fine-tunes name one module differently ({' and '.join(map(printable, called))}): they "
                "were trained on different model classes",
                remedy="write a checkpoint with --merged",
            )


def check_checkpoint(
    tunes: FineTunes, members: Sequence[Member], rows: Sequence[Row], kept: Member | None, writes: Writes
) -> None:
    """Refuse what a full checkpoint, or the files of EMR-Merging, cannot hold.

    Raises:
        UnsupportedFormat: the base cannot be written, or has no place for something.
    """
    if writes == "checkpoint":
        check_copyable(tunes.base)
    for member in members:
        if isinstance(member.source, AdapterSource):
            check_mergeable(tunes.base, member.source, member.opened.pairing, heads=member.heads)
    shared = next((row for row in rows if row.view.is_stand_in), None)
    if shared is not None:
        raise UnsupportedFormat(
            f"{printable(shared.name)} shares its matrix with another module of the base and cannot be "
            "changed alone",
            remedy="untie the two in the base and save it first",
        )
    if kept is not None:
        missing = [
            name
            for name in kept.heads
            if name not in kept.saved and f"{name}.weight" not in tunes.base.tensors
        ]
        if missing and writes == "checkpoint":
            raise UnsupportedFormat(
                f"the base has no place for {printable(missing[0])} of {printable(kept.label)}",
                remedy="write an adapter (leave --merged out, or use --rank N), or use --heads none",
            )
    if writes == "emr":
        unable = next((row for row in rows if row.view.expert is not None), None)
        if unable is not None:
            raise UnsupportedFormat(
                f"the files of emr hold whole tensors, and {printable(unable.name)} is one expert of several",
                remedy="use --task LABEL, or another rule",
            )
