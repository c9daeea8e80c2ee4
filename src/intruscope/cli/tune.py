"""``intruscope tune``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from intruscope.cli.checks import note_idle_gpus, require_lab, warn_of_bfloat16
from intruscope.cli.command import Settings
from intruscope.cli.groups import (
    ALLOW_PICKLE,
    BASE,
    FIELD,
    QUIET,
    RUN_FOLDER,
    TOKENIZER,
    MethodOptions,
    TaskData,
)
from intruscope.cli.screen import note, progress_bars, show
from intruscope.errors import UsageError
from intruscope.options import option
from intruscope.train.processes import is_first, report_once
from intruscope.train.settings import TuneSettings

if TYPE_CHECKING:
    from intruscope.train.settings import TuneReport


@report_once()
def tune(
    base: str = BASE,
    task: str | None = option(
        None,
        help="Task to train on: a built-in name such as sst2 or mnli, a file, or hf:org/name:split.",
        panel="Input",
        metavar="TASK",
    ),
    text: tuple[str, ...] = option(
        (),
        help="Text to train a language model on, instead of --task: a file, a glob pattern, or "
        "hf:org/name:split.",
        panel="Input",
        metavar="SOURCE",
    ),
    field: str | None = FIELD,
    eval: str | None = option(
        None, help="Task to evaluate on after every epoch.", panel="Input", metavar="TASK"
    ),
    *,
    tasks: TaskData,
    forget_text: tuple[str, ...] = option(
        (),
        help="Text on which each scan during training also measures forgetting.",
        panel="Input",
        metavar="SOURCE",
    ),
    keep_text: tuple[str, ...] = option(
        (),
        help="General text whose knowledge is to be kept, for methods that start from it (corda, lora_null).",
        panel="Input",
        metavar="SOURCE",
    ),
    replay: tuple[str, ...] = option(
        (),
        help="General text that each step also learns from, so that the model forgets less.",
        panel="Input",
        metavar="SOURCE",
    ),
    tokenizer: Path | None = TOKENIZER,
    allow_pickle: bool = ALLOW_PICKLE,
    method: MethodOptions,
    settings: Annotated[partial[TuneSettings], Settings(TuneSettings, partial=True)],
    recipe: str = option("paper", help="Preset for hyperparameters you do not set.", metavar="NAME"),
    out: Path = RUN_FOLDER,
    quiet: bool = QUIET,
) -> None:
    """Fine-tune a model on a task or on text with any method, and watch intruders appear.

    Needs the 'lab' extra.
    """
    if (task is None) == (not text):
        raise UsageError(
            "nothing to train on" if task is None else "--task and --text exclude each other",
            remedy="give either a task with --task or text with --text",
        )
    from intruscope.forgetting.texts import read_texts
    from intruscope.methods.registry import find
    from intruscope.train.recipes import find_recipe
    from intruscope.train.tune import tune as run_tune
    from intruscope.weights.names import parse_name
    from intruscope.weights.output import check_output

    asked = settings(options=method.given, recipe=find_recipe(recipe))
    find(asked.method).options(method.given)
    require_lab()
    name = parse_name(base)
    files = [
        Path(each) for each in (*text, *forget_text, *replay, *keep_text, task, eval) if each is not None
    ]
    check_output(out, [*([name.path] if name.path else []), *(file for file in files if file.is_file())])
    quiet = quiet or not is_first()
    if not quiet:
        _warn(asked, watches_forgetting=bool(forget_text) and asked.max_forgetting is None)
        if replay and asked.replay_target == "base":
            _note_copy(base, asked.method, allow_pickle=allow_pickle)
    data = tasks.load(task, split="train") if task is not None else read_texts(list(text), field=field)
    with progress_bars(quiet=quiet) as on_progress:
        report = run_tune(
            base,
            out=out,
            settings=asked,
            data=data,
            held_out=tasks.load(eval) if eval is not None else None,
            forget_text=forget_text,
            keep_text=read_texts(list(keep_text), field=field) if keep_text else None,
            replay=read_texts(list(replay), field=field) if replay else None,
            tokenizer=tokenizer,
            allow_pickle=allow_pickle,
            on_progress=on_progress,
        )
    if not quiet:
        show([_summary(report)])
        if asked.watch_every and report.watch.get("intruders/count"):
            note(f"plots of the intruders over time are in {out / 'intruders'}")


def _warn(settings: TuneSettings, *, watches_forgetting: bool) -> None:
    """What the user should know before a long run."""
    warn_of_bfloat16(settings.bf16)
    note_idle_gpus("accelerate launch --multi_gpu -m intruscope tune ...")
    if settings.steps is not None and settings.epochs is not None:
        note("--epochs has no effect beside --steps")
    if watches_forgetting and not settings.watch_every:
        note("--forget-text has no effect with --watch 0")


def _note_copy(base: str, method: str, *, allow_pickle: bool) -> None:
    """Say before a long run that the base's predictions need a second copy of it."""
    from intruscope.methods.registry import find
    from intruscope.train.replay import copy_bytes, needs_copy
    from intruscope.weights.source import open_model

    if needs_copy(find(method)):
        size = copy_bytes(open_model(base, allow_pickle=allow_pickle)) / (1 << 30)
        note(f"--replay-target base with {method} keeps a second copy of the base in memory ({size:.2f} GiB)")


def _summary(report: TuneReport) -> str:
    found = [f"{report.steps} steps in {report.seconds:.0f} s, {report.num_trained:,} trainable parameters"]
    if report.loss is not None:
        found.append(f"loss {report.loss:.4f}")
    if report.accuracy:
        found.append(f"accuracy {report.accuracy[-1]:.4f} (best {max(report.accuracy):.4f})")
    if report.watch:
        found.append(f"{report.watch['intruders/count']:.0f} intruders")
    if "intruders/forgetting" in report.watch:
        found.append(f"forgetting {report.watch['intruders/forgetting']:+.4f} nats per token")
    found += _about_forgetting(report)
    return "\n".join([*found, f"saved in {report.model}"])


def _about_forgetting(report: TuneReport) -> list[str]:
    """What was replayed, and what the forgetting budget did."""
    found = []
    if report.replay is not None:
        replayed = report.replay
        passes = replayed.num_replayed / replayed.num_sequences
        loss = f", loss {replayed.loss:.4f}" if replayed.loss is not None else ""
        found.append(
            f"replayed {replayed.num_replayed:,} sequences ({passes:.2g} passes) at weight "
            f"{replayed.weight:g}{loss}"
        )
    if report.budget:
        last = report.budget[-1]
        interval = f" ({last.low:+.4f} to {last.high:+.4f})" if last.low is not None else ""
        halved = sum(each.action == "rate halved" for each in report.budget)
        if last.action == "stopped":
            done = f"training stopped at step {last.step}"
        elif halved:
            done = f"the learning rate was halved {halved} time{'s' if halved > 1 else ''}"
        else:
            done = "found at the end of training"
        found.append(f"forgetting {last.forgetting:+.4f}{interval} was above the budget: {done}")
    return found
