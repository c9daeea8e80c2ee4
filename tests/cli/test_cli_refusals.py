"""What the command refuses: exit code, a message in four parts, and no input or output touched."""

import json
import os
import shutil

import pytest
import torch
from cli_support import assert_message, fingerprint, invoke, matrices, name_of, run, write_model
from safetensors.torch import save_file


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--epsilon", "0"], ["--epsilon must be a number above 0 and at most 1, not '0'", "scan --help"]),
        (["--epsilon", "1.5"], ["--epsilon must be", "not '1.5'"]),
        (["--epsilon", "nan"], ["--epsilon must be", "not 'nan'"]),
        (["--k", "ten"], ["--k must be a whole number of at least 1 or 'all', not 'ten'"]),
        (["--k", "0"], ["--k must be", "not '0'"]),
        (["--k", "9" * 5000], ["--k must be", "not '999"]),
        (["--seed", "-1"], ["--seed must be a whole number of at least 0, not '-1'"]),
        (["--seed", str(2**63)], ["--seed must be"]),
        (["--null", "-1"], ["--null must be", "not '-1'"]),
        (["--maps", "-1"], ["--maps must be", "not '-1'"]),
        (["--lora-alpha", "inf"], ["--lora-alpha must be a number above 0, not 'inf'"]),
        (["--fail-on", "intruders"], ["'intruders'", "intruders>0"]),
        (["--device", "cuda"], ["--device cuda is not supported", "leave --device out"]),
        (["--device", "tpu"], ["--device must be 'auto', 'cpu' or 'cuda', not 'tpu'", "scan --help"]),
        (["--side", "up"], ["--side must be 'left', 'right' or 'both', not 'up'", "scan --help"]),
        (["--workers", "0"], ["--workers must be", "not '0'", "scan --help"]),
        (["--deadline", "0"], ["--deadline must be a number above 0, not '0'"]),
        (["--memory", "-1"], ["--memory must be a number above 0", "not '-1'"]),
        (["--memory", "1e300"], ["--memory must be", "not '1e300'"]),
        (["--threads", "1000"], ["1,000 threads per worker", "lower --threads"]),
        (["--memory", "nan"], ["--memory must be", "not 'nan'"]),
        (["--epsilom", "0.5"], ["--epsilom", "scan --help"]),
    ],
)
def test_senseless_options(models, options, parts):
    assert_message(invoke("scan", *models, *options), 2, *parts)


def test_senseless_commands():
    assert_message(run("scan"), 2, "BASE", "see intruscope scan --help")
    assert_message(invoke("scam"), 2, "'scam' (did you mean 'scan'?)", "see intruscope --help")
    bare = invoke()
    assert bare.returncode == 2
    assert "Usage: intruscope" in bare.stderr
    assert bare.stdout == ""


def test_a_model_that_is_not_there(tmp_path):
    missing = tmp_path / "nothing"
    assert_message(invoke("scan", missing, tmp_path), 2, f"no such file or folder: {missing}")


def test_a_model_alone(models):
    assert_message(invoke("scan", models[0]), 2, "nothing to compare it with", "scan BASE TUNED")


def test_a_damaged_file(models, tmp_path):
    broken = shutil.copytree(models[1], tmp_path / "tuned")
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    before = fingerprint(broken)
    assert_message(run("scan", models[0], broken), 4, "model.safetensors", "bytes")
    assert fingerprint(broken) == before


def test_a_pickle(models, tmp_path):
    folder = tmp_path / "tuned"
    folder.mkdir()
    torch.save({f"{name_of(0)}.weight": torch.zeros(48, 40)}, folder / "pytorch_model.bin")
    assert_message(invoke("scan", models[0], folder), 3, "pytorch_model.bin", "--allow-pickle")


def test_outputs_on_inputs(models, tmp_path):
    target = models[0] / "model.safetensors"
    before = fingerprint(models[0].parent)
    linked, symlink = tmp_path / "linked.json", tmp_path / "symlink.json"
    os.link(target, linked)
    symlink.symlink_to(models[1] / "report.json")
    for option, output in (
        ("--json", target),
        ("--json", models[1] / "report.json"),
        ("--json", models[1] / ".." / "base" / "report.json"),
        ("--json", symlink),
        ("--csv", linked),
        ("--parquet", linked),
        ("--html", models[0] / "page.html"),
        ("--plots", models[0] / "plots"),
        ("--work", models[1] / "work"),
    ):
        assert_message(invoke("scan", *models, option, output), 7, "input", "choose another output")
    assert fingerprint(models[0].parent) == before


def test_outputs_that_cannot_be(models, tmp_path):
    (tmp_path / "file").write_text("x")
    assert_message(invoke("scan", *models, "--csv", tmp_path / "no" / "a.csv"), 7, "does not exist")
    assert_message(invoke("scan", *models, "--html", tmp_path), 7, "folder")
    assert_message(invoke("scan", *models, "--plots", tmp_path / "file"), 7, "is a file")
    same = ["--json", tmp_path / "r", "--csv", tmp_path / "." / "r"]
    assert_message(invoke("scan", *models, *same), 7, "two outputs")
    assert (tmp_path / "file").read_text() == "x"


def write_adapter(folder, base, alpha):
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(2)
    keys = f"base_model.model.{name_of(0)}"
    a, b = torch.randn(2, 40, generator=generator), torch.randn(48, 2, generator=generator)
    factors = {f"{keys}.lora_A.weight": a, f"{keys}.lora_B.weight": b}
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_output_on_the_base_that_only_the_adapter_names(models, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", models[0], 4)
    before = fingerprint(tmp_path), fingerprint(models[0])
    linked = tmp_path / "linked.json"
    os.link(models[0] / "model.safetensors", linked)
    assert_message(invoke("scan", adapter, "--json", models[0] / "r.json"), 7, "lies in the input")
    assert_message(invoke("scan", adapter, "--json", linked), 7, "hard link")
    linked.unlink()
    assert (fingerprint(tmp_path), fingerprint(models[0])) == before


def test_too_little_memory(models):
    assert_message(run("scan", *models, "--memory", "0.01"), 6, "--memory", "GiB")


def test_another_plan_in_the_same_work_folder(scanned, tmp_path):
    before = fingerprint(scanned.folder / "work")
    again = [*scanned.again, "-q", "--json", tmp_path / "r.json"]
    done = invoke(*again, "--epsilon", "0.4", "--k", "5")
    assert_message(
        done, 7, "settings.epsilon (0.5 there, 0.4 now)", "settings.k (10 there, 5 now)", "--fresh"
    )
    assert fingerprint(scanned.folder / "work") == before


def test_another_version_or_input_in_the_same_work_folder(scanned, models, tmp_path, monkeypatch):
    twin = shutil.copytree(models[1], tmp_path / "tuned")
    again = [*scanned.again, "-q", "--json", tmp_path / "r.json"]
    arguments = [twin if argument == models[1] else argument for argument in again]
    assert_message(invoke(*arguments), 7, "inputs", "--fresh")
    monkeypatch.setattr("intruscope.spectra.scan.version", lambda _: "99.0")
    assert_message(invoke(*again), 7, "version", "99.0")


def test_another_scaling_is_another_plan(models, tmp_path):
    """What only a config says must not be resumed over, though no tensor changed."""
    from intruscope import RunOptions, scan

    options = RunOptions(workers=0, work_dir=tmp_path / "w")
    norms = []
    for alpha, fresh in ((4, False), (8, True)):
        adapter = write_adapter(tmp_path / "adapter", models[0], alpha)
        if fresh:
            refused = invoke("scan", adapter, "-q", "--work", tmp_path / "w", "--workers", "1")
            assert_message(refused, 7, "reading")
            options = RunOptions(workers=0, work_dir=tmp_path / "w", fresh=True)
        report = scan(str(adapter), options=options)
        norms.append(report.matrices[0].update.frobenius_norm)
    assert norms[1] == pytest.approx(2 * norms[0])


def test_weights_that_are_not_numbers_or_not_there(models, tmp_path):
    """One NaN: counted, placed, not decomposed, and no gate is passed on what was not seen."""
    tensors = matrices(3, change=1.0)
    tensors[f"{name_of(1)}.weight"][7, 3] = float("nan")
    tensors[f"{name_of(1)}.weight"][9, 0] = float("inf")
    shapes = {3: (0, 40), 4: (1, 40), 5: (48, 1)}
    before = matrices(3)
    for layer, shape in shapes.items():
        before[f"{name_of(layer)}.weight"] = torch.ones(shape)
        tensors[f"{name_of(layer)}.weight"] = 2 * torch.ones(shape)
    before[f"{name_of(6)}.weight"] = tensors[f"{name_of(6)}.weight"] = torch.zeros(48, 40)
    before["scale"] = tensors["scale"] = torch.tensor(3.0)
    base, tuned = write_model(tmp_path / "base", before), write_model(tmp_path / "tuned", tensors)
    output = tmp_path / "r.json"
    done = run("scan", base, tuned, "-q", "--workers", "1", "--fail-on", "intruders>0", "--json", output)
    assert done.returncode == 5
    gate, message = done.stderr.splitlines()
    assert gate.startswith("gate intruders>0 tripped: the value is ")
    assert message.startswith(f"error[incomplete] {tuned}: only 6 of 7 matrices could be scanned; see ")
    report = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert [m["status"] for m in report["matrices"]] == ["done", "refused", *["done"] * 5]
    (finding,) = report["matrices"][1]["findings"]
    assert (finding["code"], finding["severity"]) == ("non-finite", "error")
    assert "2 entries" in finding["message"]
    assert "(7, 3)" in finding["message"]
    assert report["matrices"][1]["singular_values"] == []
    empty, row, column, zero = report["matrices"][3:]
    assert (empty["shape"], empty["verdicts"]) == ([0, 40], [])
    assert [finding["code"] for finding in empty["findings"]] == ["empty-matrix"]
    assert row["singular_values"] == pytest.approx([2 * 40**0.5])
    assert column["singular_values"] == pytest.approx([2 * 48**0.5])
    assert row["verdicts"] == column["verdicts"] == ["aligned"]
    assert zero["update"]["frobenius_norm"] == 0.0
    assert zero["num_intruders"] == 0
    scalar = [entry for entry in report["coverage"] if entry["tensor"] == "scale"]
    assert {(entry["status"], entry["reason"]) for entry in scalar} == {("skipped", "a scalar, not a matrix")}
