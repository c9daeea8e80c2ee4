"""A diagnosis is its parts, opened once; what cannot run is left out with its reason; its commands run."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from browser import look
from cli_support import assert_message, fingerprint, invoke
from forgetting_pairs import masked_pair

import intruscope
from intruscope.cli.main import app
from intruscope.diagnose import run as run_module
from intruscope.diagnose.advice import answer
from intruscope.diagnose.commands import option_words
from intruscope.diagnose.settings import DiagnoseSettings
from intruscope.errors import OutputConflict, ResourceExhausted, UsageError
from intruscope.forgetting import measurement as measurement_module
from intruscope.forgetting import models as models_module
from intruscope.forgetting.intervals import Interval
from intruscope.forgetting.settings import SkillSettings
from intruscope.report.diagnose_page import diagnose_data, write_diagnose_html
from intruscope.sweep.settings import MeasureOptions
from intruscope.weights.output import json_text

pytestmark = pytest.mark.filterwarnings("ignore")
INLINE = intruscope.RunOptions(workers=0)
SETTINGS = DiagnoseSettings(strengths=(0.5,), controls=("intruders", "uniform"), num_resamples=200)


@pytest.fixture(scope="module")
def asked(files):
    return {
        "text": files / "text.txt",
        "task": intruscope.load_task(files / "task.tsv"),
        "settings": SETTINGS,
        "options": INLINE,
    }


@pytest.fixture(scope="module")
def report(files, asked):
    return intruscope.diagnose(str(files / "base"), str(files / "adapter"), **asked)


def test_its_parts_are_those_of_the_verbs(files, asked, report):
    models = files / "base", files / "adapter"
    scanned = intruscope.scan(*models, options=INLINE)
    assert [m.sides for m in report.scan.matrices] == [m.sides for m in scanned.matrices]
    assert report.scan.totals == scanned.totals
    alone = intruscope.forget(
        *models, text=asked["text"], tasks=[asked["task"]], protocol="fast", num_resamples=200
    )
    assert report.forgetting == alone
    settings = intruscope.SweepSettings(
        strengths=(0.5,), controls=("intruders", "uniform"), num_resamples=200
    )
    swept = intruscope.sweep(
        *models, task=asked["task"], text=asked["text"], settings=settings, options=INLINE
    )
    assert report.sweep.cells == swept.cells
    assert report.complete
    assert report.skipped == ()
    ranks = {c.control: c.chosen_by for c in report.sweep.choices}
    assert [fix.control for fix in report.fixes] == sorted(
        (fix.control for fix in report.fixes), key=ranks.__getitem__
    )
    chosen = {c.control: c.report.forgetting_change for c in report.sweep.choices if c.report is not None}
    assert {fix.control: fix.forgetting_change for fix in report.fixes} == chosen


def test_the_json_holds_the_reports_of_the_parts_and_comes_back(report):
    data = json.loads(json_text(report.to_json()))
    assert data["schema"] == "intruscope.diagnose/1"
    schemas = {part: data[part]["schema"] for part in ("scan", "forgetting", "sweep")}
    assert schemas == {name: f"intruscope.{verb}/1" for name, verb in
                       (("scan", "scan"), ("forgetting", "forget"), ("sweep", "sweep"))}  # fmt: skip
    assert intruscope.DiagnoseReport.from_json(data) == report
    rows = list(report.rows())
    assert {row[0] for row in rows} == {"scan", "forgetting", "fixes"}
    assert all(len(row) == len(report.columns) for row in rows)
    assert report.sentences[0] in report._repr_html_()


def test_the_models_are_loaded_once(files, asked, monkeypatch):
    calls = []
    load = models_module.load_pair
    monkeypatch.setattr(models_module, "load_pair", lambda *a, **k: calls.append(a) or load(*a, **k))
    intruscope.diagnose(str(files / "base"), str(files / "adapter"), **asked)
    assert len(calls) == 1


def test_without_data_the_scan_alone_and_what_to_add(files):
    found = intruscope.diagnose(str(files / "base"), str(files / "adapter"), options=INLINE)
    assert found.verdict == "unknown"
    assert (found.forgetting, found.sweep, found.fixes) == (None, None, ())
    assert {each.part: each.was_asked for each in found.skipped} == {"forgetting": False, "fixes": False}
    assert "no text was given" in found.skipped[0].reason
    assert "no text and task was given" in found.skipped[1].reason
    assert found.complete
    command = shlex.split(found.commands[0].command)
    assert command[:4] == ["intruscope", "diagnose", str(files / "base"), str(files / "adapter")]
    assert command[4] == "--text"
    assert command[5].startswith("hf:")


def test_models_in_memory_get_no_commands(files, asked):
    from transformers import BertForMaskedLM

    base = BertForMaskedLM.from_pretrained(files / "base")
    tuned = BertForMaskedLM.from_pretrained(files / "base")
    tuned.bert.encoder.layer[0].output.dense.weight.data.mul_(-1.0)
    measuring = MeasureOptions(tokenizer=str(files / "base"))
    found = intruscope.diagnose(
        base, tuned, text=asked["text"], settings=SETTINGS, options=INLINE, measuring=measuring
    )
    alone = intruscope.forget(
        base, tuned, text=asked["text"], protocol="fast", num_resamples=200, tokenizer=str(files / "base")
    )
    assert found.forgetting == alone
    assert found.commands == ()
    assert [each.part for each in found.skipped] == ["fixes"]


@pytest.mark.parametrize("free", [10, 10**12])
def test_too_little_memory_leaves_the_scan(files, asked, free, monkeypatch):
    monkeypatch.setattr(run_module, "_free_memory", lambda: free)
    given = {**asked, "task": None}
    found = intruscope.diagnose(str(files / "base"), str(files / "adapter"), **given)
    assert (found.forgetting is None) == (free == 10)
    assert found.complete == (free != 10)
    if free == 10:
        assert "loading both models takes about" in found.skipped[1].reason
        assert found.scan.totals.num_intruders > 0


def test_a_failed_allocation_is_a_reason_and_a_fault_is_not(files, asked, monkeypatch):
    def fails(error):
        def measure(*_, **__):
            raise error

        return measure

    given = {**asked, "task": None}
    models = str(files / "base"), str(files / "adapter")
    for error in (MemoryError(), ResourceExhausted("no room", remedy="get some")):
        monkeypatch.setattr(run_module, "_forgetting", fails(error))
        found = intruscope.diagnose(*models, **given)
        assert [each.part for each in found.skipped if each.was_asked] == ["forgetting"]
    monkeypatch.setattr(run_module, "_forgetting", fails(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        intruscope.diagnose(*models, **given)


def test_a_killed_diagnosis_resumes(files, asked, report, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def killed(*_, **__):
        raise Killed

    given = {**asked, "options": replace(INLINE, work_dir=tmp_path / "work")}
    models = str(files / "base"), str(files / "adapter")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_swept", killed)
        with pytest.raises(Killed):
            intruscope.diagnose(*models, **given)
    monkeypatch.setattr(measurement_module.Measurement, "measure_base", killed)  # kept, so not run again
    again = intruscope.diagnose(*models, **given)
    assert (again.forgetting, again.sweep) == (report.forgetting, report.sweep)
    with pytest.raises(OutputConflict, match="differs in measuring"):  # never another request's figures
        intruscope.diagnose(*models, **given, measuring=MeasureOptions(max_sequences=8))


def test_wrong_requests_are_refused_before_the_scan(files, asked, monkeypatch):
    from intruscope.spectra import scan as scan_module

    monkeypatch.setattr(scan_module, "scan_pairing", None)
    models = str(files / "base"), str(files / "adapter")
    with pytest.raises(UsageError, match="no such file"):
        intruscope.diagnose(*models, text="nowhere.txt")
    monkeypatch.setattr("intruscope.forgetting.harness.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="lm-eval, which is not installed"):
        intruscope.diagnose(*models, skills=["hellaswag"])


def test_the_answer_says_what_the_intervals_say(report):
    def said(low, high):
        change = Interval(estimate=(low + high) / 2, low=low, high=high)
        forgetting = replace(report.forgetting, forgetting=change)
        return answer(report.scan, forgetting, None, ())

    verdict, sentences = said(0.1, 0.3)
    assert (verdict, sentences[0]) == (
        "forgot", "The loss on the text rose by 0.200 nats/token (0.100 to 0.300).",
    )  # fmt: skip
    verdict, sentences = said(-0.3, -0.1)
    assert (verdict, sentences[0]) == (
        "no-forgetting", "The loss on the text fell by 0.200 nats/token (0.100 to 0.300).",
    )  # fmt: skip
    verdict, sentences = said(-0.1, 0.3)
    assert verdict == "no-forgetting"
    assert "did not measurably change" in sentences[0]
    chance = report.scan.totals.chance
    assert ("is no sign of harm" in sentences[1]) == (report.scan.totals.num_intruders <= chance.high)


def test_a_fitted_fix_is_one_of_the_fixes(files, asked):
    settings = replace(SETTINGS, controls=("intruders", "fitted"), weights=(1.0,), max_task_cost=0.5)
    found = intruscope.diagnose(
        str(files / "base"), str(files / "adapter"), **{**asked, "settings": settings}
    )
    (fitted,) = [fix for fix in found.fixes if fix.control == "fitted"]
    assert (fitted.strength, fitted.weight, fitted.setting) == (None, 1.0, "weight 1")
    assert shlex.split(fitted.command)[:2] == ["intruscope", "repair"]
    assert "--fit" in shlex.split(fitted.command)
    assert found.sentences[-1].startswith(found.sweep.fitting.best.sentence)
    assert found.fixes[0].control == found.sweep.fitting.best.fix
    assert intruscope.DiagnoseReport.from_json(json.loads(json_text(found.to_json()))) == found


def test_options_become_words_that_give_them_again():
    settings = DiagnoseSettings(strengths=(0.25, 0.5), k=7, controls=("intruders",))
    assert option_words(settings) == ["--controls", "intruders", "--strengths", "0.25,0.5", "--k", "7"]
    assert option_words(settings, without=("controls", "k")) == ["--strengths", "0.25,0.5"]
    assert option_words(DiagnoseSettings()) == []
    skills = SkillSettings(skills=("a", "b"), num_fewshot=2, chat_template="never")
    assert option_words(skills) == ["--skills", "a,b", "--shots", "2", "--chat-template", "never"]


def test_every_command_of_the_command_runs(files, tmp_path, monkeypatch):
    """Also with names that a shell would read otherwise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(intruscope.__file__).parents[1]))  # for its worker, also here
    text = tmp_path / "it's $HOME.txt"
    text.write_bytes((files / "text.txt").read_bytes())
    before = fingerprint(files)
    done = invoke(
        "diagnose", files / "base", files / "adapter", "--text", text, "--task", files / "task.tsv",
        "--strengths", "0.5", "--controls", "intruders,uniform", "--max-sequences", "16", "--max-cost", "0.5",
        "--workers", "1", "--json", "d.json", "--html", "d.html",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "d.json").read_text())
    shown = done.stdout
    assert data["sentences"][0] in " ".join(shown.split())
    verbs = [shlex.split(each["command"])[1] for each in data["commands"]]
    assert verbs == ["repair", "forget", "forget", "sweep", "scan"]  # with a fix that helps
    for place, each in enumerate(data["commands"]):
        assert f"  {each['command']}\n" in shown
        verb, *words = shlex.split(each["command"])[1:]
        app.commands[verb].make_context(verb, list(words))  # every option exists and has a value
        if place < 2:  # the others are of verbs that have their own tests
            ran = invoke(verb, *words)
            assert ran.returncode == 0, (each["command"], ran.stderr)
    assert fingerprint(files) == before


def test_a_part_that_was_asked_for_and_cannot_run_is_code_5(tmp_path):
    masked_pair(tmp_path)
    (tmp_path / "text.txt").write_text("she waited\n" * 20)
    models = tmp_path / "headless", tmp_path / "classifier"
    done = invoke("diagnose", *models, "--text", tmp_path / "text.txt", "--workers", "1")
    assert_message(done, 5, "could not be measured")
    assert "Not measured: forgetting: the base is without a language-model head" in " ".join(
        done.stdout.split()
    )


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_draws_every_part(report, tmp_path, width):
    write_diagnose_html(report, tmp_path / "page.html")
    script = """
    await new Promise(done => setTimeout(done, 400));
    const all = query => [...document.querySelectorAll(query)];
    const text = query => all(query).map(node => node.textContent);
    return {
      drawn: document.documentElement.dataset.drawn, said: text("#glance .said"),
      sections: all("section").map(node => node.id), forest: all(".forest circle").length,
      dots: all("#fixes .dot").length, fixes: text("#fixes tbody th"), commands: text(".command"),
      fits: document.documentElement.scrollWidth <= innerWidth,
      objects: document.body.innerText.includes("[object"),
    };
    """
    seen = look((tmp_path / "page.html").read_text(encoding="utf-8"), script, tmp_path, width=width)
    assert seen.console == []
    found = seen.answer
    assert found["drawn"] == "yes"
    assert found["said"] == list(report.sentences)
    assert found["sections"] == ["glance", "next", "forgetting", "fixes", "weights", "guide"]
    assert found["forest"] == len(diagnose_data(report)["forgetting"]) == 1
    assert found["dots"] == len(report.sweep.cells)
    assert found["fixes"] == [fix.title for fix in report.fixes]
    assert found["commands"] == [each.command for each in report.commands]
    assert found["fits"]
    assert not found["objects"]
