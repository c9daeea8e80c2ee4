"""Every adapter kind on every layer that PEFT allows it, against PEFT's own merge in float32."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import peft
import peft_models
import pytest
import torch
from safetensors.torch import load_file, save_file

from intruscope.adapters import registry
from intruscope.adapters.opening import open_pair
from intruscope.errors import IntruscopeError
from intruscope.weights.layout import base_matrices
from intruscope.weights.memory import memory_source
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore")

LAYERS = {
    "linear": (peft_models.llama, ["q_proj", "k_proj", "up_proj", "down_proj"], {}),
    "fused": (peft_models.phi3, ["qkv_proj", "gate_up_proj"], {}),
    "interleaved": (peft_models.gpt_neox, ["query_key_value"], {}),
    "conv1d": (peft_models.gpt2, ["c_attn", "c_fc"], {"fan_in_fan_out": True}),
    "embedding": (peft_models.llama, ["embed_tokens"], {}),
    "convolution": (peft_models.resnet, ["layer.0.convolution", "layer.1.convolution"], {}),
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
    "gralora-hybrid": ("GRALORA", "linear", {"hybrid_r": 2}),
    "hra-gram-schmidt": ("HRA", "linear", {"apply_GS": True}),
    "ia3-inputs": ("IA3", "linear", {"feedforward_modules": ["down_proj", "up_proj"]}),
    "ia3-conv-inputs": ("IA3", "convolution", {"feedforward_modules": ["layer.0.convolution"]}),
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


ALL = frozenset(LAYERS)
_MATRICES = frozenset({"linear", "fused", "interleaved"})
PEFT_HAS = {
    "LORA": ALL,
    "ADALORA": ALL - {"embedding"},
    "BOFT": _MATRICES | {"convolution"},
    "C3A": _MATRICES,
    "DELORA": _MATRICES,
    "FOURIERFT": _MATRICES | {"conv1d"},
    "GRALORA": _MATRICES | {"conv1d"},
    "HRA": _MATRICES | {"convolution"},
    "IA3": ALL - {"embedding"},
    "LOHA": _MATRICES | {"convolution"},
    "LOKR": _MATRICES | {"convolution"},
    "MISS": _MATRICES,
    "OFT": ALL - {"conv1d"},
    "OSF": _MATRICES,
    "RANDLORA": _MATRICES | {"conv1d"},
    "SHIRA": _MATRICES,
    "VBLORA": _MATRICES | {"conv1d"},
    "VERA": _MATRICES | {"conv1d"},
}
"""On which layers PEFT puts a kind; docs/formats.md shows this table."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Each model once, in memory and saved."""
    made = {}

    def get(layer):
        make = LAYERS[layer][0]
        if make not in made:
            torch.manual_seed(0)
            model = make()
            folder = tmp_path_factory.mktemp("base")
            model.save_pretrained(folder)
            made[make] = model, folder
        return made[make]

    return get


def save(kind, layer, base, adapter, **options):
    """Save an adapter of the kind; return PEFT's merge of it, or None where PEFT has no such layer."""
    _, targets, given = LAYERS[layer]
    cls, own = KINDS[kind]
    given = {name: value for name, value in given.items() if name in cls.__dataclass_fields__}
    torch.manual_seed(1)
    try:
        model = peft.get_peft_model(
            copy.deepcopy(base), cls(**{"target_modules": targets, **given, **own, **options})
        )
        peft_models.train(model)
        model.save_pretrained(adapter)
        if not load_file(adapter / "adapter_model.safetensors"):
            return None  # PEFT passed these layers over
        # Loaded afresh, as anybody does: what saving rounds or drops is gone here too.
        return peft.PeftModel.from_pretrained(copy.deepcopy(base), adapter).merge_and_unload(safe_merge=True)
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError, AttributeError):
        return None


def check_against_merge(folder, adapter, merged):
    """Each pair is what PEFT merged; what PEFT left alone is in no pair; the ledger is whole."""
    opened = open_pair(folder, adapter)
    assert opened.pairing.complete, opened.pairing.findings
    ledger = sorted(entry.tensor for entry in opened.pairing.coverage if entry.origin == "adapter")
    assert ledger == sorted(load_file(adapter / "adapter_model.safetensors"))
    pairs = {pair.name: pair for pair in opened.pairing.pairs}
    after = memory_source(merged.state_dict(), config=opened.base.config, name="merged")
    merged_views = base_matrices(after).matrices
    changed = 0
    for name, views in base_matrices(open_model(folder)).matrices.items():
        if name not in merged_views:  # GPT-NeoX's head has another name in memory
            assert pairs.keys().isdisjoint(view.name for view in views)
            continue
        for view, twin in zip(views, merged_views[name], strict=True):
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
def test_a_kind_is_what_peft_merges(kind, layer, bases, tmp_path):
    base, folder = bases(layer)
    merged = save(kind, layer, base, tmp_path / "adapter")
    assert (merged is not None) == (layer in PEFT_HAS[kind])
    if merged is not None:
        assert check_against_merge(folder, tmp_path / "adapter", merged) > 0
    elif (tmp_path / "adapter").exists():
        with pytest.raises(IntruscopeError):  # PEFT saves it and cannot merge it
            open_pair(folder, tmp_path / "adapter")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_what_peft_merges(variant, bases, tmp_path):
    kind, layer, options = VARIANTS[variant]
    base, folder = bases(layer)
    merged = save(kind, layer, base, tmp_path / "adapter", **options)
    assert check_against_merge(folder, tmp_path / "adapter", merged) > 0


def _toy_decode(parts, base, options):
    """A toy kind: one number per output that is added to the whole row, times an option."""
    return base.low_rank(parts["toy_shift"].reshape(-1, 1) * options["gain"], torch.ones(1, base.num_in))


def test_a_kind_is_one_module_and_one_line(tmp_path, monkeypatch):
    """What a newcomer writes: a module with ``KIND`` and a line in the registry; every verb then reads it."""
    from intruscope import RunOptions, extract, repair, scan
    from intruscope.adapters.kind import AdapterKind, ClosedForm, number

    toy = ModuleType("intruscope.adapters.kinds.toy")
    toy.KIND = AdapterKind(
        name="TOY",
        title="Toy",
        words={"toy_shift": "toy_shift"},
        update=ClosedForm(decode=_toy_decode, sizes=lambda shapes, _: (shapes["toy_shift"][0], None)),
        required=frozenset({"toy_shift"}),
        read_options=lambda raw, path: {"gain": number(raw, "gain", path, default=1.0)},
    )
    monkeypatch.setitem(sys.modules, toy.__name__, toy)
    monkeypatch.setitem(registry._MODULES, "TOY", "toy")
    registry.find.cache_clear()
    torch.manual_seed(0)
    peft_models.llama().save_pretrained(tmp_path / "base")
    (tmp_path / "toy").mkdir()
    key = "base_model.model.model.layers.0.mlp.up_proj"
    shift = torch.randn(24)
    save_file({f"{key}.toy_shift": shift}, tmp_path / "toy" / "adapter_model.safetensors")
    (tmp_path / "toy" / "adapter_config.json").write_text(json.dumps({"peft_type": "TOY", "gain": 3.0}))
    options = RunOptions(workers=0)
    (matrix,) = scan(tmp_path / "base", tmp_path / "toy", options=options).matrices
    assert matrix.update.frobenius_norm == pytest.approx(3.0 * float(shift.norm()) * 16**0.5, rel=1e-5)
    plan = extract(tmp_path / "base", tmp_path / "toy", rank=1, options=options)
    plan.apply(tmp_path / "lora")
    again = scan(tmp_path / "base", tmp_path / "lora", options=options).matrices[0]
    assert again.update.frobenius_norm == pytest.approx(matrix.update.frobenius_norm, rel=1e-5)
    name = f"{matrix.name}:0"
    plan = repair(tmp_path / "base", tmp_path / "toy", strength=0.5, which=name, options=options)
    plan.apply(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    registry.find.cache_clear()


def docs_table():
    """The table of docs/formats.md: read where PEFT has the layer, in the order of the registry."""
    titles = {
        "linear": "Linear",
        "fused": "fused projection",
        "conv1d": "Conv1D",
        "embedding": "embedding",
        "convolution": "convolution",
    }
    lines = [f"| kind | {' | '.join(titles.values())} |", "|---|" + "---|" * len(titles)]
    for kind, layers in PEFT_HAS.items():
        cells = ["read" if layer in layers else "PEFT has none" for layer in titles]
        lines.append(f"| {registry.find(kind).title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_docs_show_this_table():
    """After a change: python tests/adapters/test_adapters_kinds.py"""
    assert set(PEFT_HAS) == set(KINDS) == {name for name in registry.names() if registry.find(name).is_peft}
    assert f"{_BEGIN}\n{docs_table()}\n{_END}" in _PAGE.read_text()


_PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
_BEGIN, _END = "<!-- kinds x layers -->", "<!-- end -->"

if __name__ == "__main__":
    before, _, rest = _PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    _PAGE.write_text(f"{before}{_BEGIN}\n{docs_table()}\n{_END}{after}")
