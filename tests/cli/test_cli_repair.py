"""``intruscope repair`` from outside: what it writes and says, and how it refuses."""

import json
import subprocess

import pytest
import torch
from cli_support import COMMAND, assert_message, fingerprint, invoke, matrices, name_of, write_model
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("inline")
MANIFEST = "intruscope_repair.json"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A base, the same with one strong direction in each of two matrices, and an adapter that does that."""
    folder = tmp_path_factory.mktemp("planted")
    base = write_model(folder / "base", matrices(2))
    tuned = write_model(folder / "tuned", matrices(2, change=2.0))
    before, after = (load_file(f / "model.safetensors") for f in (base, tuned))
    factors = {}
    for layer in range(2):
        name = f"{name_of(layer)}.weight"
        left, values, right_t = torch.linalg.svd(after[name] - before[name], full_matrices=False)
        factors[f"base_model.model.{name_of(layer)}.lora_A.weight"] = right_t[:1].contiguous()
        factors[f"base_model.model.{name_of(layer)}.lora_B.weight"] = (left[:, :1] * values[0]).contiguous()
    adapter = folder / "adapter"
    adapter.mkdir()
    save_file(factors, adapter / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps({**fields, "target_modules": ["up_proj"]}))
    return folder


def repair(*arguments, workers=1):
    return invoke("repair", *arguments, "--workers", workers)


def test_a_repair_writes_a_folder_and_says_what_it_did(planted, tmp_path):
    before = fingerprint(planted)
    out, plan = tmp_path / "out", tmp_path / "plan.json"
    done = repair(planted / "base", planted / "tuned", "-o", out, "--strength", "0.5", "--json", plan)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    text = " ".join(done.stdout.split())
    assert "2 vectors are multiplied by 0.5, in 2 matrices." in text
    assert "a scan will still count at least 2 of them as intruders, with smaller singular values." in text
    assert "of the edited updates before" in text
    assert text.endswith(f"written: {out}")
    assert fingerprint(planted) == before
    manifest, planned = json.loads((out / MANIFEST).read_text()), json.loads(plan.read_text())
    assert manifest.pop("files")
    assert manifest.pop("not_copied") == []
    assert manifest == planned
    for layer in range(2):
        name = f"{name_of(layer)}.weight"
        tuned = load_file(planted / "tuned" / "model.safetensors")[name].double()
        left, values, right_t = torch.linalg.svd(tuned, full_matrices=False)
        expected = tuned - 0.5 * values[0] * torch.outer(left[:, 0], right_t[0])
        got = load_file(out / "model.safetensors")[name].double()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    again = invoke("scan", planted / "base", out, "-q", "--workers", 1, "--fail-on", "intruders>1")
    assert again.returncode == 1  # as the output said


def test_an_adapter_names_its_base_and_a_dry_run_writes_nothing(planted, tmp_path):
    dry = repair(planted / "adapter", "--dry-run", "--json", "-", "--strength", "0")
    assert dry.returncode == 0, dry.stderr
    plan = json.loads(dry.stdout)
    assert plan["writes"] == "adapter"
    assert plan["totals"]["num_vectors"] == 2
    assert {module["after"] for module in plan["modules"]} == {2}
    assert list(tmp_path.iterdir()) == []
    done = repair(planted / "adapter", "-o", tmp_path / "out", "--strength", "0", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize("quiet", [("--strength", "1"), ("--epsilon", "0.001")], ids=["strength", "none"])
def test_nothing_to_repair_is_said_and_copied(planted, tmp_path, quiet):
    done = repair(planted / "adapter", "-o", tmp_path / "out", *quiet)
    assert done.returncode == 0, done.stderr
    assert "Nothing to repair" in done.stdout
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (planted / "adapter" / name).read_bytes()
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["nothing_to_repair"] is True


def test_options_reach_the_plan(planted, tmp_path):
    done = repair(
        *(planted / "base", planted / "adapter", "-o", tmp_path / "merged", "--merged", "--json", "-"),
        *("--control", "matched_change", "--which", name_of(1), "--strength", "0.9", "--seed", "3"),
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["writes"], plan["control"], plan["strength"], plan["seed"]) == (
        "checkpoint",
        "matched_change",
        0.9,
        3,
    )
    assert plan["scaled"] == [name_of(1)]
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    tuned = load_file(planted / "tuned" / "model.safetensors")
    other = f"{name_of(0)}.weight"
    torch.testing.assert_close(merged[other], tuned[other])
    assert float((merged[f"{name_of(1)}.weight"] - tuned[f"{name_of(1)}.weight"]).norm()) > 0.1
    same = repair(planted / "adapter", "--dry-run", "--rank", "same", "--strength", "0.2", "--json", "-")
    assert {module["after"] for module in json.loads(same.stdout)["modules"]} == {1}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--strength", "nan"), 2, "finite number of at least 0"),
        (("--strength", "-0.1"), 2, "finite number of at least 0"),
        (("--rank", "0"), 2, "expected exact, same or a positive number"),
        (("--rank", "best"), 2, "expected exact, same or a positive number"),
        (("--rank", "same", "--compact"), 2, "leave out one of the two"),
        (("--k", "all"), 2, "k must be a number"),
        (("--epsilon", "0"), 2, "cosine"),
        (("--control", "magic"), 2, "magic"),
        (("--which", "no.such.matrix"), 2, "did you mean"),
        (("--which", f"{name_of(0)}:40"), 2, "counted from 0"),
        (("--device", "cuda"), 2, "expected cpu"),
    ],
)
def test_requests_without_meaning(planted, tmp_path, arguments, code, says):
    done = invoke("repair", planted / "base", planted / "tuned", "-o", tmp_path / "out", *arguments)
    assert_message(done, code, says)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_would_harm_are_refused(planted, tmp_path):
    before = fingerprint(planted)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    models = ("repair", planted / "base", planted / "tuned")
    for out, says in (
        (planted / "tuned", "not empty"),
        (planted / "base" / "out", "lies in"),
        (tmp_path / "full", "not empty"),
        (tmp_path / "none" / "out", "does not exist"),
    ):
        assert_message(invoke(*models, "-o", out, "--workers", 1), 7, says)
    assert_message(invoke(*models), 2, "-o OUT")
    out = tmp_path / "out"
    assert_message(invoke(*models, "-o", out, "--json", out / "plan.json"), 7, "does not exist")
    assert_message(invoke(*models, "-o", out, "--json", planted / "base" / "x.json"), 7, "lies in")
    assert fingerprint(planted) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["full"]


def test_what_could_not_be_matched_is_written_as_it_was_and_makes_the_result_incomplete(planted, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    factors = load_file(planted / "adapter" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.7.mlp.up_proj"
    more = {f"{key}.lora_A.weight": torch.randn(1, 40), f"{key}.lora_B.weight": torch.randn(48, 1)}
    save_file({**factors, **more}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text((planted / "adapter" / "adapter_config.json").read_text())
    done = invoke("repair", planted / "base", adapter, "-o", tmp_path / "out", "-q", "--workers", 1)
    assert_message(done, 5, "could not be matched", "intruscope scan")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert torch.equal(written[f"{key}.lora_B.weight"][:, :1], more[f"{key}.lora_B.weight"])


def test_a_full_disk_leaves_nothing_half_written(planted, tmp_path):
    if subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=False, capture_output=True
    ).returncode:
        pytest.skip("no user namespaces here")
    script = """
    mount -t tmpfs -o size=12k tmpfs "$1" || exit 99
    folder=$1; shift
    "$@"; code=$?
    ls -A "$folder" | wc -l
    exit $code
    """
    out = tmp_path / "small"
    out.mkdir()
    before = fingerprint(planted)
    command = [
        *COMMAND,
        "repair",
        planted / "base",
        planted / "tuned",
        "-o",
        out / "out",
        "-q",
        "--workers",
        "1",
    ]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, [out, *command])],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == "0"
    assert done.returncode == 6, done.stderr
    assert done.stderr.startswith("error[resources]")
    assert fingerprint(planted) == before
