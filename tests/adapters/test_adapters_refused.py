"""Bad adapters end with the right exit code and a message that says what to do."""

from __future__ import annotations

import time

import pytest
import torch
from safetensors.torch import save_file

from intruscope.adapters.folder import find_adapter, open_adapter
from intruscope.adapters.pairing import pair_adapter
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
        ({"r": None}, "rank"),
        ({"lora_alpha": -1}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": None}, "None"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"init_lora_weights": "mica"}, "mica"),
        ({"target_parameters": ["experts.up"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "activated"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"use_qalora": True}, "use_qalora"),
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
        ({f"{_KEY}.lora_A.weight": torch.randn(2, 4)}, {}, "both factors"),
        (_factors(key="base_model.model.vision.blocks.0.mixer"), {}, "no adapter key that matches"),
        (_factors(), {"use_dora": True}, "DoRA"),
        (_factors(key="base_model.model.model.layers.0.mlp.experts.base_layer"), {}, "target_parameters"),
        (_factors(), {"rank_pattern": {"(q_proj": 2}}, "regular expression"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tensors, config, says, base, write_adapter, adapter_refused):
    adapter = open_adapter(write_adapter(tensors, **config))
    adapter_refused(lambda: pair_adapter(base, adapter), 4, says=says)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "([a-z._0-9]+)*x", ".*.*.*x", r"(?=.*x)q_proj", "a{1,99}{1,99}b{9}"]
)
def test_patterns_without_a_time_bound_are_not_run(pattern, base, write_adapter, adapter_refused):
    adapter = open_adapter(write_adapter(_factors(), rank_pattern={pattern: 2}))
    start = time.monotonic()
    adapter_refused(lambda: pair_adapter(base, adapter), 4, says="not bounded")
    assert time.monotonic() - start < 2


def test_target_modules_is_never_run(base, write_adapter):
    adapter = open_adapter(write_adapter(_factors(), target_modules="(a+)+$" + "a" * 50))
    assert len(pair_adapter(base, adapter).pairs) == 1


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


def test_keys_without_config_are_refused(write_adapter, adapter_refused):
    folder = write_adapter(_factors())
    (folder / "adapter_config.json").unlink()
    adapter_refused(lambda: open_adapter(folder), 4, says="without adapter_config.json")


def test_a_whole_model_is_no_adapter(base):
    assert find_adapter(parse_name(str(base.path))) is None


def test_an_untrained_adapter_and_another_base_are_findings(base, write_adapter):
    tensors = _factors()
    tensors[f"{_KEY}.lora_B.weight"].zero_()
    pairing = pair_adapter(base, open_adapter(write_adapter(tensors, base_model_name_or_path="org/other")))
    assert [f.code for f in pairing.findings] == ["other-base", "zero-adapter"]
    assert [e.reason for e in pairing.coverage if e.status == "unchanged"] == [
        "no adapter weight targets it"
    ] * 3


def test_a_target_the_base_lacks_makes_the_plan_incomplete(base, write_adapter):
    tensors = _factors() | _factors(key="base_model.model.model.layers.7.self_attn.q_proj")
    pairing = pair_adapter(base, open_adapter(write_adapter(tensors)))
    assert not pairing.complete
    assert sum(e.origin == "adapter" and e.status == "skipped" for e in pairing.coverage) == 2
