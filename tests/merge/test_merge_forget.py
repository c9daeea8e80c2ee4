"""What a merge writes runs: forgetting of an adapter, a checkpoint, and a task of EMR-Merging."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from merge_models import family
from peft import LoraConfig, get_peft_model

import intruscope

sys.path.insert(0, str(Path(__file__).parents[1] / "forgetting"))
import forgetting_models

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A language model with its tokenizer, two adapters of it, and a text."""
    folder = tmp_path_factory.mktemp("forget")
    base, tokenizer, _ = forgetting_models.Made()._made("gpt2")
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "text.txt").write_text(forgetting_models.TEXT)
    for seed, label in enumerate("ab"):
        config = LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
        model = get_peft_model(copy.deepcopy(base), config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(folder / label)
    return folder


def forgetting(models, tuned):
    found = intruscope.forget(
        models / "base", tuned, text=models / "text.txt", unit="line", num_resamples=100, device="cpu"
    )
    return found.forgetting.estimate


def test_an_adapter_and_a_checkpoint_of_one_merge_forget_the_same(models, tmp_path):
    names = [models / name for name in ("base", "a", "b")]
    intruscope.merge(*names, rule="tsv").apply(tmp_path / "adapter")
    intruscope.merge(*names, rule="tsv", merged=True).apply(tmp_path / "model")
    intruscope.merge(*names, rule="tsv", scaling=0.1).apply(tmp_path / "less")
    one, other = (forgetting(models, tmp_path / name) for name in ("adapter", "model"))
    assert one == pytest.approx(other, abs=1e-4)
    assert abs(one - forgetting(models, tmp_path / "less")) > 1e-2


@pytest.mark.parametrize("space", ["dense", "core"])
def test_a_task_of_emr_forgets_like_the_same_task_as_an_ordinary_model(space, models, tmp_path):
    names = [models / name for name in ("base", "a", "b")]
    intruscope.merge(*names, rule="emr", space=space).apply(tmp_path / "all")
    intruscope.merge(*names, rule="emr", space=space, task="b").apply(tmp_path / "one")
    one, other = forgetting(models, tmp_path / "all" / "b"), forgetting(models, tmp_path / "one")
    assert one == pytest.approx(other, abs=1e-4)
    assert abs(one - forgetting(models, tmp_path / "all" / "a")) > 1e-3


def test_a_repair_turns_a_task_of_emr_into_an_ordinary_adapter(tmp_path):
    models = family("llama")
    intruscope.merge(*models.names[:3], rule="emr").apply(tmp_path / "all")
    plan = intruscope.repair(
        models.names[0], tmp_path / "all" / "a", control="uniform", strength=0.5,
        options=intruscope.RunOptions(workers=0),
    )  # fmt: skip
    plan.apply(tmp_path / "half")
    intruscope.merge(*models.names[:3], rule="emr", task="a", scaling=0.5).apply(tmp_path / "one")
    found, wanted = models.deltas(tmp_path / "half"), models.deltas(tmp_path / "one")
    assert found.keys() == wanted.keys()
    for module, delta in wanted.items():
        torch.testing.assert_close(found[module], delta, rtol=1e-4, atol=1e-5)


def test_a_sweep_over_strengths_measures_every_lambda(models, tmp_path):
    names = [models / name for name in ("base", "a", "b")]
    intruscope.merge(*names, rule="ties").apply(tmp_path / "whole")
    report = intruscope.sweep(
        names[0],
        tmp_path / "whole",
        task=intruscope.load_task(models / "text.txt"),
        text=models / "text.txt",
        settings=intruscope.SweepSettings(
            strengths=(0.3, 0.6), controls=("intruders", "interpolation"), num_resamples=100
        ),
        measuring=intruscope.MeasureOptions(unit="line", device="cpu"),
        options=intruscope.RunOptions(workers=0),
    )
    cells = [each for each in report.cells if each.cell.control == "interpolation"]
    assert [each.cell.strength for each in cells] == [0.3, 0.6]
    for each in cells:
        strength = each.cell.strength
        intruscope.merge(*names, rule="ties", scaling=strength).apply(tmp_path / f"{strength}")
        alone = forgetting(models, tmp_path / f"{strength}")
        assert each.forgetting.estimate == pytest.approx(alone, abs=1e-4)
