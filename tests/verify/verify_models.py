"""Tiny bases, adapters on them, and merges that are right or wrong in one known way."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from safetensors.torch import load_file, save_file

from intruscope.engine.settings import RunOptions
from intruscope.verify import verify

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
import peft_models

INLINE = RunOptions(workers=0)
BLOCK = "model.layers.0."
Q, K, UP = BLOCK + "self_attn.q_proj", BLOCK + "self_attn.k_proj", BLOCK + "mlp.up_proj"
RANK, ALPHA = 3, 7
SCALING = ALPHA / RANK
LINEAR = {"target_modules": ["q_proj", "k_proj", "up_proj"]}
WEIGHTS = "model.safetensors"


def square_experts():
    """Experts of 16 x 16, stored one by one, so that a transposed one fits."""
    config = transformers.Qwen3MoeConfig(
        **peft_models._GATED, head_dim=4, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16
    )
    return transformers.Qwen3MoeForCausalLM(config)


def square_gate_up():
    """Gate and up are square together, and not alone."""
    config = transformers.Phi3Config(**{**peft_models._GATED, "intermediate_size": 8})
    return transformers.Phi3ForCausalLM(config)


KINDS = {
    "llama": (peft_models.llama, LINEAR),
    "rslora": (peft_models.llama, {**LINEAR, "use_rslora": True}),
    "dora": (peft_models.llama, {**LINEAR, "use_dora": True}),
    "conv1d": (peft_models.gpt2, {"target_modules": ["attn.c_proj", "c_attn"], "fan_in_fan_out": True}),
    "fused": (peft_models.phi3, {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "embedding": (peft_models.llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied": (peft_models.tied_llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied-both": (peft_models.tied_llama, {"target_modules": ["embed_tokens", "lm_head"]}),
    "saved": (peft_models.llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "biases": (peft_models.bert, {"target_modules": ["query"], "bias": "all"}),
    "gate-up": (square_gate_up, {"target_modules": ["gate_up_proj"]}),
    "experts": (
        peft_models.gpt_oss,
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "square-experts": (square_experts, None),
}
SIZES = {"plain": 0.1, "small": 3e-5, "hidden": 1e-8}
"""Standard deviation of B. ``small`` updates are below bfloat16's rounding, but move some numbers."""


def trained(base, options, size, seed):
    """A base with a trained adapter of this size on it."""
    model = get_peft_model(base, LoraConfig(**{"r": RANK, "lora_alpha": ALPHA, **options}))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            factor = size if any(word in name for word in ("lora_B", "embedding_B")) else 0.3
            parameter.data = (
                parameter.data * (1 + 0.1 * noise.abs())
                if "magnitude" in name
                else (0 if "lora_" in name else parameter.data) + factor * noise
            )
    return model


def away_from_zero(model):
    """Every weight of the blocks between 0.02 and 0.04: small updates are below the rounding everywhere."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            size = 0.02 + 0.02 * torch.rand(parameter.shape, generator=generator)
            parameter.data = size * torch.sign(torch.randn(parameter.shape, generator=generator))


@dataclass
class Built:
    """A base, adapters and PEFT's merge in float32, on disk.

    Attributes:
        base, merged: Tensors in float32.
        updates: What each adapter adds, by tensor; for the first adapter all that changed.
    """

    folder: Path
    base: dict
    merged: dict
    updates: list
    adapters: list = field(default_factory=list)


def build(kind, folder, size="plain", num_adapters=1, adapter_dtype=torch.float32):
    make, options = KINDS[kind]
    torch.manual_seed(0)
    model = make()
    if size != "plain":
        away_from_zero(model)
    model.save_pretrained(folder / "base32")
    base = load_file(folder / "base32" / WEIGHTS)
    built = Built(folder=folder, base=base, merged={}, updates=[])
    for number in range(num_adapters):
        if options is None:
            _adapt_experts(built, number)
            continue
        again = type(model).from_pretrained(folder / "base32")
        tuned = trained(again, options, SIZES[size], seed=number + 1)
        for name, parameter in tuned.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.to(adapter_dtype).float()
        place = folder / f"adapter{number}"
        tuned.save_pretrained(place)
        if adapter_dtype != torch.float32:
            file = place / "adapter_model.safetensors"
            save_file({k: t.to(adapter_dtype) for k, t in load_file(file).items()}, file)
        exact = {} if options.get("use_dora") else deltas(tuned)
        tuned.merge_and_unload(safe_merge=True).save_pretrained(folder / f"merged{number}")
        merged = load_file(folder / f"merged{number}" / WEIGHTS)
        update = {n: merged[n].double() - base[n].double() for n in base if n in merged}
        built.updates.append(update if kind == "tied-both" else {**update, **exact})
        built.merged = merged
        built.adapters.append(place)
    return built


def deltas(tuned):
    """PEFT's own update of each module with factors: more exact than the difference of two rounded sums."""
    return {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("default")
        .detach()
        .double()
        for name, module in tuned.named_modules()
        if isinstance(module, (lora.Linear, lora.Embedding))
    }


def _adapt_experts(built, number):
    """An adapter on each expert's own linear layers, as older versions of transformers had them."""
    generator = torch.Generator().manual_seed(number + 1)
    factors, update = {}, {}
    for name, tensor in built.base.items():
        if ".experts." in name:
            num_out, num_in = tensor.shape
            down, up = (0.3 * torch.randn(s, generator=generator) for s in ((RANK, num_in), (num_out, RANK)))
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            factors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
            update[name] = SCALING * up.double() @ down.double()
    place = built.folder / f"adapter{number}"
    place.mkdir()
    save_file(factors, place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA})
    )
    built.updates.append({n: update.get(n, torch.zeros(t.shape).double()) for n, t in built.base.items()})
    built.merged = dict(built.base)
    built.adapters.append(place)


@dataclass
class Merge:
    """A merge in the making: what a case plants.

    Attributes:
        built: Base and adapters.
        base_dtype, dtype: Of the stored base and of the stored merge.
        tensors: Of the merged model; edited by the case.
        adapters, weights: That are verified.
        base: Tensors of the base as stored.
    """

    built: Built
    base_dtype: torch.dtype
    dtype: torch.dtype
    tensors: dict = field(default_factory=dict)
    weights: list | None = None
    base: dict = field(default_factory=dict)

    def __post_init__(self):
        self.base = {name: tensor.to(self.base_dtype) for name, tensor in self.built.base.items()}
        self.tensors = {name: tensor.to(self.dtype) for name, tensor in self.built.merged.items()}
        self.apply()

    def update(self, name, factors=None):
        """E of one tensor in float64, from PEFT's own merge in float32."""
        factors = factors or [1.0] * len(self.built.updates)
        return sum(f * update[name] for f, update in zip(factors, self.built.updates, strict=True))

    def apply(self, factor=1.0, only=None, factors=None):
        """Store base + factor * E, computed in float64 and rounded once."""
        for name in self.base:
            if name in self.built.updates[0] and (only is None or only in name):
                change = factor * self.update(name, factors)
                self.tensors[name] = (self.base[name].double() + change).to(self.dtype)

    def write(self, folder):
        for place, tensors in (("base", self.base), ("merged", self.tensors)):
            (folder / place).mkdir()
            save_file({name: t.contiguous() for name, t in tensors.items()}, folder / place / WEIGHTS)
            config = json.loads((self.built.folder / "base32" / "config.json").read_text())
            (folder / place / "config.json").write_text(json.dumps(config))
        return str(folder / "base"), [str(a) for a in self.built.adapters], str(folder / "merged")

    def verified(self, folder, **options):
        base, adapters, merged = self.write(folder)
        return verify(base, adapters, merged, weights=self.weights, options=INLINE, **options)
