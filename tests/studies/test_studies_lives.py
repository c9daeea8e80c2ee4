"""What is read off the looks: equal fit on made-up curves, and lives of planted intruders."""

import json

import pytest

from intruscope.studies.lives import common_level, forgetting_at, life_figures, with_equal_fit


def curve(*points):
    return [
        {"step": step, "count": 0, "forgetting": forgetting, "held_out_loss": loss}
        for step, (loss, forgetting) in enumerate(points)
    ]


FALLING = curve((1.0, 0.0), (0.8, 0.1), (0.5, 0.4), (0.45, 0.9))


@pytest.mark.parametrize(
    ("level", "expected"),
    [(1.0, 0.0), (0.9, 0.05), (0.8, 0.1), (0.65, 0.25), (0.5, 0.4), (0.475, 0.65), (0.45, 0.9)],
)
def test_forgetting_lies_on_the_straight_line_between_two_looks(level, expected):
    assert forgetting_at(FALLING, level) == pytest.approx(expected, abs=1e-12)


def test_a_level_that_was_never_reached_has_no_forgetting():
    assert forgetting_at(FALLING, 0.44) is None


def test_the_first_time_counts_where_the_loss_rises_again():
    wavy = curve((1.0, 0.0), (0.6, 0.2), (0.9, 0.5), (0.4, 0.8))
    assert forgetting_at(wavy, 0.7) == pytest.approx(0.15)
    assert forgetting_at(wavy, 0.5) == pytest.approx(0.5 + 0.8 * 0.3)


def test_looks_without_a_loss_are_passed_over():
    points = curve((1.0, 0.0), (0.5, 0.4))
    points.insert(1, {"step": 9, "count": 3, "forgetting": 7.0, "held_out_loss": None})
    assert forgetting_at(points, 0.75) == pytest.approx(0.2)


def test_the_common_level_is_the_best_of_the_worst_run():
    other = curve((1.0, 0.0), (0.62, 0.3), (0.7, 0.6))
    assert common_level([FALLING, other]) == 0.62
    assert common_level([FALLING, curve()]) is None
    assert common_level([]) is None


def row(arm, looks, *, status="ok", seed=0, task="a", forgetting=9.0):
    return {
        "arm": arm, "task": task, "seed": seed, "status": status, "looks": looks, "forgetting": forgetting,
    }  # fmt: skip


def test_arms_are_read_at_one_fit_and_the_end_stands_beside():
    """Two arms on one curve, one of which trains on: equal at equal fit, not at the end."""
    short = curve((1.0, 0.0), (0.7, 0.3))
    long = curve((1.0, 0.0), (0.7, 0.3), (0.4, 0.6))
    found = with_equal_fit([row("full", short, forgetting=0.3), row("lora_r8", long, forgetting=0.6)])
    assert [each["forgetting_at_fit"] for each in found] == pytest.approx([0.3, 0.3])
    assert [each["forgetting_at_end"] for each in found] == [0.3, 0.6]


def test_a_planted_difference_at_equal_fit_is_found_with_its_sign():
    careful = curve((1.0, 0.0), (0.5, 0.1), (0.3, 0.5))
    careless = curve((1.0, 0.0), (0.5, 0.4))
    first, second = with_equal_fit([row("lora_r8", careful, forgetting=0.5), row("full", careless)])
    assert first["forgetting_at_fit"] - second["forgetting_at_fit"] == pytest.approx(-0.3)


def test_a_diverged_arm_does_not_set_the_level_and_groups_do_not_mix():
    bad = curve((1.0, 0.0), (0.95, 3.0))
    rows = [
        row("full", FALLING),
        row("high", bad, status="diverged"),
        row("full", curve((1.0, 0.0), (0.9, 0.2)), seed=1),
        {"arm": "lora_r16", "task": "a", "seed": 0, "status": "ok", "forgetting": 1.0},
    ]
    found = with_equal_fit(rows)
    assert [each["forgetting_at_fit"] for each in found] == [0.9, None, 0.2, None]


# --- lives -----------------------------------------------------------------------------------------------


def vector(track, value, alignment, verdict):
    return {
        "singular_value": value, "alignment_lower": alignment - 0.01, "alignment_upper": alignment + 0.01,
        "verdict": verdict, "track": track, "turned": None, "born": False,
    }  # fmt: skip


def write_run(folder, looks):
    (folder / "intruders").mkdir()
    lines = [{"schema": "intruscope.watch/1"}]
    lines += [
        {
            "step": step, "epoch": None, "seconds": 0.1, "loss": 2.0, "forgetting": 0.1 * step,
            "matrices": [{"name": "m", "how": "warm", "vectors": vectors}],
        }
        for step, vectors in looks
    ]  # fmt: skip
    (folder / "intruders" / "looks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = [{"step": step, "eval_loss": 1.0 - 0.1 * step} for step, _ in looks[:-1]] + [
        {"step": 1, "loss": 5.0}
    ]
    (folder / "run.json").write_text(json.dumps({"log": log}))


def test_an_intruder_is_followed_from_the_look_that_first_saw_it(tmp_path):
    base = vector(0, 10.0, 1.0, "aligned")
    write_run(
        tmp_path,
        [
            (0, [base, vector(1, 4.0, 0.98, "aligned")]),
            (2, [base, vector(1, 4.0, 0.98, "aligned"), vector(7, 2.0, 0.8, "aligned")]),
            (4, [vector(7, 8.0, 0.3, "intruder"), base, vector(9, 1.0, 0.2, "intruder")]),
        ],
    )
    found = life_figures(tmp_path)
    assert found["rank_change"] == -2.0  # the second intruder was seen once: it has no life yet
    assert found["log_growth"] == pytest.approx(1.3862943611)
    assert found["alignment_change"] == pytest.approx(-0.5)
    assert found["most_at_any_look"] == 2
    assert [point["held_out_loss"] for point in found["looks"]] == [1.0, 0.8, None]
    assert [point["count"] for point in found["looks"]] == [0, 0, 2]


def test_a_run_without_intruders_has_no_lives(tmp_path):
    base = vector(0, 10.0, 1.0, "aligned")
    write_run(tmp_path, [(0, [base]), (5, [vector(0, 11.0, 0.99, "aligned")])])
    found = life_figures(tmp_path)
    assert (found["rank_change"], found["log_growth"], found["most_at_any_look"]) == (None, None, 0)


def test_the_course_of_every_intruder_of_the_last_look_is_kept_from_its_first_look(tmp_path):
    base = vector(0, 10.0, 1.0, "aligned")
    write_run(
        tmp_path,
        [
            (0, [base]),
            (2, [base, vector(7, 2.0, 0.8, "aligned"), vector(3, 1.0, 0.1, "intruder")]),
            (4, [vector(7, 8.123456, 0.3, "intruder"), base]),
        ],
    )
    assert "followed" not in life_figures(tmp_path)
    (course,) = life_figures(tmp_path, num_followed=12)["followed"]
    assert course == {
        "matrix": "m",
        "step": [2, 4],
        "rank": [2, 1],
        "singular_value": [2.0, 8.123],
        "alignment": [0.8, 0.3],
    }


def test_of_too_many_intruders_every_so_manieth_is_followed(tmp_path):
    vectors = [vector(track, 20.0 - track, 0.1, "intruder") for track in range(10)]
    write_run(tmp_path, [(0, []), (3, vectors)])
    found = life_figures(tmp_path, num_followed=4)["followed"]
    assert [course["rank"] for course in found] == [[1], [3], [6], [8]]
