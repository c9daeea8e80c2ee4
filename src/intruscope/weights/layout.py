"""Cuts stored tensors into named (out, in) matrices, by the config and the tensors' names and shapes.

Embeddings are stored (vocabulary, width). An embedding maps a one-hot word to a vector, so its matrix here
is (width, vocabulary): transposed. Convolutions (out, in, *kernel) are flattened to (out, in x kernel).
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

from intruscope.weights.fused import GATE_UP_LEAVES, QKV_LEAVES, Config, Parts, fused_parts
from intruscope.weights.matrices import CoverageEntry, Scope
from intruscope.weights.orientation import EMBEDDING_NAME, UNKNOWN, Orientations
from intruscope.weights.views import RowSelection, TensorView

if TYPE_CHECKING:
    from intruscope.weights.architecture import ModuleClass
    from intruscope.weights.source import ModelSource
    from intruscope.weights.stored import StoredTensor

_MAX_EXPERTS = 65_536
# Experts stored (experts, in, out): modeling_gpt_oss, modeling_llama4, modeling_openai_privacy_filter.
_EXPERTS_IN_OUT = frozenset({"gpt_oss", "llama4", "llama4_text", "openai_privacy_filter"})
_EXPERTS_OUT_IN = frozenset(
    {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "granitemoeshared", "granitemoehybrid"}
    | {"deepseek_v2", "deepseek_v3", "phimoe", "glm4_moe", "jetmoe", "minimax", "jamba", "ernie4_5_moe"}
)
_GATE_UP_ALTERNATE = frozenset({"gpt_oss"})

_BLOCK_CONTAINER = re.compile(r"(layers?|h|blocks?|groups|resblocks|[a-z_]*_(layers?|blocks|layer_groups))$")
_KIND_OF_LEAF = {
    **dict.fromkeys(("q_proj", "query", "q", "to_q", "q_lin", "wq", "q_attn", "q_b_proj", "query_proj"), "q"),
    **dict.fromkeys(("k_proj", "key", "k", "to_k", "k_lin", "wk", "key_proj"), "k"),
    **dict.fromkeys(("v_proj", "value", "v", "to_v", "v_lin", "wv", "value_proj"), "v"),
    **dict.fromkeys(("kv_a_proj_with_mqa", "kv_b_proj"), "kv"),
    "q_a_proj": "q",
    **dict.fromkeys(("o_proj", "out_proj", "o", "to_out", "out_lin", "wo"), "o"),
    **dict.fromkeys(("gate_proj", "wi_0", "w1", "fc12"), "gate"),
    **dict.fromkeys(
        ("up_proj", "fc1", "fc11", "c_fc", "lin1", "wi", "wi_1", "w3", "dense_h_to_4h", "fc_in", "ffn"), "up"
    ),
    **dict.fromkeys(("down_proj", "fc2", "lin2", "w2", "dense_4h_to_h", "fc_out", "ffn_output"), "down"),
}
_EMBEDDING = re.compile(r"(^|\.)(embed|embeddings?|[a-z_]*_embeddings?)$")
_HEAD = re.compile(
    r"(^|\.)(lm_head|embed_out|score|classifier|pre_classifier|qa_outputs|pooler|decoder|vocab_projector|"
    r"vocab_transform|output|proj_out|cls|generator_lm_head|predictions|classification_head|transform)(\.|$)"
)
_ROUTER = re.compile(r"(^|\.)(router|gate|shared_expert_gate)(\.(wg|layer|classifier|weight))?$")
_SCALES = (
    ".scales",
    ".qzeros",
    ".weight_scale",
    ".weight_scale_inv",
    ".input_scale",
    ".absmax",
    ".SCB",
    "_scales",
)


# The direction of torch's weight norm, by its new and its old name; its magnitude is a vector.
_WEIGHT_NORM = (".parametrizations.weight.original1", ".weight_v")
WEIGHT_NORM = "a weight-normalised convolution, stored as a magnitude and a direction, which is not read"
"""Why the tensors of such a layer are left out."""


class MatrixListing(NamedTuple):
    """The matrices of a model, and why its other tensors hold none.

    Attributes:
        matrices: Stored tensor name to its matrices: one, or several for fused tensors.
        skipped: Ledger lines of all other tensors.
        gaps: Skipped tensors that hold weights: a scan without them is incomplete.
        notes: Stored tensor name to a remark on how it was read (a fused tensor left whole).
    """

    matrices: dict[str, tuple[TensorView, ...]]
    skipped: tuple[CoverageEntry, ...]
    gaps: frozenset[str]
    notes: dict[str, str]


def base_matrices(
    source: ModelSource,
    *,
    origin: Literal["base", "tuned"] = "base",
    fan_in_fan_out: bool | None = None,
) -> MatrixListing:
    """Cut every tensor of a model into named matrices, or say why it holds none.

    Args:
        source: From ``open_model``; only headers are used.
        origin: For the ledger.
        fan_in_fan_out: Of an adapter's config, for matrices whose orientation nothing else tells.

    Returns:
        The listing. Every stored tensor is either in ``matrices`` or in ``skipped``.
    """
    config = Config(source.config)
    orientations = Orientations(source, config, classes=source.classes, fan_in_fan_out=fan_in_fan_out)
    matrices: dict[str, tuple[TensorView, ...]] = {}
    skipped: list[CoverageEntry] = []
    gaps: set[str] = set()
    notes: dict[str, str] = {}
    used: set[str] = set()
    for name, tensor in source.tensors.items():
        reason, is_gap = _not_a_matrix(tensor, source.unreadable)
        if name in source.parts:
            reason, is_gap = "scales of quantised weights", False
        if reason is None:
            views, reason = _views(tensor, config, orientations)
            if views and used.isdisjoint(view.name for view in views):
                used.update(view.name for view in views)
                matrices[name] = views
                if reason is not None:
                    notes[name] = reason
                continue
            is_gap = True
            reason = reason or "without .weight, its name is that of another tensor"
        skipped.append(CoverageEntry(tensor=name, origin=origin, status="skipped", reason=reason, gap=is_gap))
        if is_gap:
            gaps.add(name)
    return MatrixListing(matrices, tuple(skipped), frozenset(gaps), notes)


def _not_a_matrix(tensor: StoredTensor, unreadable: str | None) -> tuple[str | None, bool]:
    """Why a tensor is not read as a matrix (None when it is), and whether it holds weights all the same."""
    name = tensor.name
    if not tensor.decodable:
        packed = tensor.dtype.startswith(("F8_", "F4", "F6_")) or unreadable is not None
        is_weight = packed and not name.endswith(_SCALES) and len(tensor.shape) > 1
        if is_weight:
            return (
                f"{unreadable or 'quantised'}: {tensor.dtype} numbers cannot be read without their scale",
                True,
            )
        if name.endswith(".weight") and len(tensor.shape) > 1:  # packed in an unknown way
            return f"{tensor.dtype} numbers under a weight's name, perhaps packed: not read", True
        return f"{tensor.dtype} numbers, not floating-point weights", False
    if unreadable is not None and name.endswith(_SCALES):
        return "scales of quantised weights", False
    if len(tensor.shape) < 2:
        return "a scalar, not a matrix" if not tensor.shape else "a vector, not a matrix", False
    if name.endswith("bias") and not name.endswith("relative_attention_bias"):
        return "biases, not a matrix", False
    if name.endswith(_WEIGHT_NORM) and len(tensor.shape) > 2:
        return WEIGHT_NORM, True
    if len(tensor.shape) > 2 and not name.endswith(".weight") and ".experts." not in name:
        # In a block: perhaps a projection in an unknown form, as XLNet's are; elsewhere a token or a table.
        return f"a parameter of {len(tensor.shape)} axes, not a matrix", block_index(name)[1]
    return None, False


def _views(
    tensor: StoredTensor, whole: Config, orientations: Orientations
) -> tuple[tuple[TensorView, ...], str | None]:
    """The matrices of one tensor and a remark; or no matrix and the reason."""
    module = tensor.name.removesuffix(".weight")
    leaf = module.rpartition(".")[2]
    layer, in_block = block_index(module)
    config = whole.tower(module)
    if len(tensor.shape) == 3 and (".experts." in tensor.name or leaf in ("input_linear", "output_linear")):
        return _expert_views(tensor, module, leaf, layer, config)
    if len(tensor.shape) > 2:
        view = TensorView(name=module, kind="conv", layer=layer, scope="other", tensor=tensor)
        return (view,), None
    kind = matrix_kind(module, in_block=in_block)
    transposed = kind == "embedding"
    stored_as: ModuleClass | None = None
    if tensor.name.endswith(".weight"):
        stored_as = orientations.of(module, in_block=in_block, is_head=kind == "head")
        if stored_as is None:
            return (), UNKNOWN
        transposed = stored_as != "linear"
        if (stored_as == "embedding") != (kind == "embedding"):
            kind = "embedding" if stored_as == "embedding" else "other"
    # A bare parameter (Mamba's A_log, a table of biases) is no linear layer, wherever it lies.
    is_layer = tensor.name.endswith(".weight") or leaf in QKV_LEAVES
    scope: Scope = "paper" if in_block and is_layer and kind not in ("embedding", "router") else "other"
    num_rows = tensor.shape[1] if transposed else tensor.shape[0]
    parts: Parts | str | None = None
    if in_block and (leaf in QKV_LEAVES or leaf in GATE_UP_LEAVES):
        is_gpt2 = stored_as == "conv1d" and not config.model_types  # a lone file without a config
        sized = Config({"model_type": "gpt2"}) if is_gpt2 else config
        parts = fused_parts(tensor.name, leaf, num_rows, sized)
    if parts is None or isinstance(parts, str):
        view = TensorView(
            name=module, kind=kind, layer=layer, scope=scope, tensor=tensor, transposed=transposed
        )
        return (view,), parts
    return tuple(
        TensorView(
            name=f"{module}[{part}]",
            kind=part,
            layer=layer,
            scope=scope,
            tensor=tensor,
            transposed=transposed,
            rows=rows,
        )
        for part, rows in parts
    ), None


def _expert_views(
    tensor: StoredTensor, module: str, leaf: str, layer: int | None, config: Config
) -> tuple[tuple[TensorView, ...], str | None]:
    """One matrix per expert; two where gate and up are fused."""
    num_experts, first, second = tensor.shape
    if num_experts > _MAX_EXPERTS:
        return (), f"{num_experts} experts, more than the {_MAX_EXPERTS} that are read"
    transposed = _experts_transposed(leaf, first, second, config)
    if transposed is None:
        return (), f"fused experts of shape {tensor.shape}: it is not known which axis is the output"
    num_out = second if transposed else first
    parts: Parts = ()
    in_attention = "attention" in module or "attn" in module  # JetMoE's experts of query and output
    if leaf in GATE_UP_LEAVES and num_out % 2 == 0 and not in_attention:
        half = num_out // 2
        if _GATE_UP_ALTERNATE.intersection(config.model_types):
            gate = RowSelection(start=0, block=1, num_blocks=half, stride=2)
            up = RowSelection(start=1, block=1, num_blocks=half, stride=2)
        else:
            gate, up = RowSelection(start=0, block=half), RowSelection(start=half, block=half)
        parts = (("gate", gate), ("up", up))
    scope: Scope = "paper" if layer is not None else "other"
    whole_kind = _KIND_OF_LEAF.get(leaf, "other")
    if leaf in ("input_linear", "output_linear"):
        first_kind, last_kind = ("q", "o") if in_attention else ("gate_up", "down")
        whole_kind = first_kind if leaf == "input_linear" else last_kind
    return tuple(
        TensorView(
            name=f"{module}[{expert}]" + (f"[{part}]" if part else ""),
            kind=part or whole_kind,
            layer=layer,
            scope=scope,
            tensor=tensor,
            transposed=transposed,
            expert=expert,
            rows=rows,
        )
        for expert in range(num_experts)
        for part, rows in (parts or (("", None),))
    ), None


def _experts_transposed(leaf: str, first: int, second: int, config: Config) -> bool | None:
    """Whether experts are stored (in, out); None when the config does not decide.

    The hidden size is the input of gate and up and the output of down. Some types (qwen3_vl_moe) exist in
    both orders, so a type that is not listed must show its hidden size on exactly one axis.
    """
    if _EXPERTS_IN_OUT.intersection(config.model_types):
        return True
    if _EXPERTS_OUT_IN.intersection(config.model_types):
        return False
    hidden = config.size("hidden_size", "d_model", "n_embd")
    if hidden is None or (first == hidden) == (second == hidden):
        return None
    hidden_is_out = leaf in ("down_proj", "output_linear", "w2")
    return (second == hidden) if hidden_is_out else (first == hidden)


def block_index(module: str) -> tuple[int | None, bool]:
    """The index of the repeated block a module belongs to, and whether it lies in one at all."""
    words = module.split(".")
    for container, word in pairwise(words):
        if word.isascii() and word.isdigit() and len(word) < 7 and _BLOCK_CONTAINER.fullmatch(container):
            return int(word), True
    return None, words[0] == "mid_block"


def matrix_kind(module: str, *, in_block: bool) -> str:
    """The kind of a linear layer or embedding, by its name alone."""
    words = module.split(".")
    leaf = words[-1]
    if EMBEDDING_NAME.search(module) or _EMBEDDING.search(module):
        return "embedding"
    if not in_block:
        return "head" if _HEAD.search(module) else "other"
    if _ROUTER.search(module):
        return "router"
    if leaf in QKV_LEAVES:
        return "qkv"
    if leaf in GATE_UP_LEAVES:
        return "gate_up"
    around = ".".join(words[-4:-1]).lower()
    if leaf == "0" and len(words) > 1 and words[-2] == "to_out":
        return "o"
    if leaf == "wo" and "densereludense" in around:
        return "down"
    if leaf in ("dense", "c_proj", "Wo"):
        if "attention" in around or "attn" in around:
            return "o"
        return "up" if "intermediate" in around else "down"
    return _KIND_OF_LEAF.get(leaf, "other")
