"""Which rows of a fused projection are the query, key, value, gate and up.

Rows are those of the (out, in) matrix. Every rule follows the code that uses the tensor (``modeling_*.py`` in
transformers 5, or the code in the model's repository for baichuan, chatglm, internlm2 and qwen). Rules are
chosen by ``model_type`` and must account for every row; otherwise the tensor stays one matrix, with a note.
"""

from __future__ import annotations

from typing import Any

from intruscope.weights.views import RowSelection

Parts = tuple[tuple[str, RowSelection], ...]

QKV_LEAVES = frozenset(
    {"c_attn", "query_key_value", "qkv_proj", "Wqkv", "wqkv", "W_pack", "qkv", "in_proj_weight"}
)
GATE_UP_LEAVES = frozenset({"gate_up_proj", "input_linear", "Wi"})
_THIRDS = {
    "gpt2": "c_attn",
    "imagegpt": "c_attn",
    "decision_transformer": "c_attn",
    "openai-gpt": "c_attn",
    "qwen": "c_attn",
    "mpt": "Wqkv",
    "modernbert": "Wqkv",
    "nomic_bert": "Wqkv",
    "baichuan": "W_pack",
    "qwen2_vl": "qkv",
    "qwen2_5_vl": "qkv",
    "qwen3_vl": "qkv",
    "qwen3_vl_moe": "qkv",
}
_PER_HEAD = frozenset({"gpt_neox", "gpt_neox_japanese", "bloom", "persimmon"})
_GATE_THEN_UP = frozenset(
    {"phi3", "phi4_multimodal", "glm", "glm4", "granitemoe", "granitemoeshared", "granitemoehybrid", "jetmoe"}
    | {"modernbert"}
)


class Config:
    """Sizes from a foreign ``config.json``: positive integers of sane size, or None.

    A model of several towers nests a config for each. :meth:`tower` gives the one of a module; the config as
    a whole also answers for its language model (``text_config``).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        nested = [config.get(key) for key in ("text_config", "llm_config")]
        self._levels = [config, *(level for level in nested if isinstance(level, dict))]
        self._outer: tuple[str, ...] = ()
        self._nested = {
            key.removesuffix("_config"): value
            for key, value in config.items()
            if isinstance(value, dict) and (key.endswith("_config") or "model_type" in value)
        }
        self._towers: dict[tuple[str, ...], Config] = {}

    def tower(self, module: str) -> Config:
        """The config of the tower that a module lies in; this one where no nested config is named like it.

        Args:
            module: Its name: ``decoder.transformer.h.0.attn.c_attn`` lies in the tower ``decoder``.
        """
        keys = self._tower_keys(module.split(".")) if self._nested else ()
        if not keys:
            return self
        if keys not in self._towers:
            first, *others = (self._nested[key] for key in keys)
            tower = Config(first)
            tower._levels += others
            tower._outer = (*_model_type(self._levels[0]), *self._outer)
            self._towers[keys] = tower
        return self._towers[keys].tower(module)

    def _tower_keys(self, words: list[str]) -> tuple[str, ...]:
        """Keys of the nested configs that the first fitting word of a module's name stands for."""
        for word in words:
            if word in self._nested:
                return (word,)
            found = [
                key
                for key in self._nested
                if any(f"_{alias}_" in f"_{word}_" for alias in _ALIASES.get(key, (key,)))
            ]
            if found:
                return tuple(found)
        return ()

    @property
    def model_types(self) -> tuple[str, ...]:
        """Its own types first, then, for a tower, those of the models that contain it."""
        return (*self.own_types, *self._outer)

    @property
    def own_types(self) -> tuple[str, ...]:
        """``model_type`` of this config and of its language model."""
        return tuple(kind for level in self._levels for kind in _model_type(level))

    @property
    def architectures(self) -> tuple[str, ...]:
        """Class names, as text."""
        found = self._levels[0].get("architectures")
        return tuple(name for name in found if isinstance(name, str)) if isinstance(found, list) else ()

    def size(self, *keys: str) -> int | None:
        """The first of the keys that holds a positive integer below 2^31."""
        for level in self._levels:
            for key in keys:
                value = level.get(key)
                if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
                    return value
        return None

    def flag(self, key: str, default: bool) -> bool:
        """A boolean, or the default when it is absent."""
        for level in self._levels:
            if isinstance(level.get(key), bool):
                return bool(level[key])
        return default

    @property
    def num_heads(self) -> int | None:
        """Number of attention heads, under any of its names."""
        return self.size("num_attention_heads", "n_head", "n_heads", "num_heads")


_ALIASES = {
    "text": ("text", "language", "llm"),
    "llm": ("language", "llm"),
    "vision": ("vision", "visual", "image"),
    "audio": ("audio",),
    "speech": ("speech",),
}


def _model_type(level: dict[str, Any]) -> tuple[str, ...]:
    kind = level.get("model_type")
    return (kind,) if isinstance(kind, str) else ()


def _consecutive(*sizes: tuple[str, int]) -> Parts:
    parts, start = [], 0
    for name, size in sizes:
        parts.append((name, RowSelection(start=start, block=size)))
        start += size
    return tuple(parts)


def _per_group(num_groups: int, *sizes: tuple[str, int]) -> Parts:
    """Each group of rows holds all parts one after the other."""
    stride = sum(size for _, size in sizes)
    parts, start = [], 0
    for name, size in sizes:
        parts.append((name, RowSelection(start=start, block=size, num_blocks=num_groups, stride=stride)))
        start += size
    return tuple(parts)


def _grouped_query(num_rows: int, heads: int | None, groups: int | None) -> tuple[int, int, int] | None:
    """(heads per group, groups, head size) when rows are made of heads + 2 * groups heads."""
    if heads is None or groups is None or heads % groups or num_rows % (heads + 2 * groups):
        return None
    return heads // groups, groups, num_rows // (heads + 2 * groups)


def _qkv_parts(model_type: str, leaf: str, num_rows: int, config: Config) -> Parts | None:
    if _THIRDS.get(model_type) == leaf or leaf == "in_proj_weight":
        third = num_rows // 3
        return _consecutive(("q", third), ("k", third), ("v", third)) if num_rows == 3 * third else None
    heads = config.num_heads
    if model_type in _PER_HEAD and leaf == "query_key_value":
        groups, contiguous = heads, False
    elif model_type == "falcon" and leaf == "query_key_value":
        if config.flag("new_decoder_architecture", False):
            groups, contiguous = config.size("num_kv_heads") or heads, False
        elif config.flag("multi_query", True):
            groups, contiguous = 1, True
        else:
            groups, contiguous = heads, False
    elif model_type == "gpt_bigcode" and leaf == "c_attn":
        multi_query = config.flag("multi_query", True)
        groups, contiguous = (1, True) if multi_query else (heads, False)
    elif model_type == "chatglm" and leaf == "query_key_value":
        multi_query = config.flag("multi_query_attention", False)
        groups, contiguous = (config.size("multi_query_group_num"), True) if multi_query else (heads, False)
    elif model_type in ("phi3", "phi4_multimodal") and leaf == "qkv_proj":
        groups, contiguous = config.size("num_key_value_heads") or heads, True
    elif model_type == "internlm2" and leaf == "wqkv":
        groups, contiguous = config.size("num_key_value_heads") or heads, False
    elif model_type == "codegen" and leaf == "qkv_proj" and num_rows % 12 == 0:
        # Four shards of the original training, each query, value, key (in this order).
        return _per_group(4, ("q", num_rows // 12), ("v", num_rows // 12), ("k", num_rows // 12))
    else:
        return None
    sizes = _grouped_query(num_rows, heads, groups)
    if sizes is None:
        return None
    per_group, num_groups, head = sizes
    if contiguous:
        q_rows, kv_rows = per_group * num_groups * head, num_groups * head
        return _consecutive(("q", q_rows), ("k", kv_rows), ("v", kv_rows))
    return _per_group(num_groups, ("q", per_group * head), ("k", head), ("v", head))


def fused_parts(tensor: str, leaf: str, num_rows: int, config: Config) -> Parts | str | None:
    """Cut a projection into its parts.

    Args:
        tensor: The stored name, for its context (cross-attention has no query in ``c_attn``).
        leaf: Last word of the module's name.
        num_rows: Rows of the (out, in) matrix.
        config: Sizes of the model.

    Returns:
        The parts; the reason why a fused tensor stays whole; None when it is not fused.
    """
    if leaf in GATE_UP_LEAVES:
        if num_rows % 2 == 0 and _GATE_THEN_UP.intersection(config.model_types):
            return _consecutive(("gate", num_rows // 2), ("up", num_rows // 2))
        return "fused gate and up, not split: their order is not known for this model type"
    if leaf not in QKV_LEAVES:
        return None
    if leaf == "c_attn" and ".crossattention." in tensor:
        half = num_rows // 2
        return (
            _consecutive(("k", half), ("v", half)) if num_rows == 2 * half else "fused, not split: odd rows"
        )
    for model_type in config.model_types or ("",):
        parts = _qkv_parts(model_type, leaf, num_rows, config)
        if parts is not None:
            return parts
    shown = " / ".join(config.model_types) or "absent"
    return f"fused query, key and value, not split: no rule for model_type {shown} and {num_rows} rows"
