"""The processes of one run, as accelerate or torchrun starts them: one does what is done once, all agree."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from intruscope.errors import IntruscopeError, MalformedInput, UnsupportedFormat, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

T = TypeVar("T")
_PATIENCE_SECONDS = 5.0

_group_is_ours = False
"""Whether torch's process group was made here, and not by whoever called us."""


def is_alone() -> bool:
    """Whether no launcher started others beside this process; known before anything heavy is imported."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def is_first() -> bool:
    """Whether this process is the one that writes and speaks; known as early."""
    return is_alone() or os.environ.get("RANK", "0") == "0"


def let_the_first_speak() -> None:
    """Wait before leaving with an error that the first process reports.

    torch's launchers end all processes once one has failed: the first might be ended before it said why.
    Theirs is also the signal that ends this wait, as one from the terminal does, without a word.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for nohup
            signal.signal(number, signal.SIG_DFL)
    time.sleep(_PATIENCE_SECONDS)


@contextmanager
def report_once() -> Iterator[None]:
    """Errors of the request and its files, which every process meets, are reported by the first alone."""
    try:
        yield
    except (UsageError, MalformedInput) as error:
        error.already_reported = error.already_reported or not is_first()
        raise


def join() -> int:
    """Join the other processes of this run, and say how many there are.

    Raises:
        UnsupportedFormat: they are to share one model's weights, of which a run saves the whole.
    """
    kind, count = _state().distributed_type, int(_state().num_processes)
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" or kind in ("FSDP", "DEEPSPEED"):
        raise UnsupportedFormat(
            "the model is sharded over processes (FSDP or DeepSpeed), but each process must hold the whole "
            "model to save and watch it",
            remedy="use data parallelism: accelerate launch --multi_gpu -m intruscope tune ...",
        )
    return count


def leave(code: int = 0) -> None:
    """Exit with a code if this run made the process group, without taking the interpreter apart.

    Gloo's threads release Python's tensors, for which they need the interpreter's lock. If the interpreter is
    torn down meanwhile, the process ends with SIGABRT. If the group is torn down meanwhile, it may wait
    forever: a thread waits for that lock while it holds one that the group's destructor waits for. And the
    group of a process that fails would wait for peers that may never come. So nothing is torn down: what is
    registered for an exit runs, streams are flushed, and the process ends. A group that was there before is
    left alone.
    """
    if not _group_is_ours:
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def first(work: Callable[[], T]) -> T:
    """Let one process work while the others wait; its result, or its error, is everybody's.

    Args:
        work: What is done once. What it gives is sent to the others, if there are any.
    """
    state = _state()
    if state.num_processes == 1:
        return work()
    from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = work()
        except IntruscopeError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    failed: IntruscopeError | None = outcome[1]
    if failed is not None:
        failed.already_reported = not state.is_main_process
        raise failed
    found: T = outcome[0]
    return found


def any_of(happened: bool) -> bool:
    """Whether something happened in any process."""
    state = _state()
    if state.num_processes == 1:
        return happened
    import torch
    from accelerate.utils import reduce

    flag: Tensor = reduce(torch.tensor(float(happened), device=state.device), reduction="sum")
    return bool(flag > 0)


def are_equal(tensors: Iterable[Tensor]) -> bool:
    """Whether all processes hold the same numbers, by their sums and sums of squares in float64."""
    state = _state()
    if state.num_processes == 1:
        return True
    import torch
    from accelerate.utils import gather_object

    with torch.no_grad():
        wide = [tensor.detach().double() for tensor in tensors]
        mine = [(float(tensor.sum()), float(tensor.square().sum())) for tensor in wide]
    theirs = gather_object([mine])
    return all(each == theirs[0] for each in theirs)


def _state() -> Any:
    global _group_is_ours
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]

    if torch.distributed.is_initialized():
        return PartialState(cpu=not torch.accelerator.is_available())
    state = PartialState(cpu=not torch.accelerator.is_available())
    _group_is_ours = torch.distributed.is_initialized()
    return state
