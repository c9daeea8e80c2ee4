"""One short training loop on plain torch, used to pre-train the shipped model and to fine-tune it live.

Import only inside functions: this module brings torch.
"""

from __future__ import annotations

import math
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from tokenizers import Tokenizer
    from torch import Tensor, nn

    from intruscope.demo.texts import Text

Precision = Literal["float32", "bfloat16"]

END_OF_TEXT = "<|endoftext|>"
WARMUP_FRACTION = 0.06
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Everything a training run depends on besides model and tokens.

    Attributes:
        learning_rate: Peak rate of AdamW.
        schedule: ``linear``: 6% warm-up, then down to 0. ``one-cycle``: 10% up, cosine down.
        context: Predicted tokens per sequence.
    """

    learning_rate: float
    num_steps: int = 250
    batch: int = 16
    context: int = 128
    schedule: Literal["linear", "one-cycle"] = "linear"
    weight_decay: float = 0.0
    seed: int = 0


def encode(tokenizer: Tokenizer, texts: Iterable[Text]) -> Tensor:
    """All texts as one stream of token ids, each closed by the end-of-text token; int64, one axis."""
    end: int = tokenizer.token_to_id(END_OF_TEXT)  # type: ignore[assignment]
    ids: list[int] = []
    for text in texts:
        ids.extend(tokenizer.encode(text.content).ids)
        ids.append(end)
    return torch.tensor(ids, dtype=torch.int64)


def autocast(precision: Precision, device: str = "cpu") -> AbstractContextManager[object]:
    """The numeric mode of the forward pass; weights and optimiser stay float32 either way."""
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def next_token_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean loss in nats of predicting each token from those before it.

    Args:
        model: Causal LM whose output has ``logits``.
        windows: (batch, context + 1) token ids; the last token is only predicted, the first only read.
    """
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def train(
    model: nn.Module,
    tokens: Tensor,
    settings: LoopSettings,
    *,
    precision: Precision,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train every parameter that requires a gradient, in place, on random windows of a token stream.

    Args:
        model: Causal LM in float32, on the device that computes.
        tokens: The stream, on the CPU; longer than one window.
        settings: Steps, rate, batch, seed. The seed chooses the windows; no global seed is set.
        precision: Numeric mode of the forward pass.
        on_step: Called after each step with its number (from 1) and its loss in nats.

    Returns:
        The loss of each step, in nats per token.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    scheduler = _scheduler(optimizer, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    device = parameters[0].device
    losses = []
    model.train()
    for step in range(1, settings.num_steps + 1):
        starts = torch.randint(len(tokens) - settings.context, (settings.batch, 1), generator=generator)
        windows = tokens[starts + torch.arange(settings.context + 1)].to(device)
        with autocast(precision, device.type):
            loss = next_token_loss(model, windows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if on_step is not None:
            on_step(step, losses[-1])
    model.eval()
    return losses


def _scheduler(
    optimizer: torch.optim.Optimizer, settings: LoopSettings
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over time."""
    if settings.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=settings.learning_rate, total_steps=settings.num_steps + 1, pct_start=0.1
        )
    warmup = max(1, round(WARMUP_FRACTION * settings.num_steps))

    def linear(step: int) -> float:
        """Up over the warm-up, then down to zero after the last step."""
        return min((step + 1) / warmup, (settings.num_steps - step) / max(1, settings.num_steps - warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, linear)


@torch.no_grad()
def evaluate(model: nn.Module, windows: Tensor, *, batch: int = 32) -> float:
    """Mean loss in nats per token over fixed windows, always in float32.

    Args:
        model: Causal LM.
        windows: (sequences, context + 1) token ids, as ``evaluation_windows`` makes them.
        batch: Sequences at a time.
    """
    model.eval()
    parts: tuple[Tensor, ...] = torch.split(windows, batch)
    total = math.fsum(float(next_token_loss(model, part)) * len(part) for part in parts)
    return total / len(windows)


def evaluation_windows(tokens: Tensor, *, context: int, max_windows: int) -> Tensor:
    """At most ``max_windows`` windows without overlap of predicted tokens, spread evenly over a stream.

    Returns:
        (windows, context + 1) token ids.
    """
    num_windows = (len(tokens) - 1) // context
    chosen = torch.linspace(0, num_windows - 1, min(max_windows, num_windows)).long()
    return tokens[chosen[:, None] * context + torch.arange(context + 1)]


def faster_precision(*, width: int, outputs: int, num_rows: int = 64, num_timed: int = 3) -> Precision:
    """Time a forward and backward pass of the model's widest layer in each numeric mode and name the faster.

    CPUs with native bfloat16 products run them about four times faster than float32; others emulate them,
    many times slower, which is why one layer on a few rows is timed and not a whole step.
    """
    layer = torch.nn.Linear(width, outputs, bias=False)
    inputs = torch.zeros((num_rows, width), requires_grad=True)
    modes: Sequence[Precision] = ("float32", "bfloat16")
    seconds: dict[Precision, float] = {}
    for mode in modes:
        times = []
        for _ in range(num_timed + 1):
            start = time.perf_counter()
            with autocast(mode):
                result = layer(inputs)
            result.backward(torch.ones_like(result))
            times.append(time.perf_counter() - start)
        seconds[mode] = min(times[1:])  # the first pass also pays for buffers and kernels
    return min(modes, key=seconds.__getitem__)


def train_linear_weights(model: Any) -> Any:
    """Mark the linear weights of the blocks as trained, and nothing else: no embedding, norm or head."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.requires_grad_(True)
    return model


def with_lora(model: Any, *, rank: int, seed: int) -> Any:
    """Wrap a model with a LoRA adapter on all linear layers of the blocks; alpha = 2 rank, as in the paper.

    Args:
        model: The base, whose weights stay as they are.
        rank: Of the adapter.
        seed: Of the adapter's random half; the caller's random state is left as it was.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT still asks for an attribute that newer transformers have renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(model, config)
