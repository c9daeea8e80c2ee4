"""``intruscope layers``: the matrices that a scan would see, with no weight read."""

import json

import pytest
import torch
from cli_support import assert_message, fingerprint, invoke, matrices, name_of, write_model
from safetensors.torch import save_file

from intruscope import plan


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    tensors = {
        "wte.weight": torch.zeros(30, 8),
        "h.0.attn.c_attn.weight": torch.zeros(8, 24, dtype=torch.bfloat16),
        "h.0.mlp.c_fc.weight": torch.zeros(8, 32),
        "h.0.ln_1.weight": torch.zeros(8),
        "h.0.\x1b[31mred": torch.zeros(2),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_head": 2, "n_embd": 8}')
    return folder


def listed(model):
    done = invoke("layers", model, "--json", "-")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_tensor_is_a_matrix_or_says_why_not(gpt2):
    listing = listed(gpt2)
    assert listing["schema"] == "intruscope.layers/1"
    assert listing["model"] == str(gpt2)
    rows = {m["name"]: m for m in listing["matrices"]}
    assert set(rows) == {"wte", "h.0.mlp.c_fc", *(f"h.0.attn.c_attn[{part}]" for part in "qkv")}
    query = rows["h.0.attn.c_attn[q]"]
    assert (query["kind"], query["layer"], query["scope"]) == ("q", 0, "paper")
    assert (query["shape"], query["dtype"]) == ([8, 8], "BF16")
    assert query["tensor"] == "h.0.attn.c_attn.weight"
    assert rows["h.0.mlp.c_fc"]["shape"] == [32, 8], "stored (in, out), listed (out, in)"
    assert (rows["wte"]["shape"], rows["wte"]["scope"]) == ([8, 30], "other")
    reasons = {entry["tensor"]: entry["reason"] for entry in listing["skipped"]}
    assert reasons == dict.fromkeys(("h.0.ln_1.weight", "h.0.\x1b[31mred"), "a vector, not a matrix")


def test_the_names_are_those_of_a_scan(models):
    names = [matrix["name"] for matrix in listed(models[0])["matrices"]]
    assert names == [pair.name for pair in plan(*map(str, models)).pairs] == [name_of(i) for i in range(3)]


def test_the_table_for_people(gpt2, monkeypatch):
    done = invoke("layers", gpt2)
    assert done.returncode == 0
    (line,) = [line for line in done.stdout.splitlines() if "h.0.mlp.c_fc " in line]
    assert line.split() == ["h.0.mlp.c_fc", "up", "0", "32", "x", "8", "paper", "F32"]
    assert "in h.0.attn.c_attn.weight" in done.stdout
    assert "a vector, not a matrix" in done.stdout
    assert "\x1b[31m" not in done.stdout
    assert "\\x1b[31mred" in done.stdout


def test_weights_that_a_scan_could_not_see_are_said(tmp_path):
    tensors = {**matrices(1), "model.layers.0.mlp.down_proj.weight": torch.zeros(8, 8).to(torch.float8_e5m2)}
    done = invoke("layers", write_model(tmp_path / "m", tensors))
    assert done.returncode == 0
    assert "1 of them hold weights" in done.stdout
    (entry,) = listed(tmp_path / "m")["skipped"]
    assert entry["holds_weights"]


def test_the_list_goes_to_a_file_whole_and_not_into_the_model(gpt2, tmp_path):
    before = fingerprint(gpt2)
    assert invoke("layers", gpt2, "--json", tmp_path / "l.json").returncode == 0
    assert json.loads((tmp_path / "l.json").read_text()) == listed(gpt2)
    assert_message(invoke("layers", gpt2, "--json", gpt2 / "l.json"), 7, "input")
    assert fingerprint(gpt2) == before


def test_an_adapter_is_refused_by_name(models, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 4)}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(models[0])}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert_message(invoke("layers", folder), 2, "this is an adapter", "scan ADAPTER --dry-run")
    assert_message(invoke("layers", f"{models[0]}+{folder}"), 2, "this is an adapter")
