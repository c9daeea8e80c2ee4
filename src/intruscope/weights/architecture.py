"""Asks transformers what each module of a model is: builds the model on the meta device in a child process.

Only models that file headers leave open come here. The child runs no code of a model's repository, cannot
reach a network, and has limits of time and memory: a hostile config costs a bounded wait and nothing else.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

ModuleClass = Literal["linear", "conv1d", "embedding"]
"""``torch.nn.Linear``, transformers' ``Conv1D`` (stored (in, out)), ``torch.nn.Embedding``."""

TIME_LIMIT_SECONDS = 120.0
_MEMORY_LIMIT_BYTES = 16 << 30
_MAX_CONFIG_CHARS = 1_000_000
_COUNT_KEY = re.compile(r"(layers?|depths?|blocks?)$")
# Settings that choose a kernel, a backbone or code to fetch; none of them changes what a module is.
_DROPPED = re.compile(r"attn_implementation|auto_map|quantization|pretrained|kernel|dtype|_name_or_path")


def module_classes(model: nn.Module) -> dict[str, ModuleClass]:
    """Class of every linear layer and embedding of a model in memory, by module name.

    A layer inside a wrapper of PEFT goes by the wrapper's name, as in the model that was wrapped.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    known: tuple[tuple[type, ModuleClass], ...] = (
        (nn.Linear, "linear"),
        (Conv1D, "conv1d"),
        (nn.Embedding, "embedding"),
    )
    return {
        name.replace(".base_layer", ""): kind
        for name, module in model.named_modules(remove_duplicate=False)
        for cls, kind in known
        if isinstance(module, cls)
    }


def ask_transformers(config: Mapping[str, Any], *, num_tensors: int) -> dict[str, ModuleClass]:
    """Class of every linear layer and embedding of a config's architecture, by module name.

    Args:
        config: A foreign ``config.json``.
        num_tensors: Of the checkpoint: a config with more layers than that is not of this checkpoint.

    Returns:
        Empty where transformers is not installed, does not know the architecture, or takes too long.
    """
    if not config.get("model_type") or importlib.util.find_spec("transformers") is None:
        return {}
    cleaned = _cleaned(config, num_tensors)
    if cleaned is None:
        return {}
    return dict(_ask(json.dumps(cleaned, sort_keys=True)))


def _cleaned(value: Any, num_tensors: int) -> Any:
    """The config without settings that could fetch anything; None where a count is not this checkpoint's."""
    if isinstance(value, list):
        items = [_cleaned(item, num_tensors) for item in value]
        return items if len(items) <= max(num_tensors, 256) else None
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        if _DROPPED.search(key):
            continue
        counts = item if isinstance(item, list) else [item]
        if _COUNT_KEY.search(key) and any(isinstance(n, int) and n > num_tensors for n in counts):
            return None
        kept[key] = _cleaned(item, num_tensors)
        if kept[key] is None and item is not None:
            return None
    return kept


@lru_cache(maxsize=64)
def _ask(config: str) -> tuple[tuple[str, ModuleClass], ...]:
    if len(config) > _MAX_CONFIG_CHARS:
        return ()
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "USE_TF": "0", "USE_FLAX": "0"}
    try:
        answer = subprocess.run(
            # -P: what lies in the current folder is not imported.
            [sys.executable, "-P", "-m", "intruscope.weights.architecture"],
            input=config.encode(),
            capture_output=True,
            timeout=TIME_LIMIT_SECONDS,
            check=True,
            env={**os.environ, **offline, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ).stdout
        found = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
    return tuple(found.items())


def _answer() -> None:
    """The child: a config on standard input, classes by module name as JSON on standard output."""
    import contextlib
    import resource
    import socket

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    given = json.loads(sys.stdin.buffer.read())
    out, sys.stdout = sys.stdout, sys.stderr

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network here")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    json.dump(_built(given), out)


def _built(given: Mapping[str, Any]) -> dict[str, ModuleClass]:
    """Classes by module name of a config's model, which is built without its numbers."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**given)
    with torch.device("meta"):
        model = _class_of(config, given)(config)
    return module_classes(model)


def _class_of(config: Any, given: Mapping[str, Any]) -> Any:
    """The class that ``architectures`` names, or the bare model of the type."""
    import transformers

    for name in given.get("architectures") or ():
        found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel._model_mapping[type(config)]


if __name__ == "__main__":
    _answer()
