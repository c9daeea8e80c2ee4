"""How facts are asked for and answers are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intruscope.forgetting.settings import DType, ForgetSettings
from intruscope.options import check_options, documented, option, shared

Chat = Literal["auto", "always", "never"]


@documented
@dataclass(frozen=True, kw_only=True)
class KnowledgeSettings:
    """How facts are asked for; everything here but the batch size can change a figure.

    The defaults of ``num_prompts``, ``shots`` and ``temperature`` are those of Gekhman et al. (arXiv
    2405.05904), who draw 16 samples per prompt.
    """

    num_prompts: int = option(
        10, help="Number of few-shot prompts per fact (without --prompts).", minimum=1, maximum=1000
    )
    shots: int = option(
        4,
        help="Number of other facts shown with their answers in each prompt.",
        minimum=0,
        maximum=1000,
    )
    samples: int = option(
        4,
        help="Answers sampled per prompt for facts without a right greedy answer; 0 turns WeaklyKnown off.",
        minimum=0,
        maximum=1000,
    )
    temperature: float = option(0.5, help="Temperature of the sampled answers.", above=0, maximum=100)
    max_answer_tokens: int | None = option(
        None,
        help="Maximum length of an answer in tokens (default: room for the longest right answer, at least "
        "16).",
        minimum=1,
    )
    chat: Chat = option(
        "auto",
        help="Ask in the model's chat template: auto (if its tokenizer has one), always or never.",
    )
    max_facts: int | None = option(
        None, help="Maximum number of facts, sampled evenly (default: all).", minimum=2
    )
    seed: int = shared(ForgetSettings, "seed")
    tokenizer: str | None = shared(ForgetSettings, "tokenizer")
    batch_tokens: int = shared(ForgetSettings, "batch_tokens")
    device: str = shared(ForgetSettings, "device")
    dtype: DType = shared(ForgetSettings, "dtype")

    def __post_init__(self) -> None:
        check_options(self)
