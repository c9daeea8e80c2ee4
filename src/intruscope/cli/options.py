"""Options that several verbs share, each declared once: its name, its bounds and what ``--help`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Base = Annotated[str, typer.Argument(help="Model before: path, org/name@revision, or base+adapter.")]
Tuned = Annotated[str | None, typer.Argument(help="Model after: full checkpoint or adapter.")]
Epsilon = Annotated[float, typer.Option(help="Alignment below which a vector is an intruder.")]
TopIntruders = Annotated[str, typer.Option(help="How many top vectors per matrix may be intruders.")]
Prove = Annotated[bool, typer.Option("--prove", help="Decompose everything densely in float64.")]
ReportJson = Annotated[str | None, typer.Option(help="Write the report as JSON; - for stdout.")]
Html = Annotated[Path | None, typer.Option(help="One self-contained page.")]
Plots = Annotated[Path | None, typer.Option(help="Folder for PNG and SVG pictures.")]
Work = Annotated[Path | None, typer.Option(help="Folder for the journal (default: user cache).")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run finished.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes (default: cores).")]
Memory = Annotated[float | None, typer.Option(help="GiB that running matrices may take.")]
LoraAlpha = Annotated[float | None, typer.Option(help="For adapter formats that do not store alpha.")]
Field = Annotated[str | None, typer.Option(help="Column of tables that holds the text.")]
Context = Annotated[int | None, typer.Option(help="Longest input in tokens.")]
Stride = Annotated[int | None, typer.Option(help="Tokens per further window (causal).")]
Data = Annotated[
    Path | None,
    typer.Option(envvar="INTRUSCOPE_DATA", help="Folder of the tasks named by a short name; else the hub."),
]
TaskFields = Annotated[str | None, typer.Option(help="Columns of the task: TEXT[,TEXT],LABEL.")]
Labels = Annotated[str | None, typer.Option(help="Names of the classes, in the model's order.")]
MaxTaskTokens = Annotated[int | None, typer.Option(min=2, help="Cut a task's texts to so many tokens.")]
BatchTokens = Annotated[int, typer.Option(min=1, help="Positions per batch.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "float64"], typer.Option(help="Of weights and computation.")
]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Also read PyTorch files (weights_only).")]
Force = Annotated[bool, typer.Option("--force", help="Write into folders that are not empty.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of our own faults.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]
