"""``repair``: survey, choose, check; the plan says what will be written, and ``apply`` writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from intruscope.errors import MalformedInput, ResourceExhausted, UnsupportedFormat, UsageError, printable
from intruscope.repair.interventions import Kind, checked_strength, intervene, selected
from intruscope.repair.naming import parse_which
from intruscope.repair.placing import check_copyable, check_mergeable
from intruscope.repair.ranks import Rank, module_ranks
from intruscope.repair.records import EditedMatrix, ModuleRank, edited_matrix
from intruscope.repair.survey import Survey, survey
from intruscope.weights.matrices import Finding
from intruscope.weights.output import check_new_folder
from intruscope.weights.source import ModelSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from intruscope.engine.tasks import Progress
    from intruscope.repair.edits import MatrixEdit
    from intruscope.spectra.records import ScanSettings
    from intruscope.spectra.scan import RunOptions

SERVER_RANK = 16
"""vLLM's default ``max_lora_rank``; other servers have limits like it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RepairPlan:
    """What a repair will write; nothing is written before :meth:`apply`.

    Attributes:
        survey: What it is based on.
        control: The intervention.
        strength: λ.
        which: Of the vectors.
        seed: Of random directions.
        rank: As asked for.
        compact: Ranks differ by module (``rank_pattern``).
        writes: ``adapter``, or ``checkpoint``: a full one, with the adapter merged where one was given.
        edits: Everything that changes; empty when there is nothing to repair.
        matrices: The same, described.
        modules: How the adapter's modules are stored; empty for a checkpoint and for a copy.
        num_left: Vectors whose verdict is open (borderline, degenerate) and which are left alone.
        findings: What the reader must know.
    """

    survey: Survey
    control: Kind
    strength: float
    which: str
    seed: int
    rank: Rank
    compact: bool
    writes: Literal["adapter", "checkpoint"]
    edits: tuple[MatrixEdit, ...]
    matrices: tuple[EditedMatrix, ...]
    modules: tuple[ModuleRank, ...]
    num_left: int
    findings: tuple[Finding, ...]

    @property
    def is_copy(self) -> bool:
        """Nothing is edited, and the output is the tuned model byte for byte."""
        return not self.edits and not self.merges

    @property
    def merges(self) -> bool:
        """An adapter goes into a full checkpoint."""
        return self.writes == "checkpoint" and not isinstance(self.survey.tuned, ModelSource)

    @property
    def changed(self) -> Mapping[str, MatrixEdit]:
        """The edits by name."""
        return {edit.name: edit for edit in self.edits}

    @property
    def stored_rank(self) -> int | None:
        """The one rank of an adapter whose modules all have it, else None."""
        ranks = {module.after for module in self.modules}
        return ranks.pop() if len(ranks) == 1 else None

    def apply(self, out: Path | str, *, on_progress: Callable[[int, int], None] = lambda *_: None) -> Path:
        """Write the repaired model: whole, or not at all.

        Args:
            out: A new or empty folder, outside the inputs.
            on_progress: Called with bytes written and bytes in all.

        Returns:
            The folder.

        Raises:
            OutputConflict: the folder holds something, or lies in an input.
            ResourceExhausted: there is no room; nothing is left behind.
            MalformedInput: an input changed since planning.
        """
        from intruscope.repair.apply import write_repair

        return write_repair(self, out, on_progress=on_progress)


def repair(
    base: str,
    tuned: str | None = None,
    *,
    strength: float,
    which: str = "top",
    control: Kind = "intruders",
    rank: Rank = "exact",
    compact: bool = False,
    merged: bool = False,
    seed: int = 0,
    settings: ScanSettings | None = None,
    options: RunOptions | None = None,
    allow_pickle: bool = False,
    lora_alpha: float | None = None,
    out: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_notice: Callable[[str], None] = lambda _: None,
) -> RepairPlan:
    """Plan a repaired model: the intruders turned down, everything else as it is.

    Args:
        base: Model before, see :func:`intruscope.spectra.scan.plan`.
        tuned: Model after: a full checkpoint or an adapter.
        strength: λ, the retained fraction of a singular value; 1 leaves it, 0 removes it, above 1 grows it.
        which: ``top`` (the highest intruder of each matrix, as the paper), ``all``, or names with indices;
            see :func:`intruscope.repair.naming.parse_which`. Names may also mean embeddings and heads.
        control: The intervention; see :func:`intruscope.repair.interventions.intervene`.
        rank: Of a written adapter. ``exact``: one rank for all modules, large enough for every edit, scaling
            one, no patterns. ``same``: each module keeps its rank (the best approximation; its error is in
            the plan). A number: that rank for all.
        compact: With ``exact``: only edited modules grow (``rank_pattern``, which some servers ignore).
        merged: Write a full checkpoint where an adapter was given.
        seed: Of random directions.
        settings: k, epsilon, and how verdicts are found.
        options: How the survey runs.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        lora_alpha: For adapter formats that do not store it.
        out: Where the plan will be applied; refused now if it cannot be.
        on_progress: Called for every event of the survey.
        on_notice: Called with sentences that the user should see at once.

    Raises:
        UsageError: a strength, selection or rank without meaning.
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
        update_spectra=control == "tail",
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
    control: Kind = "intruders",
    rank: Rank = "exact",
    compact: bool = False,
    merged: bool = False,
    seed: int = 0,
) -> RepairPlan:
    """Plan from a survey that is there already; arguments and errors as :func:`repair`."""
    _check_rank(rank, compact=compact)
    _check_inputs(found)
    is_adapter = not isinstance(found.tuned, ModelSource)
    if is_adapter and merged:
        check_mergeable(found)
    if isinstance(found.tuned, ModelSource) or merged:
        check_copyable(found.tuned if isinstance(found.tuned, ModelSource) else found.base)
    edits = intervene(found, kind=control, strength=strength, which=which, seed=seed)
    changed = {edit.name: edit for edit in edits}
    chosen = selected(found, which)
    modules: tuple[ModuleRank, ...] = ()
    if not isinstance(found.tuned, ModelSource) and not merged and edits:
        modules = module_ranks(found, found.tuned, changed, rank, compact=compact)
    return RepairPlan(
        survey=found,
        control=control,
        strength=checked_strength(strength),
        which=which,
        seed=seed,
        rank=rank,
        compact=compact,
        writes="adapter" if is_adapter and not merged else "checkpoint",
        edits=edits,
        matrices=tuple(
            edited_matrix(changed[m.name], m, chosen[m.name] if control == "intruders" else None)
            for m in found.matrices
            if m.name in changed
        ),
        modules=modules,
        num_left=sum(v in ("borderline", "degenerate") for m in found.matrices for v in m.verdicts),
        findings=_findings(found, modules, edits=edits, is_copied=not is_adapter or not merged),
    )


def _check_rank(rank: Rank, *, compact: bool) -> None:
    if rank not in ("exact", "same") and (isinstance(rank, (str, bool)) or rank < 1):
        raise UsageError(
            f"got the rank {printable(rank)}, expected exact, same or a number of at least 1",
            remedy="leave it out for the exact one",
        )
    if compact and rank != "exact":
        raise UsageError(
            f"got compact with the rank {rank}, expected it with exact alone",
            remedy="leave one of the two out",
        )


def _check_inputs(found: Survey) -> None:
    """Refuse what could only be repaired in part or by guessing."""
    for source in (found.base, found.tuned):
        if isinstance(source, ModelSource) and source.unreadable is not None:
            raise UnsupportedFormat(
                f"got a model that is {source.unreadable}, expected float64, float32, float16 or bfloat16",
                remedy="give the unquantised model that it was made from",
                file=source.path,
            )
    if not found.unreadable:
        return
    report = found.unreadable[0]
    reason = report.findings[0].message if report.findings else report.status
    fact = f"got {len(found.unreadable)} matrices that could not be surveyed, expected all ({reason})"
    kind = MalformedInput if report.status in ("refused", "done") else ResourceExhausted
    raise kind(
        fact, remedy="scan the model to see which, and why", file=found.pairing.tuned, tensor=report.name
    )


def _findings(
    found: Survey, modules: tuple[ModuleRank, ...], *, edits: tuple[MatrixEdit, ...], is_copied: bool
) -> tuple[Finding, ...]:
    findings = [
        finding
        for finding in found.pairing.findings
        if finding.severity != "info" or finding.code == "resized"
    ]
    if not edits:
        copied = "the output is a faithful copy" if is_copied else "the output is the merged model as it was"
        message = f"nothing to repair: no vector is changed, {copied}"
        findings.append(Finding(code="nothing-to-repair", severity="info", message=message))
    largest = max((module.after for module in modules if module.touched), default=0)
    if largest > SERVER_RANK:
        message = (
            f"the adapter's rank is now {largest}: servers often accept no more than {SERVER_RANK} unless "
            "told to (vLLM: --max-lora-rank); the rank 'same' keeps it, with an error"
        )
        findings.append(Finding(code="rank-above-servers", severity="warning", message=message))
    lost = math.sqrt(sum(module.frobenius_error**2 for module in modules))
    if lost > 0.0:
        asked = math.sqrt(sum(module.change_norm**2 for module in modules))
        share = f", {lost / asked:.1%} of the norm of the change" if asked > 0.0 else ""
        message = f"the rank cuts off {lost:.4g} (Frobenius norm, all modules){share}"
        findings.append(Finding(code="rank-cut", severity="warning", message=message))
    return tuple(findings)
