"""What the figures of a merge alone do not say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intruscope.adapters.folder import AdapterSource
from intruscope.adapters.kinds.ia3 import KIND as IA3
from intruscope.errors import IntruscopeError, printable, readable_bytes
from intruscope.merge.rules import RULES
from intruscope.merge.spaces import DEGENERATE_GAP
from intruscope.weights.matrices import Finding
from intruscope.weights.names import last_part
from intruscope.weights.strict_json import read_json_object
from intruscope.writing.lora import server_rank_findings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.adapters.several import FineTunes
    from intruscope.merge.gather import Member, Row
    from intruscope.merge.records import MergedModule, MergeReport

MANIFEST_NAME = "intruscope_merge.json"
_MAX_NAMED = 3


def plan_findings(
    report: MergeReport, tunes: FineTunes, members: Sequence[Member], rows: Sequence[Row]
) -> tuple[Finding, ...]:
    """Everything that headers tell."""
    return (
        *_of_members(members),
        *_already_merged(tunes),
        *_partial(report, rows),
        *_left_out(report),
        *_vectors(report),
        *_ia3(members),
        *_emr(report),
        *_names(report, members),
        *(_rank(report) if report.writes == "adapter" else ()),
    )


def result_findings(report: MergeReport) -> tuple[Finding, ...]:
    """What is known once a merge is computed, with what its plan knew."""
    kept = tuple(f for f in report.findings if f.code not in ("rank-above-servers", "rank-unknown"))
    return (
        *kept,
        *_zero(report),
        *_degenerate(report),
        *_error(report),
        *(server_rank_findings(report.rank) if report.rank is not None else ()),
        *_emr_sizes(report),
    )


def _info(code: str, message: str) -> Finding:
    return Finding(code=code, severity="info", message=message)


def _warning(code: str, message: str, matrix: str | None = None) -> Finding:
    return Finding(code=code, severity="warning", message=message, matrix=matrix)


def _of_members(members: Sequence[Member]) -> list[Finding]:
    found = []
    for member in members:
        for finding in member.opened.pairing.findings:
            if finding.severity != "info":
                found.append(replace(finding, message=f"{printable(member.label)}: {finding.message}"))
    return list(dict.fromkeys(found))


def _already_merged(tunes: FineTunes) -> list[Finding]:
    """Whether the base says of itself that one of the fine-tunes is in it."""
    if tunes.base.path is None:
        return []
    try:
        manifest = read_json_object(tunes.base.folder / MANIFEST_NAME)
    except IntruscopeError:
        return []
    listed = manifest.get("tuned")
    inside = (
        {last_part(name) for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    )
    again = [
        label
        for label, member in zip(tunes.labels, tunes.members, strict=True)
        if last_part(member.tuned.name) in inside
    ]
    if not again:
        return []
    message = (
        f"the base was itself written by a merge of {', '.join(map(printable, again))}; another merge adds "
        "them a second time"
    )
    return [_warning("already-merged", message)]


def _partial(report: MergeReport, rows: Sequence[Row]) -> list[Finding]:
    partial = [row for row in rows if any(target is None for target in row.targets)]
    if not partial:
        return []
    trimmed = (
        " and as entries of size 0 when the largest are chosen" if RULES[report.settings.rule].trims else ""
    )
    message = (
        f"{len(partial)} of {len(rows)} modules are changed by some of the fine-tunes only; the others count "
        f"as no update there{trimmed}"
    )
    return [_info("partly-changed", message)]


def _left_out(report: MergeReport) -> list[Finding]:
    if not report.left_out:
        return []
    message = (
        f"these biases and norms changed and are not in the adapter: {_some(report.left_out)}; --merged "
        "writes a checkpoint that holds them"
    )
    return [_warning("vectors-left-out", message)]


def _vectors(report: MergeReport) -> list[Finding]:
    if report.vector_rule is None or report.vector_rule == report.settings.rule:
        return []
    message = f"{len(report.vectors)} biases and norms are averaged: {report.settings.rule} is for matrices"
    return [_info("vectors-averaged", message)]


def _ia3(members: Sequence[Member]) -> list[Finding]:
    having = [m.label for m in members if isinstance(m.source, AdapterSource) and m.source.kind == IA3]
    if not having:
        return []
    message = (
        f"{', '.join(map(printable, having))}: PEFT also scales the biases of modules with (IA)³; only the "
        "matrices are merged"
    )
    return [_warning("biases-not-scaled", message)]


def _emr(report: MergeReport) -> list[Finding]:
    if report.settings.rule != "emr" or report.space == "dense":
        return []
    message = f"EMR-Merging in the space {report.space} is not published; --space dense is the paper's"
    return [_info("emr-unpublished-space", message)]


def _emr_sizes(report: MergeReport) -> list[Finding]:
    emr = report.emr
    if emr is None or emr.num_bytes <= emr.input_bytes:
        return []
    message = (
        f"the files of EMR-Merging take {readable_bytes(emr.num_bytes)}, more than the fine-tunes themselves "
        f"({readable_bytes(emr.input_bytes)})"
    )
    if report.space == "dense":
        message += (
            ": they hold a number, and a bit per task, for each entry of a matrix; adapters hold factors"
        )
    return [_warning("emr-larger-than-inputs", message)]


def _names(report: MergeReport, members: Sequence[Member]) -> list[Finding]:
    if report.writes != "adapter" or all(member.names.is_known for member in members):
        return []
    message = (
        "modules have the names used in the files, because the model's class is not in an installed "
        "transformers; check that PEFT finds them"
    )
    return [_warning("names-as-stored", message)]


def _rank(report: MergeReport) -> list[Finding]:
    """The rank before the numbers are known: at most the sum of the ranks."""
    if report.settings.rank is not None:
        bounds: list[int | None] = [report.settings.rank]
    else:
        bounds = [rank_bound(module) for module in report.modules]
    known = [bound for bound in bounds if bound is not None]
    if len(known) < len(bounds):
        return [_info("rank-unknown", "the rank of the merged adapter is known once it is computed")]
    return server_rank_findings(max(known, default=0), "; --rank cuts it and reports the error")


def rank_bound(module: MergedModule) -> int | None:
    """The highest rank that a module's merged update can have; None where the headers do not tell."""
    known = [rank for rank in module.ranks if rank is not None]
    return min(sum(known), *module.shape) if len(known) == len(module.ranks) else None


def _zero(report: MergeReport) -> list[Finding]:
    found = []
    for at, label in enumerate(report.labels):
        norms = [module.update_norms[at] for module in report.modules if module.update_norms is not None]
        reported = any(
            f.code == "zero-adapter" and f.message.startswith(f"{printable(label)}:") for f in report.findings
        )
        if norms and not any(norms) and not reported:
            found.append(
                _warning("zero-adapter", f"{printable(label)}: this fine-tune changes no merged module")
            )
    return found


def _degenerate(report: MergeReport) -> list[Finding]:
    close = [m for m in report.modules if m.smallest_gap is not None and m.smallest_gap < DEGENERATE_GAP]
    if not close:
        return []
    message = (
        f"some singular values of the joined updates are equal in {len(close)} modules, so that the bases "
        f"there, and the result of {report.settings.rule}, are partly arbitrary"
    )
    return [_warning("degenerate-bases", message, close[0].name)]


def _error(report: MergeReport) -> list[Finding]:
    worst = report.worst
    if report.settings.rank is None or worst is None or not report.relative_error:
        return []
    message = (
        f"cut to rank {report.settings.rank}, the adapter's relative error is {report.relative_error:.3g} "
        f"over all modules and {worst.relative_error:.3g} in the worst"
    )
    return [
        _info("rank-cut", message)
        if report.relative_error < 0.1
        else _warning("rank-cut", message, worst.name)
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(map(printable, names[:_MAX_NAMED])) + more
