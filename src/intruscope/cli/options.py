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
Method = Annotated[str, typer.Option(help="Fine-tuning method; intruscope methods lists them.")]
Rank = Annotated[int | None, typer.Option(help="Of the method, where it has one.")]
Alpha = Annotated[float | None, typer.Option(help="Of the method; by the recipe, twice the rank.")]
MethodOption = Annotated[
    list[str] | None, typer.Option("--option", "-O", help="Further option of the method: NAME=VALUE.")
]
Target = Annotated[
    list[str] | None, typer.Option(help="End of the names of modules to change; all linear by default.")
]
Recipe = Annotated[str, typer.Option(help="Where all other numbers are from.")]
Rate = Annotated[
    float | None,
    typer.Option(min=0.0, help="Learning rate; by the recipe, alpha * lr = 2.4e-3 at every rank."),
]
Examples = Annotated[
    int | None, typer.Option(min=1, help="Train on so many of the examples at most, drawn by the seed.")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps instead.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Examples per step.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Parts that a batch is taken in.")]
MaxLength = Annotated[int | None, typer.Option(min=2, help="Longest input in tokens.")]
GroupByLength = Annotated[
    bool, typer.Option("--group-by-length", help="Take examples of one length together: less padding.")
]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16; weights stay float32.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
Tokenizer = Annotated[Path | None, typer.Option(help="Folder of the tokenizer.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Also read PyTorch files (weights_only).")]
Force = Annotated[bool, typer.Option("--force", help="Write into folders that are not empty.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of our own faults.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]
