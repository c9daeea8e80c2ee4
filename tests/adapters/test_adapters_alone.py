"""An adapter without its base gives the updates that it gives on its base, or says which need the base."""

from __future__ import annotations

import peft
import peft_models
import pytest
import torch
from peft import LoraConfig, get_peft_model

from intruscope.adapters.alone import (
    DORA,
    MULTIPLIES,
    NEW_BASE,
    NO_SHAPE,
    TOKENS,
    WHOLE,
    load_alone,
    open_alone,
)
from intruscope.adapters.opening import open_pair
from intruscope.errors import UsageError
from intruscope.weights.matrices import DenseUpdate

pytestmark = pytest.mark.filterwarnings("ignore")


def _adapted(make, config):
    torch.manual_seed(0)
    model = get_peft_model(make(), config)
    peft_models.train(model)
    return model


def _delta(update):
    if isinstance(update, DenseUpdate):
        return update.tuned_OI.double()
    return update.left_OR.double() @ update.right_RI.double()


def _differences(model):
    """ΔW of every matrix as the pairing with the base has it, in float64."""
    deltas = {}
    for pair in open_pair(model).pairing.pairs:
        base, tuned = pair.load_float64()
        deltas[pair.name] = tuned - base
    return deltas


LORA_CASES = (
    *("square-wide-tall", "rslora", "patterns", "dotted-patterns", "conv1d", "embedding", "embedding-tied"),
    *("head-saved", "lora-bias", "tokens", "dora", "convolution", "convolution-1d", "fused-qkv-grouped"),
)


@pytest.mark.parametrize("case", LORA_CASES)
def test_lora_alone_is_lora_on_its_base(case):
    make, options = peft_models.CASES[case]
    model = _adapted(make, LoraConfig(**{"r": 3, "lora_alpha": 7, **options}))
    alone, expected = open_alone(model), _differences(model)
    whole = {}
    for name, delta in expected.items():  # parts of a fused tensor are one matrix without the base
        whole.setdefault(name.partition("[")[0], []).append(delta)
    seen = set()
    for pair in alone.pairs:
        delta = torch.cat(whole[pair.name])
        assert pair.base.shape == tuple(delta.shape)
        update = load_alone(pair)
        assert torch.linalg.matrix_norm(_delta(update) - delta) <= 1e-6 * torch.linalg.matrix_norm(delta)
        with pytest.raises(UsageError, match="without its base"):
            pair.base.load()
        seen.add(pair.name)
    assert seen | {module.name for module in alone.unread} >= whole.keys()
    if case == "dora":
        assert not alone.pairs
    else:
        assert alone.pairs


KINDS = {
    "adalora": (
        peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, target_modules=["q_proj", "up_proj"]),
        None,
    ),
    "delora": (peft.DeloraConfig(r=3, target_modules=["q_proj", "up_proj"]), None),
    "vblora": (
        peft.VBLoRAConfig(r=2, num_vectors=12, vector_length=8, target_modules=["q_proj", "up_proj"]),
        None,
    ),
    "vera": (peft.VeraConfig(r=3, target_modules=["q_proj", "v_proj"]), None),
    "vera-mixed": (peft.VeraConfig(r=3, target_modules=["q_proj", "down_proj"]), NO_SHAPE),
    "loha": (peft.LoHaConfig(r=2, alpha=3, target_modules=["q_proj", "up_proj"]), None),
    "lokr": (peft.LoKrConfig(r=2, alpha=3, target_modules=["q_proj", "up_proj"]), None),
    "c3a": (peft.C3AConfig(block_size=8, target_modules=["q_proj", "up_proj"]), None),
    "gralora": (peft.GraloraConfig(r=4, gralora_k=2, target_modules=["q_proj", "up_proj"]), None),
    "miss": (peft.MissConfig(r=4, target_modules=["q_proj"]), NO_SHAPE),
    "fourierft": (peft.FourierFTConfig(n_frequency=5, target_modules=["q_proj"]), NO_SHAPE),
    "randlora": (peft.RandLoraConfig(r=3, target_modules=["q_proj"]), NO_SHAPE),
    "shira": (peft.ShiraConfig(r=2, target_modules=["q_proj"]), NO_SHAPE),
    "ia3": (
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        MULTIPLIES,
    ),
    "oft": (peft.OFTConfig(oft_block_size=8, r=0, target_modules=["q_proj"]), MULTIPLIES),
    "boft": (peft.BOFTConfig(boft_block_size=8, target_modules=["q_proj"]), MULTIPLIES),
    "hra": (peft.HRAConfig(r=2, target_modules=["q_proj"]), MULTIPLIES),
    "osf": (peft.OSFConfig(effective_rank=4, target_modules=["q_proj"]), MULTIPLIES),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_read_exactly_or_named(kind):
    config, reason = KINDS[kind]
    model = _adapted(peft_models.llama, config)
    alone = open_alone(model)
    if reason is not None:
        assert not alone.pairs
        assert {module.reason for module in alone.unread} == {reason}
        return
    assert not alone.unread
    expected = _differences(model)
    assert {pair.name for pair in alone.pairs} == expected.keys()
    for pair in alone.pairs:
        scale = torch.linalg.matrix_norm(expected[pair.name])
        assert torch.linalg.matrix_norm(_delta(load_alone(pair)) - expected[pair.name]) <= 1e-5 * scale


@pytest.mark.parametrize(
    "case", ["experts-stored-apart", "experts-down-only", "experts-rank", "experts-stored-fused"]
)
def test_fused_experts_have_the_spectra_that_they_have_on_their_base(case):
    make, options = peft_models.CASES[case]
    model = _adapted(make, LoraConfig(**{"r": 3, "lora_alpha": 7, **options}))
    alone = open_alone(model)
    if case == "experts-rank":  # two parameters of one module, with ranks of their own
        assert not alone.pairs
        assert all("do not say which" in module.reason for module in alone.unread)
        return
    squares = [_delta(load_alone(pair)).square().sum() for pair in alone.pairs]
    expected = [delta.square().sum() for delta in _differences(model).values()]
    assert sum(squares) == pytest.approx(float(sum(expected)), rel=1e-5)
    per_module = 2 if case != "experts-down-only" else 1
    assert sum(pair.base.expert is not None for pair in alone.pairs) == 2 * per_module * 3


def test_what_needs_the_base_is_listed_with_its_factors():
    make, options = peft_models.CASES["dora"]
    model = _adapted(make, LoraConfig(r=3, lora_alpha=7, **options))
    for module in open_alone(model).unread:
        layer = model.base_model.model.get_submodule(module.name)
        expected = 7 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(_delta(load_alone(module.factors)).float(), expected.detach())
        assert module.reason == DORA
    make, options = peft_models.CASES["tokens"]
    model = _adapted(make, LoraConfig(r=3, modules_to_save=["lm_head"], **options))
    assert {module.name: module.reason for module in open_alone(model).unread} == {
        "model.embed_tokens": TOKENS,
        "lm_head": WHOLE,
    }


def test_a_base_weight_beside_factors_is_named(write_adapter):
    torch.manual_seed(0)
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{key}.lora_A.weight": torch.randn(2, 6), f"{key}.lora_B.weight": torch.randn(5, 2)}
    path = write_adapter({**factors, f"{key}.base_layer.weight": torch.randn(5, 6)})
    (module,) = open_alone(path).unread
    assert module.reason == NEW_BASE
    product = 2 * factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"]
    torch.testing.assert_close(_delta(load_alone(module.factors)).float(), product)


def test_a_model_is_no_adapter(tmp_path):
    model = peft_models.llama()
    model.save_pretrained(tmp_path / "base")
    for given in (tmp_path / "base", model, {"a": torch.zeros(2, 2)}):
        with pytest.raises(UsageError, match="adapter"):
            open_alone(given)
