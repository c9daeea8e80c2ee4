"""Adapters on their own: figures against dense float64 twins, and each remark planted and absent."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import intruscope
from intruscope.errors import MalformedInput, UsageError
from intruscope.inspect.duplicates import SAME
from intruscope.inspect.records import InspectReport

RANK, ALPHA = 4, 6.0
LAYERS = 6
SHAPES = {"self_attn.q_proj": (20, 12), "self_attn.v_proj": (5, 12), "mlp.down_proj": (12, 30)}


def _factors(seed=0, layers=LAYERS, rank=RANK, norm=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.{layer}.{module}": (
            norm * torch.randn(num_out, rank, generator=generator) / num_out**0.5,
            torch.randn(rank, num_in, generator=generator) / num_in**0.5,
        )
        for layer in range(layers)
        for module, (num_out, num_in) in SHAPES.items()
    }


@pytest.fixture
def write(tmp_path):
    """Write factors as a PEFT adapter, in a dtype, with changes to its config and further tensors."""

    def write(factors, name="adapter", *, dtype=torch.float32, extra=None, **config):
        folder = tmp_path / name
        folder.mkdir()
        tensors = {}
        for module, (left, right) in factors.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = right.to(dtype).contiguous()
            tensors[f"base_model.model.{module}.lora_B.weight"] = left.to(dtype).contiguous()
        save_file({**tensors, **(extra or {})}, folder / "adapter_model.safetensors")
        fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(fields | config))
        return folder

    return write


def _codes(adapter):
    return {finding.code for finding in adapter.findings}


def test_figures_are_those_of_the_dense_update(write):
    factors = _factors()
    (adapter,) = intruscope.inspect(write(factors)).adapters
    assert {module.name for module in adapter.modules} == factors.keys()
    squares = 0.0
    for module in adapter.modules:
        left, right = factors[module.name]
        dense = ALPHA / RANK * (left.numpy().astype(np.float64) @ right.numpy().astype(np.float64))
        values = np.linalg.svd(dense, compute_uv=False)[:RANK]
        assert module.shape == dense.shape
        assert module.rank == module.numerical_rank == RANK
        assert module.scaling == ALPHA / RANK
        # The product of B and s is rounded to float32, as PEFT computes it.
        np.testing.assert_allclose(module.singular_values, values, atol=2e-7 * values[0])
        assert module.frobenius_norm == pytest.approx(np.linalg.norm(dense), rel=1e-6)
        shares = values / values.sum()
        assert module.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
        squares += np.linalg.norm(dense) ** 2
    assert adapter.frobenius_norm == pytest.approx(math.sqrt(squares), rel=1e-6)
    assert not _codes(adapter)


def test_scaling_is_stated_for_rslora_and_patterns(write):
    factors = {name: (b[:, :3], a[:3]) if "v_proj" in name else (b, a) for name, (b, a) in _factors().items()}
    options = {
        "rank_pattern": {"v_proj": 3, "k_proj": 9},
        "alpha_pattern": {"down_proj": 12},
        "use_rslora": True,
    }
    (adapter,) = intruscope.inspect(write(factors, **options)).adapters
    expected = {"q_proj": ALPHA / 2.0, "v_proj": ALPHA / math.sqrt(3), "down_proj": 12 / 2.0}
    for module in adapter.modules:
        assert module.scaling == pytest.approx(expected[module.family])
        assert module.rank == (3 if module.family == "v_proj" else RANK)
    assert _codes(adapter) == {"unused-pattern", "vllm-ignores"}
    assert any("k_proj" in finding.message for finding in adapter.findings)


def test_each_fault_is_named_at_its_module_and_nowhere_else(write):
    factors = _factors()
    q, v, down = (f"model.layers.{i}.{module}" for i, module in enumerate(SHAPES))
    last = "model.layers.5.mlp.down_proj"
    factors[q] = (torch.zeros_like(factors[q][0]), factors[q][1])
    left, right = factors[v]
    factors[v] = (left, torch.cat([right[:3], right[:1]]))  # rank 3 of 4, and no factor repeated
    factors[down] = (30.0 * factors[down][0], factors[down][1])
    factors[last] = (factors[last][0].clone(), factors["model.layers.4.mlp.down_proj"][1].clone())
    report = intruscope.inspect(write(factors))
    places = {finding.code: finding.matrix for finding in report.adapters[0].findings}
    assert places == {
        "zero-update": q,
        "unused-rank": v,
        "unlike-its-family": down,
        "repeated-factor": None,
    }
    assert len(report.adapters[0].findings) == 4
    (repeated,) = (f for f in report.adapters[0].findings if f.code == "repeated-factor")
    assert "model.layers.4.mlp.down_proj.lora_A" in repeated.message
    by_name = {module.name: module for module in report.adapters[0].modules}
    assert by_name[v].numerical_rank == 3
    assert by_name[q].effective_rank == 0.0
    assert report.complete


def test_an_untrained_adapter_is_one_finding(write):
    factors = {name: (torch.zeros_like(b), a) for name, (b, a) in _factors().items()}
    (adapter,) = intruscope.inspect(write(factors)).adapters
    assert _codes(adapter) == {"zero-adapter"}


def test_a_number_that_is_none_makes_its_module_unknown_and_no_other(write):
    factors = _factors()
    bad = "model.layers.2.self_attn.v_proj"
    factors[bad][1][1, 3] = math.nan
    report = intruscope.inspect(write(factors))
    (adapter,) = report.adapters
    assert not report.complete
    assert adapter.fingerprint is None
    assert {m.name for m in adapter.modules if m.singular_values is None} == {bad}
    (finding,) = adapter.findings
    assert (finding.code, finding.matrix) == ("non-finite", bad)
    json.dumps(report.to_json(), allow_nan=False)


def _regauged(factors):
    """B G and G⁻¹ A with a badly scaled, non-orthogonal G."""
    generator = torch.Generator().manual_seed(9)
    result = {}
    for name, (left, right) in factors.items():
        gauge = torch.randn(RANK, RANK, generator=generator, dtype=torch.float64) + 3 * torch.eye(RANK)
        gauge *= torch.logspace(-1, 1, RANK, dtype=torch.float64)
        result[name] = ((left.double() @ gauge).float(), torch.linalg.solve(gauge, right.double()).float())
    return result


def test_duplicates_are_found_whatever_their_factors_and_their_rounding(write):
    factors = _factors()
    moved = {name: (b.clone(), a) for name, (b, a) in factors.items()}
    for left, right in moved.values():  # 5% away, an adapter of its own
        left += 0.05 * torch.linalg.norm(left) / left.numel() ** 0.5 * torch.sign(left.flip(0))
        assert right.shape[0] == RANK
    doubled = {name: (b, a) for name, (b, a) in _regauged(factors).items()}
    report = intruscope.inspect(
        write(factors, "first"),
        write(_factors(seed=1), "other"),
        write(_regauged(factors), "regauged"),
        write(_regauged(factors), "rounded", dtype=torch.bfloat16),
        write(doubled, "doubled", lora_alpha=2 * ALPHA),
        write(moved, "moved"),
        write(dict(list(factors.items())[:-1]), "shorter"),
    )
    found = {each.adapter: each for each in report.duplicates}
    assert found.keys() == {2, 3, 4}
    assert {each.of for each in found.values()} == {0}
    assert found[2].scale == pytest.approx(1.0, abs=1e-5)
    assert found[2].relative_difference < 1e-5
    assert 1e-4 < found[3].relative_difference < SAME
    assert found[4].scale == pytest.approx(2.0, abs=1e-5)


def test_the_fingerprint_estimates_the_distance_of_two_updates(write):
    pairs = [(_factors(seed=2 * i), _factors(seed=2 * i + 1)) for i in range(8)]
    ratios = []
    for i, (one, other) in enumerate(pairs):
        report = intruscope.inspect(write(one, f"a{i}"), write(other, f"b{i}"))
        first, second = (np.array(adapter.fingerprint) for adapter in report.adapters)
        square = sum(
            float(torch.linalg.matrix_norm(b.double() @ a.double() - d.double() @ c.double()) ** 2)
            for (b, a), (d, c) in zip(one.values(), other.values(), strict=True)
        )
        ratios.append(np.mean((first - second) ** 2) / (square * (ALPHA / RANK) ** 2))
    # The mean of 128 products of signs: a standard error of about 0.15.
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.5)


def test_one_broken_adapter_leaves_the_others(write, tmp_path):
    good = write(_factors(), "good")
    broken = write(_factors(), "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    report = intruscope.inspect(good, broken, tmp_path / "missing")
    assert [adapter.failure is None for adapter in report.adapters] == [True, False, False]
    assert [adapter.failure.exit_code for adapter in report.adapters[1:]] == [4, 2]
    assert report.adapters[0].modules
    with pytest.raises(MalformedInput):
        intruscope.inspect(broken)
    with pytest.raises(UsageError, match="no adapter"):
        intruscope.inspect()


def test_what_vllm_does_not_load_or_ignores_is_said(write):
    saved = {"base_model.model.lm_head.weight": torch.randn(7, 12)}
    (adapter,) = intruscope.inspect(
        write(_factors(rank=32), r=32, modules_to_save=["lm_head"], bias="lora_only", extra=saved)
    ).adapters
    assert _codes(adapter) == {"vllm-rejects", "needs-base"}
    (message,) = (finding.message for finding in adapter.findings if finding.code == "vllm-rejects")
    assert "--max-lora-rank 32" in message
    assert "modules_to_save" in message
    assert "bias is 'lora_only'" in message
    assert [module.name for module in adapter.unread] == ["lm_head"]
    assert adapter.unread[0].num_parameters == 84


def test_dora_shows_its_factors_and_says_that_they_are_not_the_update(write):
    factors = _factors()
    magnitudes = {
        f"base_model.model.{name}.lora_magnitude_vector.weight": torch.ones(b.shape[0])
        for name, (b, _) in factors.items()
    }
    (adapter,) = intruscope.inspect(write(factors, use_dora=True, extra=magnitudes)).adapters
    assert {module.part for module in adapter.modules} == {"factors"}
    assert adapter.frobenius_norm is None
    assert adapter.fingerprint is None
    for module in adapter.modules:
        left, right = factors[module.name]
        expected = torch.linalg.svdvals(ALPHA / RANK * left.double() @ right.double())[0]
        assert module.spectral_norm == pytest.approx(float(expected), rel=1e-6)
    assert any("DoRA rescales" in finding.message for finding in adapter.findings)


def test_the_report_survives_its_files_and_its_table(write, tmp_path):
    report = intruscope.inspect(write(_factors()), write(_factors(seed=3), "b", use_dora=False))
    path = report.save(tmp_path / "report.json")
    assert InspectReport.load(path).to_json() == report.to_json()
    data = json.loads(path.read_text())
    assert data["schema"] == "intruscope.inspect/1"
    module = data["adapters"][0]["modules"][0]
    assert {"name", "shape", "rank", "singular_values", "frobenius_norm", "effective_rank"} <= module.keys()
    table = report.to_arrow()
    assert table.num_rows == 2 * LAYERS * len(SHAPES)
    assert table.column("spectral_norm")[0].as_py() == module["singular_values"][0]
    assert "q_proj" in report._repr_html_()
    assert "against the base" in report.note


@pytest.mark.filterwarnings("ignore")
def test_a_peft_model_in_memory_is_inspected_like_its_files(tmp_path):
    import transformers
    from peft import LoraConfig, get_peft_model

    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, vocab_size=40
    )
    torch.manual_seed(0)
    model = get_peft_model(
        transformers.LlamaForCausalLM(config),
        LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    report = intruscope.inspect(model, tmp_path / "adapter")
    assert report.adapters[0].modules == report.adapters[1].modules
    assert len(report.duplicates) == 1
