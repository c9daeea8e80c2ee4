"""The answer in words: what was broken, what explains it, and which fix is worth it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.diagnose.records import Fix
from intruscope.errors import printable
from intruscope.fitting.table import FIXES
from intruscope.forgetting.gates import LEVEL
from intruscope.forgetting.intervals import Interval
from intruscope.spectra.words import count
from intruscope.sweep.best import fix_command
from intruscope.sweep.choice import FEWEST_SEQUENCES
from intruscope.sweep.statistics import gain
from intruscope.sweep.words import best_sentence, interval_text, nats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.diagnose.records import Verdict
    from intruscope.forgetting.records import ForgettingReport
    from intruscope.spectra.records import ScanReport
    from intruscope.sweep.records import ChosenStrength, SweepReport


def sorted_fixes(report: SweepReport, models: Sequence[str]) -> tuple[Fix, ...]:
    """What the sweep chose for each fix, by the forgetting that is left on the half that chose it.

    Args:
        report: The sweep.
        models: The models as a command names them; empty where no command can.

    Returns:
        Fixes without an acceptable strength or weight are left out.
    """
    fixes = []
    fitting = report.fitting
    for choice in _usable(report):
        figures = choice.report
        assert figures is not None
        cost = -gain(report.metric)(figures.task_change.estimate)
        fixes.append(
            Fix(
                control=choice.control,
                title=FIXES[choice.control].title,
                strength=choice.strength,
                weight=choice.weight,
                forgetting_change=figures.forgetting_change,
                forgetting_share=figures.forgetting_share,
                task_change=figures.task_change,
                is_certain=figures.forgetting_change.high < 0.0
                and cost <= report.settings.max_task_cost
                and not _has_too_few(report)
                and report.forgetting.low > 0.0,
                command=fix_command(
                    models,
                    choice,
                    report.settings,
                    text="" if fitting is None else fitting.text.name,
                    task="" if fitting is None else fitting.task.name,
                    protocol=report.text.protocol,
                ),
            )
        )
    return tuple(fixes)


def _usable(report: SweepReport) -> list[ChosenStrength]:
    """Choices of a strength or weight, best first."""
    usable = [choice for choice in report.choices if choice.report is not None]
    return sorted(usable, key=lambda choice: choice.chosen_by or 0.0)


def _has_too_few(report: SweepReport) -> bool:
    """Whether the evaluation half has too few sequences for a verdict."""
    return report.halves[1].num_sequences < FEWEST_SEQUENCES


def answer(
    scan: ScanReport, forgetting: ForgettingReport | None, sweep: SweepReport | None, fixes: Sequence[Fix]
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict on forgetting, and sentences on it, on the weights and on the fixes.

    Args:
        scan: What changed in the weights.
        forgetting: What was forgotten; None where it was not measured.
        sweep: What fixes do; None where they were not compared.
        fixes: The fixes, best first.
    """
    verdict, sentences = _broken(forgetting)
    sentences.append(_weights(scan))
    if sweep is not None:
        sentences.append(_what_now(sweep, fixes))
    return verdict, tuple(sentences)


def _broken(forgetting: ForgettingReport | None) -> tuple[Verdict, list[str]]:
    if forgetting is None:
        return "unknown", [
            "Forgetting was not measured: that takes a text or skills. The weights alone cannot tell."
        ]
    sentences = []
    lost = False
    found = forgetting.forgetting
    if found is not None:
        lost = found.low > 0.0
        if lost:
            rise = interval_text(found, 3, unit=" nats/token")
            sentences.append(f"The loss on the text rose by {rise}.")
        elif found.high < 0.0:
            fall = Interval(estimate=-found.estimate, low=-found.high, high=-found.low)
            sentences.append(f"The loss on the text fell by {interval_text(fall, 3, unit=' nats/token')}.")
        else:
            sentences.append(f"The loss on the text did not measurably change: {nats(found)}.")
    if forgetting.skills is not None:
        figures = forgetting.skills.figures
        worse = [each for each in figures if each.loss.estimate > 0.0 and each.p_adjusted < LEVEL]
        lost = lost or bool(worse)
        named = ", ".join(
            f"{printable(each.label)} ({each.base.estimate:.3f} to {each.tuned.estimate:.3f})"
            for each in worse
        )
        sentences.append(f"Skills that got worse: {named}." if worse else "No skill got measurably worse.")
    return "forgot" if lost else "no-forgetting", sentences


def _weights(scan: ScanReport) -> str:
    totals = scan.totals
    if not totals.num_vectors:
        return "Nothing in the paper's scope could be compared, so nothing can be said of the weights."
    found = f"{totals.num_intruders} of {totals.num_vectors} leading singular vectors are intruders"
    if totals.chance is None:
        return f"{found}."
    chance = totals.chance
    expected = f"{count(chance.expected)} ({count(chance.low)} to {count(chance.high)})"
    if totals.num_intruders > chance.high:
        return f"{found}, more than the {expected} that an update of this strength has by chance."
    return (
        f"{found}; an update of this strength has {expected} by chance, so their number is no sign of harm."
    )


def _what_now(sweep: SweepReport, fixes: Sequence[Fix]) -> str:
    if sweep.forgetting.low <= 0.0:
        return "There is nothing for a fix to win back."
    if sweep.fitting is not None:
        said = sweep.fitting.best.sentence
    else:
        best = next(iter(_usable(sweep)), None)
        too_few = _has_too_few(sweep)
        limit = sweep.settings.max_task_cost
        said = best_sentence(best, None, None, sweep.metric, limit, too_few=too_few)
    if fixes and not fixes[0].is_certain and not _has_too_few(sweep):
        said += " This half does not confirm that it is worth it."
    return said
