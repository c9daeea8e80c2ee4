"""From files to verdicts through real workers: plant and find, and find nothing in the clean twin."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from linalg_oracle import naive_alignment
from safetensors.torch import save_file
from spectra_models import base_matrix, plant, write_model

from intruscope import RunOptions, ScanSettings, plan, scan
from intruscope.errors import UsageError
from intruscope.records.plain import decode, plain
from intruscope.spectra.gates import METRICS, parse_gates
from intruscope.spectra.matrix import analyse_pair
from intruscope.spectra.records import EPSILON_GRID, MatrixReport


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Layers: clean (rotated a little), an intruder at index 2, one just above the threshold at index 4."""
    folder = tmp_path_factory.mktemp("planted")
    spectra = [base_matrix(96, 80, seed) for seed in range(3)]
    before = [left @ torch.diag(values) @ right.T for left, values, right in spectra]
    after = [
        before[0] * 1.01,
        plant(*spectra[1], index=2, alignment=0.45),
        plant(*spectra[2], index=4, alignment=0.55),
    ]
    return write_model(folder / "base", before), write_model(folder / "tuned", after), before, after


def run(base, tuned, **settings):
    return scan(str(base), str(tuned), settings=ScanSettings(**settings), options=RunOptions(workers=0))


def test_exactly_the_planted_intruder_is_found(planted):
    report = run(planted[0], planted[1])
    assert report.complete
    sides = [matrix.sides[0] for matrix in report.matrices]
    assert [side.num_intruders for side in sides] == [0, 1, 0]
    found = sides[1].verdicts.index("intruder")
    assert sides[1].alignment_lower[found] == pytest.approx(0.45, abs=1e-3)
    assert sides[2].num_intruders == 0
    assert min(sides[2].alignment_upper) == pytest.approx(0.55, abs=1e-3)


def test_the_clean_twin_has_none_and_its_change_of_values_is_reported(planted):
    side = run(planted[0], planted[1]).matrices[0].sides[0]
    assert set(side.verdicts) == {"aligned"}
    assert [match.base_index for match in side.matches] == list(range(10))
    assert [match.relative_change for match in side.matches] == pytest.approx([0.01] * 10, abs=1e-9)


def test_all_verdicts_and_the_grid_agree_with_two_dense_decompositions(planted):
    report = run(planted[0], planted[1], side="both")
    for matrix, before, after in zip(report.matrices, planted[2], planted[3], strict=True):
        for side in matrix.sides:
            flipped = side.side == "right"
            base, tuned = (before.T, after.T) if flipped else (before, after)
            left0 = np.linalg.svd(base.numpy(), full_matrices=False)[0]
            left1 = np.linalg.svd(tuned.numpy(), full_matrices=False)[0]
            truth = np.abs(left0.T @ left1[:, :10]).max(axis=0)
            assert (np.array(side.alignment_lower) <= truth + 1e-9).all()
            assert (truth <= np.array(side.alignment_upper) + 1e-9).all()
            for count in side.grid:
                if min(abs(truth[: count.k] - count.epsilon)) > 1e-6:
                    assert count.num_undecided == 0
                    assert count.num_intruders == (truth[: count.k] < count.epsilon).sum()
            assert {count.epsilon for count in side.grid} == set(EPSILON_GRID)
            oracle = naive_alignment(base.numpy(), tuned.numpy(), 10)
            np.testing.assert_allclose(oracle.alignment, truth, rtol=0, atol=1e-9)
            assert (np.array(side.alignment_lower) <= oracle.supremum + oracle.error).all()
            assert (oracle.attained - oracle.error <= np.array(side.alignment_upper)).all()


def test_transposing_the_models_swaps_the_sides(planted, tmp_path):
    base = write_model(tmp_path / "b", [m.T for m in planted[2]])
    tuned = write_model(tmp_path / "t", [m.T for m in planted[3]])
    straight, swapped = run(planted[0], planted[1], side="left"), run(base, tuned, side="right")
    for one, other in zip(straight.matrices, swapped.matrices, strict=True):
        assert one.sides[0].verdicts == other.sides[0].verdicts
        assert one.singular_values == pytest.approx(other.singular_values)


def test_energy_is_what_the_definition_says(planted):
    matrix = run(planted[0], planted[1]).matrices[1]
    side = matrix.sides[0]
    index = side.verdicts.index("intruder")
    tuned, update = planted[3][1], planted[3][1] - planted[2][1]
    u, s, vt = torch.linalg.svd(tuned, full_matrices=False)
    assert side.tuned_energy_fraction == pytest.approx(float(s[index] ** 2 / s.square().sum()))
    inside = float(u[:, index] @ update @ vt[index]) ** 2
    assert side.update_energy_fraction == pytest.approx(inside / float(update.square().sum()))
    assert matrix.update.frobenius_norm == pytest.approx(float(update.norm()))
    assert matrix.update.spectral_norm == pytest.approx(float(torch.linalg.matrix_norm(update, 2)))
    assert matrix.update.relative_frobenius_norm == pytest.approx(float(update.norm() / planted[2][1].norm()))


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_the_share_in_the_bases_leading_directions_is_what_the_definition_says(planted, side):
    report = run(planted[0], planted[1], side=side, k=5)
    inside = []
    for matrix, before, after in zip(report.matrices, planted[2], planted[3], strict=True):
        u, _, vt = torch.linalg.svd(before, full_matrices=False)
        core = u[:, :5].T @ (after - before) @ vt[:5].T
        inside.append(float(core.square().sum()))
        share = inside[-1] / float((after - before).square().sum())
        assert matrix.update.top_energy_fraction == pytest.approx(share, rel=1e-6)
        assert matrix.update.top_energy_chance == pytest.approx(25 / before.numel())
    whole = sum(float((b - a).square().sum()) for a, b in zip(planted[2], planted[3], strict=True))
    assert report.totals.top_energy_fraction == pytest.approx(sum(inside) / whole, rel=1e-6)
    table = report.to_arrow().to_pylist()
    assert {row["update_top_fraction"] for row in table} == {
        matrix.update.top_energy_fraction for matrix in report.matrices
    }


def test_effective_rank_is_exact_for_small_updates(planted):
    matrix = run(planted[0], planted[1]).matrices[1]
    values = torch.linalg.svdvals(planted[3][1] - planted[2][1])
    share = values / values.sum()
    expected = float(torch.exp(-torch.xlogy(share, share).sum()))
    rank = matrix.update.effective_rank
    assert (rank.value, rank.low, rank.high) == pytest.approx((expected,) * 3)


def test_similarity_maps_show_the_intruder_as_a_pale_column(planted):
    matrix = run(planted[0], planted[1], maps=8).matrices[1]
    similarity = matrix.sides[0].similarity
    levels = np.array(similarity.levels).reshape(similarity.num_base, similarity.num_tuned)
    index = matrix.sides[0].verdicts.index("intruder")
    assert levels[:, index].max() <= round(255 * 0.46)
    assert levels[0, 0] == 255
    left0 = np.linalg.svd(planted[2][1].numpy(), full_matrices=False)[0][:, :8]
    left1 = np.linalg.svd(planted[3][1].numpy(), full_matrices=False)[0][:, :8]
    assert np.abs(levels - 255 * np.abs(left0.T @ left1)).max() <= 0.51


def test_the_null_counts_are_those_of_rotated_updates(planted):
    null = run(planted[0], planted[1], null_trials=4).matrices[1].sides[0].null
    assert (null.trials, len(null.counts)) == (4, 4)
    assert null.low <= null.mean <= null.high
    assert null.mean == pytest.approx(sum(null.counts) / 4)


def test_a_matrix_with_one_infinity_is_a_finding_and_the_rest_is_scanned(planted, tmp_path):
    broken = [m.clone() for m in planted[3]]
    broken[1][3, 5] = float("inf")
    report = run(planted[0], write_model(tmp_path / "t", broken))
    assert [m.status for m in report.matrices] == ["done", "refused", "done"]
    assert not report.complete
    (finding,) = report.matrices[1].findings
    assert (finding.code, finding.severity) == ("non-finite", "error")
    assert "1 entries" in finding.message
    assert "(3, 5)" in finding.message


def test_equal_models_are_said_to_be_equal(planted):
    report = run(planted[0], planted[0])
    assert "model-unchanged" in [finding.code for finding in report.findings]
    assert all(matrix.update.effective_rank is None for matrix in report.matrices)
    assert {entry.status for entry in report.coverage} == {"unchanged"}
    for matrix in report.matrices:
        (side,) = matrix.sides
        assert set(side.verdicts) == {"aligned"}
        assert set(side.alignment_lower) == {1.0} == set(side.alignment_upper)
        assert [match.relative_change for match in side.matches] == [0.0] * len(side.verdicts)


def test_only_the_equal_tensors_are_unchanged(planted, tmp_path):
    mixed = [planted[2][0], planted[3][1], planted[3][2]]
    report = run(planted[0], write_model(tmp_path / "mixed", mixed))
    status = {entry.tensor: entry.status for entry in report.coverage}
    assert sorted(status.values()) == ["compared", "compared", "unchanged"]
    assert status["model.layers.0.self_attn.q_proj.weight"] == "unchanged"
    # The shortcut says what the whole analysis says.
    whole = run(planted[0], write_model(tmp_path / "nearly", [planted[2][0] * (1 + 1e-13), *planted[3][1:]]))
    first, second = (r.matrices[0].sides[0] for r in (report, whole))
    assert first.verdicts == second.verdicts
    np.testing.assert_allclose(first.alignment_lower, second.alignment_lower, atol=1e-9)


def test_an_equal_matrix_of_too_small_a_rank_is_not_called_aligned_for_free(tmp_path):
    thin = torch.randn(60, 3, dtype=torch.float64) @ torch.randn(3, 50, dtype=torch.float64)
    base, tuned = write_model(tmp_path / "b", [thin]), write_model(tmp_path / "t", [thin.clone()])
    verdicts = run(base, tuned).matrices[0].sides[0].verdicts
    assert verdicts[:3] == ("aligned",) * 3
    assert "aligned" not in verdicts[3:]


def test_another_base_is_suspected(planted, tmp_path):
    other = [torch.randn(96, 80, dtype=torch.float64) for _ in range(3)]
    report = run(planted[0], write_model(tmp_path / "other", other))
    assert "wrong-base-suspected" in [finding.code for finding in report.findings]
    assert "wrong-base-suspected" not in [f.code for f in run(planted[0], planted[1]).findings]


def test_an_update_below_the_rounding_of_its_storage_says_so(planted, tmp_path):
    stored = [m.to(torch.bfloat16) for m in planted[2]]
    nudged = [m.clone() for m in stored]
    for matrix in nudged:
        matrix[::7, ::5] *= 1.004
    base, tuned = write_model(tmp_path / "b", stored), write_model(tmp_path / "t", nudged)
    codes = [f.code for m in run(base, tuned).matrices for f in m.findings]
    assert "storage-noise" in codes
    clear = write_model(tmp_path / "c", [m.to(torch.bfloat16) for m in planted[3]])
    assert "storage-noise" not in [f.code for f in run(base, clear).matrices[1].findings]


def test_all_vectors_can_be_asked_for(planted):
    report = run(planted[0], planted[1], k="all")
    assert [len(m.singular_values) for m in report.matrices] == [80] * 3
    assert {c for m in report.matrices for c in m.sides[0].certificates} == {"dense"}


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1), (3, 3)])
def test_tiny_shapes_have_a_defined_result(shape, tmp_path):
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(shape, generator=generator)
    tuned = base + 0.1 * torch.randn(shape, generator=generator)
    report = run(write_model(tmp_path / "b", [base]), write_model(tmp_path / "t", [tuned]))
    (matrix,) = report.matrices
    assert matrix.status == "done"
    assert len(matrix.singular_values) == min(shape)
    assert json.dumps(dataclasses.asdict(report), allow_nan=False)


def test_a_zero_base_and_a_zero_tuned_matrix_have_a_defined_result(tmp_path):
    zero, other = torch.zeros(30, 20), torch.randn(30, 20)
    report = run(write_model(tmp_path / "b", [zero, other]), write_model(tmp_path / "t", [other, zero]))
    assert [m.status for m in report.matrices] == ["done", "done"]
    assert json.dumps(dataclasses.asdict(report), allow_nan=False)
    assert report.matrices[0].sides[0].num_intruders == 10


def test_results_do_not_depend_on_workers_or_order(planted, tmp_path):
    one = run(planted[0], planted[1])
    many = scan(str(planted[0]), str(planted[1]), options=RunOptions(workers=3, work_dir=tmp_path / "w"))
    strip = lambda report: [dataclasses.replace(m, seconds=0.0) for m in report.matrices]  # noqa: E731
    assert strip(one) == strip(many)


def test_records_survive_the_journal(planted):
    pairing = plan(str(planted[0]), str(planted[1]))
    record = analyse_pair((pairing.pairs[1], ScanSettings(maps=4, null_trials=1, side="both")))
    report = decode(MatrixReport, json.loads(json.dumps(record)))
    assert plain(report) == record
    assert report.shape == pairing.pairs[1].base.shape
    assert len(report.sides[1].similarity.levels) == 16


def test_a_model_alone_is_not_enough(planted):
    with pytest.raises(UsageError, match="two models"):
        plan(str(planted[0]))


def test_an_adapter_names_its_base_and_makes_what_its_factors_say(tmp_path):
    left, values, right = base_matrix(96, 80, 5)
    base = left @ torch.diag(values) @ right.T
    folder = write_model(tmp_path / "base", [base])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(2, 80, generator=generator) / 80**0.5
    b = 4 * torch.randn(96, 2, generator=generator) / 96**0.5
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    report = scan(str(adapter), options=RunOptions(workers=0))
    merged = write_model(tmp_path / "merged", [base + 2.0 * (b.double() @ a.double())])
    twin = run(folder, merged)
    assert report.matrices[0].sides[0].verdicts == twin.matrices[0].sides[0].verdicts
    assert report.matrices[0].sides[0].num_intruders >= 1
    assert report.matrices[0].singular_values == pytest.approx(twin.matrices[0].singular_values)
    assert report.matrices[0].update.rank_bound == 2
    assert report.matrices[0].update.frobenius_norm == pytest.approx(twin.matrices[0].update.frobenius_norm)


def test_gates_read_and_trip():
    (gate,) = parse_gates(" intruders >= 2 ")
    assert (gate.metric, gate.comparison, gate.bound) == ("intruders", ">=", 2.0)
    assert len(parse_gates("intruders>0,energy>0.01")) == 2
    assert parse_gates("excess_over_chance>-2")[0].bound == -2.0
    for wrong in ("intruders", "intruders>", "x>1", "intruders>0;rm", "__import__>1", ""):
        with pytest.raises(UsageError, match=", ".join(METRICS)):
            parse_gates(wrong)


@pytest.mark.parametrize(
    ("dtype", "scale"), [("float32", 2.0**83), ("float32", 2.0**-83), ("float64", 2.0**-300)]
)
def test_extreme_numbers_only_scale_the_figures(planted, tmp_path, dtype, scale):
    """Squares of such numbers leave the range of their dtype."""
    before, after = ([m.to(getattr(torch, dtype)) for m in side] for side in planted[2:])
    plain = run(write_model(tmp_path / "b", before), write_model(tmp_path / "t", after)).matrices
    far = [[matrix * scale for matrix in side] for side in (before, after)]
    scaled = run(write_model(tmp_path / "B", far[0]), write_model(tmp_path / "T", far[1])).matrices
    for one, other in zip(plain, scaled, strict=True):
        assert other.sides[0].verdicts == one.sides[0].verdicts
        assert other.base_frobenius_norm == pytest.approx(one.base_frobenius_norm * scale, rel=1e-5)
        assert other.update.frobenius_norm == pytest.approx(one.update.frobenius_norm * scale, rel=1e-5)
        assert other.singular_values == pytest.approx([v * scale for v in one.singular_values], rel=1e-4)


@pytest.mark.parametrize("side", [0, 1])
def test_numbers_whose_norms_would_overflow_are_a_finding(planted, tmp_path, side):
    pair = [[matrix.double() for matrix in each] for each in planted[2:]]
    pair[side][1] = pair[side][1] * 1e307
    report = run(write_model(tmp_path / "b", pair[0]), write_model(tmp_path / "t", pair[1]))
    assert [matrix.status for matrix in report.matrices] == ["done", "refused", "done"]
    assert not report.complete
    (finding,) = report.matrices[1].findings
    assert (finding.code, finding.severity) == ("out-of-range", "error")
    assert f"the largest entry of the {('base', 'tuned')[side]} is" in finding.message
    json.dumps(dataclasses.asdict(report), allow_nan=False)
