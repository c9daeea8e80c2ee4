"""What is written, byte for byte: copies where nothing is edited, whole folders or none, inputs untouched."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from repair_models import CONFIG, RANK, SHAPES, bases, factors, naive, truth, write_adapter, write_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from intruscope import RunOptions, ScanSettings, scan
from intruscope.errors import (
    IntruscopeError,
    MalformedInput,
    OutputConflict,
    ResourceExhausted,
    UnsupportedFormat,
    UsageError,
)
from intruscope.repair.interventions import KINDS
from intruscope.repair.manifest import MANIFEST_NAME
from intruscope.repair.plan import repair

INLINE = RunOptions(workers=0)


def plan_of(models, tuned="adapter", **options):
    options = {"strength": 0.5, "options": INLINE, **options}
    return repair(str(models / "base"), str(models / tuned), **options)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def raw(path):
    """Tensor to its bytes, read without our code."""
    with safe_open(path, "pt") as file:
        return {
            name: file.get_tensor(name).contiguous().flatten().view(torch.uint8).numpy().tobytes()
            for name in file.keys()  # noqa: SIM118 - it is no dict
        }


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


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("strength", [float("nan"), -0.5, float("inf")])
def test_a_strength_without_meaning_is_refused_before_anything_is_read(strength):
    with pytest.raises(UsageError, match="at least 0"):
        repair("nowhere/at-all", strength=strength)


@pytest.mark.parametrize("rank", [0, -3, True, "most"])
def test_a_rank_without_meaning_is_refused(models, rank):
    with pytest.raises(UsageError, match="expected exact, same or a number"):
        plan_of(models, rank=rank)
    with pytest.raises(UsageError, match="leave one of the two out"):
        plan_of(models, rank="same", compact=True)


def test_outputs_in_inputs_and_over_others_are_refused(models, tmp_path):
    plan = plan_of(models)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = digests(models)
    places = [models / "adapter", models / "base" / "out", tmp_path / "full", tmp_path / "file"]
    for place in [*places, tmp_path / "missing" / "out"]:
        with pytest.raises(OutputConflict):
            plan.apply(place)
        with pytest.raises(OutputConflict):
            plan_of(models, out=place)
    assert digests(models) == before
    assert (tmp_path / "full" / "x").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert plan.apply(tmp_path / "empty") == tmp_path / "empty"


@pytest.mark.parametrize(
    ("error", "kind"), [(28, ResourceExhausted), (13, OutputConflict), (122, ResourceExhausted)]
)
def test_a_disk_that_refuses_leaves_nothing_and_the_inputs_whole(models, tmp_path, monkeypatch, error, kind):
    from intruscope.weights.written import HashedFile

    write, written = HashedFile.write, []

    def full(self, data):
        written.append(len(data))
        if sum(written) > 5000:
            raise OSError(error, os.strerror(error))
        write(self, data)

    monkeypatch.setattr(HashedFile, "write", full)
    before = digests(models)
    with pytest.raises(kind):
        plan_of(models).apply(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert digests(models) == before


def test_too_little_room_is_said_before_writing(models, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ResourceExhausted, match="are free there"):
        plan_of(models).apply(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_changes_after_the_plan_is_noticed(models, tmp_path):
    for name in ("base", "adapter", "merged"):
        shutil.copytree(models / name, tmp_path / name)
    for tuned, file in (("adapter", "adapter_model.safetensors"), ("merged", "model.safetensors")):
        plan = plan_of(tmp_path, tuned)
        data = bytearray((tmp_path / tuned / file).read_bytes())
        data[-1] ^= 1
        (tmp_path / tuned / file).write_bytes(data)
        with pytest.raises(MalformedInput, match="changed"):
            plan.apply(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_of_two_repairs_to_one_place_one_wins(models, tmp_path):
    plan = plan_of(models)
    out = tmp_path / "out"

    def another(done, total):
        if not out.exists():
            out.mkdir()
            (out / "theirs").write_text("first")

    with pytest.raises(OutputConflict, match="another run"):
        plan.apply(out, on_progress=another)
    assert [entry.name for entry in out.iterdir()] == ["theirs"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_repair_that_is_stopped_leaves_nothing(models, tmp_path):
    class Stopped(BaseException):
        pass

    def stop(done, total):
        assert 0 < done <= total
        assert [entry.name.startswith(".out.") for entry in tmp_path.iterdir()] == [True]
        raise Stopped

    with pytest.raises(Stopped):
        plan_of(models, "merged").apply(tmp_path / "out", on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_matrix_that_is_not_finite_stops_the_repair(models, tmp_path):
    adapter = factors()
    adapter["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"][0, 0] = float("nan")
    folder = write_adapter(tmp_path / "adapter", adapter)
    with pytest.raises(MalformedInput, match="NaN or infinite"):
        repair(str(models / "base"), str(folder), strength=0.5, options=INLINE)


def test_a_quantised_base_is_refused_by_name(models, tmp_path):
    shutil.copytree(models / "base", tmp_path / "base")
    config = {**json.loads(CONFIG), "quantization_config": {"quant_method": "awq"}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    for tuned in ("adapter", "merged"):
        with pytest.raises(UnsupportedFormat, match="awq"):
            repair(str(tmp_path / "base"), str(models / tuned), strength=0.5, options=INLINE)


def test_formats_that_are_read_but_not_written_are_refused_by_name(models, tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    adapter = factors()
    loralib = {
        f"{name}.lora_A": adapter[f"base_model.model.{name}.lora_A.weight"],
        f"{name}.lora_B": adapter[f"base_model.model.{name}.lora_B.weight"],
    }
    (tmp_path / "loralib").mkdir()
    save_file(loralib, tmp_path / "loralib" / "adapter_model.safetensors")
    options = {"strength": 0.5, "options": INLINE, "lora_alpha": 6.0}
    arguments = (str(models / "base"), str(tmp_path / "loralib"))
    with pytest.raises(UnsupportedFormat, match="loralib.*--merged"):
        repair(*arguments, **options)
    repair(*arguments, **options, merged=True).apply(tmp_path / "merged")
    got = load_file(tmp_path / "merged" / "model.safetensors")[f"{name}.weight"]
    plan_of(models, merged=True).apply(tmp_path / "peft")
    twin = load_file(tmp_path / "peft" / "model.safetensors")[f"{name}.weight"]
    torch.testing.assert_close(got, twin)
    torch.save(load_file(models / "merged" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedFormat, match="pickles"):
        repair(
            str(models / "base"),
            str(tmp_path / "pytorch_model.bin"),
            strength=0.5,
            options=INLINE,
            allow_pickle=True,
        )


def test_the_old_format_of_fused_parts_is_merged_and_not_written(models, tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 48, generator=generator), torch.randn(32, 2, 1, generator=generator)
    key = f"base_model.model.{name}"
    old = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    folder = write_adapter(tmp_path / "old", old, r=2, lora_alpha=6, enable_lora=[True, False, True])
    arguments = (str(models / "base"), str(folder))
    with pytest.raises(UnsupportedFormat, match="enable_lora.*--merged"):
        repair(*arguments, strength=0.5, which=f"{name}:0", options=INLINE)
    repair(*arguments, strength=0.5, which=f"{name}:0", options=INLINE, merged=True).apply(tmp_path / "out")
    tuned = bases()[f"{name}.weight"].double()
    for part, group in ((0, 0), (2, 1)):
        rows, ranks = slice(16 * part, 16 * part + 16), slice(2 * group, 2 * group + 2)
        factor = up[16 * group : 16 * group + 16, :, 0].double()
        tuned[rows] += 3.0 * factor @ down[ranks].double()
    left, values, right_t = torch.linalg.svd(tuned)
    expected = tuned - 0.5 * values[0] * torch.outer(left[:, 0], right_t[0])
    got = load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"].double()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_pickled_adapter_is_written_as_safetensors(models, tmp_path):
    (tmp_path / "adapter").mkdir()
    torch.save(factors(), tmp_path / "adapter" / "adapter_model.bin")
    shutil.copy(models / "adapter" / "adapter_config.json", tmp_path / "adapter")
    options = {"strength": 0.5, "options": INLINE, "allow_pickle": True}
    repair(str(models / "base"), str(tmp_path / "adapter"), **options).apply(tmp_path / "out")
    plan_of(models).apply(tmp_path / "twin")
    names = ("out", "twin")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in names)
    assert set(one) == set(two)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not (tmp_path / "out" / "adapter_model.bin").exists()
    copied = repair(str(models / "base"), str(tmp_path / "adapter"), **{**options, "strength": 1.0})
    copied.apply(tmp_path / "copy")
    assert (
        digests(tmp_path / "copy")["adapter_model.bin"] == digests(tmp_path / "adapter")["adapter_model.bin"]
    )


def test_what_a_checkpoint_has_no_place_for_is_refused_by_name(models, tmp_path):
    extra = {"base_model.model.classifier.weight": torch.randn(3, 48)}
    folder = write_adapter(tmp_path / "headed", {**factors(), **extra}, modules_to_save=["classifier"])
    with pytest.raises(UnsupportedFormat, match="classifier.*without --merged"):
        repair(str(models / "base"), str(folder), strength=0.5, options=INLINE, merged=True)
    repair(str(models / "base"), str(folder), strength=0.5, options=INLINE).apply(tmp_path / "out")
    kept = raw(tmp_path / "out" / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    assert kept == raw(folder / "adapter_model.safetensors")["base_model.model.classifier.weight"]
    grown = {
        "base_model.model.model.embed_tokens.weight": torch.randn(44, 48),
        **factors(),
    }
    folder = write_adapter(tmp_path / "grown", grown, modules_to_save=["embed_tokens"])
    with pytest.raises(UnsupportedFormat, match="resized vocabulary"):
        repair(str(models / "base"), str(folder), strength=0.5, options=INLINE, merged=True)


def test_every_refusal_says_what_to_do(models):
    with pytest.raises(IntruscopeError) as caught:
        plan_of(models, which="nothing.like.this")
    assert caught.value.remedy.startswith("did you mean")
