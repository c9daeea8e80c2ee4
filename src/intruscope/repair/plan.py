"""``repair``: survey, select, check. The plan describes the repaired model, and ``apply`` writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.errors import MalformedInput, ResourceExhausted, UsageError, printable
from intruscope.progress import OnProgress, ignore_progress
from intruscope.repair.apply import write_repair
from intruscope.repair.convert import convert, holds_edits
from intruscope.repair.interventions import checked_strength, find_intervention, intervene, selected
from intruscope.repair.naming import parse_which
from intruscope.repair.ranks import module_ranks
from intruscope.repair.records import (
    EditedMatrix,
    FitOrigin,
    ModuleRank,
    RepairRecord,
    edited_matrix,
    totals,
)
from intruscope.repair.survey import Survey, survey
from intruscope.weights.matrices import Finding
from intruscope.weights.output import check_new_folder
from intruscope.weights.source import ModelSource
from intruscope.writing.checkpoint import check_copyable, check_readable
from intruscope.writing.lora import server_rank_findings
from intruscope.writing.placing import check_mergeable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from intruscope.adapters.opening import ModelLike
    from intruscope.engine.settings import RunOptions
    from intruscope.repair.edits import MatrixEdit
    from intruscope.repair.records import Rank
    from intruscope.spectra.records import ScanSettings


_ROUNDING = 1e-9
"""Less than this share of an edit is lost to arithmetic, not to a rank."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RepairPlan(RepairRecord):
    """What a repair will change; :meth:`apply` writes it."""

    def apply(self, out: Path | str, *, on_progress: OnProgress = ignore_progress) -> Path:
        """Write the repaired model: whole, or not at all.

        Args:
            out: A new or empty folder, outside the inputs.
            on_progress: Called after every file, in bytes.

        Returns:
            The folder.

        Raises:
            OutputConflict: the folder holds something, or lies in an input.
            ResourceExhausted: there is no room; nothing is left behind.
            MalformedInput: an input changed since planning.
        """
        return write_repair(self, out, on_progress=on_progress)


def repair(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    strength: float,
    which: str = "top",
    control: str = "intruders",
    rank: Rank = "exact",
    compact: bool = False,
    merged: bool = False,
    seed: int = 0,
    settings: ScanSettings | None = None,
    options: RunOptions | None = None,
    allow_pickle: bool = False,
    lora_alpha: float | None = None,
    out: Path | None = None,
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> RepairPlan:
    """Plan a repaired model: its intruders turned down, and nothing else changed.

    Args:
        base: Model before, see :func:`intruscope.spectra.scan.plan`.
        tuned: Model after: a full checkpoint or an adapter.
        strength: λ, the fraction of each singular value to keep: 1 keeps it, 0 removes it, above 1 amplifies.
        which: ``top`` (the highest intruder of each matrix, as the paper), ``all``, or names with indices;
            see :func:`intruscope.repair.naming.parse_which`. Names may also mean embeddings and heads.
        control: Its name in :data:`intruscope.repair.interventions.INTERVENTIONS`.
        rank: Rank of a written adapter. ``exact``: one rank for all modules, large enough for every edit,
            with a scaling of 1 and no patterns. ``same``: each module keeps its rank (the best approximation;
            its error is in the plan). A number: that rank for all modules.
        compact: With ``exact``, let only edited modules grow (``rank_pattern``, which some servers ignore).
        merged: Merge a given adapter and write a full checkpoint.
        seed: Random seed.
        settings: k, epsilon, and how verdicts are found.
        options: How the survey runs.
        allow_pickle: Also read PyTorch pickles, restricted to tensors.
        lora_alpha: For adapter formats that do not store it.
        out: Where the plan will be applied; checked now.
        on_progress: Called before the first matrix, and whenever one is started or finished.
        on_notice: Called with messages that the user should see at once.

    Raises:
        UsageError: an invalid strength, selection or rank.
        UnsupportedFormat: a quantised base, or a format that is read but not written, by name.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.
    """
    strength = checked_strength(strength)
    _check_rank(rank, compact=compact)
    parsed = parse_which(which)
    if out is not None:
        check_new_folder(out)
    found = survey(
        base,
        tuned,
        settings=settings,
        options=options,
        names=None if isinstance(parsed, str) else [item.pattern for item in parsed],
        update_spectra=find_intervention(control).needs_update_vectors,
        allow_pickle=allow_pickle,
        lora_alpha=lora_alpha,
        outputs=[] if out is None else [out],
        on_progress=on_progress,
        on_notice=on_notice,
    )
    return plan_repair(
        found,
        strength=strength,
        which=which,
        control=control,
        rank=rank,
        compact=compact,
        merged=merged,
        seed=seed,
    )


def plan_repair(
    found: Survey,
    *,
    strength: float,
    which: str = "top",
    control: str = "intruders",
    rank: Rank = "exact",
    compact: bool = False,
    merged: bool = False,
    seed: int = 0,
) -> RepairPlan:
    """Plan from an existing survey. Arguments and errors as in :func:`repair`."""
    edits = intervene(found, kind=control, strength=strength, which=which, seed=seed)
    return plan_edits(
        found,
        edits,
        control=control,
        strength=checked_strength(strength),
        which=which,
        rank=rank,
        compact=compact,
        merged=merged,
        seed=seed,
    )


def plan_edits(
    found: Survey,
    edits: tuple[MatrixEdit, ...],
    *,
    control: str,
    strength: float | None = None,
    which: str = "top",
    rank: Rank = "exact",
    compact: bool = False,
    merged: bool = False,
    seed: int = 0,
    fit: FitOrigin | None = None,
) -> RepairPlan:
    """Plan to write a model with any edits. Other arguments and errors as in :func:`repair`.

    Args:
        found: A survey of the model.
        edits: At most one per matrix.
        control: Name of the intervention, or of the fitted fix.
        strength: Of the intervention.
        which: The selection of an intruder edit.
        rank: Rank of a written adapter.
        compact: See :func:`repair`.
        merged: See :func:`repair`.
        seed: Random seed.
        fit: Where fitted edits come from.
    """
    _check_rank(rank, compact=compact)
    _check_inputs(found)
    is_adapter = not isinstance(found.tuned, ModelSource)
    if not isinstance(found.tuned, ModelSource) and merged:
        check_mergeable(found.base, found.tuned, found.pairing)
    if isinstance(found.tuned, ModelSource) or merged:
        check_copyable(found.tuned if isinstance(found.tuned, ModelSource) else found.base)
    changed = {edit.name: edit for edit in edits}
    chosen = selected(found, which) if control == "intruders" else {}
    modules: tuple[ModuleRank, ...] = ()
    lora = None
    if not isinstance(found.tuned, ModelSource) and not merged and edits:
        if holds_edits(found.tuned, found.pairing):
            modules = module_ranks(found, found.tuned, changed, rank, compact=compact)
        else:
            lora, modules = convert(found, found.tuned, changed, rank, compact=compact)
    matrices = tuple(
        edited_matrix(changed[m.name], m, chosen[m.name] if control == "intruders" else None)
        for m in found.matrices
        if m.name in changed
    )
    findings = _findings(found, modules, edits=edits, is_copied=not is_adapter or not merged)
    return RepairPlan(
        survey=found,
        control=control,
        strength=strength,
        which=which,
        seed=seed,
        rank=rank,
        compact=compact,
        writes="adapter" if is_adapter and not merged else "checkpoint",
        edits=edits,
        matrices=matrices,
        modules=modules,
        lora=lora,
        num_left=sum(v in ("borderline", "degenerate") for m in found.matrices for v in m.verdicts),
        findings=(*findings, *(() if strength is None else _away_from_base(matrices, strength))),
        fit=fit,
    )


def _check_rank(rank: Rank, *, compact: bool) -> None:
    if rank not in ("exact", "same") and (isinstance(rank, (str, bool)) or rank < 1):
        raise UsageError(
            f"the rank is {printable(rank)}, but must be exact, same or a positive number",
            remedy="leave it out for the exact rank",
        )
    if compact and rank != "exact":
        raise UsageError(
            f"compact works only with rank exact, not with {rank}",
            remedy="leave out one of the two",
        )


def _check_inputs(found: Survey) -> None:
    """Refuse a model that could only be repaired in part."""
    check_readable(found.base, found.tuned)
    if not found.unreadable:
        return
    report = found.unreadable[0]
    reason = report.findings[0].message if report.findings else report.status
    unread = len(found.unreadable)
    fact = f"{unread} {'matrix' if unread == 1 else 'matrices'} could not be analysed ({reason})"
    kind = MalformedInput if report.status in ("refused", "done") else ResourceExhausted
    remedy = "scan the model to see which ones, and why"
    raise kind(fact, remedy=remedy, file=found.pairing.tuned, tensor=report.name)


def _findings(
    found: Survey, modules: tuple[ModuleRank, ...], *, edits: tuple[MatrixEdit, ...], is_copied: bool
) -> tuple[Finding, ...]:
    findings = [
        finding
        for finding in found.pairing.findings
        if finding.severity != "info" or finding.code == "resized"
    ]
    if not edits:
        copied = "an exact copy" if is_copied else "the merged model, otherwise unchanged"
        message = f"nothing to repair: no vector is changed, and the output is {copied}"
        findings.append(Finding(code="nothing-to-repair", severity="info", message=message))
    is_new = any(module.before == 0 for module in modules)
    if is_new and not isinstance(found.tuned, ModelSource):
        message = (
            f"an adapter of the kind {found.tuned.kind.title} cannot hold these edits in its own form; the "
            "output is a plain LoRA"
        )
        findings.append(Finding(code="written-as-lora", severity="info", message=message))
    largest = max((module.after for module in modules if module.touched), default=0)
    advice = "" if is_new else "; rank 'same' keeps the old rank, at the cost of an error"
    findings += server_rank_findings(largest, advice)
    lost = math.sqrt(sum(module.frobenius_error**2 for module in modules))
    if lost > _ROUNDING * math.sqrt(sum(module.change_norm**2 for module in modules)):
        asked = math.sqrt(sum(module.change_norm**2 for module in modules))
        share = f", {lost / asked:.1%} of the norm of the edit" if asked > 0.0 else ""
        message = f"at this rank the adapter loses {lost:.4g} (Frobenius norm over all modules){share}"
        findings.append(Finding(code="rank-cut", severity="warning", message=message))
    return tuple(findings)


def _away_from_base(matrices: tuple[EditedMatrix, ...], strength: float) -> list[Finding]:
    """Advise against turning intruders down so far that the model ends up farther from the base.

    An intruder's singular value holds a part of the base too, and turning it down removes that as well:
    ‖ΔW + s C‖² = ‖ΔW‖² + 2 s ⟨ΔW, C⟩ + s² ‖C‖² for s times the change C.
    """
    vectors = [vector for matrix in matrices for vector in matrix.vectors]
    sums = totals(matrices)
    if strength >= 1.0 or not vectors or sums.update_norm_after is None:
        return []
    change = sum((vector.after - vector.before) ** 2 for vector in vectors)
    growth = sums.update_norm_after**2 - sums.update_norm**2
    if growth <= 1e-6 * sums.update_norm**2:
        return []
    # The largest s at which the norm does not grow, as a strength.
    lowest = 1.0 - max(0.0, 1.0 - growth / change) * (1.0 - strength)
    lowest = math.ceil(100.0 * lowest) / 100.0
    advice = "leave out vectors that are mostly the base's"
    if lowest < 1.0:
        advice = f"a strength of at least {lowest:.2f} does not increase the norm"
    message = (
        "do not use this edit: it moves the model away from the base. The norm of the edited updates rises "
        f"from {sums.update_norm:.4g} to {sums.update_norm_after:.4g}, and the share of it in the intruders' "
        f"directions from {sums.update_before or 0.0:.1%} to {sums.update_after or 0.0:.1%}. A scan may find "
        f"fewer intruders afterwards, but only because they dropped out of its top k; {advice}"
    )
    return [Finding(code="away-from-base", severity="warning", message=message)]
