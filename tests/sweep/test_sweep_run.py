"""The grid on real files: measured right, once, and never twice after an interruption."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sweep_cases import report_of as report_of_simulated

from intruscope.adapters import opening as opening_module
from intruscope.engine.journal import Journal
from intruscope.engine.settings import RunOptions
from intruscope.errors import UsageError
from intruscope.forgetting.losses import measure
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.tasks import load_task
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut
from intruscope.repair.edits import scaled_update
from intruscope.repair.interventions import INTERVENTIONS, Intervention, intervene
from intruscope.repair.survey import survey
from intruscope.report.sweep_page import sweep_data, write_sweep_html
from intruscope.report.sweep_plots import write_sweep_plots
from intruscope.sweep.live import LiveBench, limited
from intruscope.sweep.measure import sweep
from intruscope.sweep.records import Measurement, SweepSettings
from intruscope.sweep.run import run_grid
from intruscope.sweep.settings import MeasureOptions

INLINE = RunOptions(workers=0)
SETTINGS = SweepSettings(strengths=(0.2, 0.6), num_resamples=200)


@pytest.fixture(scope="module")
def found(files):
    return survey(str(files / "base"), str(files / "adapter"), options=INLINE, update_spectra=True)


@pytest.fixture(scope="module")
def pair(files):
    return load_pair(files / "base", files / "adapter", device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def bench(files, pair):
    sequences = cut(read_texts([files / "text.txt"]), pair.language_model())
    return LiveBench(pair, sequences, protocol="fast", task=load_task(files / "task.tsv"))


@pytest.fixture(scope="module")
def measured(found, bench):
    return run_grid(found, bench, SETTINGS, journal=None)


class Counted:
    """A bench that measures by the edits alone, and may stop."""

    metric, protocol = "accuracy", "counted/1"

    def __init__(self, stop_after=None):
        self.calls, self._stop_after = [], stop_after

    def _measure(self, number):
        if len(self.calls) == self._stop_after:
            raise KeyboardInterrupt
        self.calls.append(number)
        return Measurement(
            text_nats=(number, 2.0, 3.0, 4.0),
            text_tokens=(1.0,) * 4,
            task_scores=(1.0, 0.0, 1.0, 1.0),
            task_weights=(1.0,) * 4,
            task_nats=(0.1,) * 4,
        )

    def base_text(self):
        return self._measure(0.5)

    def edited(self, edits):
        return self._measure(1.0 + sum(float(e.change_K.sum()) + 1.0 - e.update_scale for e in edits))

    def interpolated(self, fraction):
        return self._measure(10.0 + fraction)


def test_the_files_have_intruders_to_edit(found):
    assert 5 < sum(len(matrix.intruders) for matrix in found.matrices) < 120


@pytest.mark.parametrize("control", ["intruders", "matched_change", "neighbour_below", "random", "tail"])
def test_a_cell_is_the_loss_of_a_model_with_the_formula_in_its_weights(
    control, measured, found, pair, files, tmp_path
):
    """The edited model written as a checkpoint, read again, and measured as any tuned model."""
    from transformers import BertForMaskedLM

    edits = intervene(found, kind=control, strength=0.2)
    assert edits
    by_name = {edit.name: edit for edit in edits}
    model = BertForMaskedLM.from_pretrained(files / "base", dtype=torch.float64)
    linear = {
        name.removeprefix("bert."): module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    with torch.no_grad():
        for matrix in found.matrices:
            before, after = pair.base_matrix(matrix.name), pair.tuned_matrix(matrix.name)
            assert not torch.allclose(before, after)
            edit = by_name.get(matrix.name)
            module = linear[matrix.name.removeprefix("bert.")]
            module.weight.copy_(after if edit is None else edit.applied(before, after))
    model.save_pretrained(tmp_path / "edited")
    twin = load_pair(files / "base", tmp_path / "edited", device="cpu", dtype="float64")
    language = twin.language_model()
    sequences = cut(read_texts([files / "text.txt"]), language)
    expected = measure(language, sequences, protocol="fast").nats
    which = None if control in ("uniform", "interpolation") else "top"
    got = measured.by_key["/".join([control, *([which] if which else []), "0.2"])].text_nats
    np.testing.assert_allclose(got, expected, rtol=1e-6)  # the checkpoint's matrices are float64
    assert np.abs(np.array(got) - measured.tuned.text_nats).max() > 1e-3


def test_shrunk_to_nothing_is_the_base(found, bench):
    grid = run_grid(
        found, bench, replace(SETTINGS, strengths=(0.0,), controls=("intruders", "uniform")), journal=None
    )
    np.testing.assert_allclose(grid.by_key["uniform/0.0"].text_nats, grid.base_text.text_nats, rtol=1e-9)
    assert grid.tuned.text_nats != grid.base_text.text_nats


def test_after_a_grid_the_pair_is_as_it_was(measured, bench):
    assert bench.edited(()) == measured.tuned
    assert set(measured.tuned.task_scores) <= {0.0, 1.0}
    assert len(measured.tuned.task_scores) == 20


def test_matched_shrinks_have_the_size_of_the_edit(measured):
    norms = {cell.key: cell.change_norm for cell in measured.cells}
    for strength in ("0.2", "0.6"):
        edit = norms[f"intruders/top/{strength}"]
        for control in ("random", "tail"):
            assert norms[f"{control}/top/{strength}"] == pytest.approx(edit, rel=1e-6)
        whole = norms[f"uniform/{strength}"] / (1.0 - float(strength))
        assert norms[f"matched_change/top/{strength}"] == pytest.approx(min(edit, whole), rel=1e-6)


def test_an_interrupted_grid_goes_on_and_gives_the_same(found, tmp_path):
    plan = {"run": 1}
    whole = run_grid(found, Counted(), SETTINGS, journal=None)
    first, second = Counted(stop_after=7), Counted()
    with Journal(tmp_path / "journal", plan) as journal, pytest.raises(KeyboardInterrupt):
        run_grid(found, first, SETTINGS, journal=journal)
    events = []
    with Journal(tmp_path / "journal", plan) as journal:
        again = run_grid(found, second, SETTINGS, journal=journal, on_progress=events.append)
    assert again == whole
    assert len(first.calls) == 7
    assert len(first.calls) + len(second.calls) == len(set(whole.by_key) | {"base", "tuned"}) - 2
    assert (events[0].done, events[0].item) == (7, "")
    assert events[-1].done == events[-1].total == len(whole.cells) + 2


def test_a_wider_grid_measures_only_what_is_new(found, tmp_path):
    narrow = replace(SETTINGS, controls=("intruders", "uniform"))
    with Journal(tmp_path / "journal", {}) as journal:
        run_grid(found, Counted(), narrow, journal=journal)
    bench = Counted()
    with Journal(tmp_path / "journal", {}) as journal:
        run_grid(found, bench, replace(narrow, strengths=(0.2, 0.4, 0.6)), journal=journal)
    assert len(bench.calls) == 2


def test_what_changes_the_same_weights_alike_is_measured_once(found):
    """Only the surveyed matrices changed, so moving everything to the base is the shrink of them."""
    bench = Counted()
    grid = run_grid(
        found, bench, replace(SETTINGS, controls=("intruders", "uniform", "interpolation")), journal=None
    )
    assert len(bench.calls) == 2 + 2 * 2
    assert grid.by_key["interpolation/0.2"] == grid.by_key["uniform/0.2"]


def report_of(files, tuned, **options):
    settings = options.pop("settings", SETTINGS)
    return sweep(
        str(files / "base"),
        str(files / tuned),
        task=load_task(files / "task.tsv"),
        text=files / "text.txt",
        settings=settings,
        measuring=MeasureOptions(device="cpu"),
        options=replace(INLINE, work_dir=options.pop("work", None)),
        **options,
    )


def test_nothing_to_turn_down_is_said_and_costs_nothing(files, tmp_path):
    events = []
    report = report_of(
        files,
        "mild",
        work=tmp_path / "work",
        on_progress=events.append,
        settings=replace(SETTINGS, controls=("intruders", "random")),
    )
    (advice,) = report.recommendations
    assert (advice.outcome, advice.sentence) == (
        "nothing-to-edit",
        "No matrix has an intruder, so there is nothing to turn down.",
    )
    assert report.num_intruders == 0
    assert all(each.forgetting_change.estimate == 0.0 for each in report.cells)


def test_the_same_seed_gives_the_same_report_and_another_work_folder_too(files, tmp_path):
    settings = replace(SETTINGS, controls=("intruders", "random", "matched_change"))
    first = report_of(files, "adapter", work=tmp_path / "a", settings=settings)
    resumed = report_of(files, "adapter", work=tmp_path / "a", settings=settings)
    assert first.to_json() == resumed.to_json()
    again = report_of(files, "adapter", work=tmp_path / "b", settings=settings)
    assert first.to_json() == again.to_json()
    other = report_of(files, "adapter", work=tmp_path / "c", settings=replace(settings, seed=1))
    random_cells = [
        [cell.forgetting_change.estimate for cell in report.cells if cell.cell.control == "random"]
        for report in (first, other)
    ]
    assert random_cells[0] != random_cells[1]


@pytest.mark.parametrize(("limit", "num_cut"), [(None, 0), (8, 0), (7, 20)])
def test_examples_that_were_cut_are_told_also_after_an_interruption(limit, num_cut, files, tmp_path):
    """Six words, between two special tokens."""
    for _ in range(2):
        notices = []
        report = sweep(
            str(files / "base"),
            str(files / "adapter"),
            task=load_task(files / "task.tsv"),
            text=files / "text.txt",
            settings=replace(SETTINGS, strengths=(0.5,), controls=("intruders",)),
            measuring=MeasureOptions(max_tokens=limit),
            options=replace(INLINE, work_dir=tmp_path / "work"),
            on_notice=notices.append,
        )
        assert (report.task.num_cut, report.text.num_cut) == (num_cut, 0)
        told = [notice for notice in notices if "20 of 20 examples are longer" in notice]
        assert len(told) == (num_cut > 0)
        assert report.to_json()["task"]["num_cut"] == num_cut
        row = dict(sweep_data(report)["facts"])["Task"]
        assert ("20 examples (20 of them truncated)" in row) is (num_cut > 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strengths": (float("nan"),)}, "the strength is nan"),
        ({"strengths": (-0.1,)}, "the strength is -0.1"),
        ({"strengths": ()}, "strengths is empty"),
        ({"strengths": (0.5, 0.5)}, "strengths has a value twice: 0.5, 0.5"),
        ({"controls": ("uniform",)}, "the controls lack 'intruders'"),
        ({"controls": ("intruders", "prune")}, "no control named .prune."),
        ({"which": ("top", "top")}, "which has a value twice: top, top"),
        ({"max_task_cost": float("nan")}, "largest cost is nan"),
    ],
)
def test_settings_without_meaning_are_refused_before_any_work(changes, said, found):
    bench = Counted()
    with pytest.raises(UsageError, match=said):
        run_grid(found, bench, replace(SETTINGS, **changes), journal=None)
    assert bench.calls == []


def test_controls_are_those_of_a_repair():
    assert SweepSettings().controls == tuple(INTERVENTIONS)


def test_fewer_examples_are_spread_evenly(files):
    task = load_task(files / "task.tsv")
    few = limited(task, 5)
    assert few.labels == tuple(task.labels[i] for i in (0, 4, 8, 12, 16))
    assert few.texts[1] == task.texts[4]
    assert limited(task, 100) == task == limited(task, None)


def test_the_notebook_finds_the_function_however_often_it_asks():
    import intruscope.sweep

    assert callable(intruscope.sweep.sweep)
    assert intruscope.sweep.sweep is sweep
    assert intruscope.sweep.SweepSettings is SweepSettings


def test_a_control_is_added_in_one_place(found, pair, bench, monkeypatch, tmp_path):
    """A throw-away control: once in the table it is measured right, and on page and picture."""

    def halve_the_first(survey, _chosen, strength, _seed):
        return [scaled_update(survey.matrices[0].name, 0.5 * strength)]

    toy = Intervention(
        name="toy",
        title="first matrix halved",
        action="halving the first matrix",
        explanation="Only a test: the update of the first matrix is halved.",
        make_edits=halve_the_first,
    )
    assert SweepSettings().controls == (*INTERVENTIONS,)  # as the table was when the class was made
    monkeypatch.setitem(INTERVENTIONS, toy.name, toy)
    settings = replace(SETTINGS, strengths=(0.4,), controls=("intruders", "toy"))
    grid = run_grid(found, bench, settings, journal=None)
    name = found.matrices[0].name
    with pair.with_update({name: 0.2 * (pair.tuned_matrix(name) - pair.base_matrix(name))}):
        expected = measure(pair.language_model(), bench._sequences, protocol="fast").nats
    np.testing.assert_allclose(grid.by_key["toy/top/0.4"].text_nats, expected, rtol=1e-9)
    assert np.abs(np.array(expected) - grid.tuned.text_nats).max() > 1e-3
    report = report_of_simulated(grid, settings)
    assert [cell["control"] for cell in report.to_json()["cells"]] == ["intruders", "toy"]
    assert [each["name"] for each in sweep_data(report)["series"]] == ["intruders turned down", toy.title]
    write_sweep_html(report, tmp_path / "page.html")
    assert f"<dt>{toy.title}</dt><dd>{toy.explanation}</dd>" in (tmp_path / "page.html").read_text()
    write_sweep_plots(report, tmp_path / "plots")
    assert f">{toy.title}<" in (tmp_path / "plots" / "tradeoff.svg").read_text()


@pytest.mark.parametrize(("limit", "num_examples"), [(None, 24), (6, 6)])
def test_the_limit_of_examples_holds_for_held_out_text(limit, num_examples, files, tmp_path, monkeypatch):
    """Twenty-four lines as a task; and the models, given as paths, are opened and paired once."""
    paired = []
    pair_adapter = opening_module.pair_adapter
    monkeypatch.setattr(opening_module, "pair_adapter", lambda *a: paired.append(a) or pair_adapter(*a))
    report = sweep(
        files / "base",
        files / "adapter",
        task=load_task(files / "text.txt"),
        text=files / "text.txt",
        settings=replace(SETTINGS, strengths=(0.5,), controls=("intruders",)),
        measuring=MeasureOptions(max_examples=limit, protocol="exact"),
        options=replace(INLINE, work_dir=tmp_path / "work"),
    )
    assert len(paired) == 1
    assert (report.metric, report.task.num_items) == ("loss", num_examples)
    assert report.text.num_items == 24
    lines = [len(line.split()) for line in (files / "text.txt").read_text().splitlines()]
    chosen = np.linspace(0, 23, num_examples).round().astype(int)
    pair = load_pair(files / "base", files / "adapter", device="cpu")
    sequences = cut(read_texts([files / "text.txt"]), pair.language_model())
    nats = measure(pair.language_model(), sequences, protocol="exact").nats[chosen]
    expected = nats.sum() / sum(lines[i] for i in chosen)
    assert report.task_score.estimate == pytest.approx(expected, rel=1e-5)
