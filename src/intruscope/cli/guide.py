"""``intruscope guide``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from intruscope.cli.command import only
from intruscope.cli.groups import QUIET, Pair
from intruscope.cli.outputs import Outputs, Writes
from intruscope.cli.screen import progress_bars
from intruscope.guidance.settings import GuideSettings
from intruscope.options import option


def guide(
    *,
    pair: Annotated[Pair, only(Pair, "base", "tuned", "allow_pickle")],
    prompt: tuple[str, ...] = option((), help="Text to continue.", panel="Input", metavar="TEXT"),
    prompts: Path | None = option(
        None,
        help="File of prompts: one per line, or a table (see --field).",
        panel="Input",
        metavar="FILE",
    ),
    field: str | None = option(
        None,
        help="Column of the table that holds the prompts.",
        panel="Input",
        metavar="COLUMN",
        needs=("--prompts",),
    ),
    settings: GuideSettings,
    outputs: Annotated[Outputs, Writes("guide")],
    quiet: bool = QUIET,
) -> None:
    """Generate text with base and tuned model together, at several strengths, without changing a weight.

    The next token comes from log p = log p_base + gamma (log p_tuned - log p_base). For causal language
    models; each token costs a step of both. Needs the 'lab' extra.
    """
    outputs.check(pair.names, files=[] if prompts is None else [str(prompts)])
    from intruscope.guidance.run import guide as run_guide
    from intruscope.guidance.run import read_prompts

    listed = () if prompts is None else read_prompts(prompts, field=field)
    with progress_bars(quiet=quiet) as on_progress:
        report = run_guide(
            *pair.names,
            **asdict(settings),
            prompts=(*prompt, *listed),
            allow_pickle=pair.allow_pickle,
            on_progress=on_progress,
        )
    outputs.write(report, quiet=quiet)
