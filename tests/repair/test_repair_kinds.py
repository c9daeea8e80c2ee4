"""Every adapter kind of PEFT: the repaired output is the formula over what PEFT merges of the original."""

import copy
import json
import sys
from functools import cache
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model

from intruscope.engine.settings import RunOptions
from intruscope.errors import UnsupportedFormat
from intruscope.repair.plan import plan_repair
from intruscope.repair.survey import survey
from intruscope.weights.layout import base_matrices
from intruscope.weights.memory import memory_source
from intruscope.weights.source import open_model

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
import peft_models

pytestmark = pytest.mark.filterwarnings("ignore")
STRENGTH = 0.3
TARGETS = ["q_proj", "up_proj"]
THIN = {
    "LoHaConfig": {"r": 2},
    "AdaLoraConfig": {"init_r": 3, "target_r": 2, "total_step": 10},
    "VeraConfig": {"r": 4},
    "HRAConfig": {"r": 4},
    "VBLoRAConfig": {"r": 2, "num_vectors": 8, "vector_length": 8, "topk": 2},
    "DeloraConfig": {"r": 3},
    "MissConfig": {"r": 4},
    "GraloraConfig": {"r": 4, "gralora_k": 2},
}
FULL = {
    "OFTConfig": {"oft_block_size": 4},
    "BOFTConfig": {"boft_block_size": 4},
    "IA3Config": {"feedforward_modules": ["up_proj"]},
    "LoKrConfig": {"r": 2},
    "RandLoraConfig": {"r": 4},
    "FourierFTConfig": {"n_frequency": 20},
    "C3AConfig": {"block_size": 8},
    "ShiraConfig": {"r": 2},
    "OSFConfig": {},
}


def matrices(source):
    listing = base_matrices(source).matrices.values()
    return {view.name: view.load().double() for views in listing for view in views}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """In memory and saved."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = peft_models.llama()
    model.save_pretrained(folder)
    return model, folder


def merged_matrices(model, base_folder):
    merged = model.merge_and_unload(safe_merge=True)
    config = open_model(base_folder).config
    return matrices(memory_source(merged.state_dict(), config=config, name="merged"))


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """The matrices of PEFT's merge of each kind and the adapter's survey, made once."""
    model, base_folder = base

    @cache
    def get(name):
        adapter = tmp_path_factory.mktemp(name)
        torch.manual_seed(1)
        options = {**THIN, **FULL}[name]
        config = getattr(peft, name)(target_modules=TARGETS, task_type="CAUSAL_LM", **options)
        tuned = get_peft_model(copy.deepcopy(model), config)
        peft_models.train(tuned)
        tuned.save_pretrained(adapter)
        found = survey(str(base_folder), str(adapter), names=["*"], options=RunOptions(workers=0))
        return merged_matrices(tuned, base_folder), found

    return get


def formula(merged, edited):
    expected = dict(merged)
    for name in edited:
        left, values, right_t = torch.linalg.svd(expected[name], full_matrices=False)
        expected[name] = expected[name] + (STRENGTH - 1.0) * (left[:, :2] * values[:2]) @ right_t[:2]
    return expected


def check(got, expected):
    for name, matrix in expected.items():
        assert float((got[name] - matrix).norm() / matrix.norm()) < 2e-5, name


@pytest.mark.parametrize("name", THIN)
def test_a_repaired_adapter_is_a_lora_that_peft_merges_to_the_formula(name, base, made, tmp_path):
    model, base_folder = base
    merged, found = made(name)
    plan = plan_repair(found, strength=STRENGTH, which="*:0+1")
    plan.apply(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    repaired = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out")
    edited = {matrix.name for matrix in plan.matrices}
    assert len(edited) == 4
    check(merged_matrices(repaired, base_folder), formula(merged, edited))


@pytest.mark.parametrize("name", [*THIN, *FULL])
def test_a_merged_checkpoint_is_the_formula(name, made, tmp_path):
    merged, found = made(name)
    plan = plan_repair(found, strength=STRENGTH, which="*:0+1", merged=True)
    plan.apply(tmp_path / "out")
    edited = {matrix.name for matrix in plan.matrices}
    check(matrices(open_model(tmp_path / "out")), formula(merged, edited))


@pytest.mark.parametrize("name", FULL)
def test_an_update_of_full_rank_is_left_to_a_checkpoint(name, made):
    _, found = made(name)
    with pytest.raises(UnsupportedFormat, match="has full rank .*--merged"):
        plan_repair(found, strength=STRENGTH, which="*:0+1")
