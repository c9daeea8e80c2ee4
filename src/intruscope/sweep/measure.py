"""A whole sweep: a live pair, a survey, the grid, the report."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.adapters.opening import open_pair
from intruscope.engine.environment import CORE, environment
from intruscope.engine.settings import RunOptions
from intruscope.errors import UsageError
from intruscope.fitting.table import FITS
from intruscope.progress import OnProgress, ignore_progress
from intruscope.repair.interventions import INTERVENTIONS
from intruscope.repair.survey import survey as survey_pair
from intruscope.spectra.records import ScanSettings
from intruscope.spectra.scan import check_outputs, open_journal
from intruscope.sweep.assemble import Fitted, assemble
from intruscope.sweep.live import num_examples
from intruscope.sweep.records import DataSource, SweepReport, SweepSettings
from intruscope.sweep.run import checked_settings, run_grid
from intruscope.sweep.settings import MeasureOptions
from intruscope.sweep.statistics import check_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.adapters.live import LivePair
    from intruscope.adapters.opening import ModelLike
    from intruscope.fitting.data import Parts
    from intruscope.fitting.live import LiveFitter
    from intruscope.fitting.losses import Items
    from intruscope.fitting.settings import FitSettings
    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.texts import Corpus
    from intruscope.forgetting.windows import Sequences
    from intruscope.repair.survey import Survey
    from intruscope.sweep.figures import Measured


def sweep(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    task: Task,
    text: str | Path | Sequence[str | Path],
    field: str | None = None,
    fit_task: Task | None = None,
    fit_text: str | Path | Sequence[str | Path] | None = None,
    settings: SweepSettings | None = None,
    measuring: MeasureOptions | None = None,
    fitting: FitSettings | None = None,
    options: RunOptions | None = None,
    allow_pickle: bool = False,
    live: LivePair | None = None,
    outputs: Sequence[Path] = (),
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> SweepReport:
    """Measure every strength of every control on a text and a task, and say which one is worth it.

    Args:
        base: The base model, see :func:`intruscope.spectra.scan.plan`.
        tuned: The tuned model, likewise.
        task: From :func:`intruscope.forgetting.tasks.load_task`.
        text: Files, patterns, or datasets on the hub (``hf:org/name:split``).
        field: Column that holds the text, in tables.
        fit_task: Examples for fitted fixes; by default a third of ``task`` is set aside for them.
        fit_text: Text for fitted fixes; by default a third of ``text`` is set aside.
        settings: The grid, what counts as an intruder, and the statistics.
        measuring: How the models are loaded and measured.
        fitting: How fixes are fitted.
        options: How the survey runs, and the folder of both journals.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        live: The same pair, where it is loaded already, in the way that ``measuring`` says.
        outputs: Paths that the caller will write; refused at once where one is an input.
        on_progress: Called for every matrix (``surveying``), every step of a fit (``fitting``), then
            for every model (``measuring``).
        on_notice: Called with sentences that the user should see at once.

    Returns:
        The report.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`. What was measured before is kept.
    """
    settings, measuring = checked_settings(settings or SweepSettings()), measuring or MeasureOptions()
    if measuring.max_examples is not None and measuring.max_examples < 1:
        raise UsageError(
            f"--max-examples is {measuring.max_examples}, but at least 1 is needed",
            remedy="raise --max-examples, or leave it out",
        )
    options = options or RunOptions()
    from intruscope.forgetting.models import load_pair
    from intruscope.forgetting.scores import check_task

    corpus = _read(text, field)
    aside: Parts | None = None
    fits = [control for control in settings.controls if control in FITS]
    if fits:
        from intruscope.fitting.data import parts_of_data

        other = None if fit_text is None else _read(fit_text, field)
        aside = parts_of_data(task, corpus, fit_task=fit_task, fit_text=other, seed=settings.seed)
        task, corpus = aside.task, aside.text
    work = options.work_dir
    opened = open_pair(base, tuned, allow_pickle=allow_pickle)
    check_outputs(opened.pairing, [*outputs, *([work] if work else [])])
    options.make_work_dir()
    # Before the survey, which takes longer: whatever cannot be measured is refused at once.
    loading: dict[str, Any] = {name: getattr(measuring, name) for name in ("device", "dtype", "tokenizer")}
    pair = live if live is not None else load_pair(opened, **loading)
    pair.language_model()
    check_task(pair, task)
    needs_updates = "fitted" in fits or any(
        INTERVENTIONS[name].needs_update_vectors for name in settings.controls if name in INTERVENTIONS
    )
    found = survey_pair(
        opened,
        settings=ScanSettings(k=settings.k, epsilon=settings.epsilon, seed=settings.seed),
        options=options.within("survey-with-updates" if needs_updates else "survey"),
        update_spectra=needs_updates,
        on_progress=on_progress,
        on_notice=on_notice,
    )
    if found.unreadable:
        on_notice(
            f"{len(found.unreadable)} matrices could not be decomposed and stay as they are, for example "
            f"{found.unreadable[0].name}"
        )
    measured, fitter = measure_with_fits(
        found,
        pair,
        task=task,
        text=corpus,
        aside=aside,
        settings=settings,
        measuring=measuring,
        fitting=fitting,
        options=options.within("sweep"),
        on_progress=on_progress,
        on_notice=on_notice,
    )
    num_cut, num_examples = measured.tuned.num_cut, len(measured.tuned.task_scores)
    if num_cut:
        on_notice(f"{num_cut} of {num_examples} examples are longer than the limit and were truncated")
    return assemble(
        measured,
        settings,
        base=found.pairing.base,
        tuned=found.pairing.tuned,
        text=DataSource(
            name=", ".join(source.name for source in corpus.sources),
            sha256=corpus.sha256,
            num_items=len(measured.tuned.text_nats),
            protocol=measured.protocol,
        ),
        task=DataSource(
            name=task.name,
            sha256=task.sha256,
            num_items=num_examples,
            protocol=measured.metric,
            num_cut=num_cut,
        ),
        num_intruders=sum(len(matrix.intruders) for matrix in found.matrices),
        num_matrices=len(found.matrices),
        environment=_environment(measuring, str(pair.language_model().model.device)),
        models=() if opened.in_memory else (opened.base.name, opened.tuned.name),
        fitted=None if fitter is None or aside is None else _fitted(measured, fitter, aside),
    )


def _read(text: str | Path | Sequence[str | Path], field: str | None) -> Corpus:
    from intruscope.forgetting.texts import read_texts

    return read_texts([text] if isinstance(text, (str, Path)) else text, field=field)


def _fitted(measured: Measured, fitter: LiveFitter, aside: Parts) -> Fitted:
    data, settings = fitter.data, fitter.settings
    return Fitted(
        text=DataSource(
            name=", ".join(source.name for source in aside.fit_text.sources),
            sha256=aside.fit_text.sha256,
            num_items=len(data.text.sizes),
            protocol=settings.general,
        ),
        task=DataSource(
            name=aside.fit_task.name,
            sha256=aside.fit_task.sha256,
            num_items=len(data.task.sizes),
            protocol="loss",
        ),
        settings=settings,
        directions=fitter.directions(measured.fits.values()),
    )


def measure_pair(
    survey: Survey,
    pair: LivePair,
    *,
    task: Task,
    text: Corpus,
    settings: SweepSettings,
    measuring: MeasureOptions,
    options: RunOptions,
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Measure the grid of a pair that is already surveyed and loaded.

    Args:
        survey: A survey of the pair.
        pair: The loaded pair.
        task: The loaded task.
        text: The text, read.
        settings: Settings of the grid, without fitted fixes.
        measuring: How it is measured.
        options: Where the journal is.
        on_progress: Called before the first model, and before and after each.
        on_notice: Called with sentences that the user should see at once.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`. What was measured before is kept.
    """
    return measure_with_fits(
        survey,
        pair,
        task=task,
        text=text,
        aside=None,
        settings=settings,
        measuring=measuring,
        options=options,
        on_progress=on_progress,
        on_notice=on_notice,
    )[0]


def measure_with_fits(
    survey: Survey,
    pair: LivePair,
    *,
    task: Task,
    text: Corpus,
    aside: Parts | None,
    settings: SweepSettings,
    measuring: MeasureOptions,
    options: RunOptions,
    fitting: FitSettings | None = None,
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> tuple[Measured, LiveFitter | None]:
    """The same with fitted fixes among the controls. Other arguments and errors as in :func:`measure_pair`.

    Args:
        survey: A survey of the pair.
        pair: The loaded pair.
        task: What is measured.
        text: Likewise.
        aside: What was set aside to fit on; None without fitted fixes.
        settings: Settings of the grid.
        measuring: How it is measured.
        options: Where the journal is.
        fitting: How fixes are fitted.
        on_progress: Also called before and after every step of a fit.
        on_notice: See there.

    Returns:
        The measurements, and what made the fits.
    """
    from intruscope.forgetting.losses import choose_protocol
    from intruscope.forgetting.windows import cut
    from intruscope.sweep.live import LiveBench, limited

    language = pair.language_model()
    # The exact protocol takes one pass per token, and a grid has dozens of cells.
    asked = measuring.protocol or ("fast" if language.kind == "masked" else None)
    protocol = choose_protocol(language.kind, asked)
    sequences = cut(
        text,
        language,
        unit=measuring.unit,
        context=measuring.context,
        stride=measuring.stride,
        max_sequences=measuring.max_sequences,
    )
    chosen = limited(task, measuring.max_examples)
    known = num_examples(chosen)
    if known is None:  # held-out text: as many as its sequences
        known = sequences.num_sequences if measuring.max_examples is None else measuring.max_examples
    check_counts(sequences.num_sequences, known)
    fitter = None
    if aside is not None:
        fitter = _fitter(survey, pair, chosen, sequences, aside, settings, measuring, fitting)
        fitter.check(control for control in settings.controls if control in FITS)
    bench = LiveBench(
        pair,
        sequences,
        protocol=protocol,
        task=chosen,
        seed=settings.seed,
        batch_tokens=measuring.batch_tokens,
        max_tokens=measuring.max_tokens,
        max_sequences=measuring.max_examples,
    )
    device = str(language.model.device)
    # Without strengths, controls and selections of intruders: a wider grid continues this journal.
    identity = {
        "purpose": "sweep",
        "version": version("intruscope"),
        "intruders": [settings.k, settings.epsilon, settings.seed],
        # A GPU rounds differently: its cells and a CPU's never share a journal.
        "measuring": {**asdict(measuring), "tokenizer": _named(measuring.tokenizer)}
        | ({} if device == "cpu" else {"device": device}),
        "inputs": list(survey.pairing.inputs),
        "text": text.sha256,
        "task": task.sha256,
    }
    journal = None if survey.pairing.in_memory else open_journal(identity, options, on_notice)
    try:
        measured = run_grid(survey, bench, settings, journal=journal, fitter=fitter, on_progress=on_progress)
        return measured, fitter
    finally:
        if journal is not None:
            journal.close()


def _fitter(
    survey: Survey,
    pair: LivePair,
    task: Task,
    sequences: Sequences,
    aside: Parts,
    settings: SweepSettings,
    measuring: MeasureOptions,
    fitting: FitSettings | None,
) -> LiveFitter:
    """Fits on what was set aside, and stops by the half that also chooses."""
    from intruscope.fitting.data import some_examples
    from intruscope.fitting.fit import FitData
    from intruscope.fitting.live import LiveFitter
    from intruscope.fitting.losses import items_of, task_items, text_items
    from intruscope.fitting.settings import FitSettings
    from intruscope.forgetting.tasks import TextTask
    from intruscope.forgetting.windows import cut
    from intruscope.sweep.statistics import choosing_items

    fitting = fitting or FitSettings()
    seed, max_tokens, general = settings.seed, measuring.max_tokens, fitting.general
    if isinstance(task, TextTask):
        examples = cut(task.corpus, pair.language_model(), max_sequences=measuring.max_examples)
        own_text, own_task = choosing_items(sequences.num_sequences, examples.num_sequences, seed)
        choosing_task: Items = items_of(pair, examples.only(own_task.tolist()), general="loss", seed=seed)
    else:
        own_text, own_task = choosing_items(sequences.num_sequences, num_examples(task) or 0, seed)
        choosing_task = task_items(
            pair, some_examples(task, own_task.tolist()), max_tokens=max_tokens, seed=seed
        )
    return LiveFitter(
        survey=survey,
        pair=pair,
        data=FitData(
            task=task_items(pair, aside.fit_task, max_tokens=max_tokens, seed=seed),
            text=text_items(pair, aside.fit_text, general=general, seed=seed),
            choosing_task=choosing_task,
            choosing_text=items_of(pair, sequences.only(own_text.tolist()), general=general, seed=seed),
        ),
        data_digest=aside.digest,
        settings=fitting,
        seed=seed,
    )


def _named(tokenizer: str | Path | None) -> str | None:
    return None if tokenizer is None else str(tokenizer)


def _environment(measuring: MeasureOptions, device: str) -> dict[str, Any]:
    versions = environment((*CORE, "transformers", "peft"))
    return {**versions, "device": device, "dtype": measuring.dtype}
