"""``intruscope inspect``: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def adapter(tmp_path):
    def write(name, *, nan=False):
        folder = tmp_path / name
        folder.mkdir()
        generator = torch.Generator().manual_seed(len(name))
        tensors = {}
        for layer in range(2):
            key = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            tensors[f"{key}.lora_A.weight"] = torch.randn(2, 6, generator=generator)
            tensors[f"{key}.lora_B.weight"] = torch.randn(8, 2, generator=generator)
        if nan:
            tensors[f"{key}.lora_B.weight"][0, 0] = torch.nan
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return write


def test_one_adapter_in_detail_and_its_files(commands, adapter, tmp_path):
    folder = adapter("one")
    files = [tmp_path / f"r.{name}" for name in ("json", "csv", "parquet")]
    options = [each for file in files for each in (f"--{file.suffix[1:]}", file)]
    done = commands.run(folder, *options, verb="inspect")
    assert done.returncode == 0, done.stderr
    assert "scale of B A" in done.stdout
    assert "2 = alpha / r with alpha 4, r 2" in done.stdout
    assert "intruscope scan BASE ADAPTER" in done.stdout.replace("\n", " ")
    report = json.loads((tmp_path / "r.json").read_text())
    assert [module["shape"] for module in report["adapters"][0]["modules"]] == [[8, 6], [8, 6]]
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 3
    assert (tmp_path / "r.parquet").stat().st_size


def test_a_broken_adapter_among_several_is_reported_and_makes_the_code_5(commands, adapter, tmp_path):
    good, broken = adapter("good"), adapter("broken")
    (broken / "adapter_config.json").write_text("{}")
    done = commands.run(good, broken, "--json", "-", verb="inspect")
    assert done.returncode == 5
    report = json.loads(done.stdout)
    assert [each["failure"] is None for each in report["adapters"]] == [True, False]
    assert "1 of 2 adapters could not be read" in done.stderr
    alone = commands.run(broken, "--json", tmp_path / "none.json", verb="inspect")
    assert alone.returncode == 4
    assert not (tmp_path / "none.json").exists()


def test_nan_is_incomplete_and_outputs_never_overwrite_an_input(commands, adapter):
    folder = adapter("nan", nan=True)
    done = commands.run(folder, verb="inspect")
    assert done.returncode == 5
    assert "error [non-finite] model.layers.1.self_attn.q_proj: NaN or infinity in 1 number" in done.stdout
    before = (folder / "adapter_config.json").read_bytes()
    assert commands.run(folder, "--json", folder / "adapter_config.json", verb="inspect").returncode == 7
    assert (folder / "adapter_config.json").read_bytes() == before
