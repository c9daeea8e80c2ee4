"""``intruscope merge`` from outside: what it says and writes, and that it refuses cleanly."""

import json
import sys
from pathlib import Path

import pytest
import torch
from merge_models import family, fine_tuned, peft_models
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from cli_support import assert_message, fingerprint, invoke, matrices, name_of, write_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def models():
    return family("llama")


def spoiled(models, folder, change):
    """A copy of the first adapter with its tensors or config changed."""
    folder.mkdir()
    tensors = load_file(models.folder / "a" / "adapter_model.safetensors")
    config = json.loads((models.folder / "a" / "adapter_config.json").read_text())
    tensors, config = change(dict(tensors), config)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_plan_is_printed_and_writes_nothing(models, tmp_path):
    done = invoke("merge", *models.names[:3], "--rule", "ties", "--dry-run", "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "2 fine-tunes merged into a LoRA adapter of rank 7 at most." in text
    assert "core, basis update" in text
    assert "lambda 1, density 0.2, ranked over all matrices" in text
    assert "4 + 3" in text
    assert "partly-changed" in text
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["schema"] == "intruscope.merge/1"
    assert record["writes"] == "adapter"
    assert record["out"] is None
    ranks = {module["name"]: module["ranks"] for module in record["modules"]}
    assert ranks["model.layers.0.self_attn.q_proj"] == [4, 3]
    assert ranks["model.layers.0.mlp.up_proj"] == [0, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_merge_is_written_with_its_figures_and_leaves_the_inputs_alone(models, tmp_path):
    before = fingerprint(models.folder)
    out = tmp_path / "out"
    arguments = ("--rule", "ties", "--lambda", "0.6", "--weights", "0.5,1", "--density", "0.4")
    done = invoke("merge", *models.names[:3], *arguments, "-o", out, "--parquet", tmp_path / "rows.parquet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["written:", str(out)]
    manifest = json.loads((out / "intruscope_merge.json").read_text())
    assert manifest["settings"]["scaling"] == 0.6
    assert manifest["settings"]["weights"] == [0.5, 1.0]
    assert manifest["density"] == 0.4
    assert set(manifest["files"]) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert all(module["relative_error"] < 1e-6 for module in manifest["modules"])
    assert fingerprint(models.folder) == before
    assert (tmp_path / "rows.parquet").stat().st_size


def test_emr_says_what_its_files_weigh(models, tmp_path):
    done = invoke("merge", *models.names[:3], "--rule", "emr", "--space", "dense", "-o", tmp_path / "out")
    text = " ".join(done.stdout.split())
    assert "2 tasks with one unified update, and a mask and a rescaler for each" in text
    assert "unified, 0.00 MiB of masks; the fine-tunes:" in text
    assert "more than the fine-tunes themselves" in text


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ((), 2, "no output folder given"),
        (("--rule", "tise", "-o", "OUT"), 2, "--rule must be 'sum', 'mean', 'ties'"),
        (("--weights", "1", "-o", "OUT"), 2, "there are 1 weights for 2 updates"),
        (("--weights", "1,-1", "-o", "OUT"), 2, "the weights sum to 0"),
        (("--weights", "0,0", "--rule", "sum", "-o", "OUT"), 2, "finite numbers, and not all 0"),
        (("--weights", "1,nan", "-o", "OUT"), 2, "--weights must be"),
        (
            ("--density", "0", "--rule", "ties", "-o", "OUT"),
            2,
            "--density must be a number above 0 and at most 1",
        ),
        (("--density", "1.5", "--rule", "ties", "-o", "OUT"), 2, "--density must be a number above 0"),
        (
            ("--rule", "knots", "--space", "core", "-o", "OUT"),
            2,
            "the rule knots is defined in the space knots",
        ),
        (("--rank", "2", "--merged", "-o", "OUT"), 2, "--rank writes an adapter and --merged a checkpoint"),
        (("--rule", "emr", "--merged", "-o", "OUT"), 2, "no task says which one to write"),
        (("--rule", "emr", "--rank", "2", "-o", "OUT"), 2, "no task says which one to write"),
        (("--rule", "emr", "--task", "c", "-o", "OUT"), 2, "--task c is none of the fine-tunes (a, b)"),
        (("--rule", "emr", "--heads", "a", "-o", "OUT"), 2, "each task keeps its own heads"),
        (("--task", "a", "-o", "OUT"), 2, "the rule mean makes a single model"),
        (("--heads", "c", "-o", "OUT"), 2, "--heads c is none of the fine-tunes (a, b)"),
        (("-o", "FULL"), 7, "the output folder is not empty"),
        (("-o", "A/out"), 7, "lies in the input"),
        (("--dry-run", "--json", "A/plan.json"), 7, "lies in the input"),
    ],
    ids=str,
)
def test_requests_that_make_no_sense_are_refused(models, tmp_path, options, code, says):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    places = {"OUT": tmp_path / "out", "FULL": tmp_path / "full", "A": models.folder / "a"}

    def placed(text):
        first, slash, rest = text.partition("/")
        return f"{places[first]}{slash}{rest}" if first in places else text

    before = fingerprint(models.folder)
    done = invoke("merge", *models.names[:3], *map(placed, options))
    assert_message(done, code, says)
    assert fingerprint(models.folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_difference_of_two_fine_tunes_is_a_sum(models, tmp_path):
    options = ("--rule", "sum", "--weights", "1,-1", "-o", tmp_path / "out", "-q")
    done = invoke("merge", *models.names[:3], *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size


def test_fine_tunes_that_do_not_go_together_are_refused(models, tmp_path):
    base, first, second = models.names[:3]
    out = tmp_path / "out"
    assert_message(
        invoke("merge", base, first, "-o", out), 2, "1 fine-tune is given, and at least 2 are needed"
    )
    other = spoiled(
        models, tmp_path / "other", lambda t, c: (t, {**c, "base_model_name_or_path": "x/another"})
    )
    assert_message(invoke("merge", base, other, second, "-o", out), 2, "the adapters name different bases")
    assert invoke("merge", base, other, second, "--same-base", "--dry-run").returncode == 0
    wide = spoiled(
        models,
        tmp_path / "wide",
        lambda t, c: ({k: v.repeat(1, 2) if "A" in k else v for k, v in t.items()}, c),
    )
    assert_message(invoke("merge", base, wide, second, "-o", out), 4, "the base's")
    nan = spoiled(models, tmp_path / "nan", lambda t, c: ({k: v * torch.nan for k, v in t.items()}, c))
    for arguments in ((), ("--merged",), ("--rule", "ties"), ("--rule", "emr")):
        done = invoke("merge", base, nan, second, *arguments, "-o", out, "-q")
        assert_message(done, 4, "in nan holds NaN or infinite numbers")
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_fine_tune_that_is_zero_is_a_finding_and_only_zeros_are_refused(models, tmp_path):
    base, first, _ = models.names[:3]

    def zeroed(tensors, config):
        return {key: torch.zeros_like(t) if ".lora_B." in key else t for key, t in tensors.items()}, config

    zero = spoiled(models, tmp_path / "zero", zeroed)
    done = invoke("merge", base, first, zero, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "warning [zero-adapter] zero: this adapter changes nothing" in done.stdout
    found, whole = models.deltas(tmp_path / "out"), models.deltas(first)
    for module, delta in whole.items():
        torch.testing.assert_close(found[module], delta / 2, rtol=1e-5, atol=1e-6)
    for arguments in ((), ("--merged",)):
        done = invoke("merge", base, zero, zero, *arguments, "-o", tmp_path / "none", "-q")
        assert_message(done, 2, "the merged update is zero")
    assert not (tmp_path / "none").exists()


def test_a_base_that_holds_a_fine_tune_already_is_told(models, tmp_path):
    base, first, second = models.names[:3]
    assert invoke("merge", base, first, second, "--merged", "-o", tmp_path / "once", "-q").returncode == 0
    done = invoke("merge", tmp_path / "once", first, second, "--same-base", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "already-merged" in done.stdout
    assert "already-merged" not in invoke("merge", base, first, second, "--dry-run").stdout


def test_a_rank_above_what_servers_take_is_told_before_and_after(tmp_path):
    base = write_model(tmp_path / "base", matrices(2))
    names = []
    for label, rank in (("a", 12), ("b", 8)):
        folder = tmp_path / label
        folder.mkdir()
        factors = {}
        for layer in range(2):
            key = f"base_model.model.{name_of(layer)}.lora_"
            factors |= {f"{key}A.weight": torch.randn(rank, 40), f"{key}B.weight": torch.randn(48, rank)}
        save_file(factors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["up_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        names.append(folder)
    for arguments in (("--dry-run",), ("-o", tmp_path / "out")):
        done = invoke("merge", base, *names, *arguments)
        text = " ".join(done.stdout.split())
        assert text.count("the adapter's rank is 20; many servers accept at most 16") == 1, text
    done = invoke("merge", base, *names, "--rank", "16", "-o", tmp_path / "cut")
    assert "rank-above-servers" not in done.stdout
    assert "cut to rank 16" in done.stdout


def test_weights_that_overflow_the_dtype_are_refused(tmp_path):
    torch.manual_seed(0)
    base = peft_models.llama().half()
    base.save_pretrained(tmp_path / "base")
    for seed, label in enumerate("ab"):
        fine_tuned(base, seed).save_pretrained(tmp_path / label)
    names = [tmp_path / name for name in ("base", "a", "b")]
    done = invoke("merge", *names, "--lambda", "1e9", "-o", tmp_path / "out", "-q")
    assert_message(done, 2, "overflows the base's data type, float16")
    done = invoke(
        "merge", *names, "--lambda", "1e12", "--rank", "2", "--dtype", "float16", "-o", tmp_path / "out", "-q"
    )
    assert_message(done, 2, "overflow float16", "use --dtype float32")
    assert not (tmp_path / "out").exists()


def test_what_a_lora_cannot_hold_goes_into_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    base = peft_models.gpt_oss()
    base.save_pretrained(tmp_path / "base")
    for seed, label in enumerate("ab"):
        fine_tuned(base, seed).save_pretrained(tmp_path / label)
    names = [tmp_path / name for name in ("base", "a", "b")]
    done = invoke("merge", *names, "--rank", "2", "-o", tmp_path / "out", "-q")
    assert_message(done, 4, "a LoRA adapter cannot hold", "write a checkpoint with --merged")
    done = invoke("merge", *names, "--rule", "emr", "-o", tmp_path / "out", "-q")
    assert_message(done, 4, "is one expert of several")
    assert not (tmp_path / "out").exists()
