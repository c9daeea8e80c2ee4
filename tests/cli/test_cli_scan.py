"""What the command shows and writes, and that every option does what it says."""

import base64
import csv
import json
import os
import pty
import subprocess

import numpy as np
import pytest
from cli_support import (
    COMMAND,
    SHAPE,
    assert_message,
    fingerprint,
    invoke,
    matrices,
    name_of,
    run,
    timeless,
    write_model,
)
from linalg_oracle import naive_alignment


def pairs():
    """Base and tuned matrices of the ``models``, in order."""
    before, after = matrices(3), matrices(3, change=1.0)
    return [(before[name].double().numpy(), after[name].double().numpy()) for name in before]


def load(text):
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"holds {constant}"))


def test_a_scan_prints_a_table_and_a_sentence_and_writes_whole_files(models, scanned):
    assert scanned.done.returncode == 0, scanned.done.stderr
    assert scanned.done.stderr == ""
    assert "leading singular vectors" in scanned.done.stdout
    assert "By chance one would expect" in " ".join(scanned.done.stdout.split())
    assert max(map(len, scanned.done.stdout.splitlines())) <= 80
    with (scanned.folder / "a.csv").open() as stream:
        assert len(list(csv.reader(stream))) == 1 + 2 * 10 * 3
    assert (scanned.folder / "a.parquet").read_bytes()[:4] == b"PAR1"
    assert sorted(p.name for p in scanned.folder.iterdir()) == ["a.csv", "a.json", "a.parquet", "work"]
    assert (scanned.folder / "a.json").stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert fingerprint(models[0].parent) == scanned.inputs


def _umask():
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_the_json_keeps_its_contract_and_says_what_two_dense_decompositions_say(scanned):
    report = load(scanned.json.read_text())
    assert set(report) >= {"schema", "settings", "matrices", "coverage", "totals", "environment"}
    assert report["schema"] == "intruscope.scan/1"
    found = 0
    for layer, (matrix, (base, tuned)) in enumerate(zip(report["matrices"], pairs(), strict=True)):
        assert (matrix["name"], matrix["layer"]) == (name_of(layer), layer)
        assert (matrix["kind"], matrix["scope"], matrix["shape"]) == ("up", "paper", list(SHAPE))
        assert matrix["singular_values"] == pytest.approx(np.linalg.svd(tuned)[1][:10])
        for side in matrix["sides"]:
            truth = naive_alignment(base, tuned, 10, side=side["side"])
            assert (side["alignment_lower"] <= truth.alignment + 1e-5).all()
            assert (truth.alignment <= np.array(side["alignment_upper"]) + 1e-5).all()
            wanted = ["intruder" if value < 0.5 else "aligned" for value in truth.alignment]
            assert side["verdicts"] == wanted
            assert side["null"]["trials"] == 2
        for field in ("alignment_lower", "alignment_upper", "verdicts", "certificates", "num_intruders"):
            assert matrix[field] == matrix["sides"][0][field]
        assert matrix["num_intruders"] == matrix["verdicts"].count("intruder") >= 1
        assert set(matrix["certificates"]) <= {"proved", "probabilistic", "dense"}
        rank = matrix["update"]["effective_rank"]
        assert rank["low"] <= rank["value"] <= rank["high"]
        assert rank["value"] == pytest.approx(1.0, abs=1e-3)
        assert matrix["update"]["frobenius_norm"] == pytest.approx(np.linalg.norm(tuned - base), rel=1e-5)
        assert matrix["update"]["spectral_norm"] == pytest.approx(np.linalg.norm(tuned - base, 2), rel=1e-5)
        found += matrix["num_intruders"]
    assert report["totals"]["num_matrices"] == 3
    assert report["totals"]["num_intruders"] == found
    assert {entry["status"] for entry in report["coverage"]} == {"compared"}


def true_map(base, tuned, side="left"):
    """|U0ᵀU| of the top four, in steps of 1/255."""
    first, second = np.linalg.svd(base), np.linalg.svd(tuned)
    if side == "left":
        return 255 * np.abs(first[0][:, :4].T @ second[0][:, :4])
    return 255 * np.abs(first[2][:4] @ second[2][:4].T)


def test_maps_have_the_base_down_and_the_tuned_across(scanned):
    report = load(scanned.json.read_text())
    for matrix, (base, tuned) in zip(report["matrices"], pairs(), strict=True):
        for side in matrix["sides"]:
            packed = base64.b64decode(side["similarity"]["levels"])
            levels = np.frombuffer(packed, dtype=np.uint8).reshape(4, 4).astype(int)
            assert np.abs(levels - true_map(base, tuned, side["side"])).max() < 0.6


def test_large_maps_lie_beside_the_report_and_the_report_says_so(scanned, tmp_path, monkeypatch):
    monkeypatch.setattr("intruscope.report.maps.MAX_MAP_BYTES", 16 * 6 - 1)
    done = invoke(*scanned.again, "-q", "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert "r.maps.npz" in done.stderr
    report = load((tmp_path / "r.json").read_text())
    assert "maps-beside" in [finding["code"] for finding in report["findings"]]
    assert {side["similarity"] for matrix in report["matrices"] for side in matrix["sides"]} == {None}
    with np.load(tmp_path / "r.maps.npz") as archive:
        names = [f"{name_of(layer)}, {side}" for layer in range(3) for side in ("left", "right")]
        assert list(archive["names"]) == names
        for index, (base, tuned) in enumerate(pairs()):
            assert np.abs(archive[f"map_{2 * index}"] - true_map(base, tuned)).max() < 0.6
            assert np.abs(archive[f"map_{2 * index + 1}"] - true_map(base, tuned, "right")).max() < 0.6
    monkeypatch.setattr("intruscope.report.maps.MAX_MAP_BYTES", 16 * 6)
    assert invoke(*scanned.again, "-q", "--json", tmp_path / "whole.json").returncode == 0
    assert timeless(tmp_path / "whole.json") == timeless(scanned.json)


def test_the_page_and_the_pictures(scanned, tmp_path):
    done = invoke(*scanned.again, "-q", "--html", tmp_path / "a.html", "--plots", tmp_path / "plots")
    assert done.returncode == 0, done.stderr
    assert "Content-Security-Policy" in (tmp_path / "a.html").read_text()
    assert {path.suffix for path in (tmp_path / "plots").iterdir()} == {".png", ".svg"}
    refused = invoke(*scanned.again, "-q", "--plots", tmp_path / "plots")
    assert_message(refused, 7, "not empty", "--force")
    forced = invoke(*scanned.again, "--plots", tmp_path / "plots", "--force", "--dry-run")
    assert forced.returncode == 0, forced.stderr


def test_standard_output_gets_the_same_json_and_nothing_else(scanned):
    done = invoke(*scanned.again, "--json", "-")
    assert done.returncode == 0
    assert load(done.stdout) == load(scanned.json.read_text())
    assert done.stderr == ""


def test_a_file_is_replaced_whole(scanned, tmp_path):
    target = tmp_path / "r.json"
    target.write_text("an earlier report")
    before = target.stat().st_ino
    assert invoke(*scanned.again, "-q", "--json", target).returncode == 0
    assert target.stat().st_ino != before, "renamed into place, never written over"
    assert timeless(target) == timeless(scanned.json)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_gates_exit_with_one_and_say_why(scanned, tmp_path):
    found = load(scanned.json.read_text())["totals"]["num_intruders"]
    again = [*scanned.again, "-q", "--json", tmp_path / "r.json", "--fail-on"]
    done = invoke(*again, f"intruders>={found}")
    assert (done.returncode, done.stderr) == (
        1,
        f"gate intruders>={found} tripped: the value is {found}\n",
    )
    assert invoke(*again, f"intruders>{found}").returncode == 0
    either = invoke(*again, f"intruders>{found},matrices==3")
    assert either.returncode == 1
    assert "matrices==3" in either.stderr


def test_all_vectors_at_another_threshold_with_a_bar_on_a_terminal(models, tmp_path):
    leader, follower = pty.openpty()
    arguments = [
        "--workers",
        "1",
        "--k",
        "all",
        "--epsilon",
        "0.35",
        "--side",
        "right",
        "--json",
        str(tmp_path / "r.json"),
    ]
    process = subprocess.Popen(
        [*COMMAND, "scan", *map(str, models), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait(timeout=60) == 0, shown
    assert b"3/3" in shown
    assert b"scanning" in shown
    report = load((tmp_path / "r.json").read_text())
    assert report["settings"]["epsilon"] == 0.35
    for matrix, (base, tuned) in zip(report["matrices"], pairs(), strict=True):
        truth = naive_alignment(base, tuned, 40, side="right")
        assert len(matrix["verdicts"]) == 40
        assert set(matrix["certificates"]) == {"dense"}
        near = np.abs(truth.alignment - 0.35) < 1e-5
        wanted = ["intruder" if value < 0.35 else "aligned" for value in truth.alignment]
        assert not near.any()
        assert matrix["verdicts"] == wanted


def test_a_dry_run_shows_the_plan_and_writes_nothing(models, tmp_path, monkeypatch):
    monkeypatch.setenv("INTRUSCOPE_CACHE", str(tmp_path / "cache"))
    done = invoke("scan", *models, "--dry-run", "--json", tmp_path / "r.json")
    assert done.returncode == 0
    assert done.stderr == "note: --dry-run writes no report\n"
    assert "3 matrices to compare" in done.stdout
    assert "48 x 40" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_home_that_cannot_be_written_is_no_obstacle(models, tmp_path):
    (tmp_path / "file").write_text("in the way")
    environment = {**os.environ, "INTRUSCOPE_CACHE": str(tmp_path / "file" / "below")}
    done = run("scan", *models, "--workers", "1", env=environment)
    assert done.returncode == 0, done.stderr
    assert "cannot be resumed" in done.stderr


def test_a_user_without_a_home_is_no_obstacle(models, monkeypatch):
    from intruscope import RunOptions, scan

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for variable in ("INTRUSCOPE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    said = []
    report = scan(*map(str, models), options=RunOptions(workers=0), on_notice=said.append)
    assert report.complete
    (notice,) = said
    assert "cannot be resumed" in notice


def test_a_reader_that_leaves_is_no_error_and_a_full_disk_is(models):
    command = [*COMMAND, "layers", str(models[0])]
    for arguments in (command, [*COMMAND, "--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(arguments, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert_message(done, 6, "standard output", "No space left")


def test_a_narrow_encoding_does_not_end_a_scan(scanned):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run(*scanned.again, env=environment)
    assert done.returncode == 0, done.stderr
    assert "leading singular vectors" in done.stdout


def test_a_fault_of_ours_is_said_to_be_one(models, monkeypatch):
    def fail(*_, **__):
        return 1 / 0

    monkeypatch.setattr("intruscope.spectra.scan.scan", fail)
    done = invoke("scan", *models)
    assert_message(done, 70, "error[bug] ZeroDivisionError", "-v")
    assert "Traceback (most recent call last)" in invoke("scan", *models, "-v").stderr


def test_the_version_is_printed():
    from importlib.metadata import version

    assert invoke("--version").stdout == f"intruscope {version('intruscope')}\n"


@pytest.mark.real
def test_two_layers_of_a_real_model_and_what_was_trained_from_it(real_data, tmp_path):
    from safetensors import safe_open

    for name in ("minilm", "minilm-mlm"):
        with safe_open(real_data / "models" / name / "model.safetensors", "pt") as stored:
            kept = {k: stored.get_tensor(k) for k in stored.keys() if ".attention." in k and ".layer.0." in k}  # noqa: SIM118
        write_model(tmp_path / name, kept)
    done = run("scan", tmp_path / "minilm", tmp_path / "minilm-mlm", "-q", "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    report = load((tmp_path / "r.json").read_text())
    assert [m["kind"] for m in report["matrices"]] == ["o", "k", "q", "v"]
    assert report["totals"]["num_intruders"] == 0
    assert {v for m in report["matrices"] for v in m["verdicts"]} == {"aligned"}
