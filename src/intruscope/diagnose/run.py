"""A whole diagnosis: every part that its data allow, and a reason for every other one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.adapters.opening import open_pair
from intruscope.diagnose.advice import answer, sorted_fixes
from intruscope.diagnose.commands import Asked, next_commands
from intruscope.diagnose.records import DiagnoseReport, SkippedPart
from intruscope.diagnose.settings import DiagnoseSettings
from intruscope.engine.settings import RunOptions
from intruscope.errors import (
    IntruscopeError,
    MalformedInput,
    ResourceExhausted,
    UsageError,
    allocation_failure,
    readable_bytes,
)
from intruscope.forgetting.settings import SkillSettings
from intruscope.progress import OnProgress, Progress, ignore_progress
from intruscope.spectra.records import ScanSettings
from intruscope.sweep.records import SweepSettings
from intruscope.sweep.settings import MeasureOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intruscope.adapters.live import LivePair
    from intruscope.adapters.opening import ModelLike, OpenedPair
    from intruscope.diagnose.records import Part
    from intruscope.forgetting.harness import Harness
    from intruscope.forgetting.records import ForgettingReport
    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.texts import Corpus
    from intruscope.sweep.records import SweepReport

_COPIES = 3
"""Copies of the weights that are in memory while two models are loaded as one pair."""
_WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 4, "float16": 4}
"""Bytes per weight while loading: adapters are merged in float32 or wider."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """What all parts need.

    Attributes:
        opened: The two models.
        corpus: The text, read; None where none was given.
        task: The task; None where none was given.
        harness: The skills; None where none were given.
        settings, measuring, options: As given.
        on_progress, on_notice: As given.
    """

    opened: OpenedPair
    text: tuple[str, ...]
    field: str | None
    corpus: Corpus | None
    task: Task | None
    harness: Harness | None
    skills: SkillSettings
    settings: DiagnoseSettings
    measuring: MeasureOptions
    options: RunOptions
    on_progress: OnProgress
    on_notice: Callable[[str], None]


def diagnose(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    text: str | Path | Sequence[str | Path] = (),
    field: str | None = None,
    task: Task | None = None,
    task_words: Sequence[str] | None = None,
    skills: SkillSettings | Sequence[str] = (),
    settings: DiagnoseSettings | None = None,
    measuring: MeasureOptions | None = None,
    options: RunOptions | None = None,
    allow_pickle: bool = False,
    outputs: Sequence[Path] = (),
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> DiagnoseReport:
    """Scan a fine-tune, measure what it forgot, compare fixes, and say what to do next.

    Every part that cannot run is left out with its reason. Without a text, forgetting is not measured;
    without a text and a task, fixes are not compared; a model that does not fit into memory is only scanned.

    Args:
        base: The base model, see :func:`intruscope.scan`.
        tuned: The tuned model, likewise.
        text: Files, patterns, or datasets on the hub; text like that of pretraining.
        field: Column that holds the text, in tables.
        task: The task of the fine-tune, from ``load_task``.
        task_words: How the task is given on the command line, for the commands to run next; by default
            ``--task`` and its name.
        skills: Tasks of lm-evaluation-harness, see :func:`intruscope.forget`.
        settings: What counts as an intruder, and which fixes are compared.
        measuring: How the models are loaded and measured.
        options: How the matrices are decomposed, and the folder in which all parts can be resumed.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        outputs: Paths that the caller will write; refused at once where one is an input.
        on_progress: Called by every part in turn.
        on_notice: Called with sentences that the user should see at once.

    Returns:
        The report of every part, the answer in words, and the commands to run next.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`. What was computed before is kept.
    """
    from intruscope.forgetting.harness import Harness
    from intruscope.forgetting.texts import read_texts
    from intruscope.spectra.scan import scan

    given = (str(text),) if isinstance(text, (str, Path)) else tuple(map(str, text))
    if not isinstance(skills, SkillSettings):
        skills = SkillSettings(skills=(skills,) if isinstance(skills, str) else tuple(skills))
    # What was given wrongly is refused at once; the rest may take hours.
    run = _Run(
        opened=open_pair(base, tuned, allow_pickle=allow_pickle),
        text=given,
        field=field,
        corpus=read_texts(list(given), field=field) if given else None,
        task=task,
        harness=Harness(skills) if skills.skills else None,
        skills=skills,
        settings=settings or DiagnoseSettings(),
        measuring=measuring or MeasureOptions(),
        options=options or RunOptions(),
        on_progress=on_progress,
        on_notice=on_notice,
    )
    run.options.make_work_dir()
    wanted = run.settings
    scanned = scan(
        run.opened,
        settings=ScanSettings(k=wanted.k, epsilon=wanted.epsilon, seed=wanted.seed),
        options=run.options.within("scan"),
        outputs=outputs,
        on_progress=on_progress,
        on_notice=on_notice,
    )
    forgetting, swept, skipped = _live_parts(run)
    named = () if run.opened.in_memory else (run.opened.base.name, run.opened.tuned.name)
    fixes = () if swept is None else sorted_fixes(swept, named)
    asked = Asked(
        models=named,
        text=tuple(word for each in given for word in ("--text", each))
        + (("--field", field) if field else ()),
        task=tuple(task_words) if task_words is not None else ("--task", task.name) if task else (),
        skills=skills,
        measuring=run.measuring,
        settings=wanted,
    )
    verdict, sentences = answer(scanned, forgetting, swept, fixes)
    return DiagnoseReport(
        base=scanned.base,
        tuned=scanned.tuned,
        settings=wanted,
        verdict=verdict,
        sentences=sentences,
        scan=scanned,
        forgetting=forgetting,
        sweep=swept,
        fixes=fixes,
        skipped=skipped,
        commands=next_commands(asked, fixes, skipped, forgot=verdict == "forgot"),
    )


def _live_parts(
    run: _Run,
) -> tuple[ForgettingReport | None, SweepReport | None, tuple[SkippedPart, ...]]:
    """The parts that run the models, which are loaded once."""
    skipped: list[SkippedPart] = []

    def skip(part: Part, reason: str, *, was_asked: bool = False) -> None:
        skipped.append(SkippedPart(part=part, was_asked=was_asked, reason=reason))

    can_forget, can_sweep = run.corpus is not None, run.corpus is not None and run.task is not None
    if not can_forget:
        skip("forgetting", "no text was given; add --text with text like that of pretraining")
    if not can_sweep:
        lacks = " and ".join(
            name for name, found in (("text", run.corpus), ("task", run.task)) if found is None
        )
        skip(
            "fixes",
            f"no {lacks} was given; a fix is judged by the forgetting and by the fine-tune's own task",
        )
    if not can_forget and run.harness is None:
        return None, None, tuple(skipped)
    wanted: list[Part] = []
    wanted += ["forgetting"] if can_forget else []
    wanted += ["skills"] if run.harness is not None else []
    wanted += ["fixes"] if can_sweep else []
    pair, why = _attempt(lambda: _loaded(run))
    if pair is None:
        for part in wanted:
            skip(part, why, was_asked=True)
        return None, None, tuple(skipped)
    forgetting, swept = None, None
    if can_forget or run.harness is not None:
        forgetting, why = _attempt(lambda: _forgetting(run, pair))
        if forgetting is None:
            for part in wanted:
                if part != "fixes":
                    skip(part, why, was_asked=True)
    if can_sweep:
        swept, why = _attempt(lambda: _swept(run, pair))
        if swept is None:
            skip("fixes", why, was_asked=True)
    return forgetting, swept, tuple(skipped)


def _attempt(part: Callable[[], Any]) -> tuple[Any, str]:
    """The result of a part; or None and the reason why it cannot run on these models or this machine."""
    try:
        return part(), ""
    except (UsageError, MalformedInput, ResourceExhausted) as error:
        return None, f"{error.fact}; {error.remedy}"
    except (MemoryError, RuntimeError) as error:
        exhausted = allocation_failure(error, remedy="use --dtype bfloat16 or a machine with more memory")
        if exhausted is None or isinstance(error, IntruscopeError):
            raise
        return None, f"{exhausted.fact}; {exhausted.remedy}"


def _loaded(run: _Run) -> LivePair:
    from intruscope.forgetting.models import choose_device, load_pair

    measuring = run.measuring
    if choose_device(measuring.device) == "cpu":
        _check_memory(run.opened, measuring.dtype)
    loading = Progress(stage="loading", done=0, total=2, unit="models")
    run.on_progress(loading)
    pair = load_pair(
        run.opened, device=measuring.device, dtype=measuring.dtype, tokenizer=measuring.tokenizer
    )
    pair.language_model()
    run.on_progress(replace(loading, done=2))
    return pair


def _check_memory(opened: OpenedPair, dtype: str) -> None:
    """Refuse models that cannot be loaded here, before the system ends the whole process.

    Raises:
        ResourceExhausted: they need more than is free.
    """
    free = _free_memory()
    count = sum(_size(tensor.shape) for tensor in opened.base.tensors.values())
    needed = _COPIES * _WIDTHS[dtype] * count
    if free is not None and needed > free:
        raise ResourceExhausted(
            f"loading both models takes about {readable_bytes(needed)} of memory, and {readable_bytes(free)} "
            "are free",
            remedy="use a machine with more memory, or --device cuda",
        )


def _size(shape: Sequence[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _free_memory() -> int | None:
    """Bytes that this machine can still give; None where it does not say (other systems than Linux)."""
    status = Path("/proc/meminfo")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _forgetting(run: _Run, pair: LivePair) -> ForgettingReport:
    """Text, task and skills of both models, from the journal where they were measured before."""
    from intruscope.forgetting.measurement import Measurement, Request
    from intruscope.forgetting.records import ForgettingReport
    from intruscope.spectra.scan import open_journal

    measuring, settings = run.measuring, run.settings
    kind = pair.language_model().kind
    request = Request(
        corpus=run.corpus,
        skills=run.skills,
        # As in a sweep: the exact protocol takes one pass per token.
        protocol=measuring.protocol or ("fast" if kind == "masked" else None),
        unit=measuring.unit,
        context=measuring.context,
        stride=measuring.stride,
        max_sequences=measuring.max_sequences,
        tasks=() if run.task is None else (run.task,),
        max_task_tokens=measuring.max_tokens,
        seed=settings.seed,
        num_resamples=settings.num_resamples,
        batch_tokens=measuring.batch_tokens,
        dtype=measuring.dtype,
        on_progress=run.on_progress,
        on_notice=run.on_notice,
    )
    identity = {
        "purpose": "diagnose-forgetting",
        "version": version("intruscope"),
        "inputs": list(run.opened.pairing.inputs),
        "text": None if run.corpus is None else run.corpus.sha256,
        "task": None if run.task is None else run.task.sha256,
        "skills": None if run.harness is None else [asdict(run.skills), run.harness.fingerprint],
        "measuring": {**asdict(measuring), "device": str(pair.language_model().model.device)},
        "statistics": [settings.seed, settings.num_resamples],
    }
    journal = None
    if not run.opened.in_memory:
        journal = open_journal(identity, run.options.within("forgetting"), run.on_notice)
    try:
        known = None if journal is None else journal.records.get("report")
        if known is not None:
            return ForgettingReport.from_json(known)
        measurement = Measurement(request, harness=run.harness)
        scorable, findings = measurement.check_tasks(pair)
        measurement.measure_base(pair)
        with pair.as_tuned():
            report = measurement.report(pair, pair.description, tasks=scorable, findings=findings)
        (report,) = measurement.finished([report])
        if journal is not None:
            journal.append("report", report.to_json())
        return report
    finally:
        if journal is not None:
            journal.close()


def _swept(run: _Run, pair: LivePair) -> SweepReport:
    from intruscope.sweep.measure import sweep

    assert run.task is not None
    wanted = run.settings
    return sweep(
        run.opened,
        task=run.task,
        text=list(run.text),
        field=run.field,
        settings=SweepSettings(**asdict(wanted)),
        measuring=run.measuring,
        options=run.options.within("fixes"),
        live=pair,
        on_progress=run.on_progress,
        on_notice=run.on_notice,
    )
