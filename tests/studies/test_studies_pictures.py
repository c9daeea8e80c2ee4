"""Every picture of a study: what is drawn is what the rows hold, no more, whatever is missing."""

import re
import statistics
from pathlib import Path

import pytest
from simulated_study import SIZE, study

from intruscope.plots.study import study_pictures
from intruscope.plots.study_arms import ARMS, RANKS
from intruscope.plots.study_captions import ABOUT
from intruscope.plots.study_forgetting import edits_pictures
from intruscope.plots.study_picture import MapPanel
from intruscope.repair.interventions import INTERVENTIONS
from intruscope.studies.claims import CLAIMS
from intruscope.studies.judge import study_rows
from intruscope.studies.measure import CONTROLS, STRENGTHS
from intruscope.studies.scales import MINI

NAMES = {control: INTERVENTIONS[control].title for control in CONTROLS}
TASKS = ("sst2", "qqp", "mnli", "reference")
IN_ALL = ("sst2", "reference")
"""Tasks that take part in every study."""


@pytest.fixture(scope="module")
def rows():
    return study_rows("mini", study())


@pytest.fixture(scope="module")
def pictures(rows):
    return {picture.name: picture for picture in study_pictures(rows, NAMES)}


def drawn(records):
    return {p.name: p for p in study_pictures(study_rows("mini", records), NAMES)}


def line(picture, panel, name):
    (found,) = [each for each in picture.panels[panel].lines if each.name == name]
    return found


def names(panel):
    return [each.name for each in panel.lines]


def mean(rows, get, **wanted):
    """Mean, lowest and highest of a figure, found in another way than the pictures find them."""
    values = [
        get(row)
        for row in rows
        if row["status"] == "ok" and all(row[name] == value for name, value in wanted.items())
    ]
    return pytest.approx((statistics.fmean(values), min(values), max(values)))


def three(point):
    return (point.y, point.low, point.high)


def across(point):
    return (point.x, point.low, point.high)


# --- all of them -----------------------------------------------------------------------------------------


def test_a_whole_study_has_every_kind_of_picture_in_the_order_of_the_captions(pictures):
    assert list(dict.fromkeys(picture.kind for picture in pictures.values())) == list(ABOUT)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in pictures)


def test_every_caption_names_the_papers_figures_by_version_and_says_what_differs(pictures):
    known = {claim.id for claim in CLAIMS}
    for about in ABOUT.values():
        assert "version" in about.figure
        assert len(about.differs) > 20
        assert about.claims
        assert set(about.claims) <= known
    wanted = {
        "similarity": "1",
        "profile": "3",
        "epsilon": "4",
        "courses": "5",
        "equal-fit": "6",
        "rates": "7",
    }
    for kind, number in (wanted | {"scatter": "8", "sequence": "9", "interventions": "12"}).items():
        assert re.search(rf"figures? ([0-9]+ and )?{number}\b", ABOUT[kind].figure)


def test_the_docs_list_every_picture_with_its_figures_and_claims():
    page = (Path(__file__).parents[2] / "docs" / "reproduction.md").read_text(encoding="utf-8")
    section = page.split("## The pictures")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*) \| (.*) \|$", section, re.M)
    assert rows == [(kind, about.figure, ", ".join(about.claims)) for kind, about in ABOUT.items()]


def test_all_arms_are_told_apart_without_colour(pictures):
    for picture in pictures.values():
        looks = {}
        for panel in picture.panels:
            for each in getattr(panel, "lines", ()):
                if picture.kind not in ("courses", "profile"):
                    looks[each.name] = (each.look.mark, each.look.is_hollow, each.look.colour is None)
        assert len(set(looks.values())) == len(looks), picture.name


def test_nothing_is_drawn_of_a_study_without_runs():
    assert study_pictures({}, NAMES) == []


def test_every_recipe_alone_draws_its_own_pictures_and_no_other(rows):
    wanted = {
        "counts": ["similarity", "profile", "epsilon", "depth", "courses"],
        "equal_fit": ["lives", "equal-fit"],
        "rates": ["rates"],
        "correlations": ["scatter"],
        "sequence": ["sequence"],
        "interventions": ["interventions-lora-r-1", "interventions-lora-r-8"],
        "alpha": ["alpha"],
        "data_size": ["data-size"],
        "methods": ["methods"],
        "trajectory": [],
    }
    for recipe, expected in wanted.items():
        assert [p.name for p in study_pictures({recipe: rows[recipe]}, NAMES)] == expected


def test_one_seed_is_enough_and_has_no_range():
    pictures = drawn(study(seeds=(0,)))
    assert {picture.kind for picture in pictures.values()} == set(ABOUT)
    for panel in pictures["rates"].panels:
        for each in panel.lines:
            assert all(point.low == point.y == point.high for point in each.points)
            assert all("one run" in point.tooltip for point in each.points)


def test_another_seed_than_the_first_has_no_maps_and_no_courses():
    pictures = drawn(study(seeds=(1,)))
    assert {picture.kind for picture in pictures.values()} == set(ABOUT) - {
        "similarity",
        "profile",
        "courses",
    }


# --- weights ---------------------------------------------------------------------------------------------


def test_maps_are_those_of_the_first_task_an_arm_each(rows, pictures):
    panels = pictures["similarity"].panels
    assert [panel.title for panel in panels] == [ARMS[arm][0] for arm in RANKS if "r2" not in arm]
    for panel, arm in zip(panels, [arm for arm in RANKS if "r2" not in arm], strict=True):
        (row,) = [r for r in rows["counts"] if (r["arm"], r["task"], r["seed"]) == (arm, TASKS[0], 0)]
        assert isinstance(panel, MapPanel)
        assert (panel.num_base, panel.num_tuned) == (SIZE, SIZE)
        assert list(panel.hundredths) == row["similarity"]["hundredths"]
    assert "minilm-mlm on sst2, seed 0" in pictures["similarity"].note


def test_the_profile_is_of_the_first_arm_with_an_intruder(rows, pictures):
    (row,) = [r for r in rows["counts"] if (r["arm"], r["task"], r["seed"]) == ("lora_r1", TASKS[0], 0)]
    shown = [
        [round(100 * point.y) for point in panel.lines[0].points] for panel in pictures["profile"].panels
    ]
    profiles = row["similarity"]["profiles"]
    assert shown == [profiles["intruder"]["hundredths"], profiles["other"]["hundredths"]]
    assert [p.x for p in pictures["profile"].panels[0].lines[0].points] == list(range(1, 385))
    assert "LoRA r 1" in pictures["profile"].note
    alone = [r for r in rows["counts"] if r["arm"] == "full"]
    assert "profile" not in {p.name for p in study_pictures({"counts": alone}, NAMES)}


def test_shares_by_epsilon_are_means_and_ranges_over_tasks_and_seeds(rows, pictures):
    for panel, base in enumerate(("minilm-mlm", "demo")):
        own = [row for row in rows["counts"] if row["settings"]["base"] == base]
        for place, epsilon in enumerate(("0.1", "0.5", "0.9")):
            point = line(pictures["epsilon"], panel, "LoRA r 8").points[4 * place]
            assert point.x == float(epsilon)
            expected = mean(
                own, lambda row, e=epsilon: 100 * row["counts"][e] / row["candidates"], arm="lora_r8"
            )
            assert three(point) == expected
        chance = line(pictures["epsilon"], panel, "by chance: random directions, same spectrum")
        assert {point.x for point in chance.points} == {0.5}
        nulls = mean(own, lambda row: 100 * row["null_count"] / row["candidates"], arm="lora_r1")
        assert three(chance.points[1]) == nulls


def test_depth_has_every_k_and_every_fifth(rows, pictures):
    own = [row for row in rows["counts"] if row["settings"]["base"] == "minilm-mlm"]
    over_k = line(pictures["depth"], 0, "LoRA r 16").points
    assert [point.x for point in over_k] == [1, 2, 5, 10, 20, 50, 100]
    assert three(over_k[-1]) == mean(own, lambda row: row["counts_by_k"]["100"], arm="lora_r16")
    fifths = line(pictures["depth"], 1, "full").points
    for place, point in enumerate(fifths):
        assert three(point) == mean(own, lambda row, p=place: row["by_fifth"][p], arm="full")
    assert len(fifths) == 5


def test_data_sizes_are_examples_and_full_stands_at_all_of_them(rows, pictures):
    panel = pictures["data-size"].panels[0]
    assert names(panel) == ["LoRA r 1", "LoRA r 8", "full"]
    points = line(pictures["data-size"], 0, "LoRA r 1").points
    assert [point.x for point in points] == [2500, 5000, 10_000]
    half = mean(rows["data_size"], lambda row: row["count"], arm="r1_half", task="sst2")
    assert three(points[1]) == half
    assert [point.x for point in line(pictures["data-size"], 0, "full").points] == [10_000]


@pytest.mark.parametrize("kind", ["alpha", "methods", "equal-fit"])
def test_ranges_are_means_and_ranges_over_seeds_of_every_arm(rows, pictures, kind):
    recipe, arm, name, figures = {
        "alpha": ("alpha", "alpha8_r64", "r 64, alpha 8", ("count", "effective_rank", "forgetting")),
        "methods": ("methods", "pissa", "PiSSA", ("count", "forgetting")),
        "equal-fit": ("equal_fit", "lora_r1", "LoRA r 1", ("forgetting_at_fit", "forgetting_at_end")),
    }[kind]
    picture = pictures[kind]
    tasks = TASKS if kind == "equal-fit" else IN_ALL
    assert picture.columns == len(tasks)
    assert len(picture.panels) == (len(figures) + 1) * len(tasks)
    for row, figure in enumerate(figures):
        for column, task in enumerate(tasks):
            panel = row * len(tasks) + column
            (point,) = line(picture, panel, name).points
            assert across(point) == mean(rows[recipe], lambda r, f=figure: r[f], arm=arm, task=task)
            place = [text for _, text in picture.panels[panel].y.ticks].index(name)
            assert point.y == -place
    titles = [panel.x.title for panel in picture.panels[-len(tasks) :]]
    assert titles == ["accuracy, %"] * (len(tasks) - 1) + ["held-out loss, nats per token"]


def test_a_missing_arm_is_left_out_and_the_others_move_up(rows):
    some = [row for row in rows["alpha"] if row["arm"] != "alpha2r_r16"]
    (picture,) = study_pictures({"alpha": some}, NAMES)
    ticks = [text for _, text in picture.panels[0].y.ticks]
    assert "LoRA r 16" not in ticks
    assert [value for value, _ in picture.panels[0].y.ticks] == [-place for place in range(len(ticks))]
    few = [row for row in rows["counts"] if row["arm"] in ("full", "lora_r64")]
    (epsilon,) = [p for p in study_pictures({"counts": few}, NAMES) if p.kind == "epsilon"]
    assert names(epsilon.panels[0])[:2] == ["full", "LoRA r 64"]
    assert len(names(epsilon.panels[0])) == 3


# --- forgetting ------------------------------------------------------------------------------------------


def test_rates_stand_at_the_rates_that_were_run(rows, pictures):
    base = MINI.bases[0].rates
    picture = pictures["rates"]
    for row, get in enumerate(
        (lambda r: r["count"], lambda r: r["forgetting"], lambda r: 100 * r["accuracy"])
    ):
        lora = line(picture, row * len(IN_ALL), "LoRA r 8").points
        full = line(picture, row * len(IN_ALL), "full").points
        assert [p.x for p in lora] == [base.low, base.lora[8], base.high]
        assert [p.x for p in full] == [base.full_lowest, base.full_low, base.full, base.full_high]
        assert three(lora[2]) == mean(rows["rates"], get, arm="high", task="sst2")
        assert three(full[0]) == mean(rows["rates"], get, arm="full_lowest", task="sst2")
        # At the highest rate two arms share one run.
        assert all("3 runs" in point.tooltip for point in (*lora, *full))
    assert picture.panels[-1].y.title == "held-out loss, nats per token"


def test_the_scatter_has_one_mark_for_each_run_that_tells_all_of_it(rows, pictures):
    runs = {row["key"]: row for row in rows["correlations"]}
    for column, task in enumerate(TASKS):
        own = [row for row in runs.values() if row["task"] == task]
        marks = [point for each in pictures["scatter"].panels[column].lines for point in each.points]
        assert sorted((p.x, p.y) for p in marks) == sorted((r["count"], r["forgetting"]) for r in own)
        norms = [
            point for each in pictures["scatter"].panels[len(TASKS) + column].lines for point in each.points
        ]
        assert sorted((p.x, p.y) for p in norms) == sorted((r["update_norm"], r["forgetting"]) for r in own)
    panel = pictures["scatter"].panels[0]
    assert names(panel) == [
        "full", "LoRA r 1", "LoRA r 8", "LoRA r 16", "LoRA r 64", "LoRA full width",
        "r 16, alpha 8", "r 64, alpha 8", "full width, alpha 8",
    ]  # fmt: skip
    assert len(line(pictures["scatter"], 0, "full").points) == 4 * 3
    assert len(line(pictures["scatter"], 0, "LoRA r 8").points) == 3 * 3
    told = line(pictures["scatter"], 0, "r 16, alpha 8").points[0].tooltip
    for words in (
        "minilm-mlm, sst2: lora, rank 16, alpha 8",
        "rate 0.004, seed ",
        "intruders",
        "forgetting 0.",
    ):
        assert words in told


def test_lives_have_a_line_for_each_run_and_skip_looks_without_a_figure(rows, pictures):
    own = [row for row in rows["equal_fit"] if row["task"] == "qqp"]
    for panel, what in ((1, "count"), (5, "forgetting")):
        lines = pictures["lives"].panels[panel].lines
        assert len(lines) == len(own) == 15
        shown = sorted(tuple((p.x, p.y) for p in each.points) for each in lines)
        assert shown == sorted(tuple((look["step"], look[what]) for look in row["looks"]) for row in own)
    broken = {**own[0], "looks": [{**look, "forgetting": None} for look in own[0]["looks"]]}
    (picture,) = [p for p in study_pictures({"equal_fit": [broken]}, NAMES) if p.kind == "lives"]
    assert [len(panel.lines) for panel in picture.panels] == [1, 0]


def test_courses_are_those_that_were_followed(rows, pictures):
    picture = pictures["courses"]
    arms = ("lora_r1", "lora_r8", "lora_r64", "lora_full_width")
    assert [panel.title for panel in picture.panels] == 2 * [ARMS[arm][0] for arm in arms]
    for column, arm in enumerate(arms):
        (row,) = [r for r in rows["counts"] if (r["arm"], r["task"], r["seed"]) == (arm, TASKS[0], 0)]
        for offset, what in ((0, "singular_value"), (len(arms), "alignment")):
            lines = picture.panels[offset + column].lines
            assert [[(p.x, p.y) for p in each.points] for each in lines] == [
                list(zip(course["step"], course[what], strict=True)) for course in row["followed"]
            ]
    assert picture.panels[-1].threshold == 0.5
    first = picture.panels[0].lines[0].points[0].tooltip
    assert "vector 9, singular value" in first


def test_interventions_show_the_edit_beside_every_control_from_the_tuned_model(rows, pictures):
    picture = pictures["interventions-lora-r-8"]
    assert names(picture.panels[0]) == list(NAMES.values())
    for control in CONTROLS:
        for panel, name, factor in (
            (1, "accuracy_change", 100),
            (5, "forgetting_share", 100),
            (3, "loss_change", 1),
        ):
            task = TASKS[panel % 4]
            points = line(picture, panel, NAMES[control]).points
            assert [p.x for p in points] == sorted([*STRENGTHS, 1.0])
            at_one = points[4]
            assert (at_one.y, at_one.low) == (0.0, None)
            expected = mean(
                rows["interventions"],
                lambda r, c=control, n=name, f=factor: f * r["interventions"][c]["0.7"][n],
                arm="lora_r8",
                task=task,
            )
            assert three(points[2]) == expected
    assert [panel.y.title for panel in picture.panels[:4]] == ["change of accuracy, points"] * 3 + [
        "change of held-out loss, nats"
    ]


def test_forgetting_is_in_nats_where_a_run_forgot_nothing_to_take_a_share_of():
    cell = {"forgetting_change": -0.01, "accuracy_change": 0.0}
    rows = [
        {
            "arm": "lora_r1", "task": "a", "seed": seed, "status": "ok", "settings": {"base": "b"},
            "interventions": {"intruders": {"0.5": cell | ({"forgetting_share": -0.4} if seed else {})}},
        }
        for seed in (0, 1)
    ]  # fmt: skip
    (picture,) = edits_pictures(rows, NAMES)
    assert names(picture.panels[0]) == ["intruders turned down"]
    assert picture.panels[1].y.title == "change of forgetting, nats"
    assert three(picture.panels[1].lines[0].points[0]) == (-0.01, -0.01, -0.01)


def test_runs_that_diverged_are_in_no_picture(rows):
    gone = {
        row["key"]
        for recipe in ("counts", "rates", "interventions", "sequence")
        for row in rows[recipe]
        if row["seed"] == 1
    }
    without = drawn(study(left_out=gone))
    two = line(without["rates"], 0, "LoRA r 8").points[1]
    assert "2 runs" in two.tooltip
    kept = [row for row in rows["rates"] if row["seed"] != 1]
    assert three(two) == mean(kept, lambda row: row["count"], arm="mid", task="sst2")
    first = {row["key"] for row in rows["counts"] if row["seed"] == 0 and row["arm"] == "lora_r8"}
    assert "LoRA r 8" not in [p.title for p in drawn(study(left_out=first))["similarity"].panels]
    everything = {row["key"] for recipe in rows for row in rows[recipe]}
    assert drawn(study(left_out=everything)) == {}


# --- task after task -------------------------------------------------------------------------------------


def test_a_chain_by_hand():
    row = {
        "arm": "lora_r8", "task": "b", "seed": 0, "status": "ok",
        "settings": {"base": "b", "tasks": ["x", "y", "z"]},
        "accuracies": [[0.5, 0.5, 0.5], [0.9, 0.5, 0.5], [0.8, 0.7, 0.5], [0.6, 0.65, 0.8]],
        "counts_by_stage": [3, 5, 9],
    }  # fmt: skip
    (picture,) = study_pictures({"sequence": [row, {**row, "status": "diverged"}]}, NAMES)
    ys = [[round(point.y, 6) for point in panel.lines[0].points] for panel in picture.panels]
    assert ys == [[50, 90, 80, 60], [50, 50, 70, 65], [50, 50, 50, 80], [-10, -17.5], [3, 5, 9]]
    assert [text for _, text in picture.panels[0].x.ticks] == ["base", "x", "y", "z"]
    assert [text for _, text in picture.panels[3].x.ticks] == ["y", "z"]
    assert [point.x for point in picture.panels[3].lines[0].points] == [2, 3]


def test_chains_are_means_over_seeds_with_alpha_8_beside_its_twin(rows, pictures):
    picture = pictures["sequence"]
    assert names(picture.panels[0]) == [
        "full", "LoRA r 1", "LoRA r 8", "LoRA r 64", "r 1, alpha 8", "r 8, alpha 8", "r 64, alpha 8",
    ]  # fmt: skip
    points = line(picture, 1, "r 8, alpha 8").points
    assert three(points[3]) == mean(rows["sequence"], lambda r: 100 * r["accuracies"][3][1], arm="alpha8_r8")
    counts = line(picture, 4, "LoRA r 1").points
    assert three(counts[0]) == mean(rows["sequence"], lambda r: r["counts_by_stage"][0], arm="lora_r1")
