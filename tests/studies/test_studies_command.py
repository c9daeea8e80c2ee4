"""A whole study at the smallest scale, as a user runs it: killed, resumed, listed, reported."""

import json
import re
import signal
import time
from pathlib import Path

import pytest

from intruscope.cli.main import app
from intruscope.cli.study import _note_growing
from intruscope.errors import IntruscopeError
from intruscope.studies.claims import CLAIMS, find_claim
from intruscope.studies.judge import too_few_seeds
from intruscope.studies.recipes import places
from intruscope.studies.scales import MIDI, MINI, SMOKE
from processes import alive

pytest.importorskip("peft")


def study(commands, *arguments):
    """Run to the end; gives standard error."""
    done = commands.run(*arguments, verb="study")
    assert done.is_well, done.stderr
    return done.stderr


def killed(commands, *arguments, out, number):
    """With ``kill -9``, once so many runs are finished; gives how many were."""
    running = commands.start(*arguments, "--out", out, "-q", verb="study")
    ((pid, _),) = running
    deadline = time.monotonic() + 600
    while finished(out) < number and alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert commands.stop(running).codes == (-signal.SIGKILL,)
    kept = finished(out)
    assert kept >= number
    return kept


def finished(out):
    path = out / "journal" / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory):
    """All claims with one seed, killed once in the middle of a run; then one claim with all its seeds."""
    out = tmp_path_factory.mktemp("studies") / "all"
    every = ("run", "all", "--scale", "smoke", "--seeds", "0")
    kept = killed(commands, *every, out=out, number=2)
    before = {path.parent.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*/settings.json")}
    noted = study(commands, *every, "--out", out, "--jobs", "2")
    study(commands, "run", "C5", "--scale", "smoke", "--out", out, "-q")
    return {"out": out, "kept": kept, "before": before, "noted": noted}


@pytest.fixture(scope="module")
def fresh(commands, tmp_path_factory):
    """One claim and one seed in a folder of its own, never killed."""
    out = tmp_path_factory.mktemp("fresh") / "one"
    study(commands, "run", "C5", "--scale", "smoke", "--seeds", "0", "--out", out, "-q")
    return out


@pytest.mark.slow
def test_after_a_kill_the_rest_is_run_and_nothing_twice(whole):
    works = {p.work.key for p in places(SMOKE, of_seeds=[0])}
    more = {p.work.key for p in places(SMOKE, [find_claim("C5").recipe])}
    assert {path.name for path in (whole["out"] / "runs").iterdir()} == works | more
    assert f"{len(works)} runs, {len(works) - whole['kept']} of them new" in whole["noted"]
    assert finished(whole["out"]) == len(works | more) > len(works)
    again = [
        name
        for name, stamp in whole["before"].items()
        if (whole["out"] / "runs" / name / "settings.json").stat().st_mtime_ns != stamp
    ]
    assert len(again) <= 1  # the run that was in work


@pytest.mark.slow
def test_what_exists_is_not_run_again_whichever_claim_asks(whole, capsys):
    before = (whole["out"] / "journal" / "records.jsonl").read_bytes()
    here("run", "C13", "C16", "--scale", "smoke", "--seeds", "0", "--out", whole["out"])
    assert re.search(r"\d+ runs, 0 of them new", capsys.readouterr().err)
    assert (whole["out"] / "journal" / "records.jsonl").read_bytes() == before


@pytest.mark.slow
def test_an_uninterrupted_study_of_one_claim_gives_the_same_figures(whole, fresh):
    """The killed and resumed pool, against a fresh folder: bit by bit, but for times."""
    alone, pooled = records(fresh), records(whole["out"])
    assert len(alone) == 2
    for key, record in alone.items():
        assert without_times(record) == without_times(pooled[key])


@pytest.mark.slow
def test_the_second_machine_takes_what_the_first_one_finished(commands, whole, fresh, tmp_path):
    """A fresh folder that knows the pool's table of one seed; killed; resumed without the table."""
    second = tmp_path / "second"
    here("report", "--out", fresh)
    carried = fresh / "results" / "runs.parquet"
    killed(commands, "run", "C5", "--scale", "smoke", "--known", carried, out=second, number=3)
    carried.unlink()
    noted = study(commands, "run", "C5", "--scale", "smoke", "--out", second)
    assert "2 runs taken from" in noted
    assert "2 runs made here" in noted
    assert {path.name for path in (second / "runs").iterdir()} == records(second).keys() - records(
        fresh
    ).keys()
    here("report", "--out", second)
    halves, pool = results(second), records(whole["out"])
    assert len(halves) == 4
    for key, record in halves.items():
        assert filled(record) == filled({**pool[key], "key": key})


def results(out):
    from intruscope.studies.records import read_results

    return read_results(out / "results" / "runs.parquet")[0]


def records(out):
    lines = (out / "journal" / "records.jsonl").read_text().splitlines()
    return dict(json.loads(line.partition(" ")[2]) for line in lines)


def filled(record):
    """A table has an empty cell where a journal says that there is no such figure."""
    return {name: value for name, value in without_times(record).items() if value is not None}


def without_times(record):
    """Nor what made it: the code may be at work on itself."""
    return {name: value for name, value in record.items() if "seconds" not in name and name != "origin"}


@pytest.mark.slow
def test_every_claim_has_a_verdict_and_the_planted_task_was_learned(whole, capsys):
    here("list", "--out", whole["out"], "--json", "-")
    claims = json.loads(capsys.readouterr().out)["claims"]
    assert [claim["id"] for claim in claims] == [claim.id for claim in CLAIMS]
    assert all(claim["verdict"] is not None for claim in claims)
    assert all(set(claim["seeds"]) <= {0, 1, 2} for claim in claims)
    fine = [
        r for r in records(whole["out"]).values() if r.get("accuracy") is not None and r["status"] == "ok"
    ]
    assert len(fine) > 10
    assert sum(r["accuracy"] > 0.9 for r in fine) > len(fine) / 2


@pytest.mark.slow
def test_only_the_study_draws(whole):
    drawn = {path.suffix for path in (whole["out"] / "runs").rglob("*")} & {".png", ".svg"}
    assert drawn == set()


@pytest.mark.slow
def test_every_run_says_what_it_was(whole):
    for path in (whole["out"] / "runs").iterdir():
        found = json.loads((path / "settings.json").read_bytes())
        assert found["key"] == path.name
        assert {"base/model.safetensors", "text"} <= set(found["inputs"])
        assert len(found["code_sha256"]) == 64
        assert found["environment"]["transformers"]
        assert not (path / "train" / "model").exists()


@pytest.mark.slow
def test_figures_of_a_run_hang_together(whole):
    """Counts are counted one way by epsilon, by k and by part; the null and the prediction stand beside."""
    for record in records(whole["out"]).values():
        if "counts" not in record:
            continue
        assert record["counts"]["0.5"] == record["count"] == record["counts_by_k"]["10"]
        assert record["count"] == record["count_attention"] + record["count_mlp"]
        assert record["candidates"] == 120 if record["candidates"] < 130 else 140
        by_epsilon = [record["counts"][e] for e in sorted(record["counts"], key=float)]
        assert by_epsilon == sorted(by_epsilon)
        assert sum(record["by_fifth"]) >= record["count"]
        assert 0 <= record["hosts"] <= record["count"]
        assert record["null_count"] >= 0.0
        assert record["predicted_hosts"] >= 0
        assert record["forgetting_low"] <= record["forgetting"] <= record["forgetting_high"]


@pytest.mark.slow
def test_the_report_is_one_page_with_every_claim_and_a_small_table(whole, capsys):
    here("report", "c16", "--out", whole["out"])
    assert "report.html" in capsys.readouterr().out
    page = (whole["out"] / "report.html").read_text()
    assert page.index('id="C16"') < page.index('id="C1"') < page.index('id="C24"')
    for claim in CLAIMS:
        assert f'id="{claim.id}"' in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    pictures = {path.name for path in (whole["out"] / "pictures").iterdir()}
    for name in ("similarity", "courses", "interventions-lora-r-8", "sequence"):
        assert f'id="picture-{name}"' in page
        assert {f"{name}.png", f"{name}.svg"} <= pictures
    assert (whole["out"] / "results" / "runs.parquet").stat().st_size < 500_000
    verdicts = json.loads((whole["out"] / "results" / "verdicts.json").read_bytes())
    assert len(verdicts["claims"]) == len(CLAIMS)


@pytest.mark.slow
def test_a_study_of_other_inputs_or_version_is_refused(whole, tmp_path):
    import shutil

    other = tmp_path / "other"
    (other / "journal").mkdir(parents=True)
    shutil.copytree(whole["out"] / "inputs", other / "inputs")
    plan = json.loads((whole["out"] / "journal" / "plan.json").read_bytes())
    (other / "journal" / "plan.json").write_text(json.dumps({**plan, "version": "0.0.1"}))
    for arguments in (("report",), ("list",), ("run", "C5", "--scale", "smoke")):
        assert "intruscope 0.0.1" in refused(*arguments, "--out", other, code=7)
    plan["inputs"]["tiny-bert"]["text"] = "0" * 64
    (other / "journal" / "plan.json").write_text(json.dumps(plan))
    assert "inputs.tiny-bert.text" in refused("run", "C5", "--scale", "smoke", "--out", other, code=7)


def here(*arguments):
    """The same command line in this process."""
    app(["study", *map(str, arguments)], standalone_mode=False)


def refused(*arguments, code):
    """What the one line of an error says."""
    with pytest.raises(IntruscopeError) as error:
        here(*arguments)
    assert error.value.exit_code == code
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_plan_is_printed_and_nothing_is_made(tmp_path, capsys):
    here("run", "all", "--scale", "mini", "--out", tmp_path / "none", "--dry-run")
    assert "174 runs, 21 chains" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    here("run", "all", "--scale", "mini", "--out", tmp_path / "none", "--known", "shipped", "--dry-run")
    told = capsys.readouterr()
    assert "mini: nothing is left to run" in told.out and "195 runs are there already" in told.err


def test_too_few_seeds_are_said_before_anything_is_run(tmp_path, capsys):
    warning = "C16 will stay undecided: verdicts need at least 2 seeds per task"
    for arguments, few in (
        (("plan", "C14", "C16", "--scale", "smoke", "--seeds", "0"), True),
        (("run", "C16", "--scale", "smoke", "--seeds", "0", "--out", tmp_path / "none", "--dry-run"), True),
        (("plan", "C14", "--scale", "smoke", "--seeds", "0"), False),
        (("plan", "C16", "--scale", "smoke", "--seeds", "0,1"), False),
        (("plan", "C16", "--scale", "smoke"), False),
    ):
        here(*arguments)
        assert (warning in " ".join(capsys.readouterr().err.split())) is few
    claim = find_claim("C16")
    first, second = (places(SMOKE, ["interventions"], of_seeds=[seed]) for seed in (0, 1))
    assert too_few_seeds([claim], [*first, *first]) == [claim]
    assert too_few_seeds([claim], [*first, *places(SMOKE, ["counts"], of_seeds=[1])]) == [claim]
    assert too_few_seeds([claim], [*first, *second]) == []


def test_the_papers_plan_as_json(capsys):
    here("plan", "C1", "C19", "--scale", "paper", "--json", "-")
    plan = json.loads(capsys.readouterr().out)
    assert {place["recipe"] for place in plan["places"]} == {"counts", "sequence"}
    assert {place["key"] for place in plan["places"]} == set(plan["runs"])
    assert any(run["kind"] == "checkpoint" for run in plan["runs"].values())


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("run", "C25", "--scale", "smoke"), 2, "unknown claim C25; the claims are C1 to C24 and M1 to M3"),
        (("run", "M1", "--scale", "smoke"), 2, "the scale smoke has no runs for M1"),
        (("run", "C1", "--scale", "merging"), 2, "the scale merging has no runs for C1"),
        (("run", "C1", "--scale", "large"), 2, "unknown scale large; known scales are smoke, mini, midi"),
        (("run", "C1", "--scale", "mini"), 2, "needs a data folder"),
        (("run", "C1", "--scale", "smoke", "--seeds", "1,1"), 2, "each may occur once"),
        (
            ("run", "C1", "--scale", "smoke", "--seeds", "one"),
            2,
            "--seeds must be a whole number of at least 0, not",
        ),
        (("report",), 2, "the folder does not hold a study"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, arguments, code, told):
    assert told in refused(*arguments, "--out", tmp_path / "none", code=code)
    assert not (tmp_path / "none").exists()


def test_another_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    told = refused("run", "C5", "--scale", "smoke", "--out", tmp_path, code=7)
    assert "holds something other than a study" in told
    assert [path.name for path in Path(tmp_path).iterdir()] == ["thesis.txt"]


def test_who_has_no_gpu_is_told_before_a_base_is_grown(tmp_path, monkeypatch, capsys):
    for scale, has_gpu, is_there, told in (
        (MIDI, False, False, True),
        (MIDI, True, False, False),
        (MIDI, False, True, False),
        (MINI, False, False, False),
    ):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        if is_there:
            (tmp_path / "inputs" / "wide").mkdir(parents=True)
        _note_growing(scale, tmp_path)
        assert ("wide is trained first" in capsys.readouterr().err) is told
