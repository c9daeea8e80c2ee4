"""Shell commands to run next, complete and quoted."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intruscope.diagnose.records import NextCommand
from intruscope.options import options_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.diagnose.records import Fix, SkippedPart
    from intruscope.diagnose.settings import DiagnoseSettings
    from intruscope.forgetting.settings import SkillSettings
    from intruscope.sweep.settings import MeasureOptions

GENERAL_TEXT = ("--text", "hf:Salesforce/wikitext:wikitext-2-raw-v1:test", "--field", "text")
"""A general text that anyone can download, for those who gave none."""


def option_words(settings: Any, *, without: Sequence[str] = ()) -> list[str]:
    """The options of a settings object that are no defaults, as words of a command line.

    Args:
        settings: An object of a settings class.
        without: Names of fields to leave out.
    """
    words: list[str] = []
    for each, known in options_of(settings):
        value = getattr(settings, each.name)
        if each.name in without or value == each.default:
            continue
        flag = "--" + (known.flag or each.name.replace("_", "-"))
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple) and not known.comma:
            for one in value:
                words += [flag, str(one)]
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return words


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was given on the command line, as words that can be given again.

    Attributes:
        models: Base and tuned model, or an adapter alone; empty for models in memory.
        text: ``--text`` and ``--field``.
        task: ``--task`` and what goes with it.
        skills: Settings of the skills.
        measuring: How losses are measured.
        settings: Settings of the diagnosis.
    """

    models: tuple[str, ...]
    text: tuple[str, ...]
    task: tuple[str, ...]
    skills: SkillSettings
    measuring: MeasureOptions
    settings: DiagnoseSettings

    def line(self, verb: str, *words: str) -> str:
        """A command on these models."""
        return shlex.join(["intruscope", verb, *self.models, *words])

    @property
    def forget_words(self) -> list[str]:
        """How ``forget`` measures the same."""
        measuring = option_words(self.measuring, without=("max_examples", "max_tokens"))
        return [*self.text, *option_words(self.skills), *measuring]


def next_commands(
    asked: Asked, fixes: Sequence[Fix], skipped: Sequence[SkippedPart], *, forgot: bool
) -> tuple[NextCommand, ...]:
    """What to run next, the most useful first.

    Args:
        asked: What was given.
        fixes: The fixes, best first.
        skipped: What was not run.
        forgot: Something was forgotten.

    Returns:
        Nothing for models in memory, which no command can name.
    """
    if not asked.models:
        return ()
    found: list[NextCommand] = []

    def add(purpose: str, command: str) -> None:
        found.append(NextCommand(purpose=purpose, command=command))

    missing = {each.part for each in skipped if not each.was_asked}
    best = fixes[0] if fixes and fixes[0].is_certain else None
    if best is not None and best.command is not None:
        add("Write the model with the best fix", best.command)
        fixed = shlex.split(best.command)
        folder = fixed[fixed.index("-o") + 1]
        base = asked.models[0] if len(asked.models) > 1 else None
        models = [base, folder] if base is not None else [folder]
        words = [*models, *asked.forget_words]
        add("Then measure the fixed model", shlex.join(["intruscope", "forget", *words]))
    if not asked.text:
        add(
            "Measure forgetting on a general text (this one is downloaded)",
            asked.line("diagnose", *GENERAL_TEXT, *asked.task, *option_words(asked.skills)),
        )
    if asked.text and forgot:
        words = [*asked.text, *option_words(asked.measuring, without=("max_examples", "max_tokens"))]
        add("See which modules forgot", asked.line("forget", *words, "--where", "--html", "where.html"))
    if asked.text and asked.task and "fixes" not in missing:
        controls = ["--controls", "all"]
        settings = option_words(asked.settings, without=("controls",))
        measuring = option_words(asked.measuring)
        words = [*asked.task, *asked.text, *controls, *settings, *measuring]
        add("Compare every fix, with its controls", asked.line("sweep", *words, "--html", "sweep.html"))
    scan = option_words(
        asked.settings, without=("controls", "strengths", "weights", "max_task_cost", "num_resamples")
    )
    add("Look at every matrix", asked.line("scan", *scan, "--html", "scan.html"))
    return tuple(found)
