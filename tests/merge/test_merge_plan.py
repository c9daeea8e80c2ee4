"""What PEFT loads is the base with the merged update, by the formula on explicit updates."""

import json

import pytest
import torch
from merge_models import CASES, changes, family, logits
from peft import PeftModel
from safetensors.torch import load_file, save_file

import intruscope
from intruscope.merge import MergeReport

pytestmark = pytest.mark.filterwarnings("ignore")
LOW_RANK = [name for name in CASES if name != "dora"]


def combined(found, formula):
    """The formula on the explicit updates of every module that any fine-tune changes."""
    names = dict.fromkeys(name for deltas in found for name in deltas)
    zeros = {n: torch.zeros_like(next(d[n] for d in found if n in d)) for n in names}
    return {name: formula([deltas.get(name, zeros[name]) for deltas in found]) for name in names}


def ties(parts, density):
    """TIES on one matrix, entry by entry."""
    kept = []
    for part in parts:
        smallest = (
            part.abs().flatten().sort(descending=True).values[max(1, round(density * part.numel())) - 1]
        )
        kept.append(torch.where(part.abs() >= smallest, part, 0.0))
    merged = torch.zeros_like(parts[0])
    for row in range(merged.shape[0]):
        for column in range(merged.shape[1]):
            values = [float(part[row, column]) for part in kept]
            sign = torch.tensor(sum(values)).sign()
            agreeing = [value for value in values if value * sign > 0]
            merged[row, column] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return merged


@pytest.mark.parametrize("name", LOW_RANK)
def test_the_exported_adapter_gives_peft_the_weighted_sum(name, tmp_path):
    models = family(name)
    plan = intruscope.merge(*models.names[:3], rule="sum", weights=(0.5, -1.5), scaling=0.8)
    report = plan.apply(tmp_path / "out")
    assert report.writes == plan.report.writes == "adapter"
    expected = combined(
        [models.deltas(path) for path in models.names[1:3]], lambda d: 0.8 * (0.5 * d[0] - 1.5 * d[1])
    )
    loaded = models.loaded(tmp_path / "out")
    torch.testing.assert_close(
        logits(models.loaded(tmp_path / "out")), logits(models.with_deltas(expected)), rtol=1e-5, atol=1e-5
    )
    found = changes(models.base, loaded.double().merge_and_unload())
    assert found.keys() == expected.keys()
    for module, delta in expected.items():
        torch.testing.assert_close(found[module], delta, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == report.rank
    assert report.rank == max(module.rank for module in report.modules)
    assert not config["use_rslora"]
    assert not config["rank_pattern"]
    for module in report.modules:
        assert module.rank <= sum(module.ranks)
        norms = [float(models.deltas(path)[module.module].norm()) if rank else 0.0
                 for path, rank in zip(models.names[1:3], module.ranks, strict=True)]  # fmt: skip
        assert module.update_norms == pytest.approx(norms, rel=1e-6)
        assert module.merged_norm == pytest.approx(float(expected[module.module].norm()), rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_sum_and_mean_are_what_pefts_cat_gives(name, tmp_path):
    models = family(name)
    same = [models.folder / "a", models.add("c", CASES[name][1], seed=7)]
    models.names.pop()
    peft = models.loaded(same[0])
    peft.load_adapter(same[1], "second")
    peft.add_weighted_adapter(["default", "second"], [0.5, 0.5], "cat", combination_type="cat")
    peft.set_adapter("cat")
    for rule, weights in (("mean", None), ("sum", (0.5, 0.5))):
        intruscope.merge(models.names[0], *same, rule=rule, weights=weights).apply(tmp_path / rule)
        ours = models.loaded(tmp_path / rule)
        torch.testing.assert_close(logits(ours), logits(peft), rtol=1e-5, atol=1e-5)


def test_ties_of_whole_updates_is_the_published_one_entry_by_entry(tmp_path):
    models = family("llama")
    report = intruscope.merge(
        *models.names[:3], rule="ties", space="dense", trim="matrix", density=0.3
    ).apply(tmp_path / "out")
    assert report.writes == "checkpoint"
    found = changes(models.base, type(models.base).from_pretrained(tmp_path / "out"))
    expected = combined([models.deltas(path) for path in models.names[1:3]], lambda d: ties(d, 0.3))
    for module, delta in expected.items():
        torch.testing.assert_close(found[module], delta, rtol=1e-5, atol=1e-6)


def test_entries_are_ranked_over_all_matrices_unless_told_otherwise(tmp_path):
    models = family("llama")
    deltas = [models.deltas(path) for path in models.names[1:3]]
    names = combined(deltas, len)
    whole = [
        torch.cat([d.get(n, torch.zeros_like(deltas[0].get(n, deltas[1].get(n)))).flatten() for n in names])
        for d in deltas
    ]
    kept = [
        torch.where(w.abs() >= w.abs().sort(descending=True).values[round(0.2 * len(w)) - 1], w, 0.0)
        for w in whole
    ]
    expected = ties(kept and [k[None] for k in kept], 1.0).flatten()
    intruscope.merge(*models.names[:3], rule="ties", space="dense").apply(tmp_path / "out")
    found = changes(models.base, type(models.base).from_pretrained(tmp_path / "out"))
    flat = torch.cat([found[n].flatten() if n in found else torch.zeros(0) for n in names if n in found])
    sizes = {n: deltas[0].get(n, deltas[1].get(n)).numel() for n in names}
    parts = dict(zip(names, expected.split(list(sizes.values())), strict=True))
    torch.testing.assert_close(flat, torch.cat([parts[n] for n in names if n in found]), rtol=1e-5, atol=1e-6)
    assert all(not parts[n].any() for n in names if n not in found)


@pytest.mark.parametrize("space", ["dense", "core", "knots"])
def test_copies_of_one_adapter_under_ties_are_that_adapter(space, tmp_path):
    models = family("gpt2")
    path = models.names[1]
    intruscope.merge(models.names[0], path, path, path, rule="ties", space=space, density=1.0, rank=2).apply(
        tmp_path / "out"
    )
    found = models.deltas(tmp_path / "out")
    for module, delta in models.deltas(path).items():
        torch.testing.assert_close(found[module], delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "asked",
    [
        {"rule": "ties"}, {"rule": "ties", "space": "dense", "rank": 6}, {"rule": "knots"}, {"rule": "tsv"},
        {"rule": "iso"}, {"rule": "svc"}, {"rule": "pico"}, {"rule": "mean"},
    ],
    ids=str,
)  # fmt: skip
def test_the_way_an_adapter_is_factored_and_the_order_change_nothing(asked, tmp_path):
    models = family("llama")
    base, first, second = models.names[:3]
    turned = tmp_path / "a"
    turned.mkdir()
    tensors = load_file(first / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for key in [key for key in tensors if ".lora_A." in key]:
        gauge = torch.eye(4) + 0.3 * torch.randn(4, 4, generator=generator)
        other = key.replace(".lora_A.", ".lora_B.")
        tensors[key] = gauge @ tensors[key]
        tensors[other] = tensors[other] @ gauge.inverse()
    save_file(tensors, turned / "adapter_model.safetensors")
    (turned / "adapter_config.json").write_bytes((first / "adapter_config.json").read_bytes())
    intruscope.merge(base, first, second, **asked).apply(tmp_path / "one")
    intruscope.merge(base, second, turned, **asked).apply(tmp_path / "other")
    one, other = models.deltas(tmp_path / "one"), models.deltas(tmp_path / "other")
    assert one.keys() == other.keys()
    for module, delta in one.items():
        assert float((other[module] - delta).norm() / delta.norm()) < 1e-4, module


def test_a_rank_cuts_and_the_error_is_the_smallest_possible(tmp_path):
    models = family("llama")
    report = intruscope.merge(*models.names[:3], rule="sum", rank=2).apply(tmp_path / "out")
    assert report.rank == 2
    deltas = [models.deltas(path) for path in models.names[1:3]]
    expected = combined(deltas, sum)
    lost = {}
    for module in report.modules:
        values = torch.linalg.svdvals(expected[module.module])
        lost[module.name] = float(values[2:].square().sum().sqrt())
        assert module.relative_error == pytest.approx(
            lost[module.name] / float(values.norm()), rel=1e-4, abs=1e-6
        )
    total = sum(float(delta.norm()) ** 2 for delta in expected.values()) ** 0.5
    assert report.relative_error == pytest.approx(sum(x**2 for x in lost.values()) ** 0.5 / total, rel=1e-4)
    (finding,) = [each for each in report.findings if each.code == "rank-cut"]
    assert f"{report.relative_error:.3g}" in finding.message
    assert report.worst.relative_error == max(module.relative_error for module in report.modules)
    found = models.deltas(tmp_path / "out")
    for name, delta in expected.items():
        error = float((found[name] - delta).norm())
        described = next(module for module in report.modules if module.module == name)
        assert error == pytest.approx(described.relative_error * float(delta.norm()), rel=1e-3, abs=1e-5)


def test_a_dense_update_beside_factors_gives_a_checkpoint_or_an_adapter_of_a_rank(tmp_path):
    models = family("dora")
    deltas = [models.deltas(path) for path in models.names[1:3]]
    expected = combined(deltas, sum)
    plan = intruscope.merge(*models.names[:3], rule="sum")
    assert plan.report.writes == "checkpoint"
    plan.apply(tmp_path / "model")
    found = changes(models.base, type(models.base).from_pretrained(tmp_path / "model"))
    intruscope.merge(*models.names[:3], rule="sum", rank=16).apply(tmp_path / "adapter")
    again = models.deltas(tmp_path / "adapter")
    for module, delta in expected.items():
        torch.testing.assert_close(found[module], delta, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again[module], delta, rtol=1e-4, atol=1e-5)


def test_float16_inputs_are_merged_in_float64_and_can_be_written_so(tmp_path):
    models = family("llama")
    halved = []
    for path in models.names[1:3]:
        copy = tmp_path / f"half-{path.name}"
        copy.mkdir()
        tensors = load_file(path / "adapter_model.safetensors")
        save_file({k: v.half() for k, v in tensors.items()}, copy / "adapter_model.safetensors")
        (copy / "adapter_config.json").write_bytes((path / "adapter_config.json").read_bytes())
        halved.append(copy)
    report = intruscope.merge(models.names[0], *halved, rule="tsv", dtype="float16").apply(tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out" / "adapter_model.safetensors").values()} == {
        torch.float16
    }
    assert 1e-5 < report.relative_error < 1e-3  # the rounding of the output alone, as measured
    intruscope.merge(*models.names[:3], rule="tsv").apply(tmp_path / "wide")
    one, other = models.deltas(tmp_path / "out"), models.deltas(tmp_path / "wide")
    for module, delta in other.items():
        assert float((one[module] - delta).norm() / delta.norm()) < 3e-3


def test_lambda_is_the_strength_of_the_whole_update(tmp_path):
    """So that a sweep over the strengths of ``uniform`` is a sweep over lambda."""
    models = family("llama")
    intruscope.merge(*models.names[:3], rule="ties").apply(tmp_path / "one")
    intruscope.merge(*models.names[:3], rule="ties", scaling=0.4).apply(tmp_path / "less")
    repaired = intruscope.repair(
        models.names[0], tmp_path / "one", control="uniform", strength=0.4,
        options=intruscope.RunOptions(workers=0),
    )  # fmt: skip
    repaired.apply(tmp_path / "shrunk")
    for module, delta in models.deltas(tmp_path / "less").items():
        torch.testing.assert_close(models.deltas(tmp_path / "shrunk")[module], delta, rtol=1e-5, atol=1e-6)


def test_what_is_written_is_scanned_and_its_record_reads_back(tmp_path):
    models = family("llama")
    report = intruscope.merge(*models.names[:3]).apply(tmp_path / "out")
    scan = intruscope.scan(models.names[0], tmp_path / "out", options=intruscope.RunOptions(workers=0))
    assert scan.complete
    assert {matrix.name for matrix in scan.matrices} == {module.name for module in report.modules}
    for matrix in scan.matrices:
        described = next(module for module in report.modules if module.name == matrix.name)
        assert matrix.update.frobenius_norm == pytest.approx(described.merged_norm, rel=1e-5)
    assert MergeReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert len(list(report.rows())) == 2 * len(report.modules)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model_relation: merge" in card
    assert "| `a` | 1 |" in card
    assert str(models.folder) not in card
    assert report._repr_html_().count("<table>") == 1


def test_models_in_memory_are_merged_like_files(tmp_path):
    models = family("llama")
    tuned = [models.loaded(path) for path in models.names[1:3]]
    intruscope.merge(models.base, *tuned, rule="sum").apply(tmp_path / "out")
    intruscope.merge(*models.names[:3], rule="sum").apply(tmp_path / "files")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "files"))
    for key, tensor in other.items():
        torch.testing.assert_close(one[key], tensor)
    assert PeftModel.from_pretrained(models.fresh(), tmp_path / "out")
