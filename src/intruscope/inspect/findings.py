"""What looks wrong in an adapter: about its modules together, its tensors, and its config."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from intruscope.adapters.alone import TOKENS, WHOLE
from intruscope.adapters.keys import PEFT_PREFIX
from intruscope.adapters.patterns import first_matches
from intruscope.errors import printable
from intruscope.inspect.servers import server_findings
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from intruscope.adapters.alone import AloneAdapter
    from intruscope.inspect.records import InspectedModule
    from intruscope.weights.stored import StoredTensor

LEAST_FAMILY = 5
"""Members that a family must have for one of them to stand out."""
OUTLIER_FACTOR = 3.0
OUTLIER_DEVIATIONS = 5.0
"""A module stands out where its norm is more than ``OUTLIER_FACTOR`` times the family's median or less than
that part of it, and ln of the norm is more than ``OUTLIER_DEVIATIONS`` robust standard deviations (1.4826
times the median absolute deviation) from its median."""
_PREVIEW_ROWS = 1
_MAX_NAMED = 3


def adapter_findings(alone: AloneAdapter, modules: Sequence[InspectedModule]) -> tuple[Finding, ...]:
    """Everything that is remarkable about one adapter beyond single broken modules.

    Args:
        alone: The adapter.
        modules: Its measured modules.

    Raises:
        MalformedInput: a file changed since it was opened.
    """
    return (
        *alone.findings,
        *_zero(modules),
        *_unused_rank(modules),
        *_outliers(modules),
        *_repeated_factors(alone),
        *_unread(alone),
        *_unused_patterns(alone),
        *server_findings(alone),
    )


def _zero(modules: Sequence[InspectedModule]) -> Iterator[Finding]:
    zero = [module for module in modules if module.frobenius_norm == 0.0]
    if zero and len(zero) == len(modules):
        message = "this adapter changes nothing: every update is zero. Was it ever trained?"
        yield Finding(code="zero-adapter", severity="warning", message=message)
        return
    for module in zero:
        message = "the update is zero: this module was not trained, or did not learn"
        yield Finding(code="zero-update", severity="warning", message=message, matrix=module.name)


def _unused_rank(modules: Sequence[InspectedModule]) -> Iterator[Finding]:
    for module in modules:
        possible = min(module.rank, *module.shape)
        if module.numerical_rank and module.numerical_rank < possible:
            message = (
                f"{possible - module.numerical_rank} of {possible} directions are numerically zero, so rank "
                f"{module.numerical_rank} would hold the same update"
            )
            yield Finding(code="unused-rank", severity="info", message=message, matrix=module.name)


def _outliers(modules: Sequence[InspectedModule]) -> Iterator[Finding]:
    families: dict[tuple[str, tuple[int, int]], list[InspectedModule]] = defaultdict(list)
    for module in modules:
        if module.frobenius_norm:
            families[module.family, module.shape].append(module)
    for (family, _), members in families.items():
        if len(members) < LEAST_FAMILY:
            continue
        logs = [math.log(module.frobenius_norm or 1.0) for module in members]
        median = statistics.median(logs)
        spread = 1.4826 * statistics.median(abs(each - median) for each in logs)
        for module, each in zip(members, logs, strict=True):
            away = abs(each - median)
            if away > math.log(OUTLIER_FACTOR) and away > OUTLIER_DEVIATIONS * spread:
                ratio = math.exp(each - median)
                how = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g} of"
                message = f"the norm is {how} the median of the {len(members)} modules called {family}"
                yield Finding(
                    code="unlike-its-family", severity="warning", message=message, matrix=module.name
                )


def _repeated_factors(alone: AloneAdapter) -> Iterator[Finding]:
    """Tensors of different modules that are equal bit for bit, and no constant."""
    shared = frozenset(alone.source.kind.shared)
    groups: dict[tuple[str, tuple[int, ...], bytes], list[StoredTensor]] = defaultdict(list)
    for key, tensor in alone.source.tensors.items():
        if len(tensor.shape) < 2 or not tensor.decodable or 0 in tensor.shape:
            continue
        if key in alone.skipped or not shared.isdisjoint(key.split(".")):
            continue
        start = tensor.read_leading(0, _PREVIEW_ROWS).flatten()
        groups[tensor.dtype, tensor.shape, _digest(start)].append(tensor)
    for alike in groups.values():
        by_content: dict[bytes, list[str]] = defaultdict(list)
        for tensor in alike if len(alike) > 1 else ():
            content = _content(tensor)
            if content is not None:
                by_content[content].append(tensor.name.removeprefix(PEFT_PREFIX))
        for names in by_content.values():
            if len(names) > 1:
                shown = ", ".join(printable(name) for name in names[:_MAX_NAMED])
                more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
                message = f"{len(names)} tensors are equal bit for bit: {shown}{more}"
                yield Finding(code="repeated-factor", severity="warning", message=message)


def _content(tensor: StoredTensor) -> bytes | None:
    """A digest of a tensor's bytes; None where all of its numbers are equal, as before training."""
    numbers = tensor.read().flatten()
    return None if bool((numbers == numbers[0]).all()) else _digest(numbers)


def _digest(numbers_X: torch.Tensor) -> bytes:
    import torch

    return hashlib.blake2b(numbers_X.view(torch.uint8).numpy().tobytes(), digest_size=16).digest()


def _unread(alone: AloneAdapter) -> Iterator[Finding]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for module in alone.unread:
        by_reason[module.reason].append(module.name)
    for reason, names in by_reason.items():
        shown = ", ".join(printable(name) for name in names[:_MAX_NAMED])
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        yield Finding(
            code="needs-base",
            severity="info" if reason in (WHOLE, TOKENS) else "warning",
            message=f"{len(names)} {'module' if len(names) == 1 else 'modules'} ({shown}{more}): {reason}",
        )
    reasons = Counter(reason for reason in alone.skipped.values() if "bias" in reason)
    for reason, count in reasons.items():
        message = f"{count} {'tensor is' if count == 1 else 'tensors are'} not in the spectra: {reason}"
        yield Finding(code="not-a-matrix", severity="info", message=message)


def _unused_patterns(alone: AloneAdapter) -> Iterator[Finding]:
    """Patterns of the config that apply to no module, such as misspelled ones."""
    config = alone.source.config
    if config is None or config.target_parameters:
        return  # patterns may be for fused parameters, whose names only the base tells
    modules = [*alone.scales, *(module.name for module in alone.unread if module.factors is not None)]
    names = [name.partition("[")[0] for name in modules]
    for field, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        used = set(first_matches(patterns, names, file=config.path).values()) if patterns else set()
        for pattern in patterns.keys() - used if names else ():
            message = f"{field} has the key {printable(pattern)}, which applies to no module"
            yield Finding(code="unused-pattern", severity="warning", message=message)
