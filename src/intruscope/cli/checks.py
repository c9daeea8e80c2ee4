"""Values of options that several verbs share: what makes sense, and what is said of the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from intruscope.errors import UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from intruscope.forgetting.named_tasks import Split
    from intruscope.forgetting.tasks import Task


def top(text: str) -> int | Literal["all"]:
    """How many top vectors.

    Raises:
        UsageError: neither a positive number nor ``all``.
    """
    if text == "all":
        return "all"
    if text.isdecimal() and len(text) < 10 and int(text) > 0:
        return int(text)
    raise UsageError(
        f"--k is {text!r}, expected a positive number or 'all'", remedy="write for example --k 10"
    )


def within(value: float, name: str) -> float:
    """A cosine.

    Raises:
        UsageError: not above 0 and up to 1.
    """
    if 0.0 < value <= 1.0:
        return value
    raise UsageError(f"{name} is {value}, expected a cosine above 0 and up to 1", remedy=f"write {name} 0.5")


def not_negative(value: int, name: str) -> int:
    """A count.

    Raises:
        UsageError: below 0.
    """
    if value >= 0:
        return value
    raise UsageError(f"{name} is {value}, expected 0 or more", remedy=f"leave {name} out, or raise it")


def above_zero(value: float | None, name: str) -> float | None:
    """A limit, or none.

    Raises:
        UsageError: not above 0, or not finite.
    """
    if value is None or 0.0 < value < float("inf"):
        return value
    raise UsageError(
        f"{name} is {value:g}, expected a number above 0", remedy=f"leave {name} out, or raise it"
    )


def gibibytes(value: float | None, name: str) -> int | None:
    """A limit in GiB as bytes, or none.

    Raises:
        UsageError: not above 0, or not finite.
    """
    above_zero(value, name)
    # Beyond any machine; and bytes that are no float any more cannot be shown in GiB.
    return None if value is None else int(min(value, 2.0**60) * 2**30)


def check_device(device: str) -> None:
    """Refuse what would otherwise be ignored: a scan does not run on a GPU.

    Raises:
        UsageError: it is cuda.
    """
    if device == "cuda":
        raise UsageError(
            "--device is cuda, expected cpu: a scan computes on the CPU, one matrix per process",
            remedy="leave --device out; --workers says how many processes",
        )


def warn_of_bfloat16(bf16: bool) -> None:
    """Say before a long run that ``--bf16`` makes it longer on this machine."""
    from intruscope.cli.screen import note
    from intruscope.train.precision import is_bfloat16_slow

    if bf16 and is_bfloat16_slow():
        note("this processor has no fast bfloat16: leave --bf16 out, float32 may be ten times faster here")


def tell_of_idle_gpus(command: str) -> None:
    """Say before a long run in one process that it leaves GPUs idle.

    Args:
        command: How it would be started on all of them.
    """
    import torch

    from intruscope.cli.screen import note
    from intruscope.train.processes import is_alone

    count = torch.cuda.device_count()
    if count > 1 and is_alone():
        note(f"one of {count} GPUs is used; all are with: {command}")


def task_of(
    name: str, *, fields: str | None, labels: str | None, data: Path | None, split: Split = "eval"
) -> Task:
    """The task that ``--task``, ``--task-fields``, ``--labels`` and ``--data`` name together.

    Raises:
        IntruscopeError: no such file or task, or what is in it is none.
    """
    from intruscope.forgetting.named_tasks import find_task

    *text_fields, label_field = fields.split(",") if fields else [None]
    return find_task(
        name,
        split=split,
        folder=data,
        text_fields=[field for field in text_fields if field] or None,
        label_field=label_field,
        labels=labels.split(",") if labels else None,
    )


def method_options(
    given: Sequence[str] | None, *, rank: int | None, alpha: float | None
) -> dict[str, object]:
    """The options of a method that ``--rank``, ``--alpha`` and ``-O`` give together.

    Raises:
        UsageError: one that is not NAME=VALUE.
    """
    found: dict[str, object] = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not equals or not name:
            fact = f"got the option {printable(each)}, expected NAME=VALUE"
            raise UsageError(fact, remedy="write for instance -O num_links=3")
        found[name.replace("-", "_")] = value
    return found | {name: v for name, v in (("rank", rank), ("alpha", alpha)) if v is not None}
