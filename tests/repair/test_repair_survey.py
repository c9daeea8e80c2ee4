"""A survey keeps a scan's verdicts and the vectors that they are of, exactly, through the journal too."""

import numpy as np
import pytest
import torch
from repair_models import SHAPES, bases, factors, naive, truth

from intruscope import RunOptions, ScanSettings, scan
from intruscope.errors import OutputConflict, UsageError
from intruscope.repair.survey import survey


def test_reports_are_those_of_a_scan(models, found):
    settings = ScanSettings(chance_trials=0)  # a survey draws none
    report = scan(
        str(models / "base"), str(models / "adapter"), settings=settings, options=RunOptions(workers=0)
    )
    scanned = {m.name: m for m in report.matrices}
    assert {m.name for m in found.matrices} == set(SHAPES) == set(scanned)
    for matrix in found.matrices:
        assert matrix.report.sides == scanned[matrix.name].sides
        assert matrix.report.singular_values == scanned[matrix.name].singular_values


def test_vectors_norms_and_core_are_those_of_dense_decompositions(found, found_full):
    base, adapter = bases(), factors()
    for matrix in (*found.matrices, *found_full.matrices):
        before, update = truth(matrix.name, base, adapter)
        left, values, right, intruders = naive(before, update)
        assert list(matrix.intruders) == intruders
        assert matrix.values_K.numpy() == pytest.approx(values[:10], rel=1e-6)
        tuned = before + update
        product = (matrix.left_OK * matrix.values_K) @ matrix.right_IK.T
        torch.testing.assert_close(
            product, torch.from_numpy((left[:, :10] * values[:10]) @ right[:, :10].T), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(
            matrix.core_KK, matrix.left_OK.T @ update @ matrix.right_IK, rtol=0, atol=1e-6
        )
        assert matrix.tuned_norm == pytest.approx(float(tuned.norm()), rel=1e-6)
        assert matrix.update_norm == pytest.approx(float(update.norm()), rel=1e-6)
        left_R, values_R, right_R = matrix.update_svd
        assert np.sort(values_R.numpy())[::-1][:4] == pytest.approx(
            np.linalg.svd(update.numpy(), compute_uv=False)[:4], rel=1e-6
        )
        torch.testing.assert_close((left_R * values_R) @ right_R.T, update, rtol=0, atol=1e-6)


def test_workers_and_a_resumed_journal_give_the_same_numbers(models, found, tmp_path):
    arguments = (str(models / "base"), str(models / "adapter"))
    options = RunOptions(workers=1, work_dir=tmp_path / "work")
    first = survey(*arguments, options=options)
    events = []
    second = survey(*arguments, options=options, on_progress=events.append)
    assert [(event.done, event.item) for event in events] == [(len(first.matrices), "")]
    for one, two, three in zip(found.matrices, first.matrices, second.matrices, strict=True):
        for field in ("left_OK", "values_K", "right_IK", "core_KK"):
            assert torch.equal(getattr(two, field), getattr(three, field))
            assert torch.equal(getattr(one, field), getattr(three, field))


def test_names_choose_matrices_of_any_scope(models):
    arguments = (str(models / "base"), str(models / "merged"))
    named = survey(*arguments, names=["model.embed_tokens", "*.q_proj"], options=RunOptions(workers=0))
    assert {m.name for m in named.matrices} == {"model.embed_tokens", "model.layers.0.self_attn.q_proj"}
    assert set(named.others) == set(SHAPES) - {"model.layers.0.self_attn.q_proj"}
    embedding = next(m for m in named.matrices if m.name == "model.embed_tokens")
    assert embedding.report.shape == (48, 40)  # (out, in): a word is a column
    assert embedding.left_OK.shape == (48, 10)
    with pytest.raises(UsageError, match="did you mean model.embed_tokens"):
        survey(*arguments, names=["model.embed_token"], options=RunOptions(workers=0))


def test_what_lies_outside_the_papers_scope_is_named(found, found_full):
    assert found.others == ()
    assert found.other_tensors == ()
    assert found_full.others == ("model.embed_tokens",)
    assert found_full.other_tensors == ("model.norm.weight",)


def test_a_matrix_with_nan_is_unreadable_and_the_rest_is_surveyed(models, tmp_path):
    from repair_models import write_adapter

    adapter = factors()
    name = "model.layers.0.mlp.up_proj"
    adapter[f"base_model.model.{name}.lora_B.weight"][3, 1] = float("nan")
    folder = write_adapter(tmp_path / "adapter", adapter)
    found = survey(str(models / "base"), str(folder), options=RunOptions(workers=0))
    assert [report.name for report in found.unreadable] == [name]
    assert len(found.matrices) == len(SHAPES) - 1


def test_all_vectors_and_outputs_in_an_input_are_refused(models):
    arguments = (str(models / "base"), str(models / "adapter"))
    with pytest.raises(UsageError, match="k must be a number"):
        survey(*arguments, settings=ScanSettings(k="all"), options=RunOptions(workers=0))
    with pytest.raises(OutputConflict):
        survey(*arguments, outputs=[models / "base" / "out"], options=RunOptions(workers=0))
