"""``intruscope demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.options import option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from intruscope.demo.run import DemoResult


def demo(
    out: Path = option(Path("intruscope-demo"), help="Folder to write to.", panel="Output", metavar="FOLDER"),
) -> None:
    """Fine-tune a small bundled model in full and with LoRA, scan both, and write a report.

    Works offline and takes a few minutes on two cores. Needs the 'lab' extra.
    """
    from rich.console import Console

    from intruscope.cli.screen import show
    from intruscope.demo.run import run_demo
    from intruscope.demo.screen import live_progress

    with live_progress(Console(stderr=True)) as on_progress:
        result = run_demo(out, on_progress=on_progress)
    show(_seen(result, out), width=80)


def _seen(result: DemoResult, out: Path) -> Iterable[RenderableType]:
    """The table, what it means, the texts it is based on, and what to do next."""
    from rich.text import Text

    from intruscope.demo.screen import result_table, texts_table

    return (
        result_table(result),
        Text(f"{result.sentence()}\n", style="bold"),
        texts_table(result),
        Text.assemble(
            ("\nreport  ", "dim"),
            (f"{result.report_path}", "bold"),
            ("\n\nOpen it in a browser. To scan the two fine-tunes again, or your own in the same way:", ""),
            (f"\n  intruscope scan {out / 'base'} {out / 'full'}", "cyan"),
            (f"\n  intruscope scan {out / 'lora'}", "cyan"),
            overflow="fold",
        ),
    )
