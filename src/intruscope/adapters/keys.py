"""Adapter keys sorted by the module they belong to, in every spelling that is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intruscope.errors import MalformedInput, UnsupportedFormat, printable

if TYPE_CHECKING:
    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.stored import StoredTensor

PEFT_PREFIX = "base_model.model."
SECOND_COPY = "a second copy that PEFT stores beside the module, and does not load"
ORIGINAL = "the base's own weight, which PEFT stores beside the trained one and does not load"
_ROLES = {
    "lora_A": "down",
    "lora_B": "up",
    "lora_embedding_A": "down",
    "lora_embedding_B": "up",
    "lora_magnitude_vector": "magnitude",
}


@dataclass(kw_only=True)
class AdaptedModule:
    """The tensors of one module: by role ``down up magnitude saved replaced tokens``, and its biases."""

    name: str
    roles: dict[str, StoredTensor] = field(default_factory=dict)
    is_embedding: bool = False


def sort_keys(adapter: AdapterSource) -> tuple[dict[str, AdaptedModule], dict[str, str]]:
    """Group an adapter's tensors.

    Returns:
        Module name to its tensors, and stored key to the reason why it is in no matrix.

    Raises:
        UnsupportedFormat: factors of a part of a module.
        MalformedInput: two tensors in one role, or one factor without the other.
    """
    modules: dict[str, AdaptedModule] = {}
    skipped: dict[str, str] = {}
    for key, tensor in adapter.tensors.items():
        module_name, role, is_embedding = _parse(key, adapter)
        if role == "bias":
            skipped[key] = "biases, not a matrix"
            continue
        if role == "original":
            skipped[key] = ORIGINAL
            continue
        if role == "saved" and len(tensor.shape) < 2:
            skipped[key] = "a vector, not a matrix"
            continue
        module = modules.setdefault(module_name, AdaptedModule(name=module_name))
        if role in module.roles:
            # For a resized vocabulary PEFT stores the trained module twice, and loads the plain name.
            copies = [k for k in (module.roles[role].name, key) if ".modules_to_save." in k]
            if len(copies) != 1:
                raise MalformedInput(
                    f"there are two tensors for {role} of {printable(module_name)}, as from two adapters",
                    remedy="save each adapter to its own folder",
                    file=adapter.path,
                    tensor=key,
                )
            skipped[copies[0]] = SECOND_COPY
            if copies[0] == key:
                continue
        module.roles[role] = tensor
        module.is_embedding |= is_embedding
    for module in modules.values():
        _check_roles(module, adapter)
    return modules, skipped


def _check_roles(module: AdaptedModule, adapter: AdapterSource) -> None:
    roles = module.roles.keys()
    present = "down" if "down" in roles else "up"
    tensor = module.roles.get(present) or next(iter(module.roles.values()))
    if ("down" in roles) != ("up" in roles) or ("magnitude" in roles and "down" not in roles):
        fact = f"got {', '.join(sorted(roles))} of {printable(module.name)} alone, expected both factors"
        raise MalformedInput(fact, remedy="save the adapter again", file=adapter.path, tensor=tensor.name)
    beside = {"magnitude", "up", "replaced"} if "down" in roles else set()
    if "tokens" in roles:
        beside = {"replaced"}
    if len(roles - beside) > 1:
        fact = f"got {', '.join(sorted(roles))} for one module, expected one way to train it"
        remedy = "merge it with PEFT's merge_and_unload and scan that checkpoint"
        raise UnsupportedFormat(fact, remedy=remedy, file=adapter.path, tensor=tensor.name)


def _parse(key: str, adapter: AdapterSource) -> tuple[str, str, bool]:
    """Module, role and whether it is an embedding's factor."""
    words = key.removeprefix(PEFT_PREFIX).split(".")
    if adapter.format == "diffusers":
        return _parse_diffusers(words, key, adapter)
    at = next((i for i, word in enumerate(words) if word in _ROLES), None)
    if at is not None:
        tail = words[at + 1 :]
        nested = [word for word in words[:at] if word == "base_layer"]
        of_parameter = bool(adapter.config and adapter.config.target_parameters)
        if len(tail) > 2 or (nested and not (of_parameter and words[at - len(nested) : at] == nested)):
            raise UnsupportedFormat(
                "got the factors of a part of a module (of nn.MultiheadAttention, or of a parameter that "
                "target_parameters does not name), expected those of a whole module",
                remedy="merge it with PEFT's merge_and_unload and scan that checkpoint",
                file=adapter.path,
                tensor=key,
            )
        role = "bias" if tail[-1:] == ["bias"] else _ROLES[words[at]]
        return ".".join(words[:at]), role, words[at].startswith("lora_embedding")
    if words[-1] == "trainable_tokens_delta" or words[-2:-1] == ["trainable_tokens_delta"]:
        at = words.index("trainable_tokens_delta")
        return ".".join(word for word in words[:at] if word != "token_adapter"), "tokens", False
    if words[-1] == "bias":
        return ".".join(words[:-1]), "bias", False
    if words[-2:] == ["base_layer", "weight"]:
        return ".".join(word for word in words[:-2] if word != "token_adapter"), "replaced", False
    if "original_module" in words:
        return ".".join(words[: words.index("original_module")]), "original", False
    if "modules_to_save" in words:
        at = words.index("modules_to_save")
        inner = words[at + 1 :]
        # modules_to_save.weight, or modules_to_save.<adapter name>.weight
        words = words[:at] + (inner[1:] if len(inner) > 1 else inner)
    return ".".join(words).removesuffix(".weight"), "saved", False


def _parse_diffusers(words: list[str], key: str, adapter: AdapterSource) -> tuple[str, str, bool]:
    """``attn1.processor.to_q_lora.down.weight`` is A of ``attn1.to_q``; ``to_out`` is ``to_out.0``.

    Text encoders beside the UNet say ``q_proj.lora_linear_layer.down.weight``.
    """
    if len(words) > 4 and words[-1] == "weight" and words[-2] in ("down", "up"):
        if words[-3] == "lora_linear_layer":
            return ".".join(words[:-3]), words[-2], False
        if words[-4] == "processor" and words[-3].endswith("_lora"):
            leaf = words[-3].removesuffix("_lora")
            module = [*words[:-4], *(["to_out", "0"] if leaf == "to_out" else [leaf])]
            return ".".join(module), words[-2], False
    raise UnsupportedFormat(
        "got a key of diffusers that is not read, expected those of attention processors and text encoders",
        remedy="load it in diffusers, fuse it with fuse_lora, and scan the saved model",
        file=adapter.path,
        tensor=key,
    )
