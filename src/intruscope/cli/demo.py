"""``intruscope demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("intruscope-demo"),
) -> None:
    """Fine-tune a small shipped model in full and with LoRA, scan both, and write a report. Offline."""
    from intruscope.demo.run import run_demo

    run_demo(out)
