"""Which ways to train are compared: one centre, and from it one thing changed at a time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from intruscope.errors import UsageError, printable
from intruscope.methods.contract import Setting
from intruscope.methods.registry import find
from intruscope.methods.targets import ends_with, kind_of, targets_of
from intruscope.profiling.heads import blocks_of, last_blocks
from intruscope.profiling.records import FULL, NULL, Candidate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from intruscope.methods.contract import Method, Options
    from intruscope.profiling.records import ProfileSettings

METHODS = ("lora", "melora")
RANKS, DROPOUTS, TARGET_SETS = (8, 1, 64), (0.0, 0.1), ("all-linear", "attention", "query-value")
"""Tried of LoRA where nothing is asked for: ranks and targets of arXiv 2410.21228, LoRA's own targets (arXiv
2106.09685, section 4.2: attention, mostly query and value), and BERT's own rate of dropout."""
_LAST_SHARE = 3
"""Where nothing is asked for, a third of the blocks is trained alone."""
_LABELS = {"all-linear": "all linear", "attention": "attention", "query-value": "query+value"}


def candidates(model: nn.Module, settings: ProfileSettings) -> tuple[Candidate, ...]:
    """Every way to train that is compared, full fine-tuning twice among them.

    Args:
        model: The base, or its skeleton.
        settings: What was asked for.

    Returns:
        Full fine-tuning, the same again, the last blocks, then method by method.

    Raises:
        UsageError: an unknown method, one that trains nothing, a rank or dropout that no method takes, no
            target, or more blocks than there are.
        UnsupportedFormat: a method cannot change a kind of layer.
    """
    methods = [find(name) for name in dict.fromkeys(settings.methods or METHODS)]
    for method in methods:
        if "no_training" in method.departures:
            fact = f"{method.name} computes an update and cannot be trained"
            raise UsageError(fact, remedy="leave it out")
    methods = [method for method in methods if method.name != FULL]
    _check_used(settings, methods)
    chosen = [
        Candidate(name=FULL, label="full", method=FULL),
        Candidate(name=NULL, label="full again", method=FULL),
    ]
    num_blocks = len(blocks_of(model))
    # Where methods were named, only what was asked for beside them.
    usual = (max(1, num_blocks // _LAST_SHARE),) if num_blocks and settings.methods is None else ()
    for count in dict.fromkeys(settings.last_layers if settings.last_layers is not None else usual):
        last_blocks(model, count)
        label = f"last {count} blocks" if count > 1 else "last block"
        chosen.append(Candidate(name=f"last-{count}", label=label, method=None, last_layers=count))
    for method in methods:
        chosen += _of_method(model, method, settings)
    return tuple({candidate.name: candidate for candidate in chosen}.values())


def _check_used(settings: ProfileSettings, methods: Sequence[Method]) -> None:
    known = {parameter.name for method in methods for parameter in method.parameters}
    for option, given in (("rank", settings.ranks), ("dropout", settings.dropouts)):
        if given is not None and option not in known:
            names = ", ".join(method.name for method in methods) or "full fine-tuning alone"
            raise UsageError(
                f"--{option} has no effect on {names}",
                remedy=f"leave --{option} out, or choose another --method",
            )


def _of_method(model: nn.Module, method: Method, settings: ProfileSettings) -> Iterable[Candidate]:
    has = {parameter.name for parameter in method.parameters}
    varied = method.name == "lora" and settings.methods is None
    sets = settings.targets or (TARGET_SETS if varied else TARGET_SETS[:1])
    ranks: tuple[int | None, ...] = (None,)
    dropouts: tuple[float | None, ...] = (None,)
    if "rank" in has:
        ranks = settings.ranks or (RANKS if varied else ranks)
    if "dropout" in has:
        dropouts = settings.dropouts or (DROPOUTS if varied else dropouts)
    points = list(dict.fromkeys(itertools.product(ranks, sets, dropouts)))
    if not settings.every_combination:
        centre = points[0]
        points = [p for p in points if sum(a != b for a, b in zip(p, centre, strict=True)) <= 1]
    for rank, target_set, dropout in points:
        given = {"rank": rank, "dropout": dropout}
        options = method.options({name: value for name, value in given.items() if value is not None})
        found = resolve(model, method, target_set, is_asked=settings.targets is not None)
        if found is not None:
            yield _candidate(method, options, target_set, found)


def _candidate(method: Method, options: Options, target_set: str, targets: tuple[str, ...]) -> Candidate:
    label, name = method.title, method.name
    if "rank" in options:
        label += f" r={options['rank']}"
        name += f"-r{options['rank']}"
    label += f", {_LABELS.get(target_set, printable(target_set))}"
    name += f"-{target_set}"
    if options.get("dropout"):
        label += f", dropout {options['dropout']:g}"
        name += f"-dropout{options['dropout']:g}"
    return Candidate(
        name=name,
        label=label,
        method=method.name,
        options=options,
        target_set=target_set,
        targets=targets if target_set != "all-linear" else "all-linear",
    )


def resolve(
    model: nn.Module, method: Method, target_set: str, *, is_asked: bool = True
) -> tuple[str, ...] | None:
    """Names of the modules of a set of targets.

    Args:
        model: The base, or its skeleton.
        method: Whose kinds of layer they must be.
        target_set: ``all-linear``, ``attention``, ``query-value``, or ends of names with commas between.
        is_asked: A set that the model does not have is an error; otherwise it is None.

    Raises:
        UsageError: no module is of the set.
        UnsupportedFormat: a layer of a kind that the method does not change.
    """
    if target_set == "attention":
        ends = _in_attention(model)
    elif target_set == "query-value":
        ends = _query_and_value(model)
    else:
        ends = tuple(target_set.split(","))
    if not ends:
        if not is_asked:
            return None
        raise UsageError(
            f"--targets {target_set} is not defined for this model",
            remedy="use all-linear, or name the modules, for example --targets q_proj,v_proj",
        )
    setting = Setting(targets="all-linear" if target_set == "all-linear" else ends)
    return targets_of(model, setting, method)


def _in_attention(model: nn.Module) -> tuple[str, ...]:
    """Linear layers of the blocks that lie in a module which its class calls attention."""
    around = [n for n, module in model.named_modules() if "attention" in type(module).__name__.lower()]
    blocks = blocks_of(model)
    return tuple(
        name
        for name, module in model.named_modules()
        if kind_of(module) in ("linear", "conv1d")
        and any(name.startswith(f"{block}.") for block in blocks)
        and any(name.startswith(f"{outer}.") for outer in around)
    )


def _query_and_value(model: nn.Module) -> tuple[str, ...]:
    """What PEFT targets by default, which is LoRA's own choice; a fused matrix is taken whole."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as BY_TYPE

    config = getattr(model, "config", None)
    ends = BY_TYPE.get(getattr(config, "model_type", ""), ())
    if isinstance(ends, str):  # a pattern: some types
        return ()
    blocks = blocks_of(model)
    return tuple(
        name
        for name, _ in model.named_modules()
        if ends_with(name, ends) and any(name.startswith(f"{block}.") for block in blocks)
    )
