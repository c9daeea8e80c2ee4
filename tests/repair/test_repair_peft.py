"""Every kind of layer: what PEFT merges of a repaired adapter is the formula over what it merged before."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.engine.settings import RunOptions
from intruscope.errors import UnsupportedFormat
from intruscope.repair.plan import plan_repair, repair
from intruscope.repair.survey import survey
from intruscope.weights.layout import base_matrices
from intruscope.weights.matrices import DenseUpdate
from intruscope.weights.source import open_model

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
import peft_models

pytestmark = pytest.mark.filterwarnings("ignore")
STRENGTH = 0.3
INLINE = RunOptions(workers=0)


def make_case(case, folder, dtype=torch.float32):
    """Base and adapter on disk, and PEFT's own merge of them."""
    make, options = peft_models.CASES[case]
    torch.manual_seed(0)
    model = make().to(dtype)
    model.save_pretrained(folder / "base")
    model = get_peft_model(
        model, LoraConfig(**{"r": 3, "lora_alpha": 7, **options}), autocast_adapter_dtype=False
    )
    peft_models.train(model)
    model.to(dtype)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload(safe_merge=True).save_pretrained(folder / "merged")


def merge_by_peft(case, folder, adapter, out):
    make, _ = peft_models.CASES[case]
    model = PeftModel.from_pretrained(make().from_pretrained(folder / "base"), adapter)
    model.merge_and_unload(safe_merge=True).save_pretrained(out)


def matrices(folder):
    """Name to (out, in) float64, as the house sees them."""
    return {
        v.name: v.load().double()
        for views in base_matrices(open_model(folder)).matrices.values()
        for v in views
    }


def formula(before, tuned, edited, strength=STRENGTH):
    """W' by dense decompositions: the vectors 0 and 1 of every edited matrix."""
    expected = {}
    for name, matrix in tuned.items():
        expected[name] = matrix
        if name in edited:
            assert not torch.equal(before[name], matrix)
            left, values, right_t = torch.linalg.svd(matrix, full_matrices=False)
            change = (strength - 1.0) * (left[:, :2] * values[:2]) @ right_t[:2]
            expected[name] = matrix + change
    return expected


def check_equal(got, expected, tolerance):
    for name, matrix in expected.items():
        error = float((got[name] - matrix).norm() / matrix.norm())
        assert error <= tolerance, (name, error)


CASES = [case for case in peft_models.CASES if not case.startswith("tokens")]
SOME = [
    *("rslora", "patterns", "conv1d", "conv1d-dora", "embedding", "modules-to-save"),
    *("fused-qkv-dora", "lora-bias", "experts-rank", "head-dora"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Cases by name, each made once."""
    folders = {}

    def get(case):
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp(case)
            make_case(case, folders[case])
        return folders[case]

    return get


@cache
def survey_of(folder, names):
    """The survey of a case; it is made once, because many plans are made from it."""
    return survey(str(folder / "base"), str(folder / "adapter"), names=names, options=INLINE)


def plan_for(folder, **options):
    options = {"strength": STRENGTH, "which": "*:0+1", **options}
    return plan_repair(survey_of(folder, None if options["which"] == "top" else ("*",)), **options)


@pytest.mark.parametrize("case", CASES)
def test_the_written_adapter_is_the_formula(case, made, tmp_path):
    folder = made(case)
    plan = plan_for(folder)
    plan.apply(tmp_path / "repaired")
    merge_by_peft(case, folder, tmp_path / "repaired", tmp_path / "remerged")
    edited = {matrix.name for matrix in plan.matrices}
    assert edited == {pair.name for pair in plan.survey.pairing.pairs}
    expected = formula(matrices(folder / "base"), matrices(folder / "merged"), edited)
    # PEFT merges in float32, before and after.
    check_equal(matrices(tmp_path / "remerged"), expected, 1e-5)
    config = json.loads((tmp_path / "repaired" / "adapter_config.json").read_text())
    if any(module.touched for module in plan.modules):
        assert config["r"] == config["lora_alpha"] == plan.stored_rank
        assert not config["rank_pattern"]
        assert not config["alpha_pattern"]
        assert not config.get("use_rslora")


@pytest.mark.parametrize("case", [*SOME, "bias", "convolution-dora", "experts-stored-apart"])
def test_the_merged_checkpoint_is_the_formula(case, made, tmp_path):
    folder = made(case)
    plan = plan_for(folder, merged=True)
    plan.apply(tmp_path / "repaired")
    edited = {matrix.name for matrix in plan.matrices}
    expected = formula(matrices(folder / "base"), matrices(folder / "merged"), edited)
    check_equal(matrices(tmp_path / "repaired"), expected, 1e-6)
    vectors = load_file(tmp_path / "repaired" / "model.safetensors")
    for name, tensor in load_file(folder / "merged" / "model.safetensors").items():
        if tensor.ndim == 1:
            torch.testing.assert_close(vectors[name], tensor, rtol=1e-6, atol=1e-7)
    model = peft_models.CASES[case][0]().from_pretrained(tmp_path / "repaired")
    assert model is not None


@pytest.mark.parametrize(
    "case",
    [
        "conv1d",
        "embedding-tied",
        "fused-qkv-per-head",
        "fused-qkv-grouped",
        "experts-stored-fused",
        "convolution",
    ],
)
def test_a_full_checkpoint_is_the_formula_in_every_layout(case, made, tmp_path):
    folder = made(case)
    plan = repair(
        str(folder / "base"), str(folder / "merged"), strength=STRENGTH, which="*:0+1", options=INLINE
    )
    plan.apply(tmp_path / "repaired")
    before, tuned = matrices(folder / "base"), matrices(folder / "merged")
    changed = {name for name in tuned if not torch.equal(before[name], tuned[name])}
    edited = {matrix.name for matrix in plan.matrices}
    assert changed <= edited
    expected = formula(before, tuned, changed)
    for name in edited - changed:  # named by the star, and equal on both sides: still the formula
        left, values, right_t = torch.linalg.svd(tuned[name], full_matrices=False)
        expected[name] = tuned[name] + (STRENGTH - 1.0) * (left[:, :2] * values[:2]) @ right_t[:2]
    check_equal(matrices(tmp_path / "repaired"), expected, 1e-6)
    old, new = (
        load_file(place / "model.safetensors") for place in (folder / "merged", tmp_path / "repaired")
    )
    assert set(old) == set(new)
    assert all(torch.equal(old[name], new[name]) for name in old if old[name].ndim < 2)


@pytest.mark.parametrize("case", [case for case in SOME if case not in ("conv1d", "rslora")])
@pytest.mark.parametrize("rank", ["compact", 9, "same"])
def test_other_ranks_are_the_formula_or_its_best_approximation(case, rank, made, tmp_path):
    folder = made(case)
    plan = plan_for(folder, **({"compact": True} if rank == "compact" else {"rank": rank}))
    plan.apply(tmp_path / "repaired")
    merge_by_peft(case, folder, tmp_path / "repaired", tmp_path / "remerged")
    before, edited = matrices(folder / "base"), {matrix.name for matrix in plan.matrices}
    expected, got = formula(before, matrices(folder / "merged"), edited), matrices(tmp_path / "remerged")
    cut = [module for module in plan.modules if module.after < module.exact]
    if rank != "same":
        if not any(module.exact > 9 for module in plan.modules):
            assert not cut
            check_equal(got, expected, 1e-5)
        return
    config = (folder / "adapter" / "adapter_config.json").read_bytes()
    assert (tmp_path / "repaired" / "adapter_config.json").read_bytes() == config
    for module in plan.modules:
        names = [m for m in expected if m == module.name or m.startswith(f"{module.name}[")]
        if not names or "experts" in module.name or not module.touched:
            continue
        wanted = torch.cat([expected[name] - before[name] for name in names])
        stored = torch.cat([got[name] - before[name] for name in names])
        dora = "dora" in case
        values = torch.linalg.svdvals(wanted)[module.after :]
        error = float((wanted - stored).norm())
        scale = 1e-5 * float(torch.cat([expected[name] for name in names]).norm())
        assert error == pytest.approx(module.frobenius_error, abs=scale)
        if not dora:  # there the base is scaled along with the factors, so the best is that of another matrix
            assert module.frobenius_error == pytest.approx(float(values.norm()), abs=scale)
            assert module.spectral_error == pytest.approx(float(values[:1].sum()), abs=scale)
    if case != "modules-to-save":
        assert any(module.frobenius_error > 0.0 for module in plan.modules)
    assert any(finding.code == "rank-cut" for finding in plan.findings) == any(
        module.frobenius_error > 0.0 for module in plan.modules
    )


@pytest.mark.parametrize("case", SOME)
@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
def test_interpolation_is_between_base_and_tuned(case, merged, made, tmp_path):
    folder = made(case)
    plan = plan_for(folder, control="interpolation", strength=0.4, which="top", merged=merged)
    plan.apply(tmp_path / "repaired")
    result = tmp_path / "repaired"
    if not merged:
        result = tmp_path / "remerged"
        merge_by_peft(case, folder, tmp_path / "repaired", result)
        config = (folder / "adapter" / "adapter_config.json").read_bytes()
        assert (tmp_path / "repaired" / "adapter_config.json").read_bytes() == config
    before, after, got = (
        load_file(place / "model.safetensors") for place in (folder / "base", folder / "merged", result)
    )
    for name, tensor in after.items():
        if name in before:
            expected = before[name].double() + 0.4 * (tensor.double() - before[name].double())
            torch.testing.assert_close(
                got[name].double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
            )


@pytest.mark.parametrize(
    "case", ["square-wide-tall", "conv1d", "embedding", "dora", "modules-to-save", "rslora"]
)
def test_peft_runs_a_repaired_adapter_to_the_formulas_logits(case, made, tmp_path):
    folder = made(case)
    plan = plan_for(folder)
    plan.apply(tmp_path / "repaired")
    make, _ = peft_models.CASES[case]
    live = PeftModel.from_pretrained(make().from_pretrained(folder / "base"), tmp_path / "repaired").eval()
    edited = {matrix.name for matrix in plan.matrices}
    expected = formula(matrices(folder / "base"), matrices(folder / "merged"), edited)
    twin = make().from_pretrained(folder / "merged").eval()
    views = {v.name: v for vs in base_matrices(open_model(folder / "merged")).matrices.values() for v in vs}
    parameters = dict(twin.named_parameters())
    for name in edited:
        stored = parameters[views[name].tensor.name].data
        views[name].place(expected[name], stored)
    tokens = torch.tensor([[3, 7, 11, 30, 5, 2]])
    with torch.no_grad():
        got, wanted = live(input_ids=tokens).logits, twin(input_ids=tokens).logits
        unrepaired = make().from_pretrained(folder / "merged").eval()(input_ids=tokens).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert float((unrepaired - wanted).abs().max()) > 1e-2


def dense(pair):
    """The tuned matrix of a pair in float64."""
    base = pair.base.load().double()
    update = pair.update.load(base)
    if isinstance(update, DenseUpdate):
        return update.tuned_OI.double()
    return base + update.left_OR.double() @ update.right_RI.double()


@pytest.mark.parametrize("case", ["rslora", "dora", "conv1d", "embedding", "modules-to-save"])
def test_bfloat16_is_rounded_once(case, tmp_path):
    make_case(case, tmp_path, torch.bfloat16)
    plan = plan_for(tmp_path)
    plan.apply(tmp_path / "repaired")
    old, new = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("adapter", "repaired"))
    assert {name: tensor.dtype for name, tensor in old.items()} == {name: t.dtype for name, t in new.items()}
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(tmp_path / "repaired"))
    after = {pair.name: dense(pair) for pair in pairing.pairs}
    for pair in plan.survey.pairing.pairs:
        tuned = dense(pair)
        left, values, right_t = torch.linalg.svd(tuned, full_matrices=False)
        expected = tuned + (STRENGTH - 1.0) * (left[:, :2] * values[:2]) @ right_t[:2]
        # Half an ulp of each factor; the terms may be larger than their sum.
        terms = float((tuned - pair.base.load().double()).norm()) + float(values[:2].norm())
        error = float((after[pair.name] - expected).norm())
        assert 0.0 < error < 2.0**-8 * terms, pair.name
    for module in plan.modules if "dora" not in case else ():
        down, up = (next(k for k in old if module.name in k and f"_{f}" in k) for f in "AB")
        scaling = 7 / 3**0.5 if case == "rslora" else 7 / 3
        assert torch.equal(new[down][:3], old[down])
        assert torch.equal(new[up][:, :3], (old[up].double() * scaling).to(torch.bfloat16))
    if case == "modules-to-save":
        key = "base_model.model.classifier.weight"
        exact = next(p for p in plan.survey.pairing.pairs if p.name == "classifier")
        saved = exact.update.tuned.load().double()
        left, values, right_t = torch.linalg.svd(saved, full_matrices=False)
        expected = saved + (STRENGTH - 1.0) * (left[:, :2] * values[:2]) @ right_t[:2]
        assert torch.equal(new[key], expected.to(torch.bfloat16))


def test_trained_words_move_towards_the_base_and_refuse_directions(made, tmp_path):
    folder = made("tokens")
    with pytest.raises(UnsupportedFormat, match="--merged"):
        plan_for(folder).apply(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    plan_for(folder, control="interpolation", strength=0.4, which="top").apply(tmp_path / "repaired")
    merge_by_peft("tokens", folder, tmp_path / "repaired", tmp_path / "remerged")
    before, after, got = (
        load_file(place / "model.safetensors")["model.embed_tokens.weight"].double()
        for place in (folder / "base", folder / "merged", tmp_path / "remerged")
    )
    assert int((before != after).any(dim=1).sum()) == 3
    torch.testing.assert_close(got, before + 0.4 * (after - before), rtol=0, atol=1e-6)
    plan_for(folder, merged=True).apply(tmp_path / "merged")
    expected = formula(matrices(folder / "base"), matrices(folder / "merged"), {"model.embed_tokens"})
    whole = matrices(tmp_path / "merged")["model.embed_tokens"]
    torch.testing.assert_close(whole, expected["model.embed_tokens"], rtol=0, atol=1e-5)
