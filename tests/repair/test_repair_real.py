"""Adapters that others published, repaired on seeded bases: PEFT merges the formula out of them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from intruscope import RunOptions
from intruscope.repair import repair
from intruscope.weights.layout import base_matrices
from intruscope.weights.source import open_model

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
from test_adapters_real import _LOADED_BY_PEFT as PUBLISHED

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]


def matrices(folder):
    listing = base_matrices(open_model(folder)).matrices.values()
    return {view.name: view.load().double() for views in listing for view in views}


@pytest.mark.parametrize(
    ("name", "which"),
    [("gpt2-seqcls-a", "*.h.0.*:0,score:0"), ("distilbert-sentiment", "*.0.*:0,classifier:0")],
)
def test_a_published_adapter_is_repaired_to_the_formula(name, which, real_data, tmp_path):
    from peft import PeftModel

    adapter = real_data / "adapters" / name
    make, _ = PUBLISHED[name]
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "base")
    plan = repair(
        str(tmp_path / "base"), str(adapter), strength=0.3, which=which, options=RunOptions(workers=0)
    )
    assert len(plan.matrices) >= 3
    assert not plan.survey.pairing.complete  # the base has a layer or two of the adapter's many
    plan.apply(tmp_path / "repaired")
    for source, out in ((adapter, "merged"), (tmp_path / "repaired", "remerged")):
        model = PeftModel.from_pretrained(make().from_pretrained(tmp_path / "base").double(), source)
        model.merge_and_unload(safe_merge=True).save_pretrained(tmp_path / out)
    before, got = matrices(tmp_path / "merged"), matrices(tmp_path / "remerged")
    edited = {matrix.name for matrix in plan.matrices}
    for matrix, tuned in before.items():
        if matrix not in edited:
            assert torch.equal(got[matrix], tuned)
            continue
        left, values, right_t = torch.linalg.svd(tuned, full_matrices=False)
        expected = tuned - 0.7 * values[0] * torch.outer(left[:, 0], right_t[0])
        assert float((got[matrix] - expected).norm() / expected.norm()) < 1e-5, matrix
    # Layers that the base does not have keep their update: only the scaling is folded in.
    old, new = (
        load_file(adapter / "adapter_model.safetensors"),
        load_file(tmp_path / "repaired" / "adapter_model.safetensors"),
    )
    assert set(old) == set(new)
    config = json.loads((adapter / "adapter_config.json").read_text())
    scaling, rank = config["lora_alpha"] / config["r"], config["r"]
    last = [key for key in old if "lora_B" in key][-1]
    torch.testing.assert_close(new[last][:, :rank], old[last] * scaling)
    assert not bool(new[last][:, rank:].any())
