"""The best fix of all, at a cost that the user accepts, and what it takes.

Every fix has been given the same chance: one rule chose its strength or weight on the choosing half. The best
of these choices is also chosen there, so that its figures, which are of the evaluation half, flatter nobody.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from intruscope.fitting.table import FITS, FIXES, GUIDANCE
from intruscope.forgetting.losses import PROTOCOLS
from intruscope.sweep.choice import FEWEST_SEQUENCES, model_stem, repair_command
from intruscope.sweep.records import BestFix
from intruscope.sweep.words import best_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.forgetting.intervals import Interval
    from intruscope.sweep.assemble import Fitted
    from intruscope.sweep.figures import Measured
    from intruscope.sweep.records import ChosenStrength, FitSummary, SweepSettings
    from intruscope.sweep.statistics import Sample

REPLAY = "replay"


def best_fix(
    measured: Measured,
    settings: SweepSettings,
    choices: Sequence[ChosenStrength],
    fits: Sequence[FitSummary],
    evaluation: Sample,
    fitted: Fitted,
    models: Sequence[str],
) -> BestFix:
    """Choose the best of the choices, and say how replay compares with the best edit.

    Args:
        measured: All measurements.
        settings: Settings of the sweep.
        choices: What the rule chose for every fix.
        fits: All fits.
        evaluation: The half to report on.
        fitted: What was fitted on.
        models: The models as a command names them; empty where no command can.
    """
    usable = [choice for choice in choices if choice.report is not None]
    if not usable:
        return BestFix(
            fix=None,
            which=None,
            strength=None,
            weight=None,
            seconds=None,
            report=None,
            best_edit=None,
            replay_gain=None,
            sentence=best_sentence(None, None, None, measured.metric, settings.max_task_cost),
        )
    best = min(usable, key=_rank)
    edits = [choice for choice in usable if choice.control not in (REPLAY, GUIDANCE.name)]
    edit = min(edits, key=_rank) if edits else None
    replay = next((choice for choice in usable if choice.control == REPLAY), None)
    gain = _gain(measured, edit, replay, evaluation)
    seconds = next((f.seconds for f in fits if (f.fix, f.weight) == (best.control, best.weight)), None)
    too_few = len(evaluation.text_items) < FEWEST_SEQUENCES
    return BestFix(
        fix=best.control,
        which=best.which,
        strength=best.strength,
        weight=best.weight,
        seconds=seconds,
        report=best.report,
        best_edit=None if edit is None else edit.control,
        replay_gain=gain,
        sentence=best_sentence(
            best, seconds, _comparison(edit, replay, gain), measured.metric, settings.max_task_cost,
            too_few=too_few,
        ),
        command=fix_command(
            models,
            best,
            settings,
            text=fitted.text.name,
            task=fitted.task.name,
            protocol=measured.protocol,
        ),
    )  # fmt: skip


def _rank(choice: ChosenStrength) -> float:
    assert choice.chosen_by is not None
    return choice.chosen_by


def _gain(
    measured: Measured, edit: ChosenStrength | None, replay: ChosenStrength | None, sample: Sample
) -> Interval | None:
    if edit is None or replay is None or edit.report is None or replay.report is None:
        return None
    first, second = (measured.by_key[each.report.cell.key] for each in (edit, replay))  # type: ignore[union-attr]
    return sample.interval(sample.losses(first) - sample.losses(second))


def _comparison(
    edit: ChosenStrength | None, replay: ChosenStrength | None, gain: Interval | None
) -> tuple[str, str] | None:
    """What replay does against the best edit, in a word, and the edit's title."""
    if edit is None and replay is not None:
        return "alone", ""
    if gain is None or edit is None or replay is None:
        return None
    verdict = "beats" if gain.low > 0.0 else ("loses" if gain.high < 0.0 else "equals")
    return verdict, FIXES[edit.control].title


def fix_command(
    models: Sequence[str],
    best: ChosenStrength,
    settings: SweepSettings,
    *,
    text: str,
    task: str,
    protocol: str,
) -> str | None:
    """The shell command that applies a choice: an intervention, a fit or guidance.

    Args:
        models: As the user named them: base and tuned model, or an adapter alone.
        best: The fix, and its strength or weight.
        settings: Settings of the sweep.
        text: Names of the text that a fit was fitted on, separated by commas.
        task: Name of the task that a fit was fitted on.
        protocol: How losses on the text were computed: only causal models can be guided in generation.

    Returns:
        None where there is nothing to name or to apply.
    """
    if best.control == GUIDANCE.name:
        words = ["intruscope", "guide", *models, "--gamma", f"{best.strength:g}", "--prompt", "TEXT"]
        return shlex.join(words) if models and protocol == PROTOCOLS["causal"] else None
    if best.control not in FITS:
        return repair_command(models, best, settings)
    if not models or best.weight is None:
        return None
    stem = model_stem(models)
    words = ["intruscope", "repair", *models, "-o", f"{stem}-{best.control}"]
    words += [{"fitted": "--fit", "fitted_matrix": "--fit-matrix", REPLAY: "--replay"}[best.control]]
    words += ["--weight", f"{best.weight:g}", "--task", task]
    for name in text.split(", "):
        words += ["--text", name]
    return shlex.join(words)
