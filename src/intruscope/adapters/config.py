"""``adapter_config.json`` as data: validated, nothing in it is ever imported or run unbounded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from intruscope.adapters.patterns import first_matches
from intruscope.errors import MalformedInput, UnsupportedFormat, printable
from intruscope.weights.strict_json import read_json_object

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MERGE_REMEDY = "merge it with PEFT's merge_and_unload, save the model, and scan that checkpoint"
MAX_RANK = 1_000_000
_MAX_PATTERNS = 10_000
# These initialisations subtract the first factors from the base (PEFT tuners/lora/layer.py), so the
# fine-tune is not base + B A unless the adapter was converted when it was saved.
_INITS_THAT_MOVE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_INITS_THAT_DO_NOT = ("gaussian", "eva", "orthogonal", "mica")
_CONVERT_REMEDY = (
    "save it with path_initial_model_for_weight_conversion, which turns it into a plain LoRA, or "
    + MERGE_REMEDY
)
PROMPTS = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"),
    *("CPT", "CARTRIDGE"),
)
_PROMPT_REMEDY = "leave it out: it adds to the input and changes no matrix"
# For these PEFT's model classes add a head of their own (peft_model.py); the others keep the base's.
_TASKS_WITH_A_HEAD = frozenset({"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
_KNOWN_USES = frozenset({"use_rslora", "use_dora"})
_REFUSED_OPTIONS = {
    "alora_invocation_tokens": "activated LoRA (no static update)",
    "arrow_config": "Arrow routing (no static update)",
    "layer_replication": "layer_replication",
    "megatron_config": "Megatron layers",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "kasa_config": "KaSA",
}


class Strength(NamedTuple):
    """What the config gives one module."""

    rank: int
    scaling: float


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What the arithmetic needs of an adapter's config.

    Attributes:
        path: The file, for errors.
        base_name: ``base_model_name_or_path``.
        rank: ``r``.
        alpha: ``lora_alpha``.
        rank_pattern, alpha_pattern: Regular expressions on module names to other values.
        enable_lora: Of the old format: which thirds of a fused projection are adapted.
        modules_to_save: Names of the modules stored whole.
        task: ``task_type``.
        token_indices: ``trainable_token_indices``; the key ``""`` stands for the input embedding.
        target_parameters: Ends of the names of the fused expert parameters that are adapted.
        fan_in_fan_out: Whether the module that PEFT adapted last stores its weight (in, out); None where the
            config does not say.
    """

    path: Path
    base_name: str | None
    rank: int
    alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    enable_lora: tuple[bool, ...] | None = None
    modules_to_save: tuple[str, ...] = ()
    task: str | None = None
    token_indices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    target_parameters: tuple[str, ...] = ()
    fan_in_fan_out: bool | None = None

    @cached_property
    def _saved_names(self) -> frozenset[str]:
        return frozenset(self.modules_to_save)

    def why_new(self, module: str, *, saved: bool) -> str | None:
        """Why the adapter has a module that its base has not; None where the config does not say.

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

    def strengths_of(self, modules: Sequence[str]) -> dict[str, Strength]:
        """Rank and scaling of each module.

        The scaling is alpha / r, or alpha / sqrt(r) with ``use_rslora`` (arXiv 2312.03732).

        Raises:
            MalformedInput: a pattern is no regular expression.
            UnsupportedFormat: the patterns take too long to run.
        """
        rank_keys = first_matches(self.rank_pattern, modules, file=self.path)
        alpha_keys = first_matches(self.alpha_pattern, modules, file=self.path)
        strengths = {}
        for module in modules:
            rank = self.rank_pattern[rank_keys[module]] if module in rank_keys else self.rank
            alpha = self.alpha_pattern[alpha_keys[module]] if module in alpha_keys else self.alpha
            divisor = math.sqrt(rank) if self.use_rslora else rank
            strengths[module] = Strength(rank=rank, scaling=alpha / divisor)
        return strengths


def read_config(path: Path) -> AdapterConfig:
    """Read and check an adapter's config.

    Raises:
        UnsupportedFormat: a kind of adapter or an option that is not read, by name.
        MalformedInput: damaged JSON, or a value without meaning (r = 0, negative alpha).
    """
    raw = read_json_object(path)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UnsupportedFormat(
            f"got an adapter of type {printable(kind)}, expected LORA",
            remedy=_PROMPT_REMEDY if kind in PROMPTS else MERGE_REMEDY,
            file=path,
            tensor="peft_type",
        )
    _refuse_options(raw, path)
    rank = _positive_int(raw.get("r"), "r", path)
    alpha = _positive_number(raw.get("lora_alpha"), "lora_alpha", path)
    ranks = _object(raw, "rank_pattern", path)
    alphas = _object(raw, "alpha_pattern", path)
    base_name, task = raw.get("base_model_name_or_path"), raw.get("task_type")
    return AdapterConfig(
        path=path,
        base_name=base_name if isinstance(base_name, str) and base_name else None,
        rank=rank,
        alpha=alpha,
        use_rslora=_flag(raw, "use_rslora", path),
        use_dora=_flag(raw, "use_dora", path),
        rank_pattern={k: _positive_int(v, f"rank_pattern[{k}]", path) for k, v in ranks.items()},
        alpha_pattern={k: _positive_number(v, f"alpha_pattern[{k}]", path) for k, v in alphas.items()},
        enable_lora=_enable_lora(raw.get("enable_lora"), path),
        modules_to_save=_strings(raw.get("modules_to_save"), "modules_to_save", path),
        task=task if isinstance(task, str) else None,
        token_indices=_token_indices(raw.get("trainable_token_indices"), path),
        target_parameters=_target_parameters(raw.get("target_parameters"), path),
        fan_in_fan_out=_flag(raw, "fan_in_fan_out", path) if "fan_in_fan_out" in raw else None,
    )


def _wrong(value: object, expected: str, name: str, path: Path) -> MalformedInput:
    fact = f"got {printable(repr(value))}, expected {expected}"
    return MalformedInput(
        fact, remedy="save the adapter again, or restore its config", file=path, tensor=name
    )


def _positive_int(value: object, name: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise _wrong(value, f"a rank from 1 to {MAX_RANK}", name, path)
    return value


def _positive_number(value: object, name: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise _wrong(value, "a positive finite number", name, path)
    return float(value)


def _flag(raw: dict[str, Any], name: str, path: Path) -> bool:
    value = raw.get(name) or False
    if not isinstance(value, bool):
        raise _wrong(value, "true or false", name, path)
    return value


def _object(raw: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = raw.get(name) or {}
    if not isinstance(value, dict) or len(value) > _MAX_PATTERNS:
        raise _wrong(value, f"an object of at most {_MAX_PATTERNS} patterns", name, path)
    return value


def _strings(value: object, name: str, path: Path) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(value, "a list of names", name, path)
    return tuple(value)


def _enable_lora(value: object, path: Path) -> tuple[bool, ...] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= 16
        or not all(isinstance(v, bool) for v in value)
    ):
        raise _wrong(value, "a short list of true and false", "enable_lora", path)
    return tuple(value) if any(value) else None


def _token_indices(value: object, path: Path) -> dict[str, tuple[int, ...]]:
    if not value:
        return {}
    groups = value if isinstance(value, dict) else {"": value}
    result: dict[str, tuple[int, ...]] = {}
    for name, indices in groups.items():
        if not isinstance(indices, list) or not all(type(i) is int and 0 <= i < 2**31 for i in indices):
            raise _wrong(indices, "a list of token numbers", "trainable_token_indices", path)
        result[name] = tuple(indices)
    return result


def _target_parameters(value: object, path: Path) -> tuple[str, ...]:
    names = _strings(value, "target_parameters", path)
    for name in names:
        if name.rpartition(".")[2] == "weight":
            # Its rank and alpha go by another name than the module's, which the keys do not tell apart.
            fact = f"got the target parameter {printable(name)}, expected fused experts only"
            raise UnsupportedFormat(fact, remedy=MERGE_REMEDY, file=path, tensor="target_parameters")
    return names


def _refuse_options(raw: dict[str, Any], path: Path) -> None:
    for name, what in _REFUSED_OPTIONS.items():
        if raw.get(name):
            fact = f"got an adapter with {what}, which is not read, expected plain LoRA or DoRA"
            raise UnsupportedFormat(fact, remedy=MERGE_REMEDY, file=path, tensor=name)
    for name, value in raw.items():
        if name.startswith("use_") and value and name not in _KNOWN_USES:
            fact = f"got the variant {printable(name)}, which is not read, expected plain LoRA or DoRA"
            raise UnsupportedFormat(fact, remedy=MERGE_REMEDY, file=path, tensor=name)
    init = raw.get("init_lora_weights", True)
    if init is None or isinstance(init, bool):
        return
    lowered = init.lower() if isinstance(init, str) else ""
    if lowered.startswith(_INITS_THAT_MOVE_THE_BASE):
        fact = (
            f"got an adapter initialised with {printable(init)}, which also changed the base by factors "
            "that are not in the file, expected one whose update is B A alone"
        )
        # LoftQ's base is the quantised rest, so that no conversion can lead back to the true one.
        remedy = MERGE_REMEDY if lowered.startswith("loftq") else _CONVERT_REMEDY
        raise UnsupportedFormat(fact, remedy=remedy, file=path, tensor="init_lora_weights")
    if lowered not in _INITS_THAT_DO_NOT:
        fact = f"got the initialisation {printable(init)}, which is not known, expected true or gaussian"
        raise UnsupportedFormat(fact, remedy=MERGE_REMEDY, file=path, tensor="init_lora_weights")


def moves_the_base(init: object) -> bool:
    """Whether ``init_lora_weights`` also changed the base (PiSSA and its kin)."""
    return isinstance(init, str) and init.lower().startswith(_INITS_THAT_MOVE_THE_BASE)
