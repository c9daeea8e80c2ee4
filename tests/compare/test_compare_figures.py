"""Every figure of a comparison against its definition on formed float64 updates, and the laws it keeps."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from compare_models import SHAPE, break_tensor, module, random_factors, updates_of, write_lora
from safetensors.torch import load_file

import intruscope
from intruscope.compare.records import COLUMNS, CompareReport
from intruscope.compare.settings import CompareSettings
from intruscope.engine.settings import RunOptions

INLINE = RunOptions(workers=0)


def compared(*models, **settings):
    return intruscope.compare(*models, settings=CompareSettings(**settings), options=INLINE)


@pytest.fixture(scope="module")
def report(files):
    return compared(*(files / name for name in "abc"))


def spaces(update):
    u, s, vt = np.linalg.svd(update.numpy())
    rank = int((s > 1e-6 * s[0]).sum())
    return u[:, :rank], vt[:rank].T


def test_pairs_are_what_the_dense_updates_say(files, report):
    updates = {name: updates_of(files / name) for name in "abc"}
    assert [(pair.a, pair.b) for pair in report.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair in report.pairs:
        first, second = updates[pair.a], updates[pair.b]
        assert [each.name for each in pair.modules] == [module(0), module(1)]
        for each in pair.modules:
            one, two = first[each.name], second[each.name]
            cosine = float((one * two).sum() / (one.norm() * two.norm()))
            assert each.cosine == pytest.approx(cosine, abs=1e-10)
            (left1, right1), (left2, right2) = spaces(one), spaces(two)
            for angles, basis1, basis2, overlap, chance, size in (
                (each.left_angles, left1, left2, each.left_overlap, each.left_overlap_random, SHAPE[0]),
                (each.right_angles, right1, right2, each.right_overlap, each.right_overlap_random, SHAPE[1]),
            ):
                expected = np.sort(scipy.linalg.subspace_angles(basis1, basis2))
                np.testing.assert_allclose(angles, expected, atol=1e-7)
                assert overlap == pytest.approx((np.cos(expected) ** 2).mean(), abs=1e-10)
                assert chance == max(basis1.shape[1], basis2.shape[1]) / size
            assert each.sign_conflict == int((one.sign() != two.sign()).sum()) / one.numel()
            assert each.sign_conflict_error == 0.0
            crossed = float(torch.linalg.matrix_norm(one @ two.T) / (one.norm() * two.norm()))
            assert each.cosine_shared_a_spread == pytest.approx(crossed / math.sqrt(SHAPE[0]), rel=1e-9)
        flat = [torch.cat([each.flatten() for each in one.values()]) for one in (first, second)]
        whole = float(flat[0] @ flat[1] / (flat[0].norm() * flat[1].norm()))
        assert pair.cosine == pytest.approx(whole, abs=1e-10)
        assert pair.norm_ratio == pytest.approx(float(flat[1].norm() / flat[0].norm()), rel=1e-10)
        conflict = int((flat[0].sign() != flat[1].sign()).sum()) / len(flat[0])
        assert pair.sign_conflict == pytest.approx(conflict, abs=1e-12)


def test_the_sum_is_that_of_the_dense_updates(files, report):
    updates = [updates_of(files / name) for name in "abc"]
    for each in report.merge.modules:
        parts = [update[each.name] for update in updates]
        total = sum(parts)
        energies = [float(part.square().sum()) for part in parts]
        np.testing.assert_allclose(each.energies, energies, rtol=1e-10)
        shares = [float((part * total).sum() / total.square().sum()) for part in parts]
        np.testing.assert_allclose(each.shares, shares, atol=1e-10)
        assert each.energy_ratio == pytest.approx(float(total.square().sum()) / sum(energies), rel=1e-10)
        tops = [float(torch.linalg.matrix_norm(part, 2)) for part in parts]
        found = float(torch.linalg.matrix_norm(total, 2)) / max(tops)
        assert each.inflation == pytest.approx(found, rel=1e-10)
    members = report.fine_tunes
    everything = [torch.cat([each.flatten() for each in update.values()]) for update in updates]
    total = sum(everything)
    for member, part in zip(members, everything, strict=True):
        assert member.share == pytest.approx(float(part @ total / (total @ total)), abs=1e-10)
        assert member.energy == pytest.approx(float(part @ part), rel=1e-10)
    assert sum(member.share for member in members) == pytest.approx(1.0)
    assert sum(member.energy_fraction for member in members) == pytest.approx(1.0)
    assert (members[0].label, members[0].kind, members[0].num_matrices) == ("a", "LoRA", 2)


def test_inflation_controls_are_means_over_drawn_updates(files):
    """Against updates that are rotated and formed: on both sides, and on the left alone."""
    report = compared(files / "a", files / "c", null_trials=100)
    parts = [updates_of(files / name)[module(0)] for name in "ac"]
    rng, found = np.random.default_rng(0), {"random": [], "shared_a": []}
    for _ in range(200):
        for name, is_both in (("random", True), ("shared_a", False)):
            turned = []
            for part in parts:
                _, s, vt = np.linalg.svd(part.numpy(), full_matrices=False)
                left = np.linalg.qr(rng.standard_normal((SHAPE[0], 3)))[0]
                right = np.linalg.qr(rng.standard_normal((SHAPE[1], 3)))[0] if is_both else vt[:3].T
                turned.append((left * s[:3]) @ right.T)
            found[name].append(np.linalg.norm(sum(turned), 2) / max(np.linalg.norm(t, 2) for t in turned))
    each = report.merge.modules[0]
    assert each.inflation_random == pytest.approx(np.mean(found["random"]), abs=0.005)
    assert each.inflation_shared_a == pytest.approx(np.mean(found["shared_a"]), abs=0.005)
    assert abs(np.mean(found["random"]) - np.mean(found["shared_a"])) > 0.01


def test_a_common_start_is_noticed_and_nothing_else(files, report, tmp_path):
    said = [finding.message for finding in report.findings if finding.code == "shared-start"]
    assert len(said) == 1
    assert said[0].startswith("a and c probably started from the same A")
    by_pair = {(pair.a, pair.b): pair for pair in report.pairs}
    start = by_pair["a", "c"]
    assert start.right_overlap == pytest.approx(1.0, abs=1e-10)
    # With A in common, a cosine may be far from zero by chance: its null says so.
    assert start.cosine_shared_a_spread > 3 * start.cosine_random_spread
    assert start.sign_conflict_shared_a_spread > 2 * start.sign_conflict_random_spread
    assert by_pair["a", "b"].cosine_shared_a_spread < 1.5 * start.cosine_random_spread
    # A that has moved since is still noticed; related adapters, which overlap on both sides, are not.
    moved, related = {}, {}
    for layer, (left, right) in random_factors(0).items():
        noise = random_factors(40)[layer]
        moved[layer] = (noise[0], right + 0.5 * noise[1])
        related[layer] = (left + 0.5 * noise[0], right + 0.5 * noise[1])
    write_lora(tmp_path / "moved", moved)
    write_lora(tmp_path / "related", related)
    codes = [
        [finding.code for finding in compared(files / "a", tmp_path / name).findings]
        for name in ("moved", "related")
    ]
    assert codes == [["shared-start"], []]


def test_factors_of_another_gauge_order_or_scale(files, report, tmp_path):
    gauge = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 3))).float()
    turned = {
        layer: (left @ gauge, torch.linalg.inv(gauge) @ right)
        for layer, (left, right) in random_factors(0).items()
    }
    write_lora(tmp_path / "a", turned, scaling=4.0)  # twice as strong, and factored in another way
    (pair,) = compared(files / "b", tmp_path / "a").pairs
    known = report.pairs[0]
    assert pair.cosine == pytest.approx(known.cosine, abs=1e-5)
    assert pair.norm_ratio == pytest.approx(2.0 / known.norm_ratio, rel=1e-5)
    assert pair.sign_conflict == pytest.approx(known.sign_conflict, abs=1e-3)
    for one, two in zip(pair.modules, known.modules, strict=True):
        np.testing.assert_allclose(one.left_angles, two.left_angles, atol=1e-4)
        np.testing.assert_allclose(one.right_angles, two.right_angles, atol=1e-4)


def test_copies_add_up_and_opposites_cancel(files, tmp_path):
    minus = {layer: (-left, right) for layer, (left, right) in random_factors(0).items()}
    write_lora(tmp_path / "minus", minus, scaling=2.0)
    write_lora(tmp_path / "copy", random_factors(0), scaling=2.0)
    copies = compared(files / "a", tmp_path / "copy", files / "a")
    assert len({member.label for member in copies.fine_tunes}) == 3
    assert copies.merge.energy_ratio == pytest.approx(3.0)
    assert copies.merge.median_inflation == pytest.approx(3.0)
    assert [member.share for member in copies.fine_tunes] == pytest.approx([1 / 3] * 3)
    for pair in copies.pairs:
        assert (pair.cosine, pair.sign_conflict) == pytest.approx((1.0, 0.0))
        assert max(pair.modules[0].left_angles) < 1e-6
    gone = compared(files / "base", files / "a", tmp_path / "minus")
    assert gone.pairs[0].cosine == pytest.approx(-1.0)
    assert gone.pairs[0].sign_conflict == 1.0
    assert gone.merge.energy_ratio < 1e-12
    assert gone.merge.max_inflation < 1e-6
    assert [member.share for member in gone.fine_tunes] == [None, None]
    flight = gone.merge.preflight
    assert flight.parts[0].num_intruders > 0
    assert (flight.merge.num_intruders, flight.merge.num_new, flight.equal_norm.num_new) == (0, 0, 0)


def test_matrices_that_only_one_changes_count_in_its_norm_alone(files, tmp_path):
    write_lora(tmp_path / "half", {0: random_factors(0)[0]}, scaling=2.0)
    report = compared(files / "a", tmp_path / "half")
    (pair,) = report.pairs
    assert [each.name for each in pair.modules] == [module(0)]
    assert pair.modules[0].cosine == pytest.approx(1.0)
    assert pair.cosine == pytest.approx(pair.norm_ratio)  # ‖D₀‖² / (‖D‖‖D₀‖)
    assert [each.name for each in report.merge.modules] == [module(0), module(1)]
    assert report.merge.modules[1].energies[1] == 0.0
    assert report.merge.modules[1].shares == pytest.approx((1.0, 0.0))


def test_full_checkpoints_are_compared_as_their_adapter_is(files):
    report = compared(files / "base", files / "a", files / "full", files / "b", directions=3)
    assert [member.kind for member in report.fine_tunes] == ["LoRA", "full checkpoint", "LoRA"]
    same, with_b, full_b = report.pairs
    assert same.cosine == pytest.approx(1.0, abs=1e-6)
    assert same.sign_conflict < 0.01
    assert same.left_overlap == pytest.approx(1.0, abs=1e-5)
    assert full_b.cosine == pytest.approx(with_b.cosine, abs=1e-5)
    assert full_b.cosine_shared_a_spread is None
    assert len(full_b.modules[0].left_angles) == 3
    alone = compared(files / "base", files / "a", files / "b").merge.modules[0]
    whole = report.merge.modules[0]
    assert whole.energies[::2] == pytest.approx(alone.energies)
    assert whole.energies[1] == pytest.approx(alone.energies[0], rel=1e-5)
    assert 1.0 < whole.inflation_random < whole.inflation


def test_a_base_changes_no_figure_of_the_updates(files, report):
    whole = compared(files / "base", *(files / name for name in "abc"))
    assert whole.base == str(files / "base")
    for one, two in zip(whole.pairs, report.pairs, strict=True):
        for first, second in zip(one.modules, two.modules, strict=True):
            assert first.num_shared_intruders is not None
            assert {**vars(first), "num_shared_intruders": None} == vars(second)
    for one, two in zip(whole.merge.modules, report.merge.modules, strict=True):
        assert one.preflight is not None
        assert {**vars(one), "preflight": None} == vars(two)


def test_the_record_keeps_its_schema_and_survives_a_file(report, tmp_path):
    report.save(tmp_path / "report.json")
    assert CompareReport.load(tmp_path / "report.json") == report
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["schema"] == "intruscope.compare/1"
    assert {"a", "b", "cosine", "modules"} <= set(data["pairs"][0])
    assert {"name", "cosine", "left_angles", "right_angles"} <= set(data["pairs"][0]["modules"][0])
    assert data["merge"]["preflight"] is None
    rows = report.to_arrow().to_pylist()
    assert len(rows) == 6
    assert list(rows[0]) == list(COLUMNS)
    assert (rows[0]["a"], rows[0]["matrix"], rows[0]["layer"], rows[0]["kind"]) == ("a", module(0), 0, "up")
    assert rows[0]["smallest_left_angle"] == report.pairs[0].modules[0].left_angles[0]
    assert "cosine" in report._repr_html_()


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = torch.nn.ModuleDict({"up_proj": torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False)})


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([Block(), Block()])})


def test_models_in_memory_give_the_same(files, report):
    from peft import LoraConfig, get_peft_model

    made = []
    for name, rank, alpha in (("a", 3, 6), ("b", 4, 4)):
        model = get_peft_model(Net(), LoraConfig(r=rank, lora_alpha=alpha, target_modules=["up_proj"]))
        stored = load_file(files / name / "adapter_model.safetensors")
        state = {key.replace(".weight", ".default.weight"): value for key, value in stored.items()}
        assert not model.load_state_dict(state, strict=False).unexpected_keys
        made.append(model)
    found = compared(*made)
    assert found.pairs[0].cosine == pytest.approx(report.pairs[0].cosine, abs=1e-12)
    assert found.pairs[0].modules[0].left_angles == report.pairs[0].modules[0].left_angles


def test_work_that_is_done_is_not_done_again(files, tmp_path, monkeypatch):
    options = RunOptions(workers=0, work_dir=tmp_path / "work")
    first = intruscope.compare(files / "a", files / "b", options=options)
    monkeypatch.setattr("intruscope.compare.matrix.compare_matrix", lambda _: pytest.fail("done before"))
    assert intruscope.compare(files / "a", files / "b", options=options) == first


def test_an_adapter_of_zeros_is_a_finding(files, tmp_path):
    zero = {layer: (0 * left, right) for layer, (left, right) in random_factors(5).items()}
    write_lora(tmp_path / "zero", zero)
    report = compared(files / "base", files / "a", tmp_path / "zero")
    assert report.complete
    assert [finding.code for finding in report.findings] == ["zero-update"]
    assert report.pairs[0].cosine is None
    assert report.pairs[0].modules[0].left_angles == ()
    assert [member.share for member in report.fine_tunes] == pytest.approx([1.0, 0.0])
    assert report.merge.preflight.parts[1].num_intruders == 0


@pytest.mark.parametrize("models", [("a", "nan", "b"), ("base", "a", "nan", "b")])
def test_a_matrix_with_nan_is_a_finding_and_the_others_are_compared(files, tmp_path, models):
    write_lora(tmp_path / "nan", random_factors(6))
    break_tensor(tmp_path / "nan", 1, math.nan)
    report = compared(*((tmp_path if name == "nan" else files) / name for name in models))
    assert not report.complete
    (finding,) = report.findings
    assert (finding.code, finding.severity, finding.matrix) == ("non-finite", "error", module(1))
    assert "of nan are NaN" in finding.message
    assert [each.name for each in report.merge.modules] == [module(0)]
    with_nan, healthy = report.pairs[0], report.pairs[1]
    assert [each.name for each in with_nan.modules] == [module(0)]
    assert [each.name for each in healthy.modules] == [module(0), module(1)]
    rows = report.to_arrow().to_pylist()
    assert [row["matrix"] for row in rows if (row["a"], row["b"]) == (healthy.a, healthy.b)] == [
        module(0),
        module(1),
    ]
    assert "cosine" in report._repr_html_()
