"""``extract``: decompose, choose ranks, check; the plan says what is written, and ``apply`` writes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from intruscope.errors import UsageError
from intruscope.extract.checks import check_readable, check_size, checked_choice
from intruscope.extract.choose import best_curve, chosen_ranks, error_curve, spectrum_of
from intruscope.extract.findings import plan_findings
from intruscope.extract.measure import Runner
from intruscope.extract.modules import chosen, modules_of
from intruscope.extract.naming import adapter_names
from intruscope.extract.opening import open_any
from intruscope.extract.records import (
    Choice,
    ExtractedMatrix,
    KeptIntruders,
    Totals,
    totals,
)
from intruscope.extract.rest import find_rest
from intruscope.spectra.records import Estimate, ScanSettings
from intruscope.spectra.scan import RunOptions, check_outputs, pair_sources
from intruscope.weights.output import check_new_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.extract.allocate import Allocation
    from intruscope.extract.decompose import Directions
    from intruscope.extract.modules import Module
    from intruscope.extract.naming import AdapterNames
    from intruscope.extract.opening import Scratch
    from intruscope.extract.records import CurvePoint, Rest
    from intruscope.extract.rest import Saved
    from intruscope.weights.matrices import Finding, Pairing
    from intruscope.weights.source import ModelSource

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtractPlan:
    """An adapter that is computed and not yet written.

    Attributes:
        base: Opened.
        tuned: Opened.
        pairing: Of both.
        choice: Of the ranks.
        which: Modules that were asked for.
        compact: Each module keeps its own rank (``rank_pattern``).
        dtype: Of the factors in the file.
        save_rest: Whatever else changed is saved where PEFT can.
        names: Of the model's modules.
        modules: Those with factors, in the order of the base.
        others: Names of all further modules that hold matrices, as the model calls them.
        factors: B (out, rank) and A (rank, in) of each, by its name, without padding.
        matrices: The same, described, and those that were chosen and changed and have rank 0.
        rest: Everything else that changed.
        saved: What of it goes into the adapter.
        curve: Error at one rank for all.
        best: Least error at the same sizes where each matrix has its own rank.
        allocation: How a number of parameters was spent; None where ranks were chosen otherwise.
        scratch: Holds what an adapter of another kind was merged into; None where none was.
        findings: What the reader must know.
    """

    base: ModelSource
    tuned: ModelSource | AdapterSource
    pairing: Pairing
    choice: Choice
    which: str
    compact: bool
    dtype: Dtype
    save_rest: bool
    names: AdapterNames
    modules: tuple[Module, ...]
    others: tuple[str, ...]
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    matrices: tuple[ExtractedMatrix, ...]
    rest: tuple[Rest, ...]
    saved: Saved
    curve: tuple[CurvePoint, ...]
    best: tuple[CurvePoint, ...]
    allocation: Allocation | None
    scratch: Scratch | None
    findings: tuple[Finding, ...] = ()

    @property
    def is_empty(self) -> bool:
        """No chosen matrix changed: there is no adapter to write."""
        return not self.modules

    @property
    def stored_rank(self) -> int | None:
        """The one rank of all factors in the file; None where they differ, or where there are none."""
        ranks = {up.shape[1] for up, _ in self.factors.values()}
        if not ranks or (self.compact and len(ranks) > 1):
            return None
        return max(ranks)

    @property
    def totals(self) -> Totals:
        """All matrices together."""
        return totals(self.matrices, self.rest, padded_rank=self.stored_rank)

    def apply(self, out: Path | str, *, on_progress: Callable[[int, int], None] = lambda *_: None) -> Path:
        """Write the adapter: whole, or not at all.

        Args:
            out: A new or empty folder, outside the inputs.
            on_progress: Called with bytes written and bytes in all.

        Returns:
            The folder.

        Raises:
            UsageError: there is nothing to write.
            OutputConflict: the folder holds something, or lies in an input.
            ResourceExhausted: there is no room; nothing is left behind.
            MalformedInput: an input changed since planning.
        """
        from intruscope.extract.write import write_extracted

        return write_extracted(self, out, on_progress=on_progress)


def extract(
    base: str,
    tuned: str | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    parameters: int | None = None,
    which: str = "linear",
    compact: bool = False,
    save_rest: bool = False,
    dtype: Dtype = "float32",
    settings: ScanSettings | None = None,
    options: RunOptions | None = None,
    allow_pickle: bool = False,
    lora_alpha: float | None = None,
    out: Path | None = None,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
    on_notice: Callable[[str], None] = lambda _: None,
) -> ExtractPlan:
    """Plan a low-rank adapter that does to the base what a fine-tune did, as nearly as its ranks allow.

    Exactly one of ``rank``, ``energy``, ``error`` and ``parameters`` chooses the ranks.

    Args:
        base: Model before, see :func:`intruscope.spectra.scan.plan`.
        tuned: Model after: a full checkpoint or an adapter, of any kind that PEFT merges.
        rank: One for all matrices.
        energy: Share of ‖ΔW‖_F² that each matrix keeps at least, above 0 and up to 1.
        error: Relative Frobenius error that each matrix has at most, from 0 and below 1.
        parameters: Numbers in all factors together, spent where they lower the error most; see
            :mod:`intruscope.extract.allocate`.
        which: ``linear`` (linear layers of the blocks), ``all`` that PEFT can adapt, or names divided by
            commas, ``*`` standing for anything.
        compact: Each module keeps its own rank (``rank_pattern``, which some servers ignore); otherwise all
            are filled up with zeros to the largest.
        save_rest: Save biases, norms, heads and whatever else changed, as far as PEFT can.
        dtype: Of the factors in the file.
        settings: k, epsilon and seed of the scan that counts intruders.
        options: How it runs.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        lora_alpha: For adapter formats that do not store it.
        out: Where the plan will be applied; refused now if it cannot be.
        on_progress: Called with the stage, how many matrices are done, and how many there are.
        on_notice: Called with sentences that the user should see at once.

    Raises:
        UsageError: none or several ways to choose, or a value without meaning.
        UnsupportedFormat: a quantised model, or a format that is not read, by name.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.
    """
    choice = checked_choice(rank=rank, energy=energy, error=error, parameters=parameters)
    settings = replace(settings or ScanSettings(), side="left", null_trials=0, maps=0)
    options = options or RunOptions()
    if out is not None:
        check_new_folder(out)
    before, after, scratch = open_any(base, tuned, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
    pairing = pair_sources(before, after)
    check_readable(before, after)
    given = [*([out] if out else []), *([options.work_dir] if options.work_dir else [])]
    check_outputs(pairing, given)
    names = adapter_names(before, after)
    modules = modules_of(pairing, before, after, names)
    wanted = chosen(modules, which)
    check_size(choice, wanted)
    runner = Runner(pairing, settings, options, on_progress=on_progress, on_notice=on_notice)
    asked = {module.name for module in wanted}
    others = [module for module in modules if module.name not in asked]
    found, norms = runner.directions(wanted, others, choice)
    changed = tuple(module for module in wanted if module.name in found)
    check_size(choice, changed)  # the smallest that changed may be larger
    spectra = [spectrum_of(module, found[module.name]) for module in changed]
    ranks, spent = chosen_ranks(choice, {m.name: found[m.name] for m in changed}, spectra)
    adapted = tuple(module for module in changed if ranks[module.name])
    factors = {module.name: _factors(found[module.name], ranks[module.name], dtype) for module in adapted}
    checked = runner.checked(adapted, factors) if adapted else {}
    rest, saved = find_rest(
        before,
        after,
        pairing,
        modules=[module for module in modules if module.name not in found],
        adapted={module.module for module in adapted},
        norms=norms,
        names=names,
        save=save_rest and bool(adapted),
    )
    curve = error_curve(spectra, int(choice.value) if choice.kind == "rank" else None)
    plan = ExtractPlan(
        base=before,
        tuned=after,
        pairing=pairing,
        choice=choice,
        which=which,
        compact=compact,
        dtype=dtype,
        save_rest=save_rest,
        names=names,
        modules=adapted,
        others=tuple(m.module for m in modules if m not in adapted),
        factors=factors,
        matrices=tuple(
            _described(module, found[module.name], ranks[module.name], checked.get(module.name), dtype)
            for module in changed
        ),
        rest=rest,
        saved=saved,
        curve=curve,
        best=best_curve(spectra, [point.num_parameters for point in curve]),
        allocation=spent,
        scratch=scratch,
    )
    return replace(plan, findings=plan_findings(plan, found))


def _factors(found: Directions, rank: int, dtype: Dtype) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    up, down = (factor.to(getattr(torch, dtype)).contiguous() for factor in found.factors(rank))
    if not bool(up.isfinite().all() and down.isfinite().all()):
        raise UsageError(
            f"got factors that {dtype} cannot hold, expected numbers below {torch.finfo(up.dtype).max:.0f}",
            remedy="give --dtype float32",
        )
    return up, down


def _described(
    module: Module, found: Directions, rank: int, checked: Mapping[str, Any] | None, dtype: Dtype
) -> ExtractedMatrix:
    import torch

    norm = found.found.total_square**0.5
    left = spectrum_of(module, found).left_at(rank)
    optimal = 0.0 if left is None else left**0.5 / norm
    error = 1.0 if checked is None else checked["error"] / norm
    low, high = found.spectral(rank, getattr(torch, dtype))
    effective = found.effective_rank
    return ExtractedMatrix(
        name=module.name,
        module=module.module,
        shape=module.shape,
        rank=rank,
        rank_bound=found.rank_bound,
        update_norm=norm,
        relative_error=error,
        optimal_error=optimal,
        spectral_low=low,
        spectral_high=high,
        certificate=found.found.certificate,
        failure_probability=found.found.failure_probability,
        energy=max(0.0, 1.0 - error**2),
        effective_rank=None if effective is None else Estimate(**effective),
        rounding_fraction=found.rounding_fraction,
        intruders=() if checked is None else tuple(KeptIntruders(**each) for each in checked["intruders"]),
    )
