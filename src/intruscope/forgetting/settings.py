"""What a measurement of forgetting is asked for; the record of one has what was chosen for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intruscope.options import check_options, documented, option, shared
from intruscope.spectra.records import ScanSettings

Protocol = Literal["causal", "exact", "fast"]
DEFAULT_BATCH_TOKENS = 4096
DType = Literal["float32", "bfloat16", "float16", "float64"]
Unit = Literal["line", "running"]
NUM_RESAMPLES = 4000


@documented
@dataclass(frozen=True, kw_only=True)
class ForgetSettings:
    """How losses and scores are measured; the keyword arguments of ``forget``."""

    gamma: float | None = option(
        None,
        help="Measure adapter guidance in place of the tuned model: base and tuned model predict together, "
        "with log p = log p_base + gamma (log p_tuned - log p_base). 0 is the base, 1 the tuned model.",
        minimum=0,
    )
    protocol: Protocol | None = option(
        None,
        help="How losses are computed. Causal models: causal. Masked models: exact (each token in turn; "
        "default) or fast (fixed random masks).",
    )
    unit: Unit | None = option(
        None,
        help="What counts as a sequence: a line (or table row), or a context of running text. Default: line "
        "for masked models, running for causal ones.",
    )
    context: int | None = option(
        None,
        help="Maximum input length in tokens (default: the model's, but at most 1024 for causal and 512 for "
        "masked models).",
        minimum=1,
    )
    stride: int | None = option(
        None,
        help="Tokens by which the window of a causal model advances (default: half the context).",
        minimum=1,
    )
    max_sequences: int | None = option(
        None, help="Maximum number of sequences, sampled evenly (default: all).", minimum=2
    )
    max_task_tokens: int | None = option(
        None,
        help="Truncate classification examples to this many tokens (default: the model's limit).",
        minimum=2,
        needs=("--task",),
    )
    num_resamples: int = option(
        NUM_RESAMPLES, flag="resamples", help="Number of bootstrap resamples.", minimum=100, maximum=10**6
    )
    seed: int = shared(ScanSettings, "seed")
    tokenizer: str | None = option(
        None,
        help="Folder of the tokenizer (default: the base model's own).",
        panel="Input",
        metavar="FOLDER",
    )
    batch_tokens: int = option(
        DEFAULT_BATCH_TOKENS, help="Maximum number of tokens per batch.", minimum=1, panel="How it runs"
    )
    device: str = option(
        "auto",
        help="Device to run the models on: auto (a GPU if there is one), cpu, cuda, or a torch device like "
        "cuda:1.",
        panel="How it runs",
        metavar="DEVICE",
    )
    dtype: DType = option(
        "float32", help="Data type of weights and computation.", panel="How it runs", metavar="DTYPE"
    )


@documented
@dataclass(frozen=True, kw_only=True)
class SkillSettings:
    """Tasks of lm-evaluation-harness, and how both models are asked."""

    skills: tuple[str, ...] = option(
        (),
        help="Tasks of lm-evaluation-harness on which to compare the models item by item: names of tasks or "
        "groups, or paths of YAML files, separated by commas. Needs the 'eval' extra.",
        panel="Input",
        comma=True,
        metavar="TASK,...",
    )
    num_fewshot: int | None = option(
        None,
        flag="shots",
        help="Number of examples in each prompt (default: what each task says).",
        minimum=0,
        needs=("--skills",),
    )
    max_items: int | None = option(
        None,
        help="Use only the first N items of each skill (default: all).",
        minimum=2,
        needs=("--skills",),
    )
    chat_template: Literal["auto", "never"] = option(
        "auto",
        help="Chat template for the prompts of skills: that of the tokenizer if it has one (auto), or none "
        "(never).",
        needs=("--skills",),
    )
    batch_size: int = option(
        8,
        flag="skill-batch",
        help="Number of prompts per batch.",
        minimum=1,
        panel="How it runs",
        needs=("--skills",),
    )

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            UsageError: one is.
        """
        check_options(self)
