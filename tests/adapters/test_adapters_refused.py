"""Bad adapters end with the right exit code and a message that says what to do."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from intruscope.adapters import patterns, registry
from intruscope.adapters.folder import find_adapter, open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import UsageError
from intruscope.weights.names import parse_name
from intruscope.weights.source import open_model

_KEY = "base_model.model.model.layers.0.self_attn.q_proj"


def _factors(out=6, num_in=4, rank=2, key=_KEY):
    return {f"{key}.lora_A.weight": torch.randn(rank, num_in), f"{key}.lora_B.weight": torch.randn(out, rank)}


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base").mkdir()
    tensors = {
        f"model.layers.{i}.self_attn.{p}.weight": torch.randn(6, 4)
        for i in (0, 1)
        for p in ("q_proj", "k_proj")
    }
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    return open_model(tmp_path / "base")


def _text(field: str) -> bytes:
    return b'{"peft_type": "LORA", "r": 2, "lora_alpha": 4, ' + field.encode() + b"}"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"r": 0}, "rank"),
        ({"r": 10**9}, "rank"),
        ({"r": True}, "rank"),
        ({"lora_alpha": 0}, "verl"),
        ({"lora_alpha": -1}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"peft_type": "PEANUT"}, "PEANUT"),
        ({"peft_type": None}, "None"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"init_lora_weights": "unheard_of"}, "unheard_of"),
        ({"target_parameters": ["self_attn.q_proj.weight"]}, "q_proj.weight"),
        ({"target_parameters": {"a": 1}}, "list of names"),
        ({"trainable_token_indices": [-1]}, "token numbers"),
        ({"enable_lora": [True, 2, False]}, "true and false"),
        ({"enable_lora": [True] * 10_000}, "short list"),
        ({"alora_invocation_tokens": [1]}, "activated"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"use_unheard_of": True}, "use_unheard_of"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"velora_config": {"scale": 1}}, "VeLoRA"),
        ({"monteclora_config": {"n": 1}}, "MonteCLoRA"),
        ({"arrow_config": {"top_k": 1}}, "Arrow"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"text": _text('"x": NaN')}, "NaN"),
        ({"text": b'{"peft_type": "LORA", "r": 2, "lora_alpha": NaN}'}, "NaN"),
        ({"text": _text('"x": 1e999')}, "1e999"),
        ({"text": _text('"r": 2')}, "twice"),
        ({"text": _text('"x": ' + "9" * 5000)}, "digits"),
        ({"text": b"[" * 100_000}, "deep"),
    ],
)
def test_a_config_without_meaning_is_refused(config, says, write_adapter, adapter_refused):
    folder = write_adapter(_factors(), **config)
    adapter_refused(lambda: open_adapter(folder), 4, says=says)


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        (_factors(num_in=5), {}, "q_proj"),
        (_factors(out=7), {}, "q_proj"),
        (_factors(out=4, num_in=6), {}, "q_proj"),
        (_factors(rank=3), {}, "rank 3"),
        ({f"{_KEY}.lora_A.weight": torch.randn(2, 4)}, {}, "down without up"),
        (_factors(key="base_model.model.vision.blocks.0.mixer"), {}, "no adapter key matches"),
        (_factors(), {"use_dora": True}, "DoRA"),
        (_factors(key="base_model.model.model.layers.0.attn.base_layer.out_proj"), {}, "MultiheadAttention"),
        (_factors(), {"rank_pattern": {"(q_proj": 2}}, "regular expression"),
        # A second copy beside the module's own name is PEFT's; two copies are of two adapters.
        (
            {f"{_KEY}.modules_to_save.{name}.weight": torch.randn(6, 4) for name in ("one", "two")},
            {},
            "two tensors for saved",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tensors, config, says, base, write_adapter, adapter_refused):
    adapter = open_adapter(write_adapter(tensors, **config))
    adapter_refused(lambda: pair_adapter(base, adapter), 4, says=says)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*$", "a?" * 40 + "a" * 40 + "$", "(a|aa)" * 40 + "$"])
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_patterns_are_given_a_time_limit(pattern, field, base, write_adapter, adapter_refused, monkeypatch):
    monkeypatch.setattr(patterns, "TIME_LIMIT_SECONDS", 0.4)
    hostile = _factors() | _factors(key="base_model.model." + "a" * 39 + "b")
    adapter = open_adapter(write_adapter(hostile, **{field: {pattern: 2}}))
    start = time.monotonic()
    error = adapter_refused(lambda: pair_adapter(base, adapter), 4, says="did not finish in 0.4 s")
    assert error.tensor == pattern
    assert time.monotonic() - start < 5


def test_patterns_match_as_pefts_do():
    from peft.utils.other import get_pattern_key

    modules = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.11.self_attn.q_proj",
        "model.layers.1.self_attn.my_q_proj",
        "model.layers.1.mlp.down_proj",
        "q_proj",
        "down_projx",
    ]
    tried = [
        ["q_proj"],
        ["proj", "self_attn.q_proj", "q_proj"],
        ["layers.1.self_attn.q_proj", "layers.11"],
        ["1.self.attn.q.proj", "q_proj"],
        [r"layers\.[01]\..*", "down_proj"],
        ["q_proj|down_proj"],
        ["^model.*q_proj", "^q_proj$"],
        ["", "q_proj"],
        ["down_projx?", "q_proj"],
    ]
    for keys in tried:
        expected = {module: get_pattern_key(keys, module) for module in modules}
        found = patterns.first_matches(keys, modules, file=Path("config"))
        assert found == {m: key for m, key in expected.items() if key != m or m in keys}, keys


def test_what_a_config_names_is_never_run_imported_or_looped_over(base, write_adapter, monkeypatch):
    folder = write_adapter(
        _factors(),
        target_modules="(a+)+$" + "a" * 50,
        exclude_modules="(a+)+$",
        layers_to_transform=10**9,
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
        runtime_config={"trust_remote_code": True},
        tokenizer_kwargs={"trust_remote_code": True},
        task_type="evil.Evil",
    )
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    start = time.monotonic()
    assert len(pair_adapter(base, open_adapter(folder)).pairs) == 1
    assert time.monotonic() - start < 5
    assert "evil" not in sys.modules


def test_every_other_kind_of_adapter_is_refused_by_its_name(write_adapter, adapter_refused):
    from peft import PeftType

    folder = write_adapter(_factors())
    prompts = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"}
    prompts |= {"CPT", "CARTRIDGE"}
    for kind in {kind.value for kind in PeftType} - set(registry.names()):
        write_adapter(_factors(), peft_type=kind)
        error = adapter_refused(lambda: open_adapter(folder), 4, says=f"the kind {kind}, which is not read")
        assert ("merge_and_unload" in error.remedy) == (kind not in prompts), kind


@pytest.mark.parametrize(
    ("content", "says", "remedy"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-LFS", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "HTML", "download"),
        (b"PK\x03\x04" + b"x" * 60, "zip", "convert"),
        (b"\1\2\3", "only 3 bytes", "download"),
    ],
)
def test_weights_that_are_something_else_are_named(content, says, remedy, write_adapter, adapter_refused):
    folder = write_adapter(_factors())
    (folder / "adapter_model.safetensors").write_bytes(content)
    adapter_refused(lambda: open_adapter(folder), 4, says=says, remedy=remedy)


@pytest.mark.parametrize(
    ("keys", "says", "remedy"),
    [
        (["lora_unet_down_blocks_0.lora_down.weight"], "kohya", "convert"),
        (["something.weight"], "none of the 1 tensors", "merge it"),
        (["transformer.blocks.0.to_q.lora_A.weight"], "diffusers' newer", "fuse_lora"),
        (["unet.down.to_q.lora.down.weight"], "diffusers' newer", "fuse_lora"),
    ],
)
def test_other_spellings_are_refused_by_name(keys, says, remedy, write_adapter, adapter_refused):
    folder = write_adapter({key: torch.randn(2, 3) for key in keys})
    (folder / "adapter_config.json").unlink()
    adapter_refused(lambda: open_adapter(folder), 4, says=says, remedy=remedy)


_UNET_KEY = "unet.mid_block.attentions.0.attn1.processor.to_q_lora"


def test_text_encoders_beside_a_unet_are_a_gap_on_the_unet_and_read_on_their_own(tmp_path, write_adapter):
    text_key = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer"
    tensors = {
        f"{key}.{side}.weight": torch.randn(shape)
        for key in (_UNET_KEY, text_key)
        for side, shape in (("down", (2, 4)), ("up", (6, 2)))
    }
    folder = write_adapter(tensors)
    (folder / "adapter_config.json").unlink()
    for name, stored, key in (
        ("unet", "mid_block.attentions.0.attn1.to_q.weight", _UNET_KEY),
        ("text", "text_model.encoder.layers.0.self_attn.q_proj.weight", text_key),
    ):
        (tmp_path / name).mkdir()
        save_file({stored: torch.zeros(6, 4)}, tmp_path / name / "model.safetensors")
        pairing = pair_adapter(open_model(tmp_path / name), open_adapter(folder))
        assert not pairing.complete
        (pair,) = pairing.pairs
        update = pair.update.load(pair.base.load())
        expected = tensors[f"{key}.up.weight"] @ tensors[f"{key}.down.weight"]
        torch.testing.assert_close(update.left_OR @ update.right_RI, expected)


def test_a_diffusers_key_that_is_not_known_is_refused(base, write_adapter, adapter_refused):
    keys = (f"{_UNET_KEY}.down.weight", f"{_UNET_KEY}.up.weight", "unet.mid_block.alpha")
    folder = write_adapter({key: torch.randn(2, 2) for key in keys})
    (folder / "adapter_config.json").unlink()
    adapter = open_adapter(folder)
    error = adapter_refused(
        lambda: pair_adapter(base, adapter), 4, says="key of diffusers", remedy="fuse_lora"
    )
    assert error.tensor == "unet.mid_block.alpha"


def test_an_alpha_is_taken_only_where_the_file_has_none(write_adapter):
    folder = write_adapter(_factors())
    with pytest.raises(UsageError, match="leave --lora-alpha out") as caught:
        open_adapter(folder, lora_alpha=8)
    assert caught.value.exit_code == 2


def test_a_shape_that_does_not_fit_names_the_adapter_and_the_base(base, write_adapter, adapter_refused):
    adapter = open_adapter(write_adapter(_factors(num_in=5)))
    error = adapter_refused(lambda: pair_adapter(base, adapter), 4, says="6 x 5", remedy="for this base")
    assert error.tensor == f"{_KEY}.lora_A.weight"
    assert "is 6 x 4" in error.fact
    assert "model.layers.0.self_attn.q_proj.weight" in error.fact


def test_an_adapter_in_8_bits_is_refused_and_not_decoded(base, write_adapter, adapter_refused):
    tensors = {key: value.to(torch.float8_e4m3fn) for key, value in _factors().items()}
    adapter = open_adapter(write_adapter(tensors))
    adapter_refused(lambda: pair_adapter(base, adapter), 4, says="F8_E4M3", remedy="float32")


@pytest.mark.parametrize("rest", [{}, {"model.layers.0.self_attn.k_proj.weight": torch.randn(6, 4)}])
def test_a_quantised_base_is_named_as_the_reason(rest, tmp_path, write_adapter, adapter_refused):
    (tmp_path / "packed").mkdir()
    packed = {
        "model.layers.0.self_attn.q_proj.weight": torch.zeros(12, 1).byte(),
        "norm.weight": torch.ones(4),
    }
    save_file({**packed, **rest}, tmp_path / "packed" / "model.safetensors")
    config = {"quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    base = open_model(tmp_path / "packed")
    tensors = _factors()
    if rest:
        tensors |= _factors(key=_KEY.replace("q_proj", "k_proj"))
        pairing = pair_adapter(base, open_adapter(write_adapter(tensors)))
        assert not pairing.complete
        reasons = {e.reason for e in pairing.coverage if "q_proj.lora" in e.tensor}
        assert reasons == {"the base is quantised with bitsandbytes"}
    else:
        adapter = open_adapter(write_adapter(tensors))
        adapter_refused(lambda: pair_adapter(base, adapter), 4, says="bitsandbytes", remedy="unquantised")


def test_what_training_leaves_beside_an_adapter_is_never_opened(base, write_adapter):
    folder = write_adapter(_factors())
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "scheduler.pt", "optimizer.bin"):
        os.mkfifo(folder / name)  # opening one would block
    assert len(pair_adapter(base, open_adapter(find_adapter(parse_name(str(folder))))).pairs) == 1


def _fused_base(folder, num_out=6, num_in=4):
    folder.mkdir()
    experts = torch.randn(3, num_out, num_in)
    save_file({"model.layers.0.mlp.experts.down_proj": experts}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    return open_model(folder)


def _expert_factors(num_out=6, num_in=4, rank=2, num_experts=3):
    key = "base_model.model.model.layers.0.mlp.experts"
    return {
        f"{key}.lora_A.weight": torch.randn(rank * num_experts, num_in),
        f"{key}.lora_B.weight": torch.randn(num_out, rank * num_experts),
    }


@pytest.mark.parametrize(
    ("base_shape", "factors", "says"),
    [
        ((6, 4), {"num_in": 5}, "down_proj [6, 4]"),
        ((6, 4), {"num_experts": 4}, "down_proj [6, 4]"),
        ((6, 4), {"rank": 4}, "have rank 4, but the config says 2"),
        ((4, 4), {"num_out": 4}, "more than one way"),
    ],
)
def test_expert_factors_that_do_not_fit_or_could_mean_two_things_are_refused(
    base_shape, factors, says, tmp_path, write_adapter, adapter_refused
):
    base = _fused_base(tmp_path / "moe", *base_shape)
    folder = write_adapter(_expert_factors(**factors), target_parameters=["mlp.experts.down_proj"])
    adapter = open_adapter(folder)
    adapter_refused(lambda: pair_adapter(base, adapter), 4, says=says)


def test_expert_factors_that_the_config_does_not_name_are_refused(tmp_path, write_adapter, adapter_refused):
    tensors = {key.replace("experts", "experts.base_layer"): v for key, v in _expert_factors().items()}
    adapter = open_adapter(write_adapter(tensors))
    base = _fused_base(tmp_path / "moe")
    adapter_refused(lambda: pair_adapter(base, adapter), 4, says="target_parameters does not name")


def test_a_second_adapter_below_is_said_and_the_only_one_below_is_read(base, write_adapter, tmp_path):
    top = write_adapter(_factors())
    write_adapter(_factors(), folder="adapter/checkpoint-5")
    (finding,) = pair_adapter(base, open_adapter(top)).findings
    assert finding.code == "further-adapters"
    assert "checkpoint-5" in finding.message
    write_adapter(_factors(), folder="saved/by_name")
    found = find_adapter(parse_name(str(tmp_path / "saved")))
    assert open_adapter(found).path == tmp_path / "saved" / "by_name" / "adapter_model.safetensors"


def test_a_pickle_needs_leave(tmp_path, adapter_refused):
    torch.save({"x": torch.zeros(1)}, tmp_path / "adapter_model.bin")
    adapter_refused(lambda: open_adapter(tmp_path), 3, says="pickle", remedy="--allow-pickle")


def test_a_link_out_of_the_folder_is_unsafe(tmp_path, write_adapter, adapter_refused):
    outside = write_adapter(_factors(), folder="outside")
    inside = write_adapter(_factors(), folder="inside")
    (inside / "adapter_model.safetensors").unlink()
    (inside / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    adapter_refused(lambda: open_adapter(inside), 3, says="link")


def test_several_adapters_are_listed(tmp_path, write_adapter, adapter_refused):
    write_adapter(_factors(), folder="one")
    write_adapter(_factors(), folder="two")
    found = find_adapter(parse_name(str(tmp_path)))
    error = adapter_refused(lambda: open_adapter(found), 4, says="one, two")
    assert str(tmp_path / "one") in error.remedy


def test_a_folder_that_may_not_be_read_is_malformed(tmp_path, adapter_refused, monkeypatch):
    (tmp_path / "closed").mkdir()
    listed = os.listdir

    def closed(path="."):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "listdir", closed)
    name = parse_name(str(tmp_path / "closed"))
    adapter_refused(lambda: find_adapter(name), 4, says="Permission denied", remedy="permissions")


def test_keys_without_config_are_refused(write_adapter, adapter_refused):
    folder = write_adapter(_factors())
    (folder / "adapter_config.json").unlink()
    adapter_refused(lambda: open_adapter(folder), 4, says="adapter_config.json is not beside them")


def test_a_whole_model_is_no_adapter(base):
    assert find_adapter(parse_name(str(base.path))) is None


@pytest.mark.parametrize("factor", ["A", "B"])
def test_an_untrained_adapter_and_another_base_are_findings(factor, base, write_adapter):
    tensors = _factors()
    tensors[f"{_KEY}.lora_{factor}.weight"].zero_()
    pairing = pair_adapter(base, open_adapter(write_adapter(tensors, base_model_name_or_path="org/other")))
    assert [f.code for f in pairing.findings] == ["other-base", "zero-adapter"]
    assert f"changes nothing: every {factor} is zero" in pairing.findings[1].message
    assert [e.reason for e in pairing.coverage if e.status == "unchanged"] == [
        "no adapter weight targets it"
    ] * 3


def test_a_target_the_base_lacks_makes_the_plan_incomplete(base, write_adapter):
    tensors = _factors() | _factors(key="base_model.model.model.layers.7.self_attn.q_proj")
    pairing = pair_adapter(base, open_adapter(write_adapter(tensors)))
    assert not pairing.complete
    assert sum(e.origin == "adapter" and e.status == "skipped" for e in pairing.coverage) == 2


def test_a_config_that_leaves_rank_and_alpha_out_has_pefts_defaults(base, write_adapter):
    adapter = open_adapter(write_adapter(_factors(rank=8), r=None, lora_alpha=None))
    (pair,) = pair_adapter(base, adapter).pairs
    up, down = (adapter.tensors[f"{_KEY}.lora_{side}.weight"].read() for side in "BA")
    update = pair.update.load(pair.base.load())
    torch.testing.assert_close(update.left_OR @ update.right_RI, up @ down)  # alpha / r is 8 / 8


def test_an_alpha_of_zero_is_replaced_by_the_one_that_is_given(base, write_adapter):
    adapter = open_adapter(write_adapter(_factors(), lora_alpha=0), lora_alpha=6)
    (pair,) = pair_adapter(base, adapter).pairs
    up, down = (adapter.tensors[f"{_KEY}.lora_{side}.weight"].read() for side in "BA")
    update = pair.update.load(pair.base.load())
    torch.testing.assert_close(update.left_OR @ update.right_RI, 3 * up @ down)


def test_tinkers_head_is_the_head(tmp_path, write_adapter):
    (tmp_path / "headed").mkdir()
    save_file({"lm_head.weight": torch.randn(6, 4)}, tmp_path / "headed" / "model.safetensors")
    adapter = open_adapter(write_adapter(_factors(key="base_model.model.model.unembed_tokens")))
    (pair,) = pair_adapter(open_model(tmp_path / "headed"), adapter).pairs
    assert pair.name == "lm_head"
