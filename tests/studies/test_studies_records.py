"""Results are kept as they were made, and verdicts are read off them."""

import json

import pytest
from simulated_runs import CANDIDATES

from intruscope.errors import MalformedInput
from intruscope.studies.claims import CLAIMS
from intruscope.studies.grid import settings_of
from intruscope.studies.judge import NOT_RUN, judge, judge_committed, studies_json
from intruscope.studies.recipes import places
from intruscope.studies.records import FILE, read_results, records_of, rows_of, write_results
from intruscope.studies.scales import MINI

CONTRACT = {
    "id", "text", "paper_version", "recipe", "verdict", "reason", "results", "num_runs", "seeds",
    "by_task", "heterogeneity",
}  # fmt: skip


def works(recipe):
    return {p.work.key: p.work for p in places(MINI) if p.recipe == recipe}


def counted(method, rank, seed=0):
    """A world in which LoRA intrudes by rank and full fine-tuning never does."""
    count = 0 if method == "full" else {1: 9, 8: 30 + seed, 16: 20, 64: 5}.get(rank, 0)
    return {
        "status": "ok", "reason": None, "count": count, "counts": {"0.5": count, "0.9": 3 * count},
        "by_fifth": [count + 1, 9 * count, 8 * count, 7 * count, 6 * count], **CANDIDATES, "seconds": 12.25,
        "effective_rank": 17.5, "looks": [{"step": 0, "count": 0, "forgetting": 0.0, "held_out_loss": None}],
        "interventions": {"intruders": {"0.7": {"forgetting_share": -0.25}}}, "forgetting": -0.125,
    }  # fmt: skip


@pytest.fixture
def records():
    found = works("counts")
    journal = {key: counted(w.method, dict(w.options).get("rank"), w.seed) for key, w in found.items()}
    return records_of(found, journal)


def test_a_table_gives_back_what_was_written(tmp_path, records):
    write_results(records, tmp_path / FILE, about={"scale": "mini", "version": "0"})
    found, about = read_results(tmp_path / FILE)
    assert found == records
    assert about["scale"] == "mini"
    key, work = next(iter(works("counts").items()))
    assert found[key]["settings"] == json.loads(json.dumps(settings_of(work)))


def test_a_table_is_small(tmp_path, records):
    write_results(records, tmp_path / FILE, about={})
    assert (tmp_path / FILE).stat().st_size < 500 * len(records)


def test_other_files_are_refused_by_name(tmp_path):
    (tmp_path / FILE).write_bytes(b"PAR1 no table")
    with pytest.raises(MalformedInput, match="not a table of results"):
        read_results(tmp_path / FILE)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(MalformedInput, match="its schema is None"):
        read_results(tmp_path / "other.parquet")


def test_rows_are_arms_and_an_arm_without_a_record_has_none(records):
    found = [p for p in places(MINI) if p.recipe == "counts"]
    assert len(rows_of(found, records)) == len(found)
    gone = found[0].work.key
    assert len(rows_of(found, {k: v for k, v in records.items() if k != gone})) == len(found) - 1


def outcomes(records):
    return {each.claim.id: each for each in judge("mini", records)}


def test_verdicts_come_of_the_records_of_their_own_study(records):
    found = outcomes(records)
    assert found["C1"].verdict.outcome == "holds"
    assert found["C2"].verdict.outcome == "holds"
    assert (found["C1"].num_runs, found["C1"].seeds) == (len(records), (0, 1, 2))
    assert found["C19"].verdict is None
    assert found["C19"].reason == NOT_RUN


def test_the_contrary_world_turns_the_verdict(records):
    for record in records.values():
        full = record["settings"]["method"] == "full"
        record["count"], record["counts"] = (40, {"0.9": 90}) if full else (0, {"0.9": 0})
    assert outcomes(records)["C1"].verdict.outcome == "does not hold"


def test_diverged_runs_are_left_out_and_counted(records):
    for record in records.values():
        if record["settings"]["method"] == "full" and record["settings"]["seed"] == 2:
            record["status"], record["count"] = "diverged", 10_000
    found = outcomes(records)["C1"]
    assert found.verdict.outcome == "holds"
    assert found.num_left_out == 4  # three tasks of one base, and one of the other
    assert "4 runs learned too little and are left out" in found.reason
    # They have figures, which would turn the verdict.
    assert found.outcome_with_all not in (None, "holds")
    assert f"left out; including them would change it to “{found.outcome_with_all}”." in found.reason
    for record in records.values():
        if record["status"] == "diverged":
            record["count"], record["counts"] = 0, {"0.9": 0}
    found = outcomes(records)["C1"]
    assert found.outcome_with_all == "holds"
    assert found.reason.endswith("including them would not change the verdict.")
    for record in records.values():
        if record["status"] == "diverged":
            del record["count"]  # as where the loss became NaN
    found = outcomes(records)["C1"]
    assert found.outcome_with_all is None
    assert found.reason.endswith("4 runs learned too little and are left out.")


def test_a_verdict_on_part_of_its_runs_says_so(records):
    found = outcomes(records)["C1"]
    assert (found.is_whole, found.num_planned, found.runs_text) == (True, len(records), str(len(records)))
    assert "Preliminary" not in found.reason
    keys = sorted(records)
    for record in records.values():
        record["status"] = "diverged" if record["key"] == keys[0] else "ok"
    part = outcomes({key: records[key] for key in keys[:-5]})["C1"]
    finished = len(records) - 5
    assert not part.is_whole
    assert part.reason.startswith(f"Preliminary, from {finished} of {len(records)} planned runs. ")
    assert (found.outcome_text, part.outcome_text) == ("holds", f"{part.verdict.outcome} so far")
    assert part.runs_text == f"{finished - 1} of {len(records)} (+1 left out)"


def test_runs_of_another_seed_do_not_stand_for_those_that_are_missing(records):
    others = {p.work.key: p.work for p in places(MINI, of_seeds=[11]) if p.recipe == "counts"}
    journal = {key: counted(w.method, dict(w.options).get("rank"), w.seed) for key, w in others.items()}
    more = records_of(others, journal)
    missing = max(records)
    part = {key: record for key, record in records.items() if key != missing}
    found = outcomes({**part, **more})["C1"]
    assert (found.num_planned, found.is_whole) == (len(records) + len(more), False)
    # Nor does a study want a seed that only another one was run with.
    one = {key: more[key] for key in list(more)[:1]}
    assert outcomes({**records, **one})["C1"].is_whole


def test_a_claim_without_runs_is_not_preliminary(records):
    found = outcomes(records)["C19"]
    assert (found.verdict, found.reason, found.outcome_text, found.runs_text) == (None, NOT_RUN, NOT_RUN, "0")


def test_records_of_other_seeds_are_judged_too(records):
    found = {p.work.key: p.work for p in places(MINI, of_seeds=[11, 12]) if p.recipe == "counts"}
    journal = {key: counted(w.method, dict(w.options).get("rank"), w.seed) for key, w in found.items()}
    judged = {each.claim.id: each for each in judge("mini", records_of(found, journal))}
    assert judged["C1"].seeds == (11, 12)


def test_without_results_every_verdict_is_null(tmp_path):
    judged, path = judge_committed(tmp_path)
    record = studies_json(judged, None)
    assert path is None
    assert record["schema"] == "intruscope.studies/1"
    assert [each["id"] for each in record["claims"]] == [f"C{i}" for i in range(1, 25)]
    for each, claim in zip(record["claims"], CLAIMS, strict=True):
        assert set(each) == CONTRACT
        assert (each["verdict"], each["reason"], each["num_runs"], each["seeds"]) == (None, "not run", 0, [])
        assert (each["results"], each["text"], each["recipe"]) == (None, claim.text, claim.recipe)


def test_committed_results_give_verdicts_with_their_path(tmp_path, records):
    (tmp_path / "mini").mkdir()
    write_results(records, tmp_path / "mini" / FILE, about={"scale": "mini"})
    judged, path = judge_committed(tmp_path)
    claims = {each["id"]: each for each in studies_json(judged, str(path))["claims"]}
    assert claims["C1"]["verdict"] == "holds"
    assert claims["C1"]["results"] == str(tmp_path / "mini" / FILE)
    assert claims["C1"]["seeds"] == [0, 1, 2]
    (alone,) = (each for each in claims["C1"]["by_task"] if each["task"] == "sst2")
    assert (alone["base"], alone["verdict"]) == ("minilm-mlm", "holds")
    first, *_ = alone["figures"]
    assert first["finding"] == "supported" and first["low"] <= first["estimate"] <= first["high"]
    assert 0.0 <= claims["C1"]["heterogeneity"]["p"] <= 1.0
    assert claims["C19"]["by_task"] == [] and claims["C19"]["heterogeneity"] is None
    assert claims["C19"]["verdict"] is None
    assert claims["C19"]["results"] is None
    json.dumps(claims, allow_nan=False)
