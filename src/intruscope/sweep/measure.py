"""A whole sweep: a live pair, a survey, the grid, the report."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.adapters.opening import open_pair
from intruscope.engine.environment import CORE, environment
from intruscope.engine.settings import RunOptions
from intruscope.errors import OutputConflict, UsageError
from intruscope.progress import OnProgress, ignore_progress
from intruscope.repair.interventions import INTERVENTIONS
from intruscope.repair.survey import survey as survey_pair
from intruscope.spectra.records import ScanSettings
from intruscope.spectra.scan import check_outputs, open_journal
from intruscope.sweep.assemble import assemble
from intruscope.sweep.records import DataSource, SweepReport, SweepSettings
from intruscope.sweep.run import checked_settings, run_grid
from intruscope.sweep.settings import MeasureOptions
from intruscope.sweep.statistics import check_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.adapters.live import LivePair
    from intruscope.adapters.opening import ModelLike
    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.texts import Corpus
    from intruscope.repair.survey import Survey
    from intruscope.sweep.figures import Measured


def sweep(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    task: Task,
    text: str | Path | Sequence[str | Path],
    field: str | None = None,
    settings: SweepSettings | None = None,
    measuring: MeasureOptions | None = None,
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
        settings: The grid, what counts as an intruder, and the statistics.
        measuring: How the models are loaded and measured.
        options: How the survey runs, and the folder of both journals.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        live: The same pair, where it is loaded already, in the way that ``measuring`` says.
        outputs: Paths that the caller will write; refused at once where one is an input.
        on_progress: Called for every matrix (``surveying``), then for every model (``measuring``).
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
    from intruscope.forgetting.texts import read_texts

    corpus = read_texts([text] if isinstance(text, (str, Path)) else text, field=field)
    work = options.work_dir
    opened = open_pair(base, tuned, allow_pickle=allow_pickle)
    check_outputs(opened.pairing, [*outputs, *([work] if work else [])])
    if work is not None:
        try:
            work.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputConflict(
                f"cannot make this folder ({error.strerror})",
                remedy="choose another --work",
                file=work,
            ) from error
    # Before the survey, which takes longer: whatever cannot be measured is refused at once.
    loading: dict[str, Any] = {name: getattr(measuring, name) for name in ("device", "dtype", "tokenizer")}
    pair = live if live is not None else load_pair(opened, **loading)
    pair.language_model()
    check_task(pair, task)
    needs_updates = any(INTERVENTIONS[control].needs_update_vectors for control in settings.controls)
    found = survey_pair(
        opened,
        settings=ScanSettings(k=settings.k, epsilon=settings.epsilon, seed=settings.seed),
        options=_within(options, "survey-with-updates" if needs_updates else "survey"),
        update_spectra=needs_updates,
        on_progress=on_progress,
        on_notice=on_notice,
    )
    if found.unreadable:
        on_notice(
            f"{len(found.unreadable)} matrices could not be decomposed and stay as they are, for example "
            f"{found.unreadable[0].name}"
        )
    measured = measure_pair(
        found,
        pair,
        task=task,
        text=corpus,
        settings=settings,
        measuring=measuring,
        options=_within(options, "sweep"),
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
        settings: Settings of the grid.
        measuring: How it is measured.
        options: Where the journal is.
        on_progress: Called before the first model, and before and after each.
        on_notice: Called with sentences that the user should see at once.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`. What was measured before is kept.
    """
    from intruscope.forgetting.losses import choose_protocol
    from intruscope.forgetting.windows import cut
    from intruscope.sweep.live import LiveBench, limited, num_examples

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
        return run_grid(survey, bench, settings, journal=journal, on_progress=on_progress)
    finally:
        if journal is not None:
            journal.close()


def _named(tokenizer: str | Path | None) -> str | None:
    return None if tokenizer is None else str(tokenizer)


def _within(options: RunOptions, name: str) -> RunOptions:
    return options if options.work_dir is None else replace(options, work_dir=options.work_dir / name)


def _environment(measuring: MeasureOptions, device: str) -> dict[str, Any]:
    versions = environment((*CORE, "transformers", "peft"))
    return {**versions, "device": device, "dtype": measuring.dtype}
