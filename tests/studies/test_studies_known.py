"""Finished runs that are carried from one machine to another: taken where nothing differs, and only there."""

import json
import re
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pretended_runs import digests_of, pretend
from simulated_runs import CANDIDATES

from intruscope.errors import MalformedInput, OutputConflict, UsageError
from intruscope.report.study import write_study
from intruscope.studies import known as known_module
from intruscope.studies import pool
from intruscope.studies.folder import study_records
from intruscope.studies.known import SHIPPED
from intruscope.studies.origins import (
    difference,
    inputs_read,
    origin_lines,
    origin_of,
    resolved,
    run_environment,
)
from intruscope.studies.recipes import places
from intruscope.studies.records import FILE, read_results, write_results
from intruscope.studies.scales import MINI, PAPER, SMOKE


def figures(work):
    """LoRA intrudes by rank, with a spread over seeds; full fine-tuning never does."""
    rank = dict(work.options).get("rank")
    count = {1: 9, 8: 30, 16: 20, 64: 5}.get(rank, 0) + (work.seed % 3 if rank else 0)
    counts = {"0.5": count, "0.6": count, "0.7": count, "0.8": 2 * count, "0.9": 3 * count}
    cells = {"intruders": {"0.7": {"forgetting_share": -0.25 - 0.01 * work.seed}}}
    edits = {"interventions": cells} if getattr(work, "interventions", False) else {}
    return {
        "count": count,
        "counts": counts,
        "effective_rank": 17.5,
        "forgetting": 0.125,
        **CANDIDATES,
        **edits,
    }


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    counting = pretend(monkeypatch)
    counting.figures = staticmethod(figures)
    monkeypatch.setattr("intruscope.plots.figures.write_figures", lambda figures, folder: [])
    return counting


def run(out, *known, scale=MINI, recipes=("counts",), seeds=None):
    return pool.run_study(scale, out, recipes=recipes, seeds=seeds, known=[str(name) for name in known])


def table_of(out):
    """What ``study report`` writes beside its page."""
    scale, records = study_records(out)
    write_results(records, out.with_suffix(".parquet"), about={"scale": scale})
    return out.with_suffix(".parquet")


def verdicts(out):
    write_study(out)
    page = (out / "report.html").read_text()
    origins = r'<section id="origins">[\s\S]*?</section>'
    told = re.search(origins, page).group()
    return (out / "results" / "verdicts.json").read_bytes(), re.sub(origins, "", page), told


def test_two_halves_on_two_machines_are_one_pool(tmp_path, counted):
    """By way of the table alone, as when the first machine is lost."""
    first = run(tmp_path / "first", seeds=[0])
    write_study(tmp_path / "first")
    carried = (tmp_path / "first" / "results").rename(tmp_path / "carried") / FILE
    shutil.rmtree(tmp_path / "first")
    counted.asked.clear()
    second = run(tmp_path / "second", carried)
    assert (second.num_taken, second.num_new) == (
        len(first.records),
        len(second.records) - len(first.records),
    )
    assert not set(counted.asked) & set(first.records)
    assert sum(counted.asked.values()) == second.num_new > 0

    run(tmp_path / "one")
    halves, one = verdicts(tmp_path / "second"), verdicts(tmp_path / "one")
    assert halves[:2] == one[:2]
    assert json.loads(halves[0])["claims"][0]["seeds"] == [0, 1, 2]
    assert f"{second.num_taken} runs taken from {carried}" in halves[2]
    assert f"{second.num_new} runs made here" in halves[2]
    tables = [read_results(tmp_path / name / "results" / FILE)[0] for name in ("second", "one")]
    assert tables[0] == tables[1]


def test_a_chain_is_carried_as_a_run_is(tmp_path, counted):
    run(tmp_path / "first", recipes=["sequence"])
    carried = table_of(tmp_path / "first")
    counted.asked.clear()
    second = run(tmp_path / "second", carried, recipes=["sequence"])
    assert second.num_taken == len(second.records) > 0
    assert not counted.asked
    assert {record["settings"]["kind"] for record in second.records.values()} == {"chain"}


def test_what_was_taken_is_kept_as_what_was_run(tmp_path, counted):
    """The same command without the table, which may be gone, goes on with it."""
    run(tmp_path / "first", seeds=[0])
    carried = table_of(tmp_path / "first")
    run(tmp_path / "second", carried, seeds=[0])
    carried.unlink()
    counted.asked.clear()
    again = run(tmp_path / "second", seeds=[0])
    assert (again.num_taken, again.num_new) == (0, 0)
    assert not counted.asked
    assert origin_lines(again.records.values())[0].startswith(f"{len(again.records)} runs taken from ")


def test_a_run_tells_the_gpu_that_it_was_made_on(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device" not in run_environment()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Some GPU")
    origin = {"code_sha256": "0" * 64, "environment": run_environment()}
    (line,) = origin_lines([{"origin": origin}])
    assert line.endswith("device Some GPU)")


def test_a_folder_of_a_study_is_known_too_also_while_it_is_running(tmp_path, counted):
    run(tmp_path / "first", seeds=[0])
    plan = json.loads((tmp_path / "first" / "journal" / "plan.json").read_bytes())
    from intruscope.engine.journal import Journal

    counted.asked.clear()
    with Journal(tmp_path / "first" / "journal", plan):
        second = run(tmp_path / "second", tmp_path / "first", seeds=[0])
    assert second.num_taken == len(second.records)
    (tmp_path / "first" / "journal" / "plan.json").write_text(json.dumps({**plan, "version": "0.0.1"}))
    with pytest.raises(OutputConflict, match=r"of intruscope 0\.0\.1"):
        run(tmp_path / "third", tmp_path / "first", seeds=[0])
    assert not (tmp_path / "third").exists()


def test_nothing_is_taken_unless_it_is_asked_for(tmp_path, monkeypatch, counted):
    """Whoever re-runs the study to check us gets runs of his own."""
    run(tmp_path / "first", seeds=[0])
    (tmp_path / "mini").mkdir()
    table_of(tmp_path / "first").rename(tmp_path / "mini" / FILE)
    monkeypatch.setattr(known_module, "COMMITTED", tmp_path)
    assert run(tmp_path / "own", seeds=[0]).num_taken == 0
    shipped = run(tmp_path / "shipped", SHIPPED, seeds=[0])
    assert shipped.num_taken == len(shipped.records)
    with pytest.raises(UsageError, match="no results of the scale paper ship with this version"):
        run(tmp_path / "paper", SHIPPED, scale=PAPER)


def test_the_first_place_counts_and_ones_own_before_it(tmp_path, counted):
    def table(name, count, seeds):
        counted.figures = staticmethod(lambda work: {"count": count})
        run(tmp_path / name, seeds=seeds)
        return table_of(tmp_path / name)

    first, second = table("first", 1, [0]), table("second", 2, [0, 1])
    counted.figures = staticmethod(lambda work: {"count": 3})
    run(tmp_path / "own", seeds=[1])
    found = run(tmp_path / "own", first, second, seeds=[0, 1, 2]).records.values()
    assert {(r["settings"]["seed"], r["count"]) for r in found} == {(0, 1), (1, 3), (2, 3)}


# --- what differs ----------------------------------------------------------------------------------------


def test_other_settings_are_other_runs(tmp_path, counted):
    run(tmp_path / "first", seeds=[0])
    bases = tuple(replace(base, batch=base.batch + 1) for base in MINI.bases)
    found = run(
        tmp_path / "second", table_of(tmp_path / "first"), scale=replace(MINI, bases=bases), seeds=[0]
    )
    assert found.num_taken == 0
    assert not found.refused  # their keys differ already


def test_other_bytes_are_another_run_and_are_told(tmp_path, monkeypatch, counted):
    run(tmp_path / "first", seeds=[0])
    carried = table_of(tmp_path / "first")
    changed = {"sst2/eval": "another"}
    monkeypatch.setattr(pool, "digests", lambda base, inputs: digests_of(base, inputs) | changed)
    found = run(tmp_path / "second", carried, seeds=[0])
    own = [r for r in found.records.values() if r["settings"]["task"] == "sst2"]
    assert found.num_new == len(own) > 0  # the other tasks' runs never read it
    assert found.num_taken == len(found.records) - len(own)
    assert found.refused == {(str(carried), "other inputs (sst2/eval)"): len(own)}


def test_another_way_of_measuring_is_another_run_although_its_key_is_the_same(tmp_path, counted):
    run(tmp_path / "first", seeds=[0])
    carried = table_of(tmp_path / "first")
    bases = tuple(replace(base, text_sequences=base.text_sequences + 1) for base in MINI.bases)
    found = run(tmp_path / "second", carried, scale=replace(MINI, bases=bases), seeds=[0])
    assert (found.num_taken, found.num_new) == (0, len(found.records))
    assert found.refused == {(str(carried), "other settings (text_sequences)"): len(found.records)}


def place(recipe):
    return next(p.work for p in places(MINI) if p.recipe == recipe)


def test_a_changed_recipe_of_training_is_another_run_and_a_later_setting_its_default():
    work = place("counts")
    inputs = inputs_read(work, digests_of(MINI.base(work.base), None))
    record = {"origin": origin_of(work, MINI, inputs)}
    assert difference(work, MINI, inputs, record) is None
    training = record["origin"]["resolved"]["training"]
    training["recipe"]["warmup" if "warmup" in training["recipe"] else "name"] = "another"
    assert difference(work, MINI, inputs, record) == "other settings (recipe)"
    record = {"origin": origin_of(work, MINI, inputs)}
    record["origin"]["resolved"]["training"].pop("accumulate")  # as if it had come later
    assert difference(work, MINI, inputs, record) is None
    record["origin"]["resolved"]["training"].pop("rate")  # here it is not the default
    assert difference(work, MINI, inputs, record) == "other settings (rate)"
    assert difference(work, MINI, inputs, {}) == "no hashes of what was read"


def test_each_run_answers_for_what_it_reads_and_no_more():
    work, chain = place("counts"), place("sequence")
    digests = digests_of(MINI.base(work.base), None)
    assert {name.partition("/")[0] for name in inputs_read(work, digests)} == {"base", "text", work.task}
    assert {name.partition("/")[0] for name in inputs_read(chain, digests)} == {"base", "text", *chain.tasks}
    assert "interventions" not in str(resolved(work, MINI)["measuring"])
    assert resolved(place("interventions"), MINI)["measuring"]["strengths"] == [0.3, 0.5, 0.7, 0.9, 1.5]
    checkpoint = PAPER.checkpoints[0]
    assert resolved(checkpoint, PAPER) == {"training": {}, "measuring": {}}
    record = {"origin": origin_of(checkpoint, PAPER, {})}
    assert difference(checkpoint, PAPER, {}, record) == "no hashes of what was read"


# --- files that are refused ------------------------------------------------------------------------------


@pytest.fixture
def carried(tmp_path):
    run(tmp_path / "first", seeds=[0])
    return table_of(tmp_path / "first")


def rewritten(path, change, **metadata):
    table = pq.read_table(path)
    told = {k.decode(): v.decode() for k, v in table.schema.metadata.items()} | metadata
    pq.write_table(change(table).replace_schema_metadata(told), path)
    return path


def better(table):
    """Somebody's thumb on the scales: one figure."""
    first, *others = table.column("count").to_pylist()
    column = [first + 1.0, *others]
    place = table.schema.get_field_index("count")
    return table.set_column(place, "count", pa.array(column, pa.float64()))


def refusal(tmp_path, known, kind):
    with pytest.raises(kind) as error:
        run(tmp_path / "second", known, seeds=[0])
    assert not (tmp_path / "second").exists() or not list((tmp_path / "second").glob("runs/*"))
    return str(error.value)


def test_a_table_that_was_changed_is_refused(tmp_path, carried):
    told = refusal(tmp_path, rewritten(carried, better), MalformedInput)
    assert "the rows do not match the file's checksum" in told
    assert str(carried) in told


def test_a_table_of_another_schema_is_refused(tmp_path, carried):
    told = refusal(
        tmp_path, rewritten(carried, lambda t: t, schema="intruscope.study.results/1"), MalformedInput
    )
    assert "its schema is intruscope.study.results/1" in told
    assert "in the format intruscope.study.results/2" in told


def test_a_forged_record_is_refused_by_its_settings(tmp_path, carried, monkeypatch):
    """Also where the checksum was made anew."""
    records, about = read_results(carried)
    next(iter(records.values()))["settings"]["rate"] = 1.0
    write_results(records, carried, about=about)
    assert "do not match its key" in refusal(tmp_path, carried, MalformedInput)


def test_other_refusals_say_what_was_expected(tmp_path, carried):
    assert "nowhere holds no results" in refusal(tmp_path, "nowhere", UsageError)
    (tmp_path / "empty").mkdir()
    assert "empty holds no results" in refusal(tmp_path, tmp_path / "empty", UsageError)
    (tmp_path / "text.parquet").write_text("not one")
    assert "not a table of results" in refusal(tmp_path, tmp_path / "text.parquet", MalformedInput)
    with pytest.raises(UsageError, match="of the scale mini, not of smoke"):
        run(tmp_path / "second", carried, scale=SMOKE)
