"""The command as people and CI use it: exit codes, messages in four parts, outputs whole or absent."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

COMMAND = [sys.executable, "-m", "intruscope"]
CONFIG = '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 4}'


def write_model(folder, count, seed, change=0.0, size=64):
    """``count`` random layers; ``change`` adds a rank-one update of that size to each."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for i in range(count):
        matrix = torch.randn(size, size, generator=generator)
        u, v = torch.randn(size, 1, generator=generator), torch.randn(1, size, generator=generator)
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = matrix + change * u @ v
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "base", 3, 0), write_model(folder / "tuned", 3, 0, change=1.0)


def run(*arguments, timeout=120, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def fingerprint(folder):
    return {
        path.relative_to(folder): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_message(done, code, *parts):
    """One line, with the identifier, every part expected, and something to do."""
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error[")
    assert "; " in done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_a_scan_prints_a_table_a_sentence_and_writes_everything_asked_for(models, tmp_path):
    before = fingerprint(models[0].parent)
    done = run(
        "scan", *models, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv",
        "--parquet", tmp_path / "a.parquet", "--html", tmp_path / "a.html", "--plots", tmp_path / "plots",
        "--maps", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "intruder" in done.stdout
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["schema"] == "intruscope.scan/1"
    assert report["totals"]["num_matrices"] == 3
    assert report["totals"]["num_intruders"] >= 3
    assert (tmp_path / "a.csv").read_text().count("\n") >= 31
    assert (tmp_path / "a.parquet").read_bytes()[:4] == b"PAR1"
    assert "Content-Security-Policy" in (tmp_path / "a.html").read_text()
    assert {path.suffix for path in (tmp_path / "plots").iterdir()} == {".png", ".svg"}
    assert fingerprint(models[0].parent) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_contract_of_the_json(models):
    done = run("scan", *models, "--json", "-", "-q")
    report = json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"holds {text}"))
    assert set(report) >= {"schema", "settings", "matrices", "coverage", "totals", "environment"}
    for matrix in report["matrices"]:
        assert matrix["shape"] == [64, 64]
        assert matrix["scope"] == "paper"
        assert matrix["kind"] == "up"
        vectors = ("singular_values", "alignment_lower", "alignment_upper", "verdicts", "certificates")
        assert {len(matrix[name]) for name in vectors} == {10}
        assert matrix["num_intruders"] == matrix["verdicts"].count("intruder") >= 1
        assert set(matrix["certificates"]) <= {"proved", "probabilistic", "dense"}
        assert matrix["update"]["effective_rank"]["value"] == pytest.approx(1.0, abs=0.01)
    assert {entry["status"] for entry in report["coverage"]} == {"compared"}


def test_a_gate_exits_with_one_and_says_why(models):
    done = run("scan", *models, "-q", "--fail-on", "intruders>0")
    assert done.returncode == 1
    assert "intruders>0 tripped" in done.stderr
    assert run("scan", models[0], models[0], "-q", "--fail-on", "intruders>0").returncode == 0


def test_incomplete_wins_over_a_gate(models, tmp_path):
    broken = shutil.copytree(models[1], tmp_path / "tuned")
    tensors = {}
    from safetensors.torch import load_file

    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    done = run("scan", models[0], broken, "-q", "--fail-on", "intruders>0", "--json", tmp_path / "r.json")
    assert done.returncode == 5
    assert "incomplete" in done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["totals"]["num_intruders"] >= 2


def test_a_dry_run_reads_no_weights_and_writes_nothing(models, tmp_path):
    done = run("scan", *models, "--dry-run", "--json", tmp_path / "r.json")
    assert done.returncode == 0
    assert "64 x 64" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--epsilon", "0"], "--epsilon"),
        (["--epsilon", "1.5"], "--epsilon"),
        (["--k", "ten"], "--k"),
        (["--k", "0"], "--k"),
        (["--null", "-1"], "--null"),
        (["--fail-on", "intruders"], "intruders>0"),
    ],
)
def test_senseless_options_exit_with_two(models, options, part):
    assert_message(run("scan", *models, *options), 2, part)


def test_unknown_options_and_verbs_exit_with_two(models):
    assert run("scan", *models, "--epsilom", "0.5").returncode == 2
    assert run("scam").returncode == 2


def test_a_missing_model_exits_with_two(tmp_path):
    done = run("scan", tmp_path / "nothing", tmp_path / "here")
    assert_message(done, 2)


def test_a_damaged_file_exits_with_four_and_names_it(models, tmp_path):
    broken = shutil.copytree(models[1], tmp_path / "tuned")
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    before = fingerprint(broken)
    assert_message(run("scan", models[0], broken), 4, "model.safetensors", "bytes")
    assert fingerprint(broken) == before


def test_a_pickle_exits_with_three_and_names_the_flag(models, tmp_path):
    folder = tmp_path / "tuned"
    folder.mkdir()
    torch.save({"model.layers.0.mlp.up_proj.weight": torch.zeros(64, 64)}, folder / "pytorch_model.bin")
    assert_message(run("scan", models[0], folder), 3, "--allow-pickle")


def test_an_output_on_an_input_exits_with_seven(models, tmp_path):
    target = models[0] / "model.safetensors"
    assert_message(run("scan", *models, "--json", target), 7)
    assert_message(run("scan", *models, "--json", models[1] / "report.json"), 7)
    linked = tmp_path / "linked.json"
    os.link(target, linked)
    assert_message(run("scan", *models, "--json", linked), 7)
    assert_message(run("scan", *models, "--csv", tmp_path / "no" / "folder.csv"), 7)


def test_too_little_memory_exits_with_six_and_names_the_flag(models):
    assert_message(run("scan", *models, "--memory", "0.01"), 6, "--memory", "GiB")


def test_another_plan_in_the_same_work_folder_exits_with_seven(models, tmp_path):
    assert run("scan", *models, "-q", "--work", tmp_path / "w").returncode == 0
    done = run("scan", *models, "-q", "--work", tmp_path / "w", "--epsilon", "0.4")
    assert_message(done, 7, "settings.epsilon")
    assert run("scan", *models, "-q", "--work", tmp_path / "w", "--epsilon", "0.4", "--fresh").returncode == 0


def test_a_deadline_is_unfinished_and_exits_with_five(models, tmp_path):
    done = run("scan", *models, "-q", "--deadline", "0.001", "--json", tmp_path / "r.json")
    assert done.returncode == 5
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["totals"]["num_intruders"] == 0
    again = run("scan", *models, "-q", "--json", tmp_path / "r.json")
    assert again.returncode == 0, "what was not finished is tried again"


def test_a_read_only_home_is_no_obstacle(models, tmp_path):
    unwritable = tmp_path / "file"
    unwritable.write_text("in the way")
    environment = {**os.environ, "INTRUSCOPE_CACHE": str(unwritable / "below")}
    done = run("scan", *models, env=environment)
    assert done.returncode == 0, done.stderr
    assert "cannot be resumed" in done.stderr


def test_no_connection_is_made_without_a_hub_id(models):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"], check=False).returncode:
        pytest.skip("unshare -n is not possible here")
    command = ["unshare", "-rn", *COMMAND, "scan", *map(str, models), "-q"]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


def strip(path):
    report = json.loads(path.read_text())
    for matrix in report["matrices"]:
        matrix.pop("seconds")
    return report


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_as_never_killed(tmp_path):
    base = write_model(tmp_path / "base", 24, 0, size=160)
    tuned = write_model(tmp_path / "tuned", 24, 0, change=0.3, size=160)
    whole = tmp_path / "whole.json"
    assert run("scan", base, tuned, "-q", "--json", whole, "--work", tmp_path / "w0").returncode == 0
    generator = random.Random(1)
    for trial in range(4):
        work, output = tmp_path / f"w{trial + 1}", tmp_path / f"{trial}.json"
        arguments = ["scan", base, tuned, "-q", "--json", output, "--work", work]
        process = subprocess.Popen([*COMMAND, *map(str, arguments)])
        time.sleep(generator.uniform(1.0, 5.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.exists() or strip(output) == strip(whole)
        assert run(*arguments).returncode == 0
        assert strip(output) == strip(whole)


def test_an_interrupt_leaves_in_time_with_its_code(tmp_path):
    base = write_model(tmp_path / "base", 40, 0, size=300)
    tuned = write_model(tmp_path / "tuned", 40, 0, change=0.3, size=300)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        command = [*COMMAND, "scan", str(base), str(tuned), "--json", str(tmp_path / "r.json"), "--fresh"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        time.sleep(2.5)
        started = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - started < 5
        assert process.returncode == code, err
        assert "again" in err
        assert not (tmp_path / "r.json").exists()


def test_the_version_is_printed():
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("intruscope 0.")


@pytest.mark.real
def test_a_real_model_and_what_was_trained_from_it(real_data, tmp_path):
    models = real_data / "models"
    done = run(
        "scan", models / "minilm", models / "minilm-mlm", "-q", "--json", tmp_path / "r.json", timeout=300
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["totals"]["num_matrices"] == 36
    assert report["totals"]["num_intruders"] == 0
    assert Path(models / "minilm" / "config.json").exists()
