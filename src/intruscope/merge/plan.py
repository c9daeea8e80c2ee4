"""``merge``: line up, check, plan. A plan is made from file headers; ``apply`` computes and writes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.adapters.several import open_fine_tunes
from intruscope.merge.checks import (
    check_adapter,
    check_checkpoint,
    check_heads,
    check_settings,
    check_task,
)
from intruscope.merge.compute import vector_rule
from intruscope.merge.findings import plan_findings
from intruscope.merge.gather import gather
from intruscope.merge.records import MergedModule, MergeReport
from intruscope.merge.rules import RULES
from intruscope.merge.settings import MergeSettings
from intruscope.progress import OnProgress, ignore_progress
from intruscope.weights.output import check_new_folder, check_output
from intruscope.writing.checkpoint import check_readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.adapters.opening import ModelLike
    from intruscope.adapters.several import FineTunes
    from intruscope.merge.gather import Member, Row
    from intruscope.merge.options import SpaceName
    from intruscope.merge.records import Writes


@dataclass(frozen=True, kw_only=True, eq=False)
class MergePlan:
    """What a merge will do, known from file headers; :meth:`apply` computes and writes it.

    Attributes:
        tunes: The base and the fine-tunes, opened.
        members: The fine-tunes with their modules.
        rows: The modules to merge, in the order of the base.
        vectors: Names of the biases and norms to merge.
        kept: The fine-tune whose heads are kept; None for none.
        space: Where an elementwise rule acts.
        report: The plan as a record.
    """

    tunes: FineTunes
    members: tuple[Member, ...]
    rows: tuple[Row, ...]
    vectors: tuple[str, ...]
    kept: Member | None
    space: SpaceName
    report: MergeReport

    def apply(self, out: Path | str, *, on_progress: OnProgress = ignore_progress) -> MergeReport:
        """Compute the merge and write it: whole, or not at all.

        Args:
            out: A new or empty folder, outside the inputs.
            on_progress: Called after every module, and after every file in bytes.

        Returns:
            The report with its figures; the folder is ``report.out``.

        Raises:
            UsageError: the merged update is zero, or overflows the dtype.
            OutputConflict: the folder holds something, or lies in an input.
            ResourceExhausted: there is no room; nothing is left behind.
            MalformedInput: an update holds NaN or infinity, or an input changed since planning.
        """
        from intruscope.merge.write import write_merge

        return write_merge(self, Path(out), on_progress=on_progress)


def merge(
    base: ModelLike,
    *tuned: ModelLike,
    allow_pickle: bool = False,
    same_base: bool = False,
    out: Path | None = None,
    **settings: Any,
) -> MergePlan:
    """Plan one model from several fine-tunes of one base.

    Args:
        base: The model that all of them start from.
        *tuned: Two or more adapters or full checkpoints, by name or in memory.
        allow_pickle: Also read PyTorch pickles, restricted to tensors.
        same_base: Trust that all adapters are of this base, although their configs name different ones.
        out: Where the plan will be applied; checked now.
        **settings: The fields of :class:`intruscope.merge.settings.MergeSettings`.

    Raises:
        UsageError: settings that do not fit each other or the fine-tunes; heads without a choice.
        UnsupportedFormat: something that the output cannot hold, by name.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.
    """
    asked = MergeSettings(**settings)
    check_settings(asked, len(tuned))
    if out is not None:
        check_new_folder(out)
    tunes = open_fine_tunes(base, tuned, allow_pickle=allow_pickle, same_base=same_base)
    check_readable(tunes.base, *(member.tuned for member in tunes.members))
    if out is not None:
        check_output(out, input_paths(tunes))
    check_task(asked, tunes.labels)
    members, rows = gather(tunes, for_adapter=asked.rank is not None)
    kept = check_heads(asked, members)
    space = _space(asked, rows)
    writes = _writes(asked, rows, space)
    trained = [name for name in tunes.base.tensors if any(name in member.vectors for member in members)]
    if writes == "adapter":
        check_adapter(rows)
    else:
        check_checkpoint(tunes, members, rows, kept, writes)
    report = MergeReport(
        base=tunes.base.full_name,
        tuned=tuple(member.source.full_name for member in members),
        labels=tunes.labels,
        settings=asked,
        space=space,
        density=_density(asked),
        writes=writes,
        modules=tuple(_described(row, writes) for row in rows),
        vectors=() if writes == "adapter" else tuple(trained),
        vector_rule=vector_rule(asked.rule).name if trained and writes != "adapter" else None,
        left_out=tuple(trained) if writes == "adapter" else (),
        heads={member.label: member.heads for member in members if member.heads},
        kept_heads=None if kept is None else kept.label,
    )
    return MergePlan(
        tunes=tunes,
        members=members,
        rows=rows,
        vectors=report.vectors,
        kept=kept,
        space=space,
        report=replace(report, findings=plan_findings(report, tunes, members, rows)),
    )


def input_paths(tunes: FineTunes) -> list[Path]:
    """All files and folders that are read."""
    sources = (tunes.base, *(member.tuned for member in tunes.members))
    named = [Path(source.name) for source in sources if Path(source.name).is_dir()]
    return named + [Path(str(record["path"])) for source in sources for record in source.inputs]


def _space(asked: MergeSettings, rows: Sequence[Row]) -> SpaceName:
    if asked.space is not None:
        return asked.space
    return RULES[asked.rule].space or ("core" if all(row.thin for row in rows) else "dense")


def _writes(asked: MergeSettings, rows: Sequence[Row], space: SpaceName) -> Writes:
    rule = RULES[asked.rule]
    if rule.task_specific and asked.task is None:
        return "emr"
    if asked.merged:
        return "checkpoint"
    keeps_factors = all(row.thin for row in rows) and (space != "dense" or not rule.elementwise)
    return "adapter" if keeps_factors or asked.rank is not None else "checkpoint"


def _density(asked: MergeSettings) -> float | None:
    rule = RULES[asked.rule]
    return rule.density_of(asked.options) if "density" in rule.uses else None


def _described(row: Row, writes: Writes) -> MergedModule:
    return MergedModule(
        name=row.name,
        module=row.first.module if writes == "adapter" else row.name,
        shape=row.shape,
        ranks=row.ranks,
    )
