"""One short training loop for the demonstration: blocks of tokens in, a trained model out.

The product's trainer is elsewhere; this is only what the demonstration needs, offline and readable.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


def blocks_of(documents: Sequence[str], tokenizer: Any, block: int) -> Tensor:
    """Tokenise documents, join them with the end token and cut the stream into rows of ``block``."""
    import torch

    stream: list[int] = []
    for ids in tokenizer(list(documents), verbose=False)["input_ids"]:
        stream += [*ids, tokenizer.eos_token_id]
    usable = len(stream) // block * block
    return torch.tensor(stream[:usable], dtype=torch.int64).view(-1, block)


def use_bfloat16(model: Any, blocks: Tensor) -> bool:
    """Whether bfloat16 autocast is faster than float32 here: one timed step of each, after one to warm up.

    Recent x86 CPUs run bfloat16 products about four times faster; older ones emulate them.
    """
    seconds = {}
    for bfloat16 in (False, True):
        for _ in range(2):
            started = time.perf_counter()
            _loss(model, blocks, bfloat16).backward()
            seconds[bfloat16] = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    return seconds[True] < seconds[False]


def _loss(model: Any, blocks: Tensor, bfloat16: bool) -> Tensor:
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        loss: Tensor = model(input_ids=blocks, labels=blocks).loss
    return loss


def train_steps(
    model: Any,
    blocks: Tensor,
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    steps: int,
    batch: int,
    seed: int,
    bfloat16: bool,
    on_step: Callable[[int, float], None],
) -> None:
    """Train in place on batches drawn without replacement, epoch after epoch."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(blocks), generator=generator)
    at = 0
    model.train()
    for step in range(steps):
        if at + batch > len(order):
            order, at = torch.randperm(len(blocks), generator=generator), 0
        loss = _loss(model, blocks[order[at : at + batch]], bfloat16)
        at += batch
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        on_step(step + 1, float(loss.detach()))


def mean_loss(model: Any, blocks: Tensor, *, batch: int = 32) -> tuple[float, int]:
    """Mean next-token cross-entropy in float32, and how many predicted tokens it is over (nats, count)."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for rows in blocks.split(batch):
            predicted = rows.shape[0] * (rows.shape[1] - 1)
            total += float(model(input_ids=rows, labels=rows).loss) * predicted
            count += predicted
    return total / count, count
