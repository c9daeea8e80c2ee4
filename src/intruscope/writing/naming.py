"""Module names in the adapter: those of the model in memory, and which of them PEFT must wrap.

Files and models do not always agree: GPT-2 on the hub is stored without its ``transformer.``, GPT-NeoX's
``embed_out`` is ``lm_head`` in memory. Where transformers is installed and knows the class, its own rules for
loading are asked, on a model on PyTorch's meta device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intruscope.errors import IntruscopeError
from intruscope.weights.fused import Config
from intruscope.weights.source import ModelSource

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from intruscope.adapters.folder import AdapterSource

_TASKS = (
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
)
HEADS_OF_TASK = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""PEFT's model classes add these to ``modules_to_save`` and cannot load an adapter without them."""


@dataclass(frozen=True, kw_only=True)
class AdapterNames:
    """How the model that the adapter goes on names its parts.

    Attributes:
        task: PEFT's ``task_type``; None if there is none.
        is_known: Whether the names are those of the model in memory, not just of its files.
        modules: All of its modules; empty if they are unknown.
        aliases: For each parameter with several names (tied weights), all of them.
    """

    task: str | None
    is_known: bool
    modules: frozenset[str] = frozenset()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _in_model: Mapping[str, str] = field(default_factory=dict)
    _merged: frozenset[str] = frozenset()

    def of(self, stored: str) -> str:
        """The model's name of a stored tensor of the tuned side."""
        return self._in_model.get(stored, stored)

    def why_missing(self, stored: str) -> str:
        """Why a stored tensor is not a parameter of its own in the model; empty if it is one."""
        if stored in self._merged:
            return "transformers joins it with others in memory"
        if self.modules and self.of(stored).rpartition(".")[0] not in self.modules:
            return "the model's class has no module of this name"
        return ""


def adapter_names(base: ModelSource, tuned: ModelSource | AdapterSource) -> AdapterNames:
    """Find the names from the configs and, if it is installed, transformers."""
    if not isinstance(tuned, ModelSource):
        # An adapter's keys are the names in memory.
        return AdapterNames(task=None if tuned.config is None else tuned.config.task, is_known=True)
    source = tuned if tuned.config else base
    architectures = Config(source.config).architectures
    name = architectures[0] if architectures else ""
    task = next((task for end, task in _TASKS if name.endswith(end)), None)
    if task is None and source.config.get("is_encoder_decoder") is True and name.endswith("Generation"):
        task = "SEQ_2_SEQ_LM"
    model = _skeleton(name, source)
    if model is None:
        return AdapterNames(task=task, is_known=False)
    state = model.state_dict(keep_vars=True)
    in_model, merged = _renamed(model, state, tuned.tensors)
    groups: dict[int, list[str]] = {}
    for parameter, tensor in state.items():
        groups.setdefault(id(tensor), []).append(parameter)
    return AdapterNames(
        task=task,
        is_known=True,
        modules=frozenset(module for module, _ in model.named_modules()),
        aliases={name: tuple(names) for names in groups.values() if len(names) > 1 for name in names},
        _in_model=in_model,
        _merged=merged,
    )


def _skeleton(name: str, source: ModelSource) -> Any:
    """A transformers model on the meta device; None if there is no class of that name."""
    from importlib.util import find_spec

    if not name.isidentifier() or find_spec("transformers") is None:
        return None
    import torch
    import transformers

    from intruscope.adapters.live_models import config_of, quiet

    cls = getattr(transformers, name, None)
    if cls is None:
        return None
    try:
        config = config_of(source)
        with quiet(), torch.device("meta"):
            model = cls(config)
            model.tie_weights()
    except (IntruscopeError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, ImportError):
        return None  # the class does not accept the config: names are then as stored
    return model


def _renamed(
    model: Any, state: Mapping[str, Any], stored: Collection[str]
) -> tuple[dict[str, str], frozenset[str]]:
    """Stored name to the parameter's, as transformers loads it; and the names of tensors that it joins."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    transforms = get_model_conversion_mapping(model)
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
    found: dict[str, str] = {}
    merged = set()
    for name in stored:
        new, joined = rename_source_key(name, renamings, converters, model.base_model_prefix, dict(state))
        found[name] = new
        if joined is not None:
            merged.add(name)
    return found, frozenset(merged)


def target_modules(wanted: Collection[str], others: Collection[str]) -> list[str]:
    """The shortest list of names by which PEFT wraps exactly these modules.

    PEFT takes a module whose name is an entry or ends in ``.entry``. Last words do where no other module ends
    in them; all others are named in full.

    Args:
        wanted: Modules with factors.
        others: All further modules.
    """
    ends = {name.rpartition(".")[2] for name in others}
    listed = {name if (last := name.rpartition(".")[2]) in ends else last for name in wanted}
    return sorted(listed)
