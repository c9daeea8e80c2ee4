"""``intruscope knowledge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from intruscope.cli.command import only
from intruscope.cli.groups import QUIET, Pair
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import note, progress_bars
from intruscope.engine.settings import RunOptions
from intruscope.knowledge.settings import KnowledgeSettings
from intruscope.options import REQUIRED, option


def knowledge(
    *,
    pair: Annotated[Pair, only(Pair, "base", "tuned", "allow_pickle")],
    facts: str = option(
        REQUIRED,
        help="Facts to ask for: a table with columns question, answer and aliases, or hf:org/name:split.",
        panel="Input",
        metavar="SOURCE",
    ),
    trained: str | None = option(
        None,
        help="Facts that the fine-tune was trained on, in the same form (default: a column 'trained').",
        panel="Input",
        metavar="SOURCE",
    ),
    prompts: Path | None = option(
        None,
        help="File of prompt templates with {question} and, for few-shot prompts, {examples} (default: "
        "few-shot prompts).",
        panel="Input",
        metavar="FILE",
    ),
    fact_fields: tuple[str, ...] = option(
        (),
        help="Columns of the facts: QUESTION,ANSWER or QUESTION,ANSWER,ALIASES.",
        panel="Input",
        comma=True,
        metavar="COLUMNS",
    ),
    settings: KnowledgeSettings,
    outputs: Annotated[Outputs, Writes("knowledge")],
    options: Annotated[RunOptions, only(RunOptions, "work_dir", "fresh")],
    quiet: bool = QUIET,
) -> None:
    """Ask both models for facts: which did the fine-tune learn, and which did it lose?

    Every shift stands beside the null shift: what other prompts alone change in the base. Needs the 'lab'
    extra.
    """
    files = [facts, trained, None if prompts is None else str(prompts)]
    outputs.check(pair.names, others=[options.work_dir], files=files)
    from intruscope.knowledge.run import knowledge as run_knowledge

    with progress_bars(quiet=quiet) as on_progress:
        report = run_knowledge(
            *pair.names,
            facts=facts,
            trained=trained,
            prompts=prompts,
            fact_fields=fact_fields,
            settings=settings,
            options=options,
            allow_pickle=pair.allow_pickle,
            outputs=outputs.paths,
            on_progress=on_progress,
            on_notice=note,
        )
    outputs.write(report, quiet=quiet)
