"""What people read: the sentence, the energies, and foreign names that stay text."""

import io
import json

import pytest
from repair_models import RANK, write_checkpoint
from rich.console import Console

from intruscope import RunOptions, ScanSettings
from intruscope.repair import repair
from intruscope.repair.records import totals
from intruscope.report.repair import repair_sentence, repair_table

INLINE = RunOptions(workers=0)


def text_of(plan):
    stream = io.StringIO()
    console = Console(file=stream, width=80)
    for part in repair_table(plan):
        console.print(part)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return stream.getvalue()


def plan_of(models, **options):
    options = {"strength": 0.5, "options": INLINE, **options}
    return repair(str(models / "base"), str(models / "adapter"), **options)


def test_an_edit_is_told_in_energy_and_not_only_in_counts(models):
    plan = plan_of(models, which="all")
    sums = totals(plan.matrices)
    shown = text_of(plan)
    assert f"{sums.num_vectors} vectors are multiplied by 0.5, in 3 matrices." in shown
    assert f"at least {sums.num_still_counted} of" in shown
    assert f"{100 * sums.update_before:.0f}% of the edited updates before" in shown
    assert f"{100 * sums.update_after:.0f}% after" in shown
    assert f"(before: {RANK})" in shown
    for matrix in plan.matrices:
        indices = [f"#{vector.index}" for vector in matrix.vectors]
        assert any(", ".join(indices) in line for line in shown.splitlines() if indices[0] in line)
    assert sums.update_after < sums.update_before
    assert sums.tuned_after < sums.tuned_before


def test_removal_and_growth_and_nothing(models):
    removed = repair_sentence(plan_of(models, strength=0.0))
    assert "3 vectors are removed, in 3 matrices." in removed
    assert "still count" not in removed
    grown = plan_of(models, strength=1.5)
    assert "multiplied by 1.5" in repair_sentence(grown)
    assert totals(grown.matrices).update_after > totals(grown.matrices).update_before
    assert repair_sentence(plan_of(models, strength=1.0)).startswith("Nothing to repair: the strength is 1.")
    none = plan_of(models, settings=ScanSettings(epsilon=0.001))
    assert repair_sentence(none).startswith("Nothing to repair: no vector is an intruder.")


def test_vectors_chosen_by_name_are_not_called_intruders(models, tmp_path):
    plan = plan_of(models, which="*.k_proj:0", strength=0.9)
    (vector,) = plan.matrices[0].vectors
    assert vector.verdict == "aligned"
    assert not vector.still_counted
    assert "as intruders" not in repair_sentence(plan)
    plan.apply(tmp_path / "out")
    assert (
        "1 singular vector, chosen by name, in 1 matrix was multiplied by 0.9"
        in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.parametrize("control", ["uniform", "random", "interpolation"])
def test_a_control_says_what_it_is(models, control):
    plan = plan_of(models, control=control)
    shown = text_of(plan)
    assert f"The control '{control}' at strength 0.5 changes" in shown
    assert "energy" not in shown
    assert f"{totals(plan.matrices).change_norm:.4g}" in shown


def test_undecided_vectors_are_left_alone_and_said(models, tmp_path):
    """Two equal singular values of the tuned matrix: no single vector is there to be turned down."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(48, 40, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0]
    values = torch.linspace(4.0, 1.0, 40, dtype=torch.float64)
    twice = values.clone()
    twice[:2] = 6.0
    turned = left.clone()
    turned[:, :2] = (left[:, :2] - left[:, 2:4]) / 2**0.5
    turned[:, 2:4] = (left[:, :2] + left[:, 2:4]) / 2**0.5
    name = "model.layers.0.self_attn.q_proj.weight"
    write_checkpoint(tmp_path / "base", {name: (left * values) @ right.T})
    write_checkpoint(tmp_path / "tuned", {name: (turned * twice) @ right.T})
    plan = repair(str(tmp_path / "base"), str(tmp_path / "tuned"), strength=0.5, options=INLINE)
    assert plan.num_left == sum(v != "aligned" for v in plan.survey.matrices[0].verdicts) > 0
    assert not plan.edits
    assert f"{plan.num_left} undecided vectors are left alone" in repair_sentence(plan)


def test_foreign_names_stay_text(models, tmp_path):
    folder = tmp_path / "[red]`x`\u202e"
    import shutil

    shutil.copytree(models / "adapter", folder)
    plan = repair(str(models / "base"), str(folder), strength=0.5, options=INLINE)
    assert "[red]`x`\\u202e" in text_of(plan).replace("\n", "")
    plan.apply(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`[red]'x'\\u202e`" in card
    assert json.loads((tmp_path / "out" / "intruscope_repair.json").read_text())["tuned"].endswith("\u202e")


def mixed(folder):
    """A small update that mixes many nearly equal directions of the base: intruders that are mostly base."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(64, 48, generator=generator, dtype=torch.float64))[0] for _ in range(2)
    )
    values = torch.cat([torch.linspace(5.0, 4.99, 24), torch.linspace(1.0, 0.1, 24)]).double()
    mixing = torch.randn(24, 24, generator=generator, dtype=torch.float64) * 0.05
    name = "model.layers.0.self_attn.q_proj.weight"
    before = (left * values) @ right.T
    after = before + left[:, :24] @ (mixing + mixing.T) @ right[:, :24].T
    write_checkpoint(folder / "base", {name: before})
    write_checkpoint(folder / "tuned", {name: after})
    return before, after, name


def test_an_edit_that_moves_away_from_the_base_is_advised_against(tmp_path):
    from safetensors.torch import load_file

    from intruscope import scan

    before, after, name = mixed(tmp_path)
    arguments = (str(tmp_path / "base"), str(tmp_path / "tuned"))
    plan = repair(*arguments, strength=0.3, which="all", options=INLINE)
    plan.apply(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")[name]
    norms = float((after - before).norm()), float((written - before).norm())
    assert norms[1] > 1.5 * norms[0]
    assert (plan.totals.update_norm, plan.totals.update_norm_after) == pytest.approx(norms, rel=1e-9)
    manifest = json.loads((tmp_path / "out" / "intruscope_repair.json").read_text())
    assert manifest["totals"]["update_norm_after"] == pytest.approx(norms[1], rel=1e-9)
    (finding,) = [f for f in plan.findings if f.code == "away-from-base"]
    assert f"from {norms[0]:.4g} to {norms[1]:.4g}" in finding.message
    shown = " ".join(text_of(plan).split())
    assert f"{norms[0]:.4g} before, {norms[1]:.4g} after" in shown
    assert "do not use this edit: it moves the model away from the base" in shown
    again = scan(str(tmp_path / "base"), str(tmp_path / "out"), options=INLINE)
    assert again.matrices[0].sides[0].num_intruders < len(plan.matrices[0].vectors)
    # The strength that it names is the lowest that does not.
    lowest = float(finding.message.rpartition("a strength of at least ")[2].partition(" ")[0])
    assert 0.3 < lowest < 1.0
    for strength, is_away in ((lowest, False), (lowest - 0.02, True)):
        other = repair(*arguments, strength=strength, which="all", options=INLINE)
        assert (other.totals.update_norm_after > other.totals.update_norm) == is_away
        assert any(f.code == "away-from-base" for f in other.findings) == is_away


@pytest.mark.parametrize(
    "options",
    [{"which": "all"}, *({"control": c} for c in ("random", "tail", "uniform", "neighbour_below"))],
    ids=str,
)
def test_the_norm_of_the_update_is_that_of_what_is_written(models, found, tmp_path, options):
    from repair_models import bases, factors, truth
    from safetensors.torch import load_file

    from intruscope.repair.plan import plan_repair

    plan = plan_repair(found, strength=0.7, merged=True, **options)
    plan.apply(tmp_path / "out")
    written, base = load_file(tmp_path / "out" / "model.safetensors"), bases()
    assert plan.matrices
    for matrix in plan.matrices:
        before, update = truth(matrix.name, base, factors())
        after = float((written[f"{matrix.name}.weight"].double() - before).norm())
        assert matrix.update_norm == pytest.approx(float(update.norm()), rel=1e-6)
        assert matrix.update_norm_after == pytest.approx(after, rel=1e-5, abs=1e-6)
        assert after != pytest.approx(float(update.norm()), rel=1e-3)
    assert not any(finding.code == "away-from-base" for finding in plan.findings)
