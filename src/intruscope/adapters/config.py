"""``adapter_config.json`` as data: validated, nothing in it is ever imported or run unbounded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from intruscope.adapters.kind import flag, wrong_value
from intruscope.adapters.patterns import first_matches
from intruscope.adapters.registry import find, names
from intruscope.errors import UnsupportedFormat, printable
from intruscope.weights.strict_json import read_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from intruscope.adapters.kind import AdapterKind

MERGE_REMEDY = "merge it with PEFT's merge_and_unload, save the model, and scan that checkpoint"
MAX_RANK = 1_000_000
_MAX_PATTERNS = 10_000
_DEFAULT = 8
"""PEFT's default of ``r`` and of alpha; its guide to checkpoints lets a config leave both out."""
_PROMPTS = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"),
    *("CPT", "CARTRIDGE"),
)
_PROMPT_REMEDY = "leave it out: it adds to the input and changes no matrix"
# For these PEFT's model classes add a head of their own (peft_model.py); the others keep the base's.
_TASKS_WITH_A_HEAD = frozenset({"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})


class ModuleScale(NamedTuple):
    """What the config gives one module.

    Attributes:
        rank: r.
        scaling: alpha / r, or alpha / sqrt(r) with ``use_rslora`` (arXiv 2312.03732).
    """

    rank: int
    scaling: float


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What the arithmetic needs of an adapter's config.

    Attributes:
        path: The file, for messages; None for an adapter in memory.
        raw: Everything in it.
        base_name: ``base_model_name_or_path``.
        rank: ``r``.
        alpha: ``lora_alpha``, or what the kind calls it; without meaning where the kind has no such name.
        rank_pattern, alpha_pattern: Regular expressions on module names to other values.
        options: What the kind needs besides, checked.
        modules_to_save: Names of the modules stored whole.
        task: ``task_type``.
        token_indices: ``trainable_token_indices``; the key ``""`` stands for the input embedding.
        target_parameters: Ends of the names of the fused expert parameters that are adapted.
        fan_in_fan_out: Whether the module that PEFT adapted last stores its weight (in, out); None where the
            config does not say.
    """

    path: Path | None
    raw: Mapping[str, Any] = field(repr=False)
    base_name: str | None
    rank: int
    alpha: float
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    task: str | None = None
    token_indices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    target_parameters: tuple[str, ...] = ()
    fan_in_fan_out: bool | None = None

    @cached_property
    def _saved_names(self) -> frozenset[str]:
        return frozenset(self.modules_to_save)

    def why_new(self, module: str, *, saved: bool) -> str | None:
        """Why the adapter has a module that its base does not have; None where the config does not say.

        Args:
            module: Its name.
            saved: Whether it is stored whole.
        """
        words = module.split(".")
        # PEFT saves modules whose name ends in an entry, with all that lies below (utils/other.py).
        parts = (".".join(words[a:b]) for b in range(1, len(words) + 1) for a in range(b))
        if saved and not self._saved_names.isdisjoint(parts):
            return "a head that modules_to_save names"
        return f"a head of the adapter's task {self.task}" if self.task in _TASKS_WITH_A_HEAD else None

    def scales_of(self, modules: Sequence[str]) -> dict[str, ModuleScale]:
        """Rank and scaling of each module.

        Raises:
            MalformedInput: a pattern is not a regular expression.
            UnsupportedFormat: the patterns take too long to run.
        """
        rank_keys = first_matches(self.rank_pattern, modules, file=self.path)
        alpha_keys = first_matches(self.alpha_pattern, modules, file=self.path)
        scales = {}
        for module in modules:
            rank = self.rank_pattern[rank_keys[module]] if module in rank_keys else self.rank
            alpha = self.alpha_pattern[alpha_keys[module]] if module in alpha_keys else self.alpha
            divisor = math.sqrt(rank) if self.options.get("use_rslora") else rank
            scales[module] = ModuleScale(rank=rank, scaling=alpha / divisor)
        return scales


def read_config(path: Path, *, alpha: float | None = None) -> tuple[AdapterKind, AdapterConfig]:
    """Read and check an adapter's config file; arguments and errors as :func:`checked_config`."""
    return checked_config(read_json_object(path), path, alpha=alpha)


def checked_config(
    raw: Mapping[str, Any], path: Path | None, *, alpha: float | None = None
) -> tuple[AdapterKind, AdapterConfig]:
    """Check an adapter's config.

    Args:
        raw: As PEFT saves it.
        path: Its file, for messages.
        alpha: In place of an alpha of 0, which some exporters write.

    Returns:
        The kind, and the config.

    Raises:
        UnsupportedFormat: a kind of adapter or an option that is not read, by name.
        MalformedInput: a value without meaning (r = 0, a negative alpha).
    """
    name = raw.get("peft_type")
    if not isinstance(name, str) or not name.isupper() or name not in names():
        known = ", ".join(known for known in names() if known.isupper())
        raise UnsupportedFormat(
            f"the adapter is of the kind {printable(name)}, which is not read; these are: {known}",
            remedy=_PROMPT_REMEDY if name in _PROMPTS else MERGE_REMEDY,
            file=path,
            tensor="peft_type",
        )
    kind = find(name)
    options = kind.read_options(raw, path)
    scaled = raw if kind.alpha_name else {}  # others scale by rules of their own
    rank = _rank(scaled.get("r", _DEFAULT), "r", path)
    given = scaled.get(kind.alpha_name, _DEFAULT)
    if given == 0 and not isinstance(given, bool) and kind.name == "LORA":
        given = _replaced_alpha(alpha, path)
    ranks = _object(scaled, "rank_pattern", path)
    alphas = _object(scaled, "alpha_pattern", path)
    base_name, task = raw.get("base_model_name_or_path"), raw.get("task_type")
    config = AdapterConfig(
        path=path,
        raw=raw,
        base_name=base_name if isinstance(base_name, str) and base_name else None,
        rank=rank,
        alpha=_positive_number(given, kind.alpha_name, path),
        rank_pattern={k: _rank(v, f"rank_pattern[{k}]", path) for k, v in ranks.items()},
        alpha_pattern={k: _positive_number(v, f"alpha_pattern[{k}]", path) for k, v in alphas.items()},
        options=options,
        modules_to_save=strings(raw.get("modules_to_save"), "modules_to_save", path),
        task=getattr(task, "value", task) if isinstance(task, str) else None,
        token_indices=_token_indices(raw.get("trainable_token_indices"), path),
        target_parameters=_target_parameters(raw.get("target_parameters"), path),
        fan_in_fan_out=flag(raw, "fan_in_fan_out", path) if "fan_in_fan_out" in raw else None,
    )
    return kind, config


def _replaced_alpha(alpha: float | None, path: Path | None) -> float:
    if alpha is None:
        raise UnsupportedFormat(
            "lora_alpha is 0, which verl's merger has written for adapters whose alpha it did not know",
            remedy="give the alpha that the run trained with: --lora-alpha 16, say",
            file=path,
            tensor="lora_alpha",
        )
    return alpha


def _rank(value: object, name: str, path: Path | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise wrong_value(value, f"a rank from 1 to {MAX_RANK}", name, path)
    return value


def _positive_number(value: object, name: str, path: Path | None) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise wrong_value(value, "a positive finite number", name, path)
    return float(value)


def _object(raw: Mapping[str, Any], name: str, path: Path | None) -> dict[str, Any]:
    value = raw.get(name) or {}
    if not isinstance(value, dict) or len(value) > _MAX_PATTERNS:
        raise wrong_value(value, f"an object of at most {_MAX_PATTERNS} patterns", name, path)
    return value


def strings(value: object, name: str, path: Path | None) -> tuple[str, ...]:
    """A list of names of a config, or a single one.

    Raises:
        MalformedInput: it is neither.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple, set)) or not all(isinstance(item, str) for item in value):
        raise wrong_value(value, "a list of names", name, path)
    return tuple(value)


def _token_indices(value: object, path: Path | None) -> dict[str, tuple[int, ...]]:
    if not value:
        return {}
    groups = value if isinstance(value, dict) else {"": value}
    result: dict[str, tuple[int, ...]] = {}
    for name, indices in groups.items():
        if not isinstance(indices, list) or not all(type(i) is int and 0 <= i < 2**31 for i in indices):
            raise wrong_value(indices, "a list of token numbers", "trainable_token_indices", path)
        result[name] = tuple(indices)
    return result


def _target_parameters(value: object, path: Path | None) -> tuple[str, ...]:
    found = strings(value, "target_parameters", path)
    for name in found:
        if name.rpartition(".")[2] == "weight":
            # Its rank and alpha go by another name than the module's, which the keys do not tell apart.
            raise UnsupportedFormat(
                f"target_parameters names {printable(name)}; only fused experts are read there",
                remedy=MERGE_REMEDY,
                file=path,
                tensor="target_parameters",
            )
    return found
