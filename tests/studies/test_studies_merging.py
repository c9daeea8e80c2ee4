"""Sets of adapters: what a merge is, what its weights say, and what is measured and shown of it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from simulated_merges import sets

from intruscope.engine.journal import Journal
from intruscope.errors import MalformedInput
from intruscope.forgetting.texts import read_texts
from intruscope.linalg.dense import DenseSides
from intruscope.linalg.forms import dense_of as dense
from intruscope.plots.study_merging import FIGURES, merging_pictures
from intruscope.report.study_merging import MERGE_COLUMNS, markdown, merge_tables, merged_sets
from intruscope.report.study_page import study_page
from intruscope.studies.claims_merging import EMR, LINEAR, OWN_STARTS, RANDOM, SAME_START, SUM, chosen
from intruscope.studies.grid import MergeSet, label_of, settings_of
from intruscope.studies.inputs import digests, inputs_of, passages
from intruscope.studies.judge import judge, study_rows
from intruscope.studies.merging import ALL_METHODS, merge_set_figures, sides, text_scores
from intruscope.studies.merging_parts import train_parts
from intruscope.studies.merging_rules import in_random_directions, merged
from intruscope.studies.merging_weights import BaseMatrices, examined, merge_figures, pair_figures
from intruscope.studies.origins import inputs_read, resolved
from intruscope.studies.recipes import MERGING, places
from intruscope.studies.records import read_results, records_of, write_results
from intruscope.studies.scales import MERGING as SCALE
from intruscope.studies.scales import TINY_BERT
from intruscope.studies.tables import study_tables
from intruscope.studies.training import part_settings

SET = MergeSet(
    base="tiny-bert", tasks=("planted", "planted2"), method="lora", options=(("alpha", 16.0), ("rank", 4.0)),
    rate=1e-2, seed=0, same_start=False, steps=(6, 7), batch=8, max_lengths=(16, 15), bf16=False,
    score_bf16=False, held_out=33, choosing_every=3, text_sequences=8, sizes=(1, 2), strengths=(0.0, 0.3),
)  # fmt: skip


def adapter(seed, *, shape=(12, 9), rank=2, names=("a", "b")):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    return {name: (draw(shape[0], rank), draw(rank, shape[1])) for name in names}


# --- the set as a piece of work --------------------------------------------------------------------------


def test_adapters_have_seeds_of_their_own_unless_they_start_alike():
    seeds = [replace(SET, seed=seed).part_seeds for seed in range(3)]
    assert len({each for own in seeds for each in own}) == 6
    assert replace(SET, same_start=True, seed=4).part_seeds == (4, 4)
    assert [(part_settings(SET, n).steps, part_settings(SET, n).max_length) for n in (0, 1)] == [
        (6, 16), (7, 15)
    ]  # fmt: skip
    shorter = replace(SET, tasks=SET.tasks[:1])
    assert shorter.part_seeds == SET.part_seeds[:1]  # adding a task trains nothing again


def test_a_set_names_its_settings():
    assert (settings_of(SET)["kind"], settings_of(SET)["options"]) == (
        "mergeset",
        {"alpha": 16.0, "rank": 4.0},
    )
    assert label_of(SET) == "planted-planted2, lora alpha 16 rank 4, rate 0.01, seed 0"
    assert "from one start" in label_of(replace(SET, same_start=True))
    found = {f"{task}/{side}": "1" for task in (*SET.tasks, "other") for side in ("train", "eval")}
    assert inputs_read(SET, {**found, "text": "2"}).keys() == {
        "text", *(name for name in found if not name.startswith("other"))
    }  # fmt: skip


def test_the_scale_plans_sets_of_both_kinds_and_nothing_else():
    found = places(SCALE)
    assert {place.recipe for place in found} == {MERGING}
    kinds = [(place.task, place.arm, place.seed) for place in found]
    for base in SCALE.bases:
        own = [(base.name, OWN_STARTS, seed) for seed in (0, 1, 2)]
        assert [kind for kind in kinds if kind[0] == base.name and kind[1] == OWN_STARTS] == own
        assert (base.name, SAME_START, 0) in kinds
    assert len({place.work.key for place in found}) == len(found) == 8
    for place in found:
        own, training = place.work, resolved(place.work, SCALE)["training"]
        assert (training["steps"], training["max_length"]) == (list(own.steps), list(own.max_lengths))
        assert len(own.steps) == len(own.max_lengths) == len(own.tasks) >= max(own.sizes)
        assert {0.3, 1.0} <= set(own.strengths)  # at these every method is scored


# --- merges ------------------------------------------------------------------------------------------------


def test_a_sum_is_the_sum_and_directions_are_random_of_the_same_size():
    parts = [adapter(seed) for seed in (0, 1, 2)]
    total = merged(SUM, parts, "xyz", seed=0)[0]
    random = merged(RANDOM, parts, "xyz", seed=0)[0]
    for name in "ab":
        wanted = sum(dense(part[name]) for part in parts)
        torch.testing.assert_close(dense(total[name]), wanted, rtol=0, atol=1e-11)
        turned = [
            in_random_directions(part, label, seed=0)[name] for part, label in zip(parts, "xyz", strict=True)
        ]
        torch.testing.assert_close(dense(random[name]), sum(map(dense, turned)), rtol=0, atol=1e-11)
        for part, other in zip(parts, turned, strict=True):
            values = [torch.linalg.svdvals(dense(each)) for each in (part[name], other)]
            torch.testing.assert_close(*values)
    # The same adapter under two names goes in different directions.
    first, second = (dense(in_random_directions(parts[0], label, seed=0)["a"]) for label in "xy")
    assert abs(float((first * second).sum() / first.norm() / second.norm())) < 0.7


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_method_gives_one_update_for_all_or_one_for_each(method):
    parts = [adapter(seed) for seed in (0, 1, 2)]
    found = merged(method, parts, "xyz", seed=0)
    assert len(found) == (3 if method == EMR else 1)
    for forms in found:
        assert {name: dense(form).shape for name, form in forms.items()} == {"a": (12, 9), "b": (12, 9)}
    alone = merged(method, parts[:1], "x", seed=0)[0]
    if method in (SUM, "tsv", "pico", "svc", EMR, LINEAR):  # the others change what they merge
        torch.testing.assert_close(dense(alone["a"]), dense(parts[0]["a"]), rtol=0, atol=1e-9)


def test_linear_is_what_peft_makes_of_it():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["a"], init_lora_weights=False)
    model = get_peft_model(
        torch.nn.ModuleDict({"a": torch.nn.Linear(9, 12, bias=False)}), config, adapter_name="x"
    )
    model.add_adapter("y", config)
    layer = model.base_model.model["a"]
    parts = [
        {"a": (layer.scaling[n] * layer.lora_B[n].weight.double(), layer.lora_A[n].weight.double())}
        for n in "xy"
    ]
    model.add_weighted_adapter(["x", "y"], [0.4, 0.4], "both", combination_type="linear")
    ours = 0.4 * dense(merged(LINEAR, parts, "xy", seed=0)[0]["a"])
    torch.testing.assert_close(ours, layer.get_delta_weight("both").double(), rtol=1e-5, atol=1e-6)


# --- weights -----------------------------------------------------------------------------------------------


def planted_base(size=40):
    """A base with singular values from 40 down to 1 along the axes."""
    values = torch.diag(torch.linspace(size, 1.0, size, dtype=torch.float64))
    return BaseMatrices(values={"a": values}, sides={"a": DenseSides()})


def along(direction, strength, size=40):
    """An update of rank one along a unit vector, on both sides."""
    vector = torch.zeros(size, dtype=torch.float64)
    vector[direction] = 1.0
    return {"a": (strength * vector[:, None] / vector.norm(), vector[None, :] / vector.norm())}


def test_a_sum_can_have_an_intruder_that_no_part_has():
    """Each half stays below the ten leading values; together they reach them."""
    base, low = planted_base(), slice(20, 40)
    for parts, wanted in (
        ([along(low, 14.0), along(low, 14.0)], {"inflation": 2.0, "intruders": 1, "merged_only": 1}),
        # Here one of the two has it already.
        ([along(low, 28.0), along(slice(20, 30), 0.1)], {"inflation": 1.0, "intruders": 1, "merged_only": 0}),
        ([along(slice(20, 30), 5.0), along(slice(30, 40), 5.0)],
         {"inflation": 1.0, "intruders": 0, "merged_only": 0}),
    ):  # fmt: skip
        looks = [examined(base, part) for part in parts]
        found = merge_figures(base, examined(base, merged(SUM, parts, "xy", seed=0)[0]), looks)
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=0.01)
    half = examined(base, along(low, 28.0), 0.5)
    assert (half.num_intruders, half.norm) == (0, pytest.approx(14.0))


def test_dense_and_factored_updates_are_looked_at_alike():
    base = planted_base()
    forms = along(slice(20, 40), 60.0)
    for strength in (1.0, 0.5):
        thin, full = (examined(base, each, strength) for each in (forms, {"a": dense(forms["a"])}))
        assert thin.norm == pytest.approx(full.norm) and thin.largest["a"] == pytest.approx(full.largest["a"])
        assert thin.num_intruders == full.num_intruders == 1


def test_how_two_updates_relate():
    first, other = adapter(0), adapter(1)
    negated = {name: (-left, right) for name, (left, right) in first.items()}
    assert pair_figures(first, first) == pytest.approx({"cosine": 1.0, "sign_conflict": 0.0})
    assert pair_figures(first, negated) == pytest.approx({"cosine": -1.0, "sign_conflict": 1.0})
    flat = [torch.cat([dense(form).flatten() for form in each.values()]) for each in (first, other)]
    wanted = float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm())
    found = pair_figures(first, other)
    assert found["cosine"] == pytest.approx(wanted)
    assert found["sign_conflict"] == pytest.approx(float((flat[0] * flat[1] < 0).double().mean()))


# --- scores and texts --------------------------------------------------------------------------------------


def test_strengths_are_chosen_on_some_of_the_examples():
    assert sides(7, 3) == {"choosing": [0, 3, 6], "reported": [1, 2, 4, 5]}


def test_the_score_of_a_text_is_its_loss_per_token():
    nats, tokens = np.array([2.0, 6.0]), np.array([1, 3])
    assert text_scores(SimpleNamespace(nats=nats, tokens=tokens)).mean() == pytest.approx(-8.0 / 4.0)


def test_every_tenth_passage_of_a_text_is_held_out(tmp_path):
    paragraphs = [f"{number} " + "word " * 60 for number in range(60)]
    (tmp_path / "text.txt").write_text("\n \n".join(paragraphs))
    corpus = read_texts([tmp_path / "text.txt"])
    train, held_out = passages(corpus, "train"), passages(corpus, "eval")
    assert (len(train.documents), len(held_out.documents)) == (27, 3)
    assert held_out.documents[1].text.startswith("20 ") and "\n\n21 " in held_out.documents[1].text
    assert not {each.text for each in train.documents} & {each.text for each in held_out.documents}
    (tmp_path / "short.txt").write_text("word " * 300)
    with pytest.raises(MalformedInput, match="1 passages"):
        passages(read_texts([tmp_path / "short.txt"]), "train")


# --- a whole set -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("intruscope.studies.tiny._STEPS", 2)
        inputs = inputs_of(TINY_BERT, tmp_path_factory.mktemp("study"), None)
    assert {"planted2/train", "planted2/eval"} <= digests(TINY_BERT, inputs).keys()
    folder = tmp_path_factory.mktemp("set")
    adapters = train_parts(SET, inputs, folder)
    with Journal(folder / "measured", {"set": SET.key}) as journal:
        found = merge_set_figures(SET, inputs, adapters, journal)
    return inputs, folder, found


def test_a_merge_of_one_adapter_is_that_adapter_and_at_no_strength_the_base(measured):
    _, _, found = measured
    part = found["parts"]["planted"]
    alone = {
        merge["strength"]: merge for merge in found["merges"] if (merge["rule"], merge["size"]) == (SUM, 1)
    }
    assert alone.keys() == {0.0, 0.3, 1.0}
    assert alone[1.0]["score"]["planted"] == part["score"]
    assert alone[1.0]["chosen_on"]["planted"] == part["chosen_on"]
    assert part["score"] == pytest.approx(np.mean(alone[1.0]["scores"]["planted"]))
    assert alone[1.0]["forgetting"] == pytest.approx(part["forgetting"], abs=1e-6)
    assert alone[1.0]["weights"]["inflation"] == pytest.approx(1.0)
    assert alone[1.0]["weights"]["norm"] == pytest.approx(part["norm"])
    assert (alone[1.0]["weights"]["intruders"], alone[1.0]["weights"]["merged_only"]) == (
        part["intruders"],
        0,
    )
    base = next(m for m in found["merges"] if (m["rule"], m["size"], m["strength"]) == ("tsv", 2, 0.0))
    assert base["chosen_on"]["planted"] == alone[0.0]["chosen_on"]["planted"]
    assert len(alone[1.0]["scores"]["planted"]) == 22


def test_every_method_size_and_strength_is_there(measured):
    _, _, found = measured
    cells = {(merge["rule"], merge["size"], merge["strength"]) for merge in found["merges"]}
    wanted = {
        (method, size, strength)
        for method in ALL_METHODS
        for size in SET.sizes
        for strength in {EMR: (1.0,), RANDOM: (0.3, 1.0 / size)}.get(method, (0.0, 0.3, 1.0 / size))
    }
    assert cells == wanted
    for merge in found["merges"]:
        is_best = merge is chosen(found, merge["rule"], merge["size"])
        assert ("scores" in merge) == (is_best or merge["strength"] in (0.3, 1.0 / merge["size"]))
        assert ("weights" in merge) >= (is_best and merge["rule"] != EMR)
    assert [each["tasks"] for each in found["sums"]] == [["planted", "planted2"]]
    assert found["sums"][0]["forgetting_of_parts"] == pytest.approx(
        sum(part["forgetting"] for part in found["parts"].values())
    )


def test_what_is_measured_and_trained_is_not_done_again(measured, monkeypatch):
    inputs, folder, found = measured
    monkeypatch.setattr("intruscope.train.tune.tune", None)
    for name in ("_part", "_sum", "_merges"):
        monkeypatch.setattr(f"intruscope.studies.merging.{name}", pytest.fail)
    adapters = train_parts(SET, inputs, folder)
    with Journal(folder / "measured", {"set": SET.key}) as journal:
        assert merge_set_figures(SET, inputs, adapters, journal) == found


# --- tables ------------------------------------------------------------------------------------------------


def test_tables_show_what_is_kept_with_its_range_over_sets():
    rows = sets(0.15, best=0.5)
    alone, *merges = merge_tables(rows)
    assert [table.title.split(":")[0] for table in (alone, *merges)] == [
        "The adapters alone", "2 adapters merged", "3 adapters merged"
    ]  # fmt: skip
    assert alone.lines[0][:4] == ("a", "0.850", "0.500", "3 of 3")
    lines = {line[0]: dict(zip(MERGE_COLUMNS, line, strict=True)) for line in merges[0].lines}
    share, better = (float(lines[name]["kept"].split("%")[0]) for name in ("sum", "TSV"))
    assert share == pytest.approx(100 * 0.7 / 0.85, abs=4) and better == pytest.approx(100.0, abs=4)
    assert lines["sum"]["strength"] == "0.5"
    for row in rows:
        for part in row["parts"].values():
            part["majority"] = None
    assert "kept above majority" not in merge_tables(rows)[1].columns  # as of text
    text = markdown(merge_tables(rows))
    assert text.count("\n| sum |") == 2 and "(" in lines["sum"]["kept"]


def test_pictures_show_what_the_tables_and_the_sums_say():
    rows = sets(0.15)
    rows[0]["sums"][3]["tasks"] = ["b", "c"]
    kept, new, forgetting = merging_pictures(merged_sets([*rows, {**rows[0], "arm": SAME_START}]))
    assert [picture.about.claims for picture in (kept, new, forgetting)] == [("M1",), ("M2",), ("M3",)]
    assert [panel.title for panel in kept.panels] == ["base, 2 adapters", "base, 3 adapters"]
    for panel, table in zip(kept.panels, merge_tables(rows)[1:], strict=True):
        shown = [f"{line.points[0].x:.0f}%" for line in panel.lines]
        assert shown == [line[1].partition(" ")[0] for line in table.lines]
        assert [name for _, name in panel.y.ticks] == [line[0].partition(" (")[0] for line in table.lines]
    assert [line.look.is_hollow for line in kept.panels[0].lines] == 10 * [False] + 3 * [True]
    (panel,) = new.panels
    places = {name: place for place, name in panel.y.ticks}
    *counted, chance = panel.lines
    pairs = [[each for each in row["sums"] if len(each["tasks"]) == 2] for row in rows]
    for figure, points in (
        ("merged_only", [line.points[0] for line in counted]), ("null_merged_only", chance.points)
    ):  # fmt: skip
        (point,) = [point for point in points if point.y == places["two adapters, all pairs"]]
        totals = [sum(each[figure] for each in own) for own in pairs]
        assert (point.low, point.high) == (min(totals), max(totals))
    assert "3 adapters at strength 1" in places and "3 adapters at 1/T" in places
    for panel, figure in zip(forgetting.panels, FIGURES, strict=True):
        for line, size in zip(panel.lines, (2, 3), strict=True):
            wanted = [
                (s[figure], s["forgetting"]) for row in rows for s in row["sums"] if len(s["tasks"]) == size
            ]
            assert [(point.x, point.y) for point in line.points] == wanted
    assert "b + c, seed 0" in forgetting.panels[0].lines[0].points[3].tooltip
    assert merging_pictures([]) == []
    none = [{**row, "sums": [{**s, "merged_only": 0} for s in row["sums"]]} for row in sets(merged_only=0.0)]
    assert "merge-intruders" not in [picture.kind for picture in merging_pictures(merged_sets(none))]


def test_the_page_of_the_study_shows_the_claims_and_what_is_kept():
    works = {
        place.work.key: place.work
        for place in places(SCALE)
        if (place.task, place.arm) == ("demo", OWN_STARTS)
    }
    records = records_of(works, dict(zip(works, sets(0.15), strict=True)))
    judged = judge("merging", records)
    assert [each.claim.id for each in judged] == ["M1", "M2", "M3"]
    assert judged[0].outcome_text == "holds so far" and judged[0].runs_text == "3 of 8"
    rows = study_rows("merging", records)
    pictures = merging_pictures(merged_sets(rows[MERGING]))
    page = study_page("merging", records, judged, rows, pictures)
    assert "Merging several adapters" in page and "The paper:" not in page
    assert 'href="#picture-merge-kept"' in page and "Compare ." not in page and "Differences:" not in page
    assert page.count("<th>TIES, KnOTS space</th>") == 2 and "holds so far" in page


def test_results_of_sets_are_kept_whole(tmp_path):
    works = {
        place.work.key: place.work
        for place in places(SCALE)
        if (place.task, place.arm) == ("demo", OWN_STARTS)
    }
    records = records_of(works, dict(zip(works, sets(), strict=True)))
    write_results(records, tmp_path / "runs.parquet", about={"scale": "merging"})
    again, _ = read_results(tmp_path / "runs.parquet")
    for key, record in records.items():
        for name in ("parts", "merges", "sums"):
            assert again[key][name] == record[name]
        assert again[key]["settings"]["sizes"] == list(record["settings"]["sizes"])
    tables = study_tables("merging", again)
    assert tables["runs"].num_rows == 3 and tables["verdicts"].num_rows == 3
