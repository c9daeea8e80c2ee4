"""Adapters that cannot hold an edit in their own form: what is written is the LoRA of the edited update."""

from dataclasses import dataclass, replace

import pytest
import torch
from repair_models import RANK, SHAPES, bases, factors, naive, truth
from safetensors.torch import load_file

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import UnsupportedFormat, UsageError
from intruscope.repair.plan import plan_repair
from intruscope.weights.matrices import DenseUpdate, LowRankUpdate, StoredUpdate
from intruscope.weights.source import open_model
from intruscope.weights.views import RowSelection
from intruscope.writing.modules import JoinedUpdate

STRENGTH = 0.3


@dataclass(frozen=True, kw_only=True)
class Other(StoredUpdate):
    """An update of a kind without LoRA factors, as ``form`` gives it."""

    change_OI: torch.Tensor
    form: str

    def load(self, base_OI):
        if self.form == "dense":
            return DenseUpdate(tuned_OI=base_OI + self.change_OI.to(base_OI.dtype))
        left, values, right_t = torch.linalg.svd(self.change_OI, full_matrices=False)
        return LowRankUpdate(left_OR=(left * values)[:, :6], right_RI=right_t[:6])


def changes(full=()):
    """ΔW of each matrix, as the adapter of the fixture has it; of full rank for some."""
    base, adapter = bases(), factors()
    made = {name: truth(name, base, adapter)[1] for name in SHAPES}
    for name in full:
        noise = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        made[name] = made[name] + 1e-3 * noise
    return made


def of_other_kind(found, form, full=()):
    """The survey of the fixture with its updates in another form."""
    made = changes(full)
    pairs = tuple(
        replace(pair, update=Other(change_OI=made[pair.name], form=form)) for pair in found.pairing.pairs
    )
    return replace(found, pairing=replace(found.pairing, pairs=pairs))


def edited(which="top"):
    """ΔW' by dense decompositions."""
    base = bases()
    made = {}
    for name, update in changes().items():
        before = base[f"{name}.weight"].double()
        left, values, right, intruders = naive(before, update)
        made[name] = update.clone()
        for i in intruders[:1] if which == "top" else intruders:
            outer = torch.outer(torch.from_numpy(left[:, i].copy()), torch.from_numpy(right[:, i].copy()))
            made[name] += (STRENGTH - 1.0) * values[i] * outer
    return made


def products(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return {
        name: tensors[f"base_model.model.{name}.lora_B.weight"].double()
        @ tensors[f"base_model.model.{name}.lora_A.weight"].double()
        for name in SHAPES
    }


@pytest.mark.parametrize("form", ["dense", "thin"])
@pytest.mark.parametrize("compact", [False, True])
def test_the_written_lora_is_the_edited_update_at_its_exact_rank(found, tmp_path, form, compact):
    plan = plan_repair(of_other_kind(found, form), strength=STRENGTH, which="all", compact=compact)
    plan.apply(tmp_path / "out")
    expected = edited("all")
    for name, product in products(tmp_path / "out").items():
        torch.testing.assert_close(product, expected[name], rtol=0, atol=2e-6)
    ranks = {module.name: module.exact for module in plan.modules}
    assert ranks == {name: int(torch.linalg.matrix_rank(expected[name], rtol=1e-6)) for name in SHAPES}
    assert max(ranks.values()) > RANK
    assert [module.frobenius_error for module in plan.modules] == [0.0] * len(SHAPES)
    assert "written-as-lora" in {finding.code for finding in plan.findings}
    written = pair_adapter(open_model(found.base.path), open_adapter(tmp_path / "out"))
    assert {pair.name for pair in written.pairs} == set(SHAPES)
    assert {pair.update.scaling for pair in written.pairs} == {1.0}
    stored = {pair.name: pair.update.down.shape[0] for pair in written.pairs}
    assert stored == (ranks if compact else dict.fromkeys(SHAPES, max(ranks.values())))


def test_a_lower_rank_is_the_best_approximation_and_says_its_error(found, tmp_path):
    plan = plan_repair(of_other_kind(found, "dense"), strength=STRENGTH, rank=2)
    plan.apply(tmp_path / "out")
    expected = edited()
    for module in plan.modules:
        lost = torch.linalg.svdvals(expected[module.name])[2:]
        error = float((expected[module.name] - products(tmp_path / "out")[module.name]).norm())
        assert error == pytest.approx(float(lost.norm()), rel=1e-5)
        assert module.frobenius_error == pytest.approx(error, rel=1e-4)
        assert module.spectral_error == pytest.approx(float(lost[0]), rel=1e-4)
    assert "rank-cut" in {finding.code for finding in plan.findings}


def test_a_whole_update_is_scaled_once(found, tmp_path):
    plan_repair(of_other_kind(found, "thin"), control="uniform", strength=0.4).apply(tmp_path / "out")
    for name, change in changes().items():
        torch.testing.assert_close(products(tmp_path / "out")[name], 0.4 * change, rtol=0, atol=1e-6)


def test_an_update_of_full_rank_is_left_to_a_checkpoint(found, tmp_path):
    name = "model.layers.1.self_attn.k_proj"
    full = of_other_kind(found, "dense", full=[name])
    with pytest.raises(UnsupportedFormat, match=f"{name} has full rank .24.*--merged"):
        plan_repair(full, strength=STRENGTH)
    plan_repair(full, strength=STRENGTH, merged=True).apply(tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    expected = {**edited(), name: changes([name])[name]}
    for each in SHAPES:
        before = bases()[f"{each}.weight"].double()
        torch.testing.assert_close(got[f"{each}.weight"].double(), before + expected[each], rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="rank 'same'"):
        plan_repair(full, strength=STRENGTH, rank="same")


@pytest.mark.parametrize("forms", [("thin", "thin"), ("dense", "dense"), ("thin", "dense")], ids="-".join)
def test_parts_of_a_fused_matrix_are_joined_where_they_lie(forms):
    generator = torch.Generator().manual_seed(0)
    base_OI = torch.randn(10, 7, generator=generator, dtype=torch.float64)
    rows = (RowSelection(start=0, block=2, num_blocks=2, stride=4), RowSelection(start=8, block=2))
    parts = [torch.randn(part.num_rows, 7, generator=generator, dtype=torch.float64) for part in rows]
    joined = JoinedUpdate(
        parts=tuple(
            (part, Other(change_OI=change, form=form))
            for part, change, form in zip(rows, parts, forms, strict=True)
        )
    )
    expected = base_OI.clone()
    expected[[0, 1, 4, 5]] += parts[0]
    expected[[8, 9]] += parts[1]
    loaded = joined.load(base_OI)
    if isinstance(loaded, LowRankUpdate):
        assert forms == ("thin", "thin")
        got = base_OI + loaded.left_OR @ loaded.right_RI
    else:
        got = loaded.tuned_OI
    torch.testing.assert_close(got, expected)
