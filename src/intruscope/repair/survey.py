"""Everything that interventions need to know about a model: the top vectors and their verdicts, in one pass.

The expensive part of a repair and of a sweep, done once. Verdicts are those of a scan, with their
certificates; nothing is decided again here. What a worker finds is plain data in the journal, so that an
interrupted survey resumes.

Shape suffixes: O out, I in, K kept vectors, R rank of the update.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from intruscope.adapters.opening import open_pair
from intruscope.engine.settings import RunOptions
from intruscope.errors import UsageError
from intruscope.progress import OnProgress, ignore_progress
from intruscope.records.plain import decode
from intruscope.spectra.codec import pack_tensor, unpack_tensor
from intruscope.spectra.records import MatrixReport, ScanSettings, Verdict
from intruscope.spectra.scan import check_outputs, executor_for, matrix_report, run_pairs, runs_here
from intruscope.weights.names import matching
from intruscope.writing.changed import changed_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from intruscope.adapters.folder import AdapterSource
    from intruscope.adapters.opening import ModelLike
    from intruscope.spectra.matrix import Examined
    from intruscope.weights.matrices import MatrixPair, Pairing
    from intruscope.weights.source import ModelSource

_FUNCTION = "intruscope.repair.survey:survey_pair"
_FUNCTION_WITH_UPDATE = "intruscope.repair.survey:survey_pair_and_update"


@dataclass(frozen=True, kw_only=True, eq=False)
class SurveyedMatrix:
    """One matrix whose vectors are known.

    Attributes:
        report: As a scan gives it (side ``left``); verdicts and certificates are in it.
        left_OK: Its top tuned left vectors, unit columns by falling singular value, float64.
        values_K: The singular values.
        right_IK: The right vectors.
        core_KK: leftᵀ ΔW right: how the update looks from these directions.
        tuned_norm: ‖W‖_F.
        update_norm: ‖ΔW‖_F.
        update_svd: (left (O, R), falling values (R,), right (I, R)) of ΔW: of a low-rank update always, of
            another where the survey was asked for it, else None.
    """

    report: MatrixReport
    left_OK: torch.Tensor
    values_K: torch.Tensor
    right_IK: torch.Tensor
    core_KK: torch.Tensor
    tuned_norm: float
    update_norm: float
    update_svd: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None

    @property
    def name(self) -> str:
        """As a scan names it."""
        return self.report.name

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One per kept vector."""
        return self.report.sides[0].verdicts

    @property
    def intruders(self) -> tuple[int, ...]:
        """Indices of the intruders, by falling singular value."""
        return tuple(i for i, verdict in enumerate(self.verdicts) if verdict == "intruder")


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """What is known of a base and what was trained from it.

    Attributes:
        base: The opened base.
        tuned: The opened tuned model, or an adapter.
        pairing: All matrices that both have, and the ledger.
        settings: That the verdicts depend on.
        matrices: Those whose vectors are known: by default the linear layers of the blocks (the paper's
            scope), in the order of the base.
        unreadable: Reports of matrices that could not be surveyed (non-finite values, a deadline).
        others: Names of all other matrices that the fine-tune may have changed (embeddings, heads); only
            interpolation changes them.
    """

    base: ModelSource
    tuned: ModelSource | AdapterSource
    pairing: Pairing
    settings: ScanSettings
    matrices: tuple[SurveyedMatrix, ...]
    unreadable: tuple[MatrixReport, ...]
    others: tuple[str, ...]

    @cached_property
    def other_tensors(self) -> tuple[str, ...]:
        """Stored names, on the base's side, of changed tensors that are no matrices; read when asked."""
        return changed_tensors(self.base, self.tuned, self.pairing)


def survey(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    settings: ScanSettings | None = None,
    options: RunOptions | None = None,
    names: Sequence[str] | None = None,
    update_spectra: bool = False,
    allow_pickle: bool = False,
    lora_alpha: float | None = None,
    outputs: Sequence[Path] = (),
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> Survey:
    """Find the top vectors of every matrix and their verdicts.

    Args:
        base: Model before, see :func:`intruscope.spectra.scan.plan`.
        tuned: Model after, see there.
        settings: k, epsilon, seed, prove and threads count; interventions act on left vectors, as the paper's
            do, so the side is always ``left``.
        options: How it runs.
        names: Matrices to survey, with ``*`` as a wildcard; the paper's scope by default.
        update_spectra: Also decompose updates that are not low-rank (dense: minutes for large matrices).
        allow_pickle: Also read PyTorch pickles, restricted to tensors.
        lora_alpha: For adapter formats that do not store it.
        outputs: Where the caller will write; refused now if it is an input.
        on_progress: Called before the first matrix, and whenever one is started or finished.
        on_notice: Called with messages that the user should see at once.

    Raises:
        UsageError: an unknown matrix, or a setting that a survey does not support.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.
    """
    settings = replace(settings or ScanSettings(), side="left", null_trials=0, chance_trials=0, maps=0)
    if settings.k == "all":
        raise UsageError(
            "k must be a number here: an intruder is one of the top k", remedy="use for example k=10"
        )
    options = runs_here(options or RunOptions(), base, tuned)
    executor = executor_for(_FUNCTION_WITH_UPDATE if update_spectra else _FUNCTION, settings, options)
    executor.start()
    try:
        opened = open_pair(base, tuned, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
        pairing = opened.pairing
        check_outputs(pairing, [*outputs, *([options.work_dir] if options.work_dir else [])])
        chosen = _chosen(pairing, names)
        outcomes = run_pairs(
            pairing,
            chosen,
            settings,
            options,
            executor=executor,
            on_progress=on_progress,
            on_notice=on_notice,
            stage="surveying",
            purpose="survey with updates" if update_spectra else "survey",
        )
    finally:
        executor.close()
    found, unreadable = [], []
    for pair, outcome in zip(chosen, outcomes, strict=True):
        data = outcome.record
        if data is not None and data["vectors"] is not None:
            found.append(_from_plain(data))
        elif data is not None:
            unreadable.append(decode(MatrixReport, data["report"]))
        else:
            unreadable.append(matrix_report(pair, outcome))
    surveyed = {pair.name for pair in chosen}
    return Survey(
        base=opened.base,
        tuned=opened.tuned,
        pairing=pairing,
        settings=settings,
        matrices=tuple(found),
        unreadable=tuple(unreadable),
        others=tuple(pair.name for pair in pairing.pairs if pair.name not in surveyed),
    )


def _chosen(pairing: Pairing, names: Sequence[str] | None) -> tuple[MatrixPair, ...]:
    if names is None:
        return tuple(pair for pair in pairing.pairs if pair.scope == "paper")
    known = [pair.name for pair in pairing.pairs]
    wanted = {name for pattern in names for name in matching(pattern, known)}
    return tuple(pair for pair in pairing.pairs if pair.name in wanted)


# --- in a worker -----------------------------------------------------------------------------------


def survey_pair(payload: tuple[MatrixPair, ScanSettings]) -> dict[str, Any]:
    """Examine one pair and keep its vectors, as plain data for the journal.

    Raises:
        IntruscopeError: the files no longer hold what was planned.
    """
    return _survey_pair(payload, update_spectra=False)


def survey_pair_and_update(payload: tuple[MatrixPair, ScanSettings]) -> dict[str, Any]:
    """The same with the singular vectors of an update that is not low-rank.

    Raises:
        IntruscopeError: the files no longer hold what was planned.
    """
    return _survey_pair(payload, update_spectra=True)


def _survey_pair(payload: tuple[MatrixPair, ScanSettings], *, update_spectra: bool) -> dict[str, Any]:
    from intruscope.spectra.matrix import exact_arithmetic, examine

    with exact_arithmetic(payload[1].threads):
        found = examine(*payload)
        vectors = None if found.change is None else _vectors(found, update_spectra=update_spectra)
    return {"report": asdict(found.report), "vectors": vectors}


def _vectors(found: Examined, *, update_spectra: bool) -> dict[str, Any]:
    from intruscope.linalg.dense import svd
    from intruscope.linalg.lowrank import low_rank_svd
    from intruscope.linalg.topk import frobenius_norm

    assert found.spectrum is not None
    assert found.change is not None
    left_OK, right_IK = found.spectrum.left_MK, found.spectrum.right_NK
    update = found.change.for_share
    update_svd = None
    if isinstance(update, tuple):
        left_OR, right_RI = (factor.double() for factor in update)
        core_KK = (left_OK.T @ left_OR) @ (right_RI @ right_IK)
        update_svd = low_rank_svd(left_OR, right_RI)
        norm = float(update_svd[1].square().sum().sqrt())
    else:
        core_KK = left_OK.T @ update.double() @ right_IK
        norm = float(update.double().norm())
        if update_spectra:
            update_svd = svd(update.double())
    return {
        "left": pack_tensor(left_OK),
        "values": pack_tensor(found.spectrum.singular_values),
        "right": pack_tensor(right_IK),
        "core": pack_tensor(core_KK),
        "tuned_norm": frobenius_norm(found.change.tuned_operator),
        "update_norm": norm,
        "update_svd": None if update_svd is None else [pack_tensor(part) for part in update_svd],
    }


# --- plain data ------------------------------------------------------------------------------------


def _from_plain(data: dict[str, Any]) -> SurveyedMatrix:
    vectors = data["vectors"]
    update_svd = vectors["update_svd"]
    return SurveyedMatrix(
        report=decode(MatrixReport, data["report"]),
        left_OK=unpack_tensor(vectors["left"]),
        values_K=unpack_tensor(vectors["values"]),
        right_IK=unpack_tensor(vectors["right"]),
        core_KK=unpack_tensor(vectors["core"]),
        tuned_norm=vectors["tuned_norm"],
        update_norm=vectors["update_norm"],
        update_svd=None
        if update_svd is None
        else (unpack_tensor(update_svd[0]), unpack_tensor(update_svd[1]), unpack_tensor(update_svd[2])),
    )
