"""Adapter keys sorted by the module they belong to, in every spelling that is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.adapters.kind import WHOLE_ROLES, AdaptedModule, ModuleKey
from intruscope.errors import MalformedInput, UnsupportedFormat, printable

if TYPE_CHECKING:
    from intruscope.adapters.folder import AdapterSource
    from intruscope.weights.stored import StoredTensor

PEFT_PREFIX = "base_model.model."
SECOND_COPY = "a second copy that PEFT stores beside the module, and does not load"
ORIGINAL = "the base's own weight, which PEFT stores beside the trained one and does not load"
_TINKER_HEAD = "unembed_tokens"
"""Tinker's name for the head, whatever the model calls it (tinker_cookbook.weights)."""


def sort_keys(adapter: AdapterSource) -> tuple[dict[str, AdaptedModule], dict[str, str]]:
    """Group an adapter's tensors.

    Returns:
        Module name to its tensors, and stored key to the reason why it is in no matrix. A tensor that all
        modules share is in each of them.

    Raises:
        UnsupportedFormat: factors of a part of a module.
        MalformedInput: two tensors in one role, or parameters without those they go with.
    """
    modules: dict[str, AdaptedModule] = {}
    skipped: dict[str, str] = {}
    shared: dict[str, StoredTensor] = {}
    for key, tensor in adapter.tensors.items():
        module_name, role, is_embedding = (adapter.kind.parse or _parse)(key, adapter)
        if not module_name:
            shared[role] = tensor
            continue
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
        if module.has_factors:
            module.roles = {**shared, **module.roles}
        _check_roles(module, adapter)
    used = {tensor.name for module in modules.values() for tensor in module.roles.values()}
    once_more = "shared by all modules, and stored once more with each"
    skipped |= {tensor.name: once_more for tensor in shared.values() if tensor.name not in used}
    return modules, skipped


def _check_roles(module: AdaptedModule, adapter: AdapterSource) -> None:
    roles = module.roles.keys()
    own = roles - WHOLE_ROLES
    tensor = next((module.roles[role] for role in sorted(own)), None) or next(iter(module.roles.values()))
    missing = adapter.kind.required - own
    if own and missing:
        raise MalformedInput(
            f"{printable(module.name)} has {', '.join(sorted(own))} without {', '.join(sorted(missing))}",
            remedy="save the adapter again",
            file=adapter.path,
            tensor=tensor.name,
        )
    # A base weight may lie beside factors or tokens; anything else excludes what goes with it.
    ways = (roles & WHOLE_ROLES) - ({"replaced"} if own or "tokens" in roles else set())
    if len(ways) + bool(own) > 1:
        raise UnsupportedFormat(
            f"{printable(module.name)} has {', '.join(sorted(roles))}: it was trained in two ways at once",
            remedy="merge it with PEFT's merge_and_unload and scan that checkpoint",
            file=adapter.path,
            tensor=tensor.name,
        )


def _parse(key: str, adapter: AdapterSource) -> ModuleKey:
    """Read a key as PEFT spells it."""
    known = adapter.kind.words
    words = key.removeprefix(PEFT_PREFIX).split(".")
    common = next((i for i, word in enumerate(words) if word in adapter.kind.shared), None)
    if common is not None:  # below the tuner itself, or once more beside each module
        path = words[:common]
        return ModuleKey("" if path == ["base_model"] else ".".join(path), adapter.kind.shared[words[common]])
    at = next((i for i, word in enumerate(words) if word in known), None)
    if at is not None:
        tail = words[at + 1 :]
        nested = [word for word in words[:at] if word == "base_layer"]
        of_parameter = bool(adapter.config and adapter.config.target_parameters)
        if len(tail) > 2 or (nested and not (of_parameter and words[at - len(nested) : at] == nested)):
            raise UnsupportedFormat(
                "these are factors of a part of a module (of nn.MultiheadAttention, or of a parameter that "
                "target_parameters does not name); only those of whole modules are read",
                remedy="merge it with PEFT's merge_and_unload and scan that checkpoint",
                file=adapter.path,
                tensor=key,
            )
        role = "bias" if tail[-1:] == ["bias"] else known[words[at]] or tail[0]
        if words[at - 1] == _TINKER_HEAD:
            return ModuleKey("lm_head", role)
        return ModuleKey(
            ".".join(words[:at]), role, words[at].startswith(("lora_embedding", "oft_embedding"))
        )
    if words[-1] == "trainable_tokens_delta" or words[-2:-1] == ["trainable_tokens_delta"]:
        at = words.index("trainable_tokens_delta")
        return ModuleKey(".".join(word for word in words[:at] if word != "token_adapter"), "tokens")
    if words[-1] == "bias":
        return ModuleKey(".".join(words[:-1]), "bias")
    if words[-2:] == ["base_layer", "weight"]:
        return ModuleKey(".".join(word for word in words[:-2] if word != "token_adapter"), "replaced")
    if "original_module" in words:
        return ModuleKey(".".join(words[: words.index("original_module")]), "original")
    if "modules_to_save" in words:
        at = words.index("modules_to_save")
        inner = words[at + 1 :]
        # modules_to_save.weight, or modules_to_save.<adapter name>.weight
        words = words[:at] + (inner[1:] if len(inner) > 1 else inner)
    return ModuleKey(".".join(words).removesuffix(".weight"), "saved")
