"""A repaired model whose edits are fitted to data: planned here, written as any repair is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intruscope.adapters.kinds.lora import LoraUpdate
from intruscope.adapters.opening import open_pair
from intruscope.errors import UsageError
from intruscope.fitting.settings import FitSettings
from intruscope.fitting.table import FITS
from intruscope.progress import OnProgress, ignore_progress
from intruscope.repair.plan import RepairPlan, plan_edits
from intruscope.repair.records import FitOrigin
from intruscope.repair.survey import survey
from intruscope.weights.output import check_new_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from intruscope.adapters.opening import ModelLike
    from intruscope.engine.settings import RunOptions
    from intruscope.fitting.fit import Fit
    from intruscope.fitting.live import LiveFitter
    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.texts import Corpus
    from intruscope.repair.records import Rank
    from intruscope.repair.survey import Survey
    from intruscope.spectra.records import ScanSettings


def fitted_repair(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    task: Task,
    text: str | Path | Sequence[str | Path] | None = None,
    field: str | None = None,
    fix: str = "fitted",
    weight: float = 0.3,
    rank: Rank = "exact",
    compact: bool = False,
    merged: bool = False,
    seed: int = 0,
    device: str = "auto",
    fitting: FitSettings | None = None,
    settings: ScanSettings | None = None,
    options: RunOptions | None = None,
    allow_pickle: bool = False,
    lora_alpha: float | None = None,
    out: Path | None = None,
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> RepairPlan:
    """Fit a fix to examples of the task and general text, and plan a model with it.

    A third of the data decides when to stop; the rest is fitted. The result keeps the rank, the names and the
    files of a LoRA adapter.

    Args:
        base: See :func:`intruscope.repair.plan.repair`, as for the other arguments.
        tuned: Likewise.
        task: Examples of the task.
        text: Text like that of pretraining. Without any, the fit keeps the predictions on the task's own
            text close to the base's (KL).
        field: Column that holds the text, in tables.
        fix: Name in :data:`intruscope.fitting.table.FITS`.
        weight: Of the loss on text beside the task's.
        rank: Rank of a written adapter. A plain LoRA keeps its own unless a number is given.
        compact: See :func:`intruscope.repair.plan.repair`.
        merged: See there.
        seed: Random seed of the split and of the batches.
        device: Where to fit.
        fitting: How it is fitted.
        settings: k, epsilon, and how verdicts are found.
        options: How the survey runs.
        allow_pickle: Also read PyTorch pickles, restricted to tensors.
        lora_alpha: For adapter formats that do not store it.
        out: Where the plan will be applied; checked now.
        on_progress: Called for every matrix (``surveying``), then for every step (``fitting``).
        on_notice: Called with messages that the user should see at once.

    Raises:
        UsageError: an unknown fix, a weight that is not positive, or too little data.
        UnsupportedFormat: replay of anything but a plain LoRA, or a model that cannot be trained.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.
    """
    from intruscope.forgetting.models import load_pair
    from intruscope.forgetting.scores import check_task

    fitting = fitting or FitSettings()
    if fix not in FITS:
        raise UsageError(f"there is no fitted fix named '{fix}'", remedy=f"choose from {', '.join(FITS)}")
    if not weight > 0.0:
        raise UsageError(f"the weight is {weight:g}, but must be positive", remedy="use for example 0.3")
    if out is not None:
        check_new_folder(out)
    corpus, fitting = _text(task, text, field, fitting, on_notice)
    opened = open_pair(base, tuned, allow_pickle=allow_pickle, lora_alpha=lora_alpha)
    pair = load_pair(opened, device=device)
    pair.language_model()
    check_task(pair, task)
    found = survey(
        opened,
        settings=settings,
        options=options,
        update_spectra=fix == "fitted",
        outputs=[] if out is None else [out],
        on_progress=on_progress,
        on_notice=on_notice,
    )
    fitter = _fitter(found, pair, task, corpus, fitting, seed)
    fitter.check([fix])
    fit = fitter.fit(fix, weight, on_progress=on_progress)
    return plan_edits(
        found,
        fit.edits,
        control=fix,
        rank="same" if rank == "exact" and _is_plain_lora(found) else rank,
        compact=compact,
        merged=merged,
        seed=seed,
        fit=_origin(fit, task, corpus, fitting),
    )


def _text(
    task: Task,
    text: str | Path | Sequence[str | Path] | None,
    field: str | None,
    fitting: FitSettings,
    on_notice: Callable[[str], None],
) -> tuple[Corpus, FitSettings]:
    """The general text, or the task's own with the distance from the base as the loss."""
    from dataclasses import replace
    from pathlib import Path

    from intruscope.fitting.data import text_of_task
    from intruscope.forgetting.texts import read_texts

    if text is not None:
        return read_texts([text] if isinstance(text, (str, Path)) else text, field=field), fitting
    on_notice("no text is given: the fit keeps the predictions on the task's own text close to the base's")
    return text_of_task(task), replace(fitting, general="kl")


def _fitter(
    found: Survey, pair: Any, task: Task, corpus: Corpus, fitting: FitSettings, seed: int
) -> LiveFitter:
    from intruscope.fitting.data import split_corpus, split_task
    from intruscope.fitting.fit import FitData
    from intruscope.fitting.live import LiveFitter
    from intruscope.fitting.losses import task_items, text_items

    stop_task, fit_task = split_task(task, seed=seed)
    stop_text, fit_text = split_corpus(corpus, seed=seed)
    return LiveFitter(
        survey=found,
        pair=pair,
        data=FitData(
            task=task_items(pair, fit_task, max_tokens=None, seed=seed),
            text=text_items(pair, fit_text, general=fitting.general, seed=seed),
            choosing_task=task_items(pair, stop_task, max_tokens=None, seed=seed),
            choosing_text=text_items(pair, stop_text, general=fitting.general, seed=seed),
        ),
        data_digest=f"{task.sha256} {corpus.sha256}",
        settings=fitting,
        seed=seed,
    )


def _is_plain_lora(found: Survey) -> bool:
    """Whether the adapter can hold any fit at the rank that it has."""
    surveyed = {matrix.name for matrix in found.matrices}
    updates = [pair.update for pair in found.pairing.pairs if pair.name in surveyed]
    return all(isinstance(update, LoraUpdate) and update.is_low_rank for update in updates)


def _origin(fit: Fit, task: Task, corpus: Corpus, fitting: FitSettings) -> FitOrigin:
    fix = FITS[fit.fix]
    return FitOrigin(
        title=fix.title,
        explanation=fix.explanation,
        weight=fit.weight,
        num_trained=fit.num_trained,
        num_steps=fitting.fit_steps,
        stopped_at=fit.stopped_at,
        seconds=fit.seconds,
        task=task.name,
        text=", ".join(source.name for source in corpus.sources),
        task_sha256=task.sha256,
        text_sha256=corpus.sha256,
    )
