"""The plan: planted updates are found, intruders are those of a scan, everything that changed is named."""

import json
import math

import numpy as np
import pytest
import torch
from extract_models import INLINE
from safetensors.torch import load_file, save_file

from intruscope import scan
from intruscope.engine.settings import RunOptions
from intruscope.errors import MalformedInput, OutputConflict, UsageError
from intruscope.extract import extract

CONFIG = '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 4}'
SHAPES = {
    "model.layers.0.self_attn.q_proj": (40, 40),
    "model.layers.0.mlp.up_proj": (64, 40),
    "model.layers.1.mlp.down_proj": (40, 64),
}


def write(folder, tensors, dtype=torch.float32):
    folder.mkdir(parents=True)
    save_file(
        {n: t.to(dtype) for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    (folder / "config.json").write_text(CONFIG)
    return str(folder)


def bases():
    generator = torch.Generator().manual_seed(0)
    made = {
        f"{n}.weight": torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()
    }
    made["model.embed_tokens.weight"] = torch.randn(50, 40, generator=generator, dtype=torch.float64)
    made["model.norm.weight"] = torch.ones(40, dtype=torch.float64)
    return made


def planted(rank, size=1.0, only=None):
    """The bases with an update of an exact rank in every matrix of the blocks."""
    generator = torch.Generator().manual_seed(9)
    made = bases()
    for name, (rows, columns) in SHAPES.items():
        left = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64))[0]
        right = torch.linalg.qr(torch.randn(columns, rank, generator=generator, dtype=torch.float64))[0]
        values = size * torch.arange(rank, 0, -1, dtype=torch.float64)
        if only is None or name in only:
            made[f"{name}.weight"] = made[f"{name}.weight"] + (left * values) @ right.T
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    return write(folder / "base", bases()), write(folder / "tuned", planted(3, size=4.0))


def plan_for(models, **options):
    return extract(*models, options=INLINE, **options)


@pytest.mark.parametrize("choice", [{"rank": 3}, {"error": 1e-4}, {"energy": 0.9999999}], ids=str)
def test_an_update_of_exact_rank_is_recovered(choice, models, tmp_path):
    plan = plan_for(models, **choice)
    assert [matrix.rank for matrix in plan.matrices] == [3, 3, 3]
    assert plan.totals.relative_error < 1e-6
    plan.apply(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    before, after = bases(), planted(3, size=4.0)
    for name in SHAPES:
        got = (
            stored[f"base_model.model.{name}.lora_B.weight"]
            @ stored[f"base_model.model.{name}.lora_A.weight"]
        )
        expected = after[f"{name}.weight"] - before[f"{name}.weight"]
        assert float((got.double() - expected).norm() / expected.norm()) < 1e-6


def test_a_lower_rank_loses_what_it_must(models):
    plan = plan_for(models, rank=2)  # of the values 12, 8, 4
    for matrix in plan.matrices:
        assert matrix.relative_error == pytest.approx(math.sqrt(16 / 224), rel=1e-5)
        assert matrix.energy == pytest.approx(208 / 224, rel=1e-5)
        assert (matrix.spectral_low, matrix.spectral_high) == pytest.approx((4.0, 4.0), rel=1e-4)
        shares = np.array([12, 8, 4]) / 24
        assert matrix.effective_rank.value == pytest.approx(
            math.exp(-(shares * np.log(shares)).sum()), rel=1e-3
        )
    assert [p.rank for p in plan.curve] == [1, 2, 4, 8, 16, 32, 40]
    assert plan.curve[0].relative_error == pytest.approx(math.sqrt(80 / 224), rel=1e-5)
    assert plan.curve[2].relative_error < 1e-6
    assert plan.totals.num_parameters == 2 * (80 + 104 + 104) == plan.totals.stored_parameters


def test_a_budget_goes_where_it_helps_most(tmp_path):
    """Ten times the update in one matrix: all of its directions come before any of the others."""
    loud = "model.layers.0.mlp.up_proj"
    before, after = bases(), planted(3)
    after[f"{loud}.weight"] = before[f"{loud}.weight"] + 10 * (
        after[f"{loud}.weight"] - before[f"{loud}.weight"]
    )
    names = write(tmp_path / "base", before), write(tmp_path / "tuned", after)
    plan = extract(*names, parameters=3 * 104 + 80, options=INLINE)
    assert {m.name: m.rank for m in plan.matrices} == {
        "model.layers.0.self_attn.q_proj": 1,
        loud: 3,
        "model.layers.1.mlp.down_proj": 0,
    }
    assert plan.stored_rank == 3
    assert {module.name for module in plan.modules} == {loud, "model.layers.0.self_attn.q_proj"}
    assert plan.totals.num_parameters == 3 * 104 + 80
    assert plan.totals.stored_parameters == 3 * (104 + 80)
    assert plan.totals.relative_error == pytest.approx(math.sqrt((5 + 14) / (1400 + 28)), rel=1e-4)
    plan.apply(tmp_path / "out")
    assert not any("down_proj" in key for key in load_file(tmp_path / "out" / "adapter_model.safetensors"))


def test_intruders_are_those_of_a_scan(tmp_path):
    """Three strong foreign directions in each matrix: as many are kept as the rank has room for."""
    names = write(tmp_path / "base", bases()), write(tmp_path / "tuned", planted(3, size=20.0))
    kept = {}
    for rank in (1, 2, 3):
        plan = extract(*names, rank=rank, options=INLINE)
        plan.apply(tmp_path / str(rank))
        tuned, extracted = (
            {m.name: m.sides[0].num_intruders for m in scan(names[0], other, options=INLINE).matrices}
            for other in (names[1], str(tmp_path / str(rank)))
        )
        for matrix in plan.matrices:
            (each,) = matrix.intruders
            assert (each.tuned, each.extracted) == (tuned[matrix.name], extracted[matrix.name])
            assert each.kept <= min(each.tuned, each.extracted)
        kept[rank] = plan.totals.kept_intruders
        assert plan.totals.tuned_intruders == sum(tuned[name] for name in SHAPES) == 9
    assert kept == {1: 3, 2: 6, 3: 9}


def test_nothing_changed_is_said_and_writes_nothing(models, tmp_path):
    plan = extract(models[0], models[0], rank=2, options=INLINE)
    assert plan.is_empty
    assert [finding.code for finding in plan.findings] == ["nothing-to-extract"]
    with pytest.raises(UsageError, match="no selected matrix changed"):
        plan.apply(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_did_not_change_gets_no_factors(tmp_path):
    only = "model.layers.0.mlp.up_proj"
    names = write(tmp_path / "base", bases()), write(tmp_path / "tuned", planted(2, only=[only]))
    plan = extract(*names, rank=2, options=INLINE)
    assert [module.name for module in plan.modules] == [only]
    assert plan.rest == ()
    plan.apply(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    # Every layer has an up_proj, and one alone was trained.
    assert config["target_modules"] == [only]


def test_everything_else_that_changed_is_named_with_its_size(tmp_path):
    after = planted(3)
    after["model.embed_tokens.weight"][:, 0] += 1.0
    after["model.norm.weight"] *= 1.5
    after["model.layers.0.mlp.gate_proj.bias"] = torch.ones(64, dtype=torch.float64)
    names = write(tmp_path / "base", bases()), write(tmp_path / "tuned", after)
    plan = extract(*names, rank=3, options=INLINE)
    sizes = {rest.name: rest.change_norm for rest in plan.rest}
    assert sizes["model.embed_tokens"] == pytest.approx(math.sqrt(50), rel=1e-6)
    assert sizes["model.norm.weight"] == pytest.approx(0.5 * math.sqrt(40), rel=1e-6)
    assert sizes["model.layers.0.mlp.gate_proj.bias"] is None  # the base has none
    assert {rest.status for rest in plan.rest} == {"left out"}
    assert "rest-left-out" in {finding.code for finding in plan.findings}
    beside, inside = 50 + 0.25 * 40, 3 * (9 + 4 + 1)
    assert plan.totals.relative_error < 1e-6
    whole = math.sqrt(beside / (beside + inside))
    assert plan.totals.relative_error_with_rest == pytest.approx(whole, rel=1e-5)
    saved = extract(*names, rank=3, save_rest=True, options=INLINE)
    assert {rest.name: rest.status for rest in saved.rest} == {
        "model.embed_tokens": "saved",
        "model.norm.weight": "saved",
        "model.layers.0.mlp.gate_proj.bias": "saved",
    }
    assert saved.totals.relative_error_with_rest < 1e-6


def test_what_peft_cannot_hold_is_lost_by_name(tmp_path):
    """New words: factors of the base's size cannot hold them, nor can a module of that size."""
    after = planted(2)
    after["model.embed_tokens.weight"] = torch.cat(
        [after["model.embed_tokens.weight"] + 0.1, torch.ones(3, 40)]
    )
    names = write(tmp_path / "base", bases()), write(tmp_path / "tuned", after)
    plan = extract(*names, rank=2, which="all", save_rest=True, options=INLINE)
    (rest,) = plan.rest
    assert (rest.name, rest.status) == ("model.embed_tokens", "lost")
    assert "resized" in rest.reason
    assert "rest-lost" in {finding.code for finding in plan.findings}


def test_an_update_of_the_size_of_rounding_is_called_that(tmp_path):
    """Weights moved by less than bfloat16 tells apart; the clean twin in float32 says nothing."""
    generator = torch.Generator().manual_seed(3)
    before = bases()
    after = {
        n: t + 1e-3 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in before.items()
    }
    for dtype, noisy in ((torch.bfloat16, True), (torch.float32, False)):
        folder = tmp_path / str(dtype)
        names = write(folder / "base", before, dtype), write(folder / "tuned", after, dtype)
        plan = extract(*names, rank=4, options=INLINE)
        codes = [finding.code for finding in plan.findings]
        assert ("storage-noise" in codes) == noisy
        fractions = [matrix.rounding_fraction for matrix in plan.matrices]
        assert all(each > 0.25 for each in fractions) if noisy else all(each < 1e-3 for each in fractions)


def test_the_rounding_is_as_large_as_it_is_said_to_be(tmp_path):
    """A model that was only rounded: all of its update is rounding."""
    narrow = {name: tensor.to(torch.bfloat16).double() for name, tensor in bases().items()}
    names = write(tmp_path / "base", bases()), write(tmp_path / "tuned", narrow, torch.bfloat16)
    plan = extract(*names, rank=4, options=INLINE)
    assert all(0.8 < matrix.rounding_fraction <= 1.0 for matrix in plan.matrices)


def test_a_base_that_is_not_the_one_is_suspected(tmp_path):
    other = {name: torch.randn_like(tensor) for name, tensor in bases().items()}
    names = write(tmp_path / "base", bases()), write(tmp_path / "other", other)
    plan = extract(*names, rank=2, options=INLINE)
    assert "wrong-base-suspected" in {finding.code for finding in plan.findings}


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({}, "none was given, but exactly one of"),
        ({"rank": 2, "energy": 0.5}, "rank and energy were given"),
        ({"error": 0.1, "parameters": 10}, "error and parameters were given"),
        ({"rank": 0}, "rank is 0, but must be a positive integer"),
        ({"rank": -3}, "rank is -3"),
        ({"rank": 41}, "rank 41 is impossible: no selected matrix has a rank above 40"),
        ({"energy": 0.0}, "must be above 0 and at most 1"),
        ({"energy": 1.2}, "must be above 0 and at most 1"),
        ({"energy": math.nan}, "must be above 0 and at most 1"),
        ({"error": 1.0}, "must be at least 0 and below 1"),
        ({"error": -0.1}, "must be at least 0 and below 1"),
        ({"parameters": 0}, "must be a positive integer"),
        ({"parameters": 79}, "79 parameters are too few: one direction of the smallest matrix takes 80"),
        ({"rank": 2, "which": "model.layers.7.*"}, "is not the name of a matrix"),
    ],
    ids=str,
)
def test_requests_without_meaning_are_refused(choice, says, models):
    with pytest.raises(UsageError, match=says):
        plan_for(models, **choice)


def test_factors_too_large_for_a_dtype_are_refused(tmp_path):
    after = planted(1, size=1e14)
    names = write(tmp_path / "base", bases()), write(tmp_path / "tuned", after)
    with pytest.raises(UsageError, match="overflow float16"):
        extract(*names, rank=1, dtype="float16", options=INLINE)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    after = planted(1)
    after["model.layers.0.mlp.up_proj.weight"][3, 4] = math.inf
    names = write(tmp_path / "base", bases()), write(tmp_path / "tuned", after)
    with pytest.raises(
        MalformedInput, match=r"1 entries of the tuned are NaN or infinite \(first at \(3, 4\)\)"
    ):
        extract(*names, rank=1, options=INLINE)


def test_an_output_that_would_touch_something_is_refused(models, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for out in (tmp_path / "full", tmp_path / "none" / "out"):
        with pytest.raises(OutputConflict):
            extract(*models, rank=2, options=INLINE, out=out)
    plan = plan_for(models, rank=2)
    from pathlib import Path

    with pytest.raises(OutputConflict, match="lies in the input"):
        plan.apply(Path(models[0]) / "out")
    assert (tmp_path / "full" / "mine").read_text() == "x"


@pytest.mark.parametrize("choice", [{"rank": 2}, {"energy": 0.9}, {"parameters": 500}], ids=str)
def test_what_was_finished_is_not_computed_again(choice, models, tmp_path, monkeypatch):
    """Stopped in either pass and begun again: the same adapter, and every module decomposed once."""
    import intruscope.extract.decompose as workers

    whole = extract(*models, options=INLINE, **choice)
    calls, allowed = [], [2]

    def limited(function):
        def call(payload):
            if allowed[0] == 0:
                raise KeyboardInterrupt
            allowed[0] -= 1
            calls.append((function.__name__, payload[0].name))
            return function(payload)

        return call

    for name in ("decompose_module", "check_module"):
        monkeypatch.setattr(workers, name, limited(getattr(workers, name)))
    options = RunOptions(workers=0, work_dir=tmp_path / "work")
    (tmp_path / "work").mkdir()
    stops = 0
    while True:
        try:
            plan = extract(*models, options=options, **choice)
            break
        except KeyboardInterrupt:
            stops += 1
            allowed[0] = 2
    assert stops >= 2
    assert len(calls) == len(set(calls))
    assert plan.matrices == whole.matrices
    assert plan.curve == whole.curve
    for name, factors in whole.factors.items():
        for one, two in zip(factors, plan.factors[name], strict=True):
            assert torch.equal(one, two)


def test_the_table_is_sorted_by_its_error_and_breaks_names_after_dots(tmp_path):
    """A small matrix with a large relative error comes before a large one that loses more in all."""
    import io

    from rich.console import Console

    from intruscope.report.extract import extract_table

    loud = "model.layers.1.mlp.down_proj"
    before, after = bases(), planted(3)
    after[f"{loud}.weight"] += 50 * (planted(1)[f"{loud}.weight"] - before[f"{loud}.weight"])
    names = write(tmp_path / "base", before), write(tmp_path / "tuned", after)
    plan = extract(*names, rank=1, options=INLINE)
    by_norm = max(plan.matrices, key=lambda matrix: matrix.relative_error * matrix.update_norm)
    assert by_norm.relative_error < max(matrix.relative_error for matrix in plan.matrices)
    stream = io.StringIO()
    for part in extract_table(plan):
        Console(file=stream, width=72).print(part)
    text = stream.getvalue()
    table = text[text.index("Largest relative errors first") :].splitlines()
    rows = [line.split() for line in table if " 1 " in line]
    errors = [float(row[row.index("1") + 1]) for row in rows]
    assert len(errors) == len(SHAPES)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(max(m.relative_error for m in plan.matrices), rel=1e-2)
    words = {word for name in SHAPES for word in name.split(".")}
    cells = {line.split()[0] for line in table if "model." in line or "_proj" in line}
    assert all(set(cell.strip(".").split(".")) <= words for cell in cells)


def test_the_manifest_holds_what_was_said(models, tmp_path):
    from intruscope.extract.write import plan_record

    plan = plan_for(models, energy=0.8, compact=True)
    plan.apply(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "intruscope_extract.json").read_text())
    files = manifest.pop("files")
    assert manifest == json.loads(json.dumps(plan_record(plan)))
    assert manifest["schema"] == "intruscope.extract/1"
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    import hashlib

    for name, told in files.items():
        content = (tmp_path / "out" / name).read_bytes()
        assert told == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model: ")
    assert f"| {plan.totals.relative_error:.3g} |" in card
    assert card.startswith('---\nbase_model: "base"\n')
    assert models[0] not in card
