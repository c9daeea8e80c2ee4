"""Every adapter kind on every layer that PEFT allows it, against PEFT's own merge in float32."""

from __future__ import annotations

import pickle
from functools import partial

import peft
import peft_models
import pytest
import torch
from safetensors.torch import load_file

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.opening import open_pair
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import IntruscopeError
from intruscope.weights.layout import base_matrices
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore")

LAYERS = {
    "linear": (partial(peft_models.llama), ["q_proj", "k_proj", "up_proj", "down_proj"], {}),
    "fused": (peft_models.phi3, ["qkv_proj", "gate_up_proj"], {}),
    "interleaved": (peft_models.gpt_neox, ["query_key_value"], {}),
    "conv1d": (peft_models.gpt2, ["c_attn", "c_fc"], {"fan_in_fan_out": True}),
    "embedding": (peft_models.llama, ["embed_tokens"], {}),
    "convolution": (peft_models.resnet, ["convolution"], {}),
}
_PLAIN = {"init_weights": False}
KINDS = {
    "LORA": (peft.LoraConfig, {"r": 3, "lora_alpha": 7}),
    "ADALORA": (peft.AdaLoraConfig, {"init_r": 4, "target_r": 2, "lora_alpha": 7, "total_step": 10}),
    "BOFT": (peft.BOFTConfig, {"boft_block_size": 4}),
    "C3A": (peft.C3AConfig, {"block_size": 4}),
    "DELORA": (peft.DeloraConfig, {"r": 3, **_PLAIN}),
    "FOURIERFT": (peft.FourierFTConfig, {"n_frequency": 20, "scaling": 30.0}),
    "GRALORA": (peft.GraloraConfig, {"r": 4, "alpha": 6, "gralora_k": 2, **_PLAIN}),
    "HRA": (peft.HRAConfig, {"r": 3, **_PLAIN}),
    "IA3": (peft.IA3Config, {"feedforward_modules": []}),
    "LOHA": (peft.LoHaConfig, {"r": 3, "alpha": 7, **_PLAIN}),
    "LOKR": (peft.LoKrConfig, {"r": 2, "alpha": 7, **_PLAIN}),
    "MISS": (peft.MissConfig, {"r": 3}),
    "OFT": (peft.OFTConfig, {"oft_block_size": 4, **_PLAIN}),
    "OSF": (peft.OSFConfig, {"effective_rank": 5}),
    "RANDLORA": (peft.RandLoraConfig, {"r": 3, "randlora_alpha": 9, **_PLAIN}),
    "SHIRA": (peft.ShiraConfig, {"r": 2, **_PLAIN}),
    "VBLORA": (peft.VBLoRAConfig, {"r": 2, "num_vectors": 12, "vector_length": 4}),
    "VERA": (peft.VeraConfig, {"r": 4, **_PLAIN}),
}
VARIANTS = {
    "adalora-patterns": ("ADALORA", "linear", {}),
    "gralora-hybrid": ("GRALORA", "linear", {"hybrid_r": 2}),
    "hra-gram-schmidt": ("HRA", "linear", {"apply_GS": True}),
    "ia3-inputs": ("IA3", "linear", {"feedforward_modules": ["down_proj", "up_proj"]}),
    "ia3-conv-inputs": ("IA3", "convolution", {"feedforward_modules": ["convolution"]}),
    "loha-tucker": ("LOHA", "convolution", {"use_effective_conv2d": True}),
    "loha-patterns": ("LOHA", "linear", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3}}),
    "lokr-both": ("LOKR", "linear", {"r": 1, "decompose_both": True}),
    "lokr-tucker": ("LOKR", "convolution", {"r": 1, "use_effective_conv2d": True}),
    "lokr-factor": ("LOKR", "linear", {"decompose_factor": 2}),
    "miss-bat": ("MISS", "linear", {"r": 4, "init_weights": "bat"}),
    "miss-mini": ("MISS", "linear", {"r": 4, "mini_r": 4, "init_weights": "mini"}),
    "oft-exact": ("OFT", "linear", {"use_cayley_neumann": False}),
    "oft-terms": ("OFT", "linear", {"num_cayley_neumann_terms": 3}),
    "oft-shared": ("OFT", "linear", {"block_share": True}),
    "oft-constrained": ("OFT", "linear", {"coft": True, "eps": 0.05}),
    "oft-blocks": ("OFT", "linear", {"oft_block_size": 0, "r": 2}),
    "osf-share": ("OSF", "linear", {"effective_rank": 0.5}),
    "randlora-sparse": ("RANDLORA", "linear", {"sparse": True}),
    "vblora-weights": ("VBLORA", "linear", {"save_only_topk_weights": True}),
    "vblora-three": ("VBLORA", "fused", {"topk": 3}),
}


def save(kind, layer, folder, **options):
    """Save a base, an adapter of the kind on it, and PEFT's merge; False where PEFT has no such layer."""
    make, targets, given = LAYERS[layer]
    cls, own = KINDS[kind]
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(folder / "base")
    fields = cls.__dataclass_fields__
    given = {name: value for name, value in given.items() if name in fields}
    try:
        model = peft.get_peft_model(model, cls(target_modules=targets, **{**given, **own, **options}))
        peft_models.train(model)
        model.save_pretrained(folder / "adapter")
        if not load_file(folder / "adapter" / "adapter_model.safetensors"):
            return False  # PEFT passed these layers over
        # Loaded afresh, as anybody does: what saving rounds or drops is gone here too.
        loaded = peft.PeftModel.from_pretrained(make().from_pretrained(folder / "base"), folder / "adapter")
        loaded.merge_and_unload(safe_merge=True).save_pretrained(folder / "merged")
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError, AttributeError):
        return False
    return True


def check_against_merge(folder):
    """Each pair is what PEFT merged; what PEFT left alone is in no pair; the ledger is whole."""
    base, merged = open_model(folder / "base"), open_model(folder / "merged")
    pairing = pair_adapter(base, open_adapter(folder / "adapter"))
    assert pairing.complete, pairing.findings
    ledger = sorted(entry.tensor for entry in pairing.coverage if entry.origin == "adapter")
    assert ledger == sorted(load_file(folder / "adapter" / "adapter_model.safetensors"))
    pairs = {pair.name: pair for pair in pairing.pairs}
    changed = 0
    for name, views in base_matrices(base).matrices.items():
        for view, twin in zip(views, base_matrices(merged).matrices[name], strict=True):
            before, expected = view.load().double(), twin.load().double()
            if view.name not in pairs:
                assert torch.equal(before, expected), view.name
                continue
            changed += 1
            pair = pickle.loads(pickle.dumps(pairs[view.name]))
            got_base, got = pair.load_float64()
            assert torch.equal(got_base, before)
            error = torch.linalg.vector_norm(got - expected) / torch.linalg.vector_norm(expected - before)
            # PEFT rounds once for each product it takes in float32, over sums of at most 64 terms.
            size = torch.linalg.vector_norm(expected) / torch.linalg.vector_norm(expected - before)
            assert error < 64 * torch.finfo(torch.float32).eps * max(1.0, float(size)), (view.name, error)
    return changed


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_what_peft_merges(kind, layer, tmp_path):
    if not save(kind, layer, tmp_path):
        if (tmp_path / "adapter").exists():
            with pytest.raises(IntruscopeError):  # PEFT saves it and cannot merge it
                open_pair(tmp_path / "base", tmp_path / "adapter")
        pytest.skip("PEFT has no such layer of this kind")
    assert check_against_merge(tmp_path) > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_what_peft_merges(variant, tmp_path):
    kind, layer, options = VARIANTS[variant]
    assert save(kind, layer, tmp_path, **options)
    assert check_against_merge(tmp_path) > 0
