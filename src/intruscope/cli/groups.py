"""Options that several verbs share and that belong to no settings class of the library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from intruscope.errors import IncompleteResult, UsageError, printable
from intruscope.options import REQUIRED, option

if TYPE_CHECKING:
    from intruscope.forgetting.named_tasks import Split
    from intruscope.forgetting.tasks import Task
    from intruscope.weights.matrices import Pairing

DATA_VARIABLE = "INTRUSCOPE_DATA"
MODEL: str = option(REQUIRED, help="Model: a folder or org/name@revision.", panel="Input", positional=True)
BASE: str = option(
    REQUIRED, help="Base model: a folder or org/name@revision.", panel="Input", positional=True
)
ALLOW_PICKLE: bool = option(
    False,
    help="Also read PyTorch checkpoint files, restricted to tensors (weights_only).",
    panel="Input",
)
TEXT: tuple[str, ...] = option(
    REQUIRED,
    help="Text to measure forgetting on, like that of pretraining: a file, a glob pattern, or "
    "hf:org/name:split.",
    panel="Input",
    metavar="SOURCE",
)
FIELD: str | None = option(
    None,
    help="Column that holds the text, for tables and datasets.",
    panel="Input",
    metavar="COLUMN",
    needs=("--text",),
)
IGNORE: tuple[str, ...] = option(
    (),
    help="Codes of findings that --fail-on does not count as warnings, separated by commas.",
    panel="Output",
    comma=True,
    metavar="CODE,...",
    needs=("--fail-on",),
)
DRY_RUN: bool = option(False, help="Print the plan and stop.", panel="Output")
OUT: Path | None = option(
    None,
    help="New folder to write to. Required unless --dry-run is given.",
    panel="Output",
    short="-o",
    metavar="FOLDER",
)
RUN_FOLDER: Path = option(
    REQUIRED,
    help="Folder for the run. Running the same command again resumes it.",
    panel="Output",
    short="-o",
    metavar="FOLDER",
)
TOKENIZER: Path | None = option(
    None,
    help="Folder of the tokenizer (default: the base model's own).",
    panel="Input",
    metavar="FOLDER",
)
JSON: str | None = option(
    None,
    help="Write the result as JSON; - writes it to standard output.",
    panel="Output",
    metavar="FILE",
)
QUIET: bool = option(False, help="No progress bar and no summary.", panel="How it runs", short="-q")
CPU: Literal["auto", "cpu", "cuda"] = option(
    "auto",
    help="Device to compute on. This command runs on the CPU only; cuda is refused.",
    panel="How it runs",
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A base model and what was trained from it."""

    base: str = option(
        REQUIRED,
        help="Base model: a folder or org/name@revision. Without TUNED: an adapter that names its base, or "
        "BASE+ADAPTER.",
        panel="Input",
        positional=True,
    )
    tuned: str | None = option(
        None,
        help="Fine-tuned model: a full checkpoint or an adapter, as a folder or org/name@revision.",
        panel="Input",
        positional=True,
    )
    lora_alpha: float | None = option(
        None,
        help="LoRA alpha, for adapter formats that do not store it.",
        panel="Input",
        above=0,
    )
    allow_pickle: bool = ALLOW_PICKLE

    @property
    def names(self) -> tuple[str, str | None]:
        """The two models as the user named them."""
        return self.base, self.tuned

    def check_complete(self, pairing: Pairing, rest: str) -> None:
        """Fail, after everything is written, if not all weights were compared.

        Args:
            pairing: Of the two models.
            rest: What became of the others.

        Raises:
            IncompleteResult: they were not.
        """
        if not pairing.complete:
            raise IncompleteResult(
                f"some weights could not be matched or decoded and {rest}",
                remedy=f"to list them, run intruscope scan {' '.join(printable(n) for n in self.names if n)}",
                file=pairing.tuned,
            )


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options of a fine-tuning method; each method says which it has."""

    rank: int | None = option(
        None, help="Rank of the method's update (default: the method's own).", minimum=1
    )
    alpha: float | None = option(
        None, help="Alpha, which scales the update by alpha/rank (default: 2 * rank).", above=0
    )
    option: tuple[str, ...] = option(
        (), help="Any other option of the method.", short="-O", metavar="NAME=VALUE"
    )

    @property
    def given(self) -> dict[str, object]:
        """All of them by name.

        Raises:
            UsageError: one is not of the form NAME=VALUE.
        """
        found: dict[str, object] = {}
        for each in self.option:
            name, equals, value = each.partition("=")
            if not equals or not name:
                raise UsageError(
                    f"-O {printable(each)} is not of the form NAME=VALUE",
                    remedy="write for example -O num_links=3",
                )
            found[name.replace("-", "_")] = value
        both = (("rank", self.rank), ("alpha", self.alpha))
        return found | {name: value for name, value in both if value is not None}


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """How the examples of a task are found and read."""

    data: Path | None = option(
        None,
        help="Folder with the files of the built-in tasks (default: download them from the Hub).",
        panel="Input",
        metavar="FOLDER",
        environment=DATA_VARIABLE,
        needs=("--task", "--tasks", "--eval"),
    )
    task_fields: str | None = option(
        None,
        help="Columns of the task: TEXT,LABEL or TEXT,TEXT,LABEL.",
        panel="Input",
        metavar="COLUMNS",
        needs=("--task", "--eval"),
    )
    labels: tuple[str, ...] | None = option(
        None,
        help="Class names separated by commas, in the model's order.",
        panel="Input",
        comma=True,
        metavar="NAME,...",
        needs=("--task", "--eval"),
    )

    def load(self, name: str, *, split: Split = "eval") -> Task:
        """The task of a name, or of a file.

        Raises:
            IntruscopeError: no such file or task, or what is in it is none.
        """
        from intruscope.forgetting.named_tasks import find_task

        *text_fields, label_field = self.task_fields.split(",") if self.task_fields else [None]
        return find_task(
            name,
            split=split,
            folder=self.data,
            text_fields=[field for field in text_fields if field] or None,
            label_field=label_field,
            labels=list(self.labels) if self.labels else None,
        )


def check_out(out: Path | None, *, dry_run: bool) -> None:
    """Refuse to start work whose result has nowhere to go.

    Raises:
        UsageError: no folder is given, and it is no dry run.
    """
    if out is None and not dry_run:
        raise UsageError("no output folder given", remedy="pass -o FOLDER, or --dry-run to see the plan")


def check_cpu(device: str) -> None:
    """Refuse a GPU where it would be ignored.

    Raises:
        UsageError: it is cuda.
    """
    if device == "cuda":
        raise UsageError(
            "--device cuda is not supported here: this command computes on the CPU",
            remedy="leave --device out; --workers sets the number of processes",
        )
