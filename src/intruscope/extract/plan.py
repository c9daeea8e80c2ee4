"""``extract``: decompose, choose ranks, check. The plan describes the adapter, and ``apply`` writes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from intruscope.adapters.opening import open_pair
from intruscope.engine.settings import RunOptions
from intruscope.errors import UsageError
from intruscope.extract.checks import check_size, checked_choice
from intruscope.extract.choose import best_curve, chosen_ranks, error_curve, spectrum_of
from intruscope.extract.findings import plan_findings
from intruscope.extract.measure import Runner
from intruscope.extract.records import ExtractedMatrix, ExtractRecord, KeptIntruders
from intruscope.extract.write import write_extracted
from intruscope.progress import OnProgress, ignore_progress
from intruscope.spectra.records import Estimate, ScanSettings
from intruscope.spectra.scan import check_outputs, runs_here
from intruscope.weights.output import check_new_folder
from intruscope.writing.checkpoint import check_readable
from intruscope.writing.modules import chosen, modules_of
from intruscope.writing.naming import adapter_names
from intruscope.writing.rest import find_rest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

    from intruscope.adapters.opening import ModelLike
    from intruscope.extract.decompose import Directions
    from intruscope.extract.records import Dtype
    from intruscope.writing.modules import TargetModule


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtractPlan(ExtractRecord):
    """An adapter that is computed and not yet written; :meth:`apply` writes it."""

    def apply(self, out: Path | str, *, on_progress: OnProgress = ignore_progress) -> Path:
        """Write the adapter: whole, or not at all.

        Args:
            out: A new or empty folder, outside the inputs.
            on_progress: Called after every file, in bytes.

        Returns:
            The folder.

        Raises:
            UsageError: there is nothing to write.
            OutputConflict: the folder holds something, or lies in an input.
            ResourceExhausted: there is no room; nothing is left behind.
            MalformedInput: an input changed since planning.
        """
        return write_extracted(self, out, on_progress=on_progress)


def extract(
    base: ModelLike,
    tuned: ModelLike | None = None,
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
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> ExtractPlan:
    """Approximate a fine-tune by a low-rank adapter of its base, as closely as the ranks allow.

    Exactly one of ``rank``, ``energy``, ``error`` and ``parameters`` chooses the ranks.

    Args:
        base: Model before, see :func:`intruscope.spectra.scan.plan`.
        tuned: Model after: a full checkpoint or an adapter, of any kind that PEFT merges.
        rank: One rank for all matrices.
        energy: Share of ‖ΔW‖_F² to keep per matrix, in (0, 1].
        error: Maximum relative Frobenius error per matrix, in [0, 1).
        parameters: Budget of parameters for all factors, spent where it lowers the error most; see
            :mod:`intruscope.extract.allocate`.
        which: ``linear`` (linear layers of the blocks), ``all`` (everything that PEFT can adapt), or names
            separated by commas, with ``*`` as a wildcard.
        compact: Let each module keep its own rank (``rank_pattern``, which some servers ignore). By default
            factors are padded with zeros to the largest rank.
        save_rest: Save biases, norms, heads and everything else that changed, as far as PEFT can hold it.
        dtype: Dtype of the stored factors.
        settings: k, epsilon and seed of the scan that counts intruders.
        options: How to run: workers, memory, journal.
        allow_pickle: Also read PyTorch pickles, restricted to tensors.
        lora_alpha: For adapter formats that do not store it.
        out: Where the plan will be applied; checked now.
        on_progress: Called before the first matrix of each stage, and whenever one is started or finished.
        on_notice: Called with messages that the user should see at once.

    Raises:
        UsageError: none or several of the options that choose ranks, or an invalid value.
        UnsupportedFormat: a quantised model, or a format that is not read, by name.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.
    """
    choice = checked_choice(rank=rank, energy=energy, error=error, parameters=parameters)
    settings = replace(settings or ScanSettings(), side="left", null_trials=0, chance_trials=0, maps=0)
    options = runs_here(options or RunOptions(), base, tuned)
    if out is not None:
        check_new_folder(out)
    opened = open_pair(base, tuned, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
    before, after, pairing = opened.base, opened.tuned, opened.pairing
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
    )
    return replace(plan, findings=plan_findings(plan, found))


def _factors(found: Directions, rank: int, dtype: Dtype) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    up, down = (factor.to(getattr(torch, dtype)).contiguous() for factor in found.factors(rank))
    if not bool(up.isfinite().all() and down.isfinite().all()):
        raise UsageError(
            f"the factors overflow {dtype}, whose largest value is {torch.finfo(up.dtype).max:.0f}",
            remedy="use --dtype float32",
        )
    return up, down


def _described(
    module: TargetModule, found: Directions, rank: int, checked: Mapping[str, Any] | None, dtype: Dtype
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
