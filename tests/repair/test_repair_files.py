"""What is written, byte for byte: copies where nothing is edited, and the edit where something is."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from repair_models import (
    CONFIG,
    INLINE,
    RANK,
    SHAPES,
    bases,
    digests,
    factors,
    naive,
    plan_of,
    raw,
    truth,
    write_checkpoint,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from intruscope import ScanSettings, scan
from intruscope.repair.interventions import INTERVENTIONS
from intruscope.repair.manifest import MANIFEST_NAME
from intruscope.repair.plan import repair


@pytest.fixture
def rich(models, tmp_path):
    """The models with everything that lies beside weights on the hub."""
    for name in ("base", "adapter", "merged"):
        shutil.copytree(models / name, tmp_path / name)
    for name in ("adapter", "merged"):
        (tmp_path / name / "README.md").write_text("---\nlibrary_name: x\n---\nMine.\n")
        (tmp_path / name / "tokenizer.json").write_text("{}")
        (tmp_path / name / "LICENSE").write_text("free")
        (tmp_path / name / "custom.py").write_text("1")
        (tmp_path / name / "training_args.bin").write_bytes(b"x")
        (tmp_path / name / "model.gguf").write_bytes(b"gguf")
        (tmp_path / name / "checkpoint-5").mkdir()
        (tmp_path / name / "checkpoint-5" / "config.json").write_text("{}")
        (tmp_path / name / "1_Pooling").mkdir()
        (tmp_path / name / "1_Pooling" / "config.json").write_text("{}")
    return tmp_path


BESIDE = {"README.md", "tokenizer.json", "LICENSE", "custom.py", "1_Pooling/config.json", MANIFEST_NAME}


@pytest.mark.parametrize("tuned", ["adapter", "merged"])
@pytest.mark.parametrize("why", ["strength", "nothing"])
def test_without_an_edit_the_output_is_a_faithful_copy_with_its_manifest(rich, tuned, why):
    before = digests(rich)
    quiet = {"settings": ScanSettings(epsilon=0.001)} if why == "nothing" else {"strength": 1.0}
    plan = plan_of(rich, tuned, **quiet)
    assert plan.is_copy
    assert [finding.code for finding in plan.findings] == ["nothing-to-repair"]
    plan.apply(rich / "out")
    copied = digests(rich / "out")
    manifest = json.loads((rich / "out" / MANIFEST_NAME).read_text())
    del copied[MANIFEST_NAME]
    source = {"adapter": "adapter_model.safetensors", "merged": "model.safetensors"}[tuned]
    config = {"adapter": "adapter_config.json", "merged": "config.json"}[tuned]
    assert set(copied) == (BESIDE | {source, config}) - {MANIFEST_NAME}
    assert all(before[f"{tuned}/{name}"] == digest for name, digest in copied.items())
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == copied
    assert manifest["nothing_to_repair"] is True
    assert manifest["not_copied"] == ["checkpoint-5/", "model.gguf", "training_args.bin"]
    assert {name: digest for name, digest in digests(rich).items() if not name.startswith("out/")} == before


def test_a_repaired_adapter_keeps_what_it_is_not_about(rich):
    plan = plan_of(rich)
    plan.apply(rich / "out")
    assert set(digests(rich / "out")) == BESIDE | {"adapter_model.safetensors", "adapter_config.json"}
    before = json.loads((rich / "adapter" / "adapter_config.json").read_text())
    after = json.loads((rich / "out" / "adapter_config.json").read_text())
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
    assert after["r"] == after["lora_alpha"] == RANK + 1
    card = (rich / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: x\n---\nMine.\n\n## Repaired with Intruscope\n")
    assert "3 intruder dimensions in 3 matrices were multiplied by 0.5" in card
    assert "share of the update" in card
    assert str(rich) not in card
    with safe_open(rich / "out" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    manifest = json.loads((rich / "out" / MANIFEST_NAME).read_text())
    assert manifest["schema"] == "intruscope.repair/1"
    for name, entry in manifest["files"].items():
        content = (rich / "out" / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert (rich / "out").stat().st_mode & 0o777 == 0o777 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("options", [{"compact": True}, {"rank": "same"}], ids=["compact", "same"])
def test_modules_that_are_not_edited_keep_their_bytes(models, tmp_path, options):
    plan = plan_of(models, **options)
    plan.apply(tmp_path / "out")
    before, after = (raw(f / "adapter_model.safetensors") for f in (models / "adapter", tmp_path / "out"))
    edited = {matrix.name for matrix in plan.matrices}
    for key, data in before.items():
        name = key.removeprefix("base_model.model.").partition(".lora_")[0]
        assert (after[key] == data) == (name not in edited), key
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    if "compact" in options:
        assert config["r"] == RANK
        assert config["rank_pattern"] == dict.fromkeys(edited, RANK + 1) == config["alpha_pattern"]
        assert list(config["rank_pattern"]) == sorted(edited, key=len, reverse=True)


def test_ranks_that_cut_say_how_much_they_lose(models, tmp_path):
    base, adapter = bases(), factors()
    plan = plan_of(models, rank="same", which="all", strength=0.2)
    plan.apply(tmp_path / "out")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    total = 0.0
    for module in plan.modules:
        before, update = truth(module.name, base, adapter)
        left, values, right, intruders = naive(before, update)
        left, values, right = (torch.from_numpy(part.copy()) for part in (left, values, right))
        wanted = update - 0.8 * (left[:, intruders] * values[intruders]) @ right[:, intruders].T
        _, stored = truth(module.name, base, written)
        lost = torch.linalg.svdvals(wanted)[RANK:]
        error = float((wanted - stored).norm())
        assert error == pytest.approx(float(lost.norm()), abs=1e-5)  # no better one exists
        assert module.frobenius_error == pytest.approx(error, abs=1e-5)
        assert module.spectral_error == pytest.approx(float(lost[0]) if intruders else 0.0, abs=1e-5)
        total += error**2
    (cut,) = [finding for finding in plan.findings if finding.code == "rank-cut"]
    assert f"{total**0.5:.3g}"[:4] in cut.message
    exact = plan_of(models, which="all", strength=0.2)
    assert not any(module.frobenius_error for module in exact.modules)
    assert exact.stored_rank == RANK + max(len(m.vectors) for m in exact.matrices)


def test_a_rank_above_the_servers_limit_is_warned_of(models):
    assert not any(f.code == "rank-above-servers" for f in plan_of(models).findings)
    for options in ({"rank": 17}, {"which": "*:0+1+2+3+4+5+6+7+8+9", "settings": ScanSettings(k=13)}):
        plan = plan_of(models, **options)
        assert any(f.code == "rank-above-servers" for f in plan.findings) == (plan.stored_rank > 16)
    assert plan_of(models, rank=17).stored_rank == 17


def sharded(folder, tensors, dtype):
    """Three files, an index, and metadata of its own in each."""
    folder.mkdir()
    names, weight_map = sorted(tensors), {}
    for number in range(3):
        file = f"model-0000{number + 1}-of-00003.safetensors"
        part = {name: tensors[name].to(dtype) for name in names[number::3]}
        save_file(part, folder / file, metadata={"format": "pt", "part": str(number)})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=3))
    (folder / "config.json").write_text(CONFIG)
    return weight_map


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_checkpoint_keeps_dtype_shards_metadata_and_untouched_bytes(models, tmp_path, dtype):
    tuned = load_file(models / "merged" / "model.safetensors")
    tuned["model.layers.0.mlp.gate.inv_freq"] = torch.arange(4.0)
    shard_of = sharded(tmp_path / "tuned", tuned, dtype)
    plan = repair(str(models / "base"), str(tmp_path / "tuned"), strength=0.25, options=INLINE)
    plan.apply(tmp_path / "out")
    edited = {f"{matrix.name}.weight" for matrix in plan.matrices}
    assert 0 < len(edited) < len(SHAPES)
    before, after = digests(tmp_path / "tuned"), digests(tmp_path / "out")
    assert set(after) == set(before) | {MANIFEST_NAME, "README.md"}
    assert after["model.safetensors.index.json"] == before["model.safetensors.index.json"]
    for file in set(shard_of.values()):
        touched = any(shard_of[name] == file for name in edited)
        assert (after[file] == before[file]) != touched
        one, two = tmp_path / "tuned" / file, tmp_path / "out" / file
        length = int.from_bytes(one.read_bytes()[:8], "little")
        assert one.read_bytes()[: 8 + length] == two.read_bytes()[: 8 + length]
        old, new = raw(one), raw(two)
        assert {name for name in old if old[name] != new[name]} == edited & set(old)
        for name in edited & set(old):
            matrix = load_file(one)[name].double()
            first = load_file(models / "base" / "model.safetensors")[name].double()
            left, values, right, intruders = naive(first, matrix - first)
            i = intruders[0]
            outer = torch.outer(torch.from_numpy(left[:, i].copy()), torch.from_numpy(right[:, i].copy()))
            expected = matrix - 0.75 * values[i] * outer
            got = load_file(two)[name]
            assert got.dtype == dtype
            error = (got.double() - expected).abs()
            ulp = torch.finfo(dtype).eps * expected.abs() / 2 + (1e-5 if dtype == torch.float32 else 1e-6)
            assert bool((error <= ulp).all()), float((error / ulp).max())


def test_the_merged_checkpoint_of_an_adapter_is_base_plus_update_plus_edit(models, tmp_path):
    plan = plan_of(models, merged=True, strength=0.0)
    plan.apply(tmp_path / "out")
    base, adapter = bases(), factors()
    got = load_file(tmp_path / "out" / "model.safetensors")
    for name in SHAPES:
        before, update = truth(name, base, adapter)
        left, values, right, intruders = naive(before, update)
        expected = before + update
        for i in intruders[:1]:
            expected = expected - values[i] * torch.outer(
                torch.from_numpy(left[:, i].copy()), torch.from_numpy(right[:, i].copy())
            )
        torch.testing.assert_close(got[f"{name}.weight"].double(), expected, rtol=0, atol=1e-5)
    untouched = raw(models / "base" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert raw(tmp_path / "out" / "model.safetensors")[name] == untouched[name]
    unedited = plan_of(models, merged=True, strength=1.0)
    assert not unedited.is_copy
    unedited.apply(tmp_path / "plain")
    report = scan(str(tmp_path / "plain"), str(models / "merged"), options=INLINE)
    assert max(m.update.relative_frobenius_norm for m in report.matrices if m.scope == "paper") < 1e-6


@pytest.mark.parametrize("kind", INTERVENTIONS)
@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "checkpoint"])
def test_every_intervention_is_written_as_it_says(models, tmp_path, kind, merged):
    plan = plan_of(models, control=kind, strength=0.8, seed=4, merged=merged)
    plan.apply(tmp_path / "out")
    base, adapter = bases(), factors()
    written = load_file(tmp_path / "out" / ("model.safetensors" if merged else "adapter_model.safetensors"))
    changed = 0
    for name in SHAPES:
        before, update = truth(name, base, adapter)
        edit = plan.changed.get(name)
        expected = before + update if edit is None else edit.applied(before, before + update)
        if merged:
            got = written[f"{name}.weight"].double()
        else:
            config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
            down, up = (written[f"base_model.model.{name}.lora_{f}.weight"].double() for f in "AB")
            got = before + config["lora_alpha"] / config["r"] * up @ down
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        changed += float((expected - before - update).norm()) > 1e-2
    assert changed >= 2
    manifest = json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
    assert (manifest["control"], manifest["strength"], manifest["seed"]) == (kind, 0.8, 4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("(a control)" in card) == (kind != "intruders")


def test_tied_words_stay_tied(models, tmp_path):
    tuned = load_file(models / "merged" / "model.safetensors")
    base = bases()
    for folder, tensors in (("base", base), ("tuned", tuned)):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        write_checkpoint(tmp_path / folder, tensors)
    arguments = (str(tmp_path / "base"), str(tmp_path / "tuned"))
    plan = repair(*arguments, strength=0.5, which="model.embed_tokens:0+1", options=INLINE)
    plan.apply(tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(got["lm_head.weight"], got["model.embed_tokens.weight"])
    matrix = tuned["model.embed_tokens.weight"].double()
    left, values, right_t = torch.linalg.svd(matrix, full_matrices=False)
    expected = matrix - 0.5 * (left[:, :2] * values[:2]) @ right_t[:2]
    torch.testing.assert_close(got["lm_head.weight"].double(), expected, rtol=0, atol=1e-5)
    for folder in ("base", "tuned"):
        (tmp_path / folder / "config.json").write_text(
            json.dumps({**json.loads(CONFIG), "tie_word_embeddings": False})
        )
    plan = repair(*arguments, strength=0.5, which="model.embed_tokens:0+1", options=INLINE)
    plan.apply(tmp_path / "untied")
    loose = load_file(tmp_path / "untied" / "model.safetensors")
    assert torch.equal(loose["lm_head.weight"], tuned["lm_head.weight"])


def test_a_single_file_takes_only_its_config_along(models, tmp_path):
    folder = tmp_path / "loose"
    shutil.copytree(models / "merged", folder)
    (folder / "diary.txt").write_text("private")
    file = folder / "model.safetensors"
    plan = repair(str(models / "base"), str(file), strength=0.5, options=INLINE)
    plan.apply(tmp_path / "out")
    assert set(digests(tmp_path / "out")) == {"model.safetensors", "config.json", MANIFEST_NAME, "README.md"}


def test_energy_before_and_after_is_that_of_the_written_matrices(models, tmp_path):
    """And a second scan still counts the same vectors: the plan said so."""
    base, adapter = bases(), factors()
    plan = plan_of(models, strength=0.6, which="all")
    plan.apply(tmp_path / "out")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    again = scan(str(models / "base"), str(tmp_path / "out"), options=INLINE)
    rescanned = {matrix.name: matrix for matrix in again.matrices}
    for matrix in plan.matrices:
        before, update = truth(matrix.name, base, adapter)
        left, _, right, intruders = (
            torch.from_numpy(part.copy()) if not isinstance(part, list) else part
            for part in naive(before, update)
        )
        left, right = left[:, intruders], right[:, intruders]
        down, up = (written[f"base_model.model.{matrix.name}.lora_{f}.weight"].double() for f in "AB")
        new_update = config["lora_alpha"] / config["r"] * up @ down
        for whole, energy in ((before, matrix.tuned), (torch.zeros_like(before), matrix.update)):
            first, second = whole + update, whole + new_update
            assert energy.before == pytest.approx(float(first.square().sum()), rel=1e-5)
            assert energy.after == pytest.approx(float(second.square().sum()), rel=1e-5)
            inside = [float((left.T @ m @ right).square().sum()) for m in (first, second)]
            assert energy.intruders_before == pytest.approx(inside[0], rel=1e-5)
            assert energy.intruders_after == pytest.approx(inside[1], rel=1e-4)
        side = rescanned[matrix.name].sides[0]
        values = rescanned[matrix.name].singular_values
        for vector in matrix.vectors:
            if vector.still_counted:
                at = min(range(len(values)), key=lambda i: abs(values[i] - vector.after))
                assert values[at] == pytest.approx(vector.after, rel=1e-4)
                assert side.verdicts[at] == "intruder"
    assert any(vector.still_counted for m in plan.matrices for vector in m.vectors)
    removed = plan_of(models, strength=0.0, which="all")
    assert not any(vector.still_counted for m in removed.matrices for vector in m.vectors)


# --- what is refused, and what is left behind -------------------------------------------------------
