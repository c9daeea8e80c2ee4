"""``intruscope demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intruscope.cli.options import Verbose  # noqa: TC001 - typer reads annotations when it runs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from intruscope.demo.run import DemoResult


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("intruscope-demo"),
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Fine-tune a small shipped model in full and with LoRA, scan both, and write a report.

    Takes a few minutes on two cores, works offline, and needs the 'lab' extra.
    """
    from rich.console import Console

    from intruscope.cli.screen import show
    from intruscope.demo.run import run_demo
    from intruscope.demo.screen import live_progress

    with live_progress(Console(stderr=True)) as on_event:
        result = run_demo(out, on_event=on_event)
    show(_seen(result, out), width=80)


def _seen(result: DemoResult, out: Path) -> Iterable[RenderableType]:
    """The table, what it means, which texts it stands on, and what to do with the folder."""
    from rich.text import Text

    from intruscope.demo.screen import result_table, texts_table

    return (
        result_table(result),
        Text(f"{result.sentence()}\n", style="bold"),
        texts_table(result),
        Text.assemble(
            ("\nreport  ", "dim"),
            (f"{result.report_path}", "bold"),
            ("\n\nOpen it in a browser. Then scan your own, as these two were scanned:", ""),
            (f"\n  intruscope scan {out / 'base'} {out / 'full'}", "cyan"),
            (f"\n  intruscope scan {out / 'lora'}", "cyan"),
            overflow="fold",
        ),
    )
