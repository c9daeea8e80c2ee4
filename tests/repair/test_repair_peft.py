"""Every kind of layer: what PEFT merges of a repaired adapter is the formula over what it merged before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from intruscope.repair.plan import repair
from intruscope.spectra.scan import RunOptions
from intruscope.weights.layout import base_matrices
from intruscope.weights.source import open_model

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
import peft_models

pytestmark = pytest.mark.filterwarnings("ignore")
STRENGTH = 0.3
INLINE = RunOptions(workers=0)


def make_case(case, folder, dtype=torch.float32):
    """Base and adapter on disk, and PEFT's own merge of them."""
    make, options = peft_models.CASES[case]
    torch.manual_seed(0)
    model = make().to(dtype)
    model.save_pretrained(folder / "base")
    model = get_peft_model(
        model, LoraConfig(**{"r": 3, "lora_alpha": 7, **options}), autocast_adapter_dtype=False
    )
    peft_models.train(model)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload(safe_merge=True).save_pretrained(folder / "merged")


def merge_by_peft(case, folder, adapter, out):
    make, _ = peft_models.CASES[case]
    model = PeftModel.from_pretrained(make().from_pretrained(folder / "base"), folder / adapter)
    model.merge_and_unload(safe_merge=True).save_pretrained(folder / out)


def matrices(folder):
    """Name to (out, in) float64, as the house sees them."""
    return {
        v.name: v.load().double()
        for views in base_matrices(open_model(folder)).matrices.values()
        for v in views
    }


def formula(before, tuned, edited, strength=STRENGTH):
    """W' by dense decompositions: the vectors 0 and 1 of every edited matrix."""
    expected = {}
    for name, matrix in tuned.items():
        expected[name] = matrix
        if name in edited:
            assert not torch.equal(before[name], matrix)
            left, values, right_t = torch.linalg.svd(matrix, full_matrices=False)
            change = (strength - 1.0) * (left[:, :2] * values[:2]) @ right_t[:2]
            expected[name] = matrix + change
    return expected


def check_equal(got, expected, tolerance):
    for name, matrix in expected.items():
        error = float((got[name] - matrix).norm() / matrix.norm())
        assert error <= tolerance, (name, error)


@pytest.mark.parametrize("case", [c for c in peft_models.CASES if not c.startswith("tokens")])
def test_the_written_adapter_is_the_formula(case, tmp_path):
    make_case(case, tmp_path)
    plan = repair(
        str(tmp_path / "base"), str(tmp_path / "adapter"), strength=STRENGTH, which="*:0+1", options=INLINE
    )
    plan.apply(tmp_path / "repaired")
    merge_by_peft(case, tmp_path, "repaired", "remerged")
    edited = {matrix.name for matrix in plan.matrices}
    assert edited == {pair.name for pair in plan.survey.pairing.pairs}
    before, tuned = matrices(tmp_path / "base"), matrices(tmp_path / "merged")
    expected = formula(before, tuned, edited)
    # PEFT merges in float32, before and after.
    check_equal(matrices(tmp_path / "remerged"), expected, 1e-5)
    config = json.loads((tmp_path / "repaired" / "adapter_config.json").read_text())
    if any(module.touched for module in plan.modules):
        assert config["r"] == config["lora_alpha"]
        assert not config["rank_pattern"]
        assert not config["alpha_pattern"]
        assert not config.get("use_rslora")
