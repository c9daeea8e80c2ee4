"""How a sweep measures."""

from __future__ import annotations

from dataclasses import dataclass

from intruscope.forgetting.settings import DType, ForgetSettings, Protocol, Unit
from intruscope.options import documented, option, shared


@documented
@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How the models are loaded and measured; everything here can change a figure."""

    protocol: Protocol | None = shared(
        ForgetSettings,
        "protocol",
        help="How losses are computed. Causal models: causal. Masked models: fast (fixed random masks; "
        "default, because a sweep measures dozens of models) or exact (each token in turn).",
    )
    unit: Unit | None = shared(ForgetSettings, "unit")
    context: int | None = shared(ForgetSettings, "context")
    stride: int | None = shared(ForgetSettings, "stride")
    max_sequences: int | None = shared(ForgetSettings, "max_sequences", minimum=4)
    max_examples: int | None = option(
        None,
        help="Maximum number of task examples (sequences, if the task is text), sampled evenly (default: "
        "all).",
        minimum=4,
    )
    max_tokens: int | None = shared(ForgetSettings, "max_task_tokens", flag="max-task-tokens")
    batch_tokens: int = shared(ForgetSettings, "batch_tokens")
    device: str = shared(ForgetSettings, "device")
    dtype: DType = shared(ForgetSettings, "dtype")
    tokenizer: str | None = shared(ForgetSettings, "tokenizer")
