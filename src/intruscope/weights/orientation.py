"""Which way round a stored matrix is: (out, in) as ``nn.Linear`` stores it, or (in, out).

transformers' ``Conv1D`` (GPT-2 and its relatives) and embeddings are stored (in, out). The model type alone
does not tell: a GPT-2 may be the decoder of another model, and a checkpoint of type ``gpt2`` may have been
converted to linear layers. So the shapes speak first: a bias has one number per output, and ``Conv1D`` always
has one. Where a matrix is square, its siblings of the same name in other blocks or modules decide, then the
config of its tower, then transformers itself. What nothing decides is reported as unknown and never
guessed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from intruscope.errors import printable
from intruscope.weights.architecture import ModuleClass, ask_transformers
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intruscope.weights.fused import Config
    from intruscope.weights.matrices import CoverageEntry
    from intruscope.weights.source import ModelSource

_MAX_NAMED = 6
_CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp_decoder"})
_CONV1D_CLASSES = ("GPT2", "OpenAIGPT", "ImageGPT", "DecisionTransformer", "ClvpForCausalLM")
_CONV1D_LEAVES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_READ_HIDDEN = frozenset(
    {"c_attn", "c_fc", "q_attn"}
)  # their input is the hidden state; of c_proj it is the output

EMBEDDING_NAME = re.compile(
    r"(^|\.)(wte|wpe|shared|embed_in|tok_embeddings?|embed_tokens(_per_layer)?|embed_positions|tokens_embed|"
    r"positions_embed|relative_attention_bias|rel_embeddings|"
    r"([a-z_]+_)?(word|token|position|token_type|distance|lang|task_type)_embeddings?)$"
)
"""Names that in transformers are those of ``nn.Embedding`` alone."""
_LINEAR_NAME = re.compile(
    r"proj|linear|dense|(^|_)fc|head|mapping|classif|transform|mlp|gate|router|embed_out"
)
_PERHAPS_EMBEDDING = re.compile(r"(^|_)(emb|embed|embeds|embedding|embeddings|embedder|codebook)(_|$)")

UNKNOWN = (
    "orientation unknown: it could be stored (out, in) or (in, out), and nothing in the files tells which"
)


class Orientations:
    """The class of every stored matrix of a model, as far as it can be known.

    Args:
        source: The model; only headers are used.
        config: Its config.
        classes: By module name, where the model itself is at hand; taken as they are.
        fan_in_fan_out: Of an adapter's config; decides what nothing else does.
    """

    def __init__(
        self,
        source: ModelSource,
        config: Config,
        *,
        classes: Mapping[str, ModuleClass],
        fan_in_fan_out: bool | None = None,
    ) -> None:
        self._shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
        self._config = config
        self._raw = source.config
        self._classes = classes
        self._last_resort: ModuleClass | None = (
            None if fan_in_fan_out is None else "conv1d" if fan_in_fan_out else "linear"
        )
        self._by_leaf: dict[tuple[str, str], set[ModuleClass]] = defaultdict(set)
        self._by_stack: dict[str, set[ModuleClass]] = defaultdict(set)
        self._conv1d_stacks: set[str] = set()
        self._hidden: dict[str, set[int]] = defaultdict(set)
        self._asked: dict[str, set[ModuleClass]] | None = None
        for name, shape in self._shapes.items():
            if len(shape) == 1 and re.search(r"norm|ln_\w+\.", name) and name.endswith(".weight"):
                self._hidden[_stack(name)].add(shape[0])
        for name, shape in self._shapes.items():
            proved = self._proved(name.removesuffix(".weight"), shape) if name.endswith(".weight") else None
            if proved is not None:
                module = name.removesuffix(".weight")
                self._by_leaf[_stack(module), _leaf(module)].add(proved)
                if _leaf(module) in _CONV1D_LEAVES:
                    self._by_stack[_stack(module)].add(proved)
                if proved == "conv1d":
                    self._conv1d_stacks.add(_stack(module))

    def of(self, module: str, *, in_block: bool, is_head: bool) -> ModuleClass | None:
        """The class of the module that stores ``module.weight``, a matrix; None where nothing decides.

        Args:
            module: Stored name without ``.weight``.
            in_block: Whether it lies in a repeated block.
            is_head: Whether it has the name of a head.
        """
        if module in self._classes:
            return self._classes[module]
        stack, leaf = _stack(module), _leaf(module)
        proved = self._proved(module, self._shapes[f"{module}.weight"])
        if proved is not None:
            return proved
        has_bias = f"{module}.bias" in self._shapes
        if leaf not in _CONV1D_LEAVES and not has_bias:
            return self._without_bias(module, in_block=in_block, is_head=is_head)
        siblings = self._by_leaf[stack, leaf]
        if leaf in _CONV1D_LEAVES:
            siblings = siblings or self._by_stack[stack]
        if len(siblings) == 1:
            return next(iter(siblings))
        is_family = self._is_conv1d_family(module)
        if leaf in _CONV1D_LEAVES:
            return "conv1d" if is_family and not siblings else self._undecided(module)
        if is_family or stack not in self._conv1d_stacks:
            return "linear"
        return self._undecided(module)

    def _proved(self, module: str, shape: tuple[int, ...]) -> ModuleClass | None:
        """What the shapes alone prove."""
        if len(shape) != 2 or shape[0] == shape[1]:
            return None
        leaf, bias = _leaf(module), self._shapes.get(f"{module}.bias")
        if bias is not None:
            if len(bias) != 1 or bias[0] not in shape:
                return None
            return "linear" if bias[0] == shape[0] else "conv1d"
        if leaf not in _CONV1D_LEAVES:
            return None
        if leaf == "c_attn":
            for parts in (3, 2):
                if shape[1] == parts * shape[0] or shape[0] == parts * shape[1]:
                    return "conv1d" if shape[1] > shape[0] else "linear"
        hidden = self._hidden[_stack(module)]
        if len(hidden) != 1 or (shape[0] in hidden) == (shape[1] in hidden):
            return None
        return "conv1d" if (shape[0] in hidden) == (leaf in _READ_HIDDEN) else "linear"

    def _without_bias(self, module: str, *, in_block: bool, is_head: bool) -> ModuleClass | None:
        """A matrix that is no ``Conv1D``: an embedding by its name, or a linear layer."""
        leaf = _leaf(module)
        if EMBEDDING_NAME.search(module):
            return "embedding"
        perhaps = _PERHAPS_EMBEDDING.search(leaf) is not None
        if _LINEAR_NAME.search(leaf) or ((in_block or is_head) and not perhaps):
            return "linear"
        asked = self._ask(module)
        if asked is not None or not perhaps:
            return asked or "linear"
        return None if "patch" in leaf else "embedding"

    def _undecided(self, module: str) -> ModuleClass | None:
        return self._ask(module) or self._last_resort

    def _is_conv1d_family(self, module: str) -> bool:
        tower = self._config.tower(module)
        return bool(_CONV1D_TYPES.intersection(tower.own_types)) or any(
            name.startswith(_CONV1D_CLASSES) for name in tower.architectures
        )

    def _ask(self, module: str) -> ModuleClass | None:
        """What transformers builds under this name; prefixes may differ between it and the file."""
        if self._asked is None:
            self._asked = defaultdict(set)
            found = ask_transformers(self._raw, num_tensors=len(self._shapes))
            for name, kind in found.items():
                words = name.split(".")
                for at in range(len(words)):
                    self._asked[".".join(words[at:])].add(kind)
        words = module.split(".")
        for at in range(len(words)):
            kinds = self._asked.get(".".join(words[at:]))
            if kinds:
                return next(iter(kinds)) if len(kinds) == 1 else None
        return None


def orientation_findings(coverage: Iterable[CoverageEntry]) -> list[Finding]:
    """One warning for all matrices that were left out because their orientation is unknown.

    Args:
        coverage: The ledger.
    """
    names = list(dict.fromkeys(entry.tensor for entry in coverage if entry.reason == UNKNOWN))
    if not names:
        return []
    shown = ", ".join(map(printable, names[:_MAX_NAMED])) + (", ..." if len(names) > _MAX_NAMED else "")
    message = (
        f"orientation unknown for {len(names)} matrices ({shown}): they may be stored as (out, in) or as "
        "(in, out), so they were not compared; restore the model's own config.json, or install a version of "
        "transformers that knows its model_type"
    )
    return [Finding(code="orientation-unknown", severity="warning", message=message)]


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _stack(name: str) -> str:
    """The words before a block's index: ``decoder.transformer.h``; empty outside of blocks."""
    words = name.split(".")
    at = next((i for i, word in enumerate(words) if i and word.isascii() and word.isdigit()), None)
    return "" if at is None else ".".join(words[:at])
