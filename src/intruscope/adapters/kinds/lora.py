"""LoRA (arXiv 2106.09685) and its variants: rsLoRA, DoRA, LoRA+ and others that change training alone.

PEFT keeps A (R, in) and B (out, R) in this orientation for Linear and Conv1D alike (``fan_in_fan_out``
only says how the *base* is stored), so ΔW = s B A here always. Also PEFT's first format with ``enable_lora``.

Shape suffixes: O out, I in, R rank, F rows of the whole (fused) matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from intruscope.adapters.fitting import check_rank, mismatch
from intruscope.adapters.kind import OTHER_BASE_REMEDY, AdapterKind, flag, read_wide, wrong_value
from intruscope.errors import MalformedInput, ShapeMismatch, UnsupportedFormat, printable
from intruscope.weights.matrices import DenseUpdate, LowRankUpdate, StoredUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from intruscope.adapters.config import ModuleScale
    from intruscope.adapters.folder import AdapterSource
    from intruscope.adapters.kind import AdaptedModule
    from intruscope.weights.stored import StoredTensor
    from intruscope.weights.views import TensorView

_MERGE_REMEDY = "merge it with PEFT's merge_and_unload, save the model, and scan that checkpoint"
_RESTORE_REMEDY = "restore the adapter's own config"
# These initialisations subtract the first factors from the base (PEFT tuners/lora/layer.py), so the
# fine-tune is not base + B A unless the adapter was converted when it was saved.
_INITS_THAT_MOVE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_INITS_THAT_DO_NOT = ("gaussian", "eva", "orthogonal", "mica")
_CONVERT_REMEDY = (
    "save it with path_initial_model_for_weight_conversion, which turns it into a plain LoRA, or "
    + _MERGE_REMEDY
)
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
WORDS = {
    "lora_A": "down",
    "lora_B": "up",
    "lora_embedding_A": "down",
    "lora_embedding_B": "up",
    "lora_magnitude_vector": "magnitude",
}


@dataclass(frozen=True, kw_only=True)
class LoraUpdate(StoredUpdate):
    """ΔW = s B A (arXiv 2106.09685), cut to the rows of one view; DoRA (arXiv 2402.09353) with ``magnitude``.

    DoRA gives W = diag(m / ‖W₀ + s B A‖_row) (W₀ + s B A). PEFT takes the norm over everything but the output
    axis for Linear, Conv1D, convolution and embedding, and (out, in) makes those one formula.

    Attributes:
        view: The base matrix; its rows are chosen from B (and m).
        down: A: (R, in) or (R, in, *kernel).
        up: B: (out, R) with trailing ones, or (enabled out, R, 1) with ``enabled``.
        scaling: s.
        swapped: The view is the transpose of the module's own (out, in).
        enabled: Which equal, contiguous parts of the output the old ``MergedLinear`` adapted. Its B is a
            grouped convolution: part g has its own R rows of A. Rows are scattered into contiguous parts
            whatever the model means by them (BLOOM interleaves q, k, v per head): training computed that.
        magnitude: DoRA's m, one per output row.
        replaced: A base weight that was saved with the adapter and replaces the base's.
    """

    view: TensorView
    down: StoredTensor
    up: StoredTensor
    scaling: float
    swapped: bool = False
    enabled: tuple[bool, ...] | None = None
    magnitude: StoredTensor | None = None
    replaced: TensorView | None = None

    @property
    def is_low_rank(self) -> bool:
        """Whether the update is its factors; not for DoRA, nor where the base itself was replaced."""
        return self.magnitude is None and self.replaced is None

    def load(self, base_OI: torch.Tensor) -> LowRankUpdate | DenseUpdate:
        """Read the factors; the tuned matrix instead for DoRA and for a replaced base.

        Raises:
            MalformedInput: the file changed since planning.
        """
        import torch

        right_RI = read_wide(self.down).flatten(1)
        up = read_wide(self.up).flatten(1)
        dtype = torch.promote_types(right_RI.dtype, up.dtype)
        right_RI, up = right_RI.to(dtype), up.to(dtype)
        left_FR = self._scattered(up) if self.enabled is not None else up
        left_FR = left_FR * self.scaling
        if self.swapped:
            left_FR, right_RI = right_RI.T.contiguous(), left_FR.T.contiguous()
        left_OR = self.view.select_rows(left_FR)
        if self.is_low_rank:
            return LowRankUpdate(left_OR=left_OR, right_RI=right_RI)
        dtype = torch.promote_types(dtype, base_OI.dtype)
        start = base_OI if self.replaced is None else self.replaced.load()
        tuned_OI = torch.addmm(start.to(dtype), left_OR.to(dtype), right_RI.to(dtype))
        if self.magnitude is not None:
            whole_F1 = read_wide(self.magnitude).to(dtype).reshape(-1, 1)
            factor_O1 = self.view.select_rows(whole_F1) / torch.linalg.vector_norm(
                tuned_OI, dim=1, keepdim=True
            )
            tuned_OI = tuned_OI * factor_O1
        # Of an embedding that was resized, the words that the base has too.
        return DenseUpdate(tuned_OI=tuned_OI[:, : self.view.shape[1]])

    def _scattered(self, up: torch.Tensor) -> torch.Tensor:
        """(out, R * groups) with one block of B per enabled part, zero elsewhere."""
        assert self.enabled is not None
        num_groups, rank = sum(self.enabled), up.shape[1]
        part = up.shape[0] // num_groups
        left_FR = up.new_zeros(part * len(self.enabled), rank * num_groups)
        for group, index in enumerate(i for i, on in enumerate(self.enabled) if on):
            left_FR[index * part : (index + 1) * part, group * rank : (group + 1) * rank] = up[
                group * part : (group + 1) * part
            ]
        return left_FR


def update(
    module: AdaptedModule, view: TensorView, adapter: AdapterSource, scale: ModuleScale | None
) -> LoraUpdate:
    """The update of one matrix.

    Args:
        module: With the roles ``down`` and ``up``.
        view: The base matrix; of a resized vocabulary the words that both sides have.
        adapter: Where the module is from.
        scale: What the config gives it; None for formats without one.

    Raises:
        MalformedInput: ranks or magnitudes contradict the config.
        ShapeMismatch: a tensor does not fit.
        UnsupportedFormat: factors of a grouped convolution.
    """
    down, up = module.roles["down"], module.roles["up"]
    options = adapter.config.options if adapter.config is not None else {}
    enabled = options.get("enable_lora")
    num_groups = sum(enabled) if enabled is not None else 1
    if len(down.shape) < 2 or len(up.shape) < 2 or 0 in down.shape or 0 in up.shape:
        raise mismatch(
            down if len(down.shape) < 2 or 0 in down.shape else up, "that of a factor of rank 1 or more"
        )
    rank = up.shape[1]
    if view.kind == "conv" and down.shape[0] > rank and down.shape[0] % rank == 0:
        fact = f"the factors {list(down.shape)} and {list(up.shape)} are of a grouped convolution, "
        fact += "which is not read"
        remedy = "leave it out: PEFT cannot merge it either"
        raise UnsupportedFormat(fact, remedy=remedy, file=adapter.path, tensor=down.name)
    if down.shape[0] != rank * num_groups or math.prod(up.shape[2:]) != 1:
        raise mismatch(up, f"[out, {down.shape[0] // num_groups}] to go with A of shape {list(down.shape)}")
    if scale is not None:
        check_rank(rank, scale.rank, down)
    scaling = unconfigured_scaling(adapter, rank) if scale is None else scale.scaling
    num_out, num_in = shape_of(module, adapter)
    if enabled is not None and up.shape[0] % num_groups:
        raise mismatch(up, f"one whose rows divide evenly among {num_groups} enabled parts")
    # An embedding's factors are (width, vocabulary) as our views of embeddings are. A Linear that is stored
    # under an embedding's name, or an embedding under another, is the other way round.
    swapped = module.is_embedding != (view.kind == "embedding") and view.expert is None
    expected = view.whole_shape[::-1] if swapped else view.whole_shape
    if view.kind == "embedding" and not swapped and not module.roles.keys().isdisjoint(("saved", "replaced")):
        num_in = min(num_in, expected[1])  # resized: factors of an embedding are cut when they are read
    if (num_out, num_in) != expected:
        fact = f"the update is {num_out} x {num_in} (out x in), but the base's "
        fact += f"{printable(view.tensor.name)} is {expected[0]} x {expected[1]}"
        raise ShapeMismatch(fact, remedy=OTHER_BASE_REMEDY, file=adapter.path, tensor=down.name)
    magnitude = module.roles.get("magnitude")
    if adapter.config is not None and options["use_dora"] != (magnitude is not None):
        has, says = ("a", "false") if magnitude is not None else ("no", "true")
        fact = f"the module has {has} DoRA magnitude, but use_dora is {says} in the config"
        raise MalformedInput(fact, remedy=_RESTORE_REMEDY, file=adapter.path, tensor=down.name)
    if magnitude is not None and (swapped or math.prod(magnitude.shape) != num_out):
        raise mismatch(magnitude, f"[{num_out}], one magnitude per output")
    replaced = module.roles.get("replaced")
    return LoraUpdate(
        view=view,
        down=down,
        up=up,
        scaling=scaling,
        swapped=swapped,
        enabled=enabled,
        magnitude=magnitude,
        replaced=None if replaced is None else replace(view, tensor=replaced),
    )


def shape_of(module: AdaptedModule, adapter: AdapterSource) -> tuple[int, int]:
    """(out, in) of the whole matrix that a module's factors are for; 0 for a side that they do not have."""
    down, up = module.roles["down"], module.roles["up"]
    num_out = up.shape[0] if up.shape else 0
    enabled = adapter.config.options.get("enable_lora") if adapter.config is not None else None
    if enabled is not None:
        num_out = num_out // sum(enabled) * len(enabled)
    return num_out, math.prod(down.shape[1:]) if down.shape else 0


def unconfigured_scaling(adapter: AdapterSource, rank: int) -> float:
    """S of an adapter without a config: alpha / rank where alpha was given, else 1."""
    # LoRALinearLayer of old diffusers multiplies by network_alpha / rank only where a network_alpha was
    # given; its files hold none.
    return 1.0 if adapter.lora_alpha is None else adapter.lora_alpha / rank


def moves_the_base(init: object) -> bool:
    """Whether ``init_lora_weights`` also changed the base (PiSSA and its kin)."""
    return isinstance(init, str) and init.lower().startswith(_INITS_THAT_MOVE_THE_BASE)


def why_moved(config: Any) -> str | None:
    """Why a model in memory with an adapter of this config is no longer the base; None if it still is."""
    if moves_the_base(getattr(config, "init_lora_weights", True)):
        return "its initialisation moved the weights in place"
    bias = getattr(config, "bias", None) or "none"
    return None if bias == "none" else f"bias='{bias}' trained the biases in place"


def _read_options(raw: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    refuse_options(raw, path)
    return {
        "use_rslora": flag(raw, "use_rslora", path),
        "use_dora": flag(raw, "use_dora", path),
        "enable_lora": _enable_lora(raw.get("enable_lora"), path),
    }


def _enable_lora(value: object, path: Path | None) -> tuple[bool, ...] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= 16
        or not all(isinstance(v, bool) for v in value)
    ):
        raise wrong_value(value, "a short list of true and false", "enable_lora", path)
    return tuple(value) if any(value) else None


def refuse_options(raw: Mapping[str, Any], path: Path | None) -> None:
    """Refuse variants whose update is another one, or none.

    Raises:
        UnsupportedFormat: the config asks for one, by name.
    """
    for name, what in _REFUSED_OPTIONS.items():
        if raw.get(name):
            fact = f"the adapter uses {what}, which is not read; plain LoRA and DoRA are"
            raise UnsupportedFormat(fact, remedy=_MERGE_REMEDY, file=path, tensor=name)
    for name, value in raw.items():
        if name.startswith("use_") and value and name not in _KNOWN_USES:
            fact = f"the variant {printable(name)} is not read; plain LoRA and DoRA are"
            raise UnsupportedFormat(fact, remedy=_MERGE_REMEDY, file=path, tensor=name)
    init = raw.get("init_lora_weights", True)
    if init is None or isinstance(init, bool):
        return
    lowered = init.lower() if isinstance(init, str) else ""
    if lowered.startswith(_INITS_THAT_MOVE_THE_BASE):
        fact = (
            f"the adapter was initialised with {printable(init)}, which also changed the base by factors "
            "that are not in the file, so base + B A is not the fine-tune"
        )
        # LoftQ's base is the quantised rest, so that no conversion can lead back to the true one.
        remedy = _MERGE_REMEDY if lowered.startswith("loftq") else _CONVERT_REMEDY
        raise UnsupportedFormat(fact, remedy=remedy, file=path, tensor="init_lora_weights")
    if lowered not in _INITS_THAT_DO_NOT:
        fact = f"the initialisation {printable(init)} is not known, and it may have changed the base"
        raise UnsupportedFormat(fact, remedy=_MERGE_REMEDY, file=path, tensor="init_lora_weights")


KIND = AdapterKind(
    name="LORA",
    title="LoRA",
    words=WORDS,
    update=update,
    required=frozenset({"down", "up"}),
    read_options=_read_options,
    alpha_name="lora_alpha",
)
