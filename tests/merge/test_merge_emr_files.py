"""EMR-Merging's files: what they decode to, that they are an adapter like any other, and what they refuse."""

import copy
import json
import shutil

import pytest
import torch
from merge_models import family, fine_tuned, peft_models
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import intruscope
from intruscope.adapters.live_merge import place_adapter
from intruscope.adapters.live_models import config_of, read_tensors
from intruscope.adapters.opening import open_pair
from intruscope.merge.emr_files import folder_names

pytestmark = pytest.mark.filterwarnings("ignore")


def emr(tasks, rescale="paper"):
    """The published formulas on whole tasks: by module, one update for each."""
    names = list(tasks[0])
    flat = [torch.cat([task[name].flatten() for name in names]) for task in tasks]
    sign = sum(flat).sign()
    unified = sign * torch.stack([torch.where(t.sign() == sign, t.abs(), 0.0) for t in flat]).amax(dim=0)
    found = []
    for task in flat:
        masked = torch.where(task * unified > 0, unified, 0.0)
        factor = task.abs().sum() / masked.abs().sum()
        if rescale == "l2":
            factor = (task @ masked) / (masked @ masked)
        sizes = [tasks[0][name].numel() for name in names]
        parts = (factor * masked).split(sizes)
        found.append({n: part.reshape(tasks[0][n].shape) for n, part in zip(names, parts, strict=True)})
    return found


def decoded(base, adapter):
    """By matrix, the update that Intruscope reads: (out, in), float64."""
    pairs = open_pair(base, adapter).pairing.pairs
    found = {}
    for pair in pairs:
        before, after = pair.load_float64()
        found[pair.name] = after - before
    return found


def explicit(models):
    """The updates of both adapters, with zeros where one has none."""
    deltas = [models.deltas(path) for path in models.names[1:3]]
    shapes = {name: delta.shape for found in deltas for name, delta in found.items()}
    zero = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return [{**zero, **found} for found in deltas]


@pytest.mark.parametrize("rescale", ["paper", "l2"])
def test_dense_files_decode_to_the_published_formulas(rescale, tmp_path):
    models = family("llama")
    report = intruscope.merge(*models.names[:3], rule="emr", space="dense", rescale=rescale).apply(
        tmp_path / "out"
    )
    expected = emr(explicit(models), rescale)
    for label, wanted in zip("ab", expected, strict=True):
        found = decoded(models.names[0], tmp_path / "out" / label)
        assert found.keys() == wanted.keys()
        for name, delta in wanted.items():
            torch.testing.assert_close(found[name], delta, rtol=1e-5, atol=1e-6)
    assert report.writes == "emr"
    sizes = sum(delta.numel() for delta in expected[0].values())
    kept = [sum(int((delta != 0).sum()) for delta in wanted.values()) for wanted in expected]
    assert report.emr.mask_densities == pytest.approx([count / sizes for count in kept])
    assert report.emr.unified_bytes == 4 * sizes
    assert report.emr.mask_bytes == 2 * sizes // 8
    files = [models.names[1] / "adapter_model.safetensors", models.names[2] / "adapter_model.safetensors"]
    assert report.emr.input_bytes == sum(t.nbytes for file in files for t in load_file(file).values())
    assert "emr-larger-than-inputs" in {finding.code for finding in report.findings}


@pytest.mark.parametrize("name", ["llama", "gpt2", "embedding", "fused"])
@pytest.mark.parametrize("space", ["core", "knots", "dense"])
def test_one_task_written_as_an_ordinary_model_is_what_its_files_decode_to(name, space, tmp_path):
    models = family(name)
    asked = {"rule": "emr", "space": space}
    intruscope.merge(*models.names[:3], **asked).apply(tmp_path / "all")
    report = intruscope.merge(*models.names[:3], **asked, task="b").apply(tmp_path / "one")
    assert report.writes == ("checkpoint" if space == "dense" else "adapter")
    found, wanted = (decoded(models.names[0], tmp_path / place) for place in ("all/b", "one"))
    for matrix, delta in wanted.items():  # of a checkpoint all matrices, changed or not
        other = found.get(matrix, torch.zeros_like(delta))
        torch.testing.assert_close(other, delta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", ["dense", "core"])
def test_equal_tasks_come_back_exactly(space, tmp_path):
    models = family("gpt2")
    path = models.names[1]
    report = intruscope.merge(models.names[0], path, path, rule="emr", space=space).apply(tmp_path / "same")
    assert report.emr.rescalers == pytest.approx((1.0, 1.0))
    folders = sorted(p.name for p in (tmp_path / "same").iterdir() if p.is_dir())
    assert folders == ["a-1", "a-2"]
    wanted = decoded(models.names[0], path)
    for folder in folders:
        found = decoded(models.names[0], tmp_path / "same" / folder)
        for name, delta in wanted.items():
            torch.testing.assert_close(found[name], delta, rtol=1e-4, atol=1e-5)


def test_norms_and_heads_of_whole_models_come_back_for_each_task(tmp_path):
    torch.manual_seed(0)
    base = peft_models.bert()
    base.save_pretrained(tmp_path / "base")
    for seed, label in enumerate("ab"):
        fine_tuned(base, seed).save_pretrained(tmp_path / label)
    names = [tmp_path / "base", tmp_path / "a", tmp_path / "b"]
    report = intruscope.merge(*names, rule="emr").apply(tmp_path / "out")
    assert report.space == "dense"
    before, *tuned = ({k: v.double() for k, v in load_file(n / "model.safetensors").items()} for n in names)
    head = ("classifier", "bert.pooler")
    body = [name for name in before if not name.startswith(head)]
    expected = emr([{name: each[name] - before[name] for name in body} for each in tuned])
    for at, label in enumerate("ab"):
        live = live_state(names[0], tmp_path / "out" / label)
        for name, numbers in live.items():
            wanted = tuned[at][name] if name.startswith(head) else before[name] + expected[at][name]
            torch.testing.assert_close(numbers, wanted, rtol=1e-5, atol=1e-6, msg=name)


def live_state(base, adapter):
    """The model that losses are computed with."""
    opened = open_pair(base, adapter)
    made = place_adapter(opened, read_tensors(opened.base), config_of(opened.base), None, dtype=torch.float32)
    assert not made.random
    return {name: value.double() for name, value in made.model.state_dict().items()}


def test_a_task_is_scanned_like_any_adapter_and_the_folder_of_all_asks_for_one(tmp_path, monkeypatch):
    models = family("llama")
    intruscope.merge(*models.names[:3], rule="emr").apply(tmp_path / "out")
    report = intruscope.scan(
        models.names[0], tmp_path / "out" / "a", options=intruscope.RunOptions(workers=0)
    )
    assert report.complete
    assert {entry.status for entry in report.coverage if entry.origin == "adapter"} == {"compared"}
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "out" / "a")
        here = open_pair(models.names[0], ".").pairing
    assert [pair.name for pair in here.pairs] == [matrix.name for matrix in report.matrices]
    with pytest.raises(
        intruscope.IntruscopeError, match=r"2 adapters in sub-folders \(a, b\); name one of them"
    ):
        intruscope.scan(models.names[0], tmp_path / "out")


def test_adapters_heads_travel_with_their_tasks(tmp_path):
    torch.manual_seed(0)
    base = peft_models.bert()
    base.save_pretrained(tmp_path / "base")
    heads = {}
    for seed, label in enumerate("ab"):
        config = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
        model = get_peft_model(copy.deepcopy(base), config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(tmp_path / label)
        heads[label] = model.base_model.model.classifier.modules_to_save["default"].weight
    names = [tmp_path / name for name in ("base", "a", "b")]
    intruscope.merge(*names, rule="emr").apply(tmp_path / "out")
    for label in "ab":
        live = live_state(names[0], tmp_path / "out" / label)
        assert torch.equal(live["classifier.weight"], heads[label].double())
    one = intruscope.merge(*names, rule="emr", task="b").apply(tmp_path / "one")
    assert one.kept_heads == "b"


class Files:
    """Files of EMR-Merging to spoil."""

    def __init__(self, folder):
        models = family("llama")
        self.base, self.out = models.names[0], folder / "out"
        intruscope.merge(*models.names[:3], rule="emr").apply(self.out)
        self.unified = self.out / "emr_unified.safetensors"

    def refused(self, says, code):
        with pytest.raises(intruscope.IntruscopeError, match=says) as caught:
            intruscope.scan(self.base, self.out / "a")
        assert caught.value.exit_code == code


def test_what_tasks_share_is_read_from_beside_their_folders_alone(tmp_path):
    files = Files(tmp_path)
    shutil.copytree(files.out / "a", tmp_path / "elsewhere")
    with pytest.raises(intruscope.IntruscopeError, match="needs emr_unified.safetensors in the folder above"):
        intruscope.scan(files.base, tmp_path / "elsewhere")
    files.unified.rename(tmp_path / "secret")
    files.unified.symlink_to(tmp_path / "secret")
    files.refused("this is a link", 3)


def test_files_of_another_merge_and_masks_of_another_size_are_refused(tmp_path):
    files = Files(tmp_path)
    config = json.loads((files.out / "a" / "adapter_config.json").read_text())
    (files.out / "a" / "adapter_config.json").write_text(json.dumps({**config, "shared_id": "0" * 32}))
    files.refused("not of one merge", 4)
    (files.out / "a" / "adapter_config.json").write_text(json.dumps({**config, "rescaler": "x"}))
    files.refused("must be a finite number", 4)
    (files.out / "a" / "adapter_config.json").write_text(json.dumps(config))
    weights = files.out / "a" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({key: tensor[:-1] for key, tensor in tensors.items()}, weights)
    files.refused("the mask has another size", 4)


def test_folders_have_names_of_their_own():
    labels = ("a", "b/a", "b-a", "../x", "README.md", "adapter_model.safetensors", "")
    names = folder_names(labels)
    assert names[:4] == ("a", "b-a", "b-a-2", "x")
    assert len(set(names)) == len(labels)
    assert not {"README.md", "adapter_model.safetensors", "", "..", "."} & set(names)
