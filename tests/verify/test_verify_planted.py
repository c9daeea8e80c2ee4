"""Merges that are right, or wrong in one known way: status and strength of every module, and exit codes."""

import functools
import math

import pytest
import torch
from verify_models import BLOCK, RANK, SCALING, UP, K, Merge, Q, build

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
RIGHT = ("applied", 1.0)
NONE = ("not applied", 0.0)


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """Each kind of base and adapter is built once."""
    return functools.cache(lambda *what: build(what[0], tmp_path_factory.mktemp("built"), *what[1:]))


def keep(merge):
    """The merge as it is."""


def scaled(factor, only=None):
    return lambda merge: merge.apply(factor, only)


def noisy(names, size=0.05):
    def plant(merge):
        generator = torch.Generator().manual_seed(9)
        for name in list(merge.tensors):
            if names(name):
                tensor = merge.tensors[name]
                noise = size * torch.randn(tensor.shape, generator=generator)
                merge.tensors[name] = (tensor.float() + noise).to(tensor.dtype)

    return plant


def transposed(name):
    def plant(merge):
        change = merge.update(f"{name}.weight").T
        merge.tensors[f"{name}.weight"] = (merge.base[f"{name}.weight"].double() + change).to(merge.dtype)

    return plant


def stored_transposed(name):
    def plant(merge):
        merge.tensors[f"{name}.weight"] = merge.tensors[f"{name}.weight"].T.contiguous()

    return plant


def in_half(dtype):
    """Factors, product, multiple and sum in the dtype, as a GPU merges a model that was loaded in it."""

    def plant(merge):
        from safetensors.torch import load_file

        factors = load_file(merge.built.adapters[0] / "adapter_model.safetensors")
        for name in (Q, K, UP):
            stem = f"base_model.model.{name}."
            down, up = (factors[f"{stem}lora_{ab}.weight"].to(dtype) for ab in "AB")
            change = (up.float() @ down.float()).to(dtype) * torch.tensor(SCALING, dtype=torch.float64)
            base = merge.base[f"{name}.weight"].to(dtype)
            merge.tensors[f"{name}.weight"] = (base + change.to(dtype)).to(merge.dtype)

    return plant


def by_peft(dtype, *, safe):
    """PEFT's own merge of the stored base."""

    def plant(merge):
        from peft import PeftModel
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(merge.built.folder / "base32", dtype=dtype)
        model.load_state_dict(merge.base, strict=False)
        tuned = PeftModel.from_pretrained(model, merge.built.adapters[0], autocast_adapter_dtype=False)
        state = tuned.merge_and_unload(safe_merge=safe).state_dict()
        merge.tensors = {name: state[name].clone() for name in merge.tensors}

    return plant


def one_entry(merge):
    """One number of a module is the next larger one."""
    tensor = merge.tensors[f"{Q}.weight"]
    tensor[3, 5] = torch.nextafter(tensor[3, 5].float(), torch.tensor(math.inf)).to(tensor.dtype) * 1.01


def without_magnitude(merge):
    from safetensors.torch import load_file

    factors = load_file(merge.built.adapters[0] / "adapter_model.safetensors")
    for name in (Q, K, UP):
        stem = f"base_model.model.{name}."
        down, up = (factors[f"{stem}lora_{ab}.weight"].double() for ab in "AB")
        change = SCALING * up @ down
        merge.tensors[f"{name}.weight"] = (merge.base[f"{name}.weight"].double() + change).to(merge.dtype)


def in_tensor_float32(merge):
    """Factors rounded to the 10 bits after the point that TensorFloat-32 keeps."""
    from safetensors.torch import load_file

    factors = load_file(merge.built.adapters[0] / "adapter_model.safetensors")
    for name in (Q, K, UP):
        kept = []
        for part in "AB":
            mantissa, exponent = torch.frexp(factors[f"base_model.model.{name}.lora_{part}.weight"].double())
            kept.append(torch.ldexp((mantissa * 2**11).round() / 2**11, exponent))
        change = SCALING * kept[1] @ kept[0]
        merge.tensors[f"{name}.weight"] = (merge.base[f"{name}.weight"].double() + change).to(merge.dtype)


def part_only(rows, name):
    """Some rows of a fused matrix keep the base's numbers."""

    def plant(merge):
        merge.tensors[name][rows] = merge.base[name][rows].to(merge.dtype)

    return plant


def nan_in(name):
    def plant(merge):
        merge.tensors[f"{name}.weight"][0, 0] = math.nan

    return plant


def weighted(weights, applied):
    def plant(merge):
        merge.weights = weights
        merge.apply(factors=applied)

    return plant


def one_after_another(merge):
    """Two adapters, the sum rounded after each."""
    for name, tensor in merge.base.items():
        for update in merge.built.updates:
            tensor = (tensor.double() + update[name]).to(merge.dtype)
        merge.tensors[name] = tensor


def many(count, status):
    return {"*": (count, status)}


ALL3 = (Q, K, UP)
SMALL = ("llama", "small")
# name: (what is built, dtype of the base, of the merge, what is planted, verdict, modules, exit code)
CASES = {
    "right, float32": (("llama",), F32, F32, keep, "applied", {}, 0),
    "right, bfloat16": (("llama",), BF16, BF16, keep, "applied", {}, 0),
    "right, float16": (("llama",), F16, F16, keep, "applied", {}, 0),
    "right, float32 merged to float16": (("llama",), F32, F16, keep, "applied", {}, 0),
    "right, float32 merged to bfloat16": (("llama",), F32, BF16, keep, "applied", {}, 0),
    "right, bfloat16 merged to float32": (("llama",), BF16, F32, keep, "applied", {}, 0),
    "right, bfloat16 merged to float16": (("llama",), BF16, F16, keep, "applied", {}, 0),
    "right, bfloat16 adapter": (("llama", "plain", 1, BF16), F32, F32, keep, "applied", {}, 0),
    "right, all in bfloat16": (("llama",), BF16, BF16, in_half(BF16), "applied", {}, 0),
    "right, all in float16": (("llama",), F16, F16, in_half(F16), "applied", {}, 0),
    "right, PEFT in bfloat16": (("llama",), BF16, BF16, by_peft(BF16, safe=False), "applied", {}, 0),
    "right, PEFT in float16, safe": (("llama",), F16, F16, by_peft(F16, safe=True), "applied", {}, 0),
    "right, rsLoRA": (("rslora",), F32, F32, keep, "applied", {}, 0),
    "right, Conv1D": (("conv1d",), F32, F32, keep, "applied", {}, 0),
    "right, Conv1D in float16": (("conv1d",), F16, F16, keep, "applied", {}, 0),
    "right, fused qkv": (("fused",), BF16, BF16, keep, "applied", {}, 0),
    "right, embedding": (("embedding",), F32, F32, keep, "applied", {}, 0),
    "right, tied embedding": (("tied",), F32, F32, keep, "applied", {}, 0),
    "right, tied head and embedding": (("tied-both",), F32, F32, keep, "applied", {}, 0),
    "right, saved head": (("saved",), F32, F32, keep, "applied", {}, 0),
    "right, saved head in float16": (("saved",), F32, F16, keep, "applied", {}, 0),
    "right, biases": (("biases",), F32, F32, keep, "applied", {}, 0),
    "right, experts": (("square-experts",), F32, F32, keep, "applied", {}, 0),
    "right, fused experts": (("experts",), BF16, BF16, keep, "applied", {}, 0),
    "right, DoRA": (("dora",), F32, F32, keep, "applied", {}, 0),
    "right, DoRA to float16": (("dora",), F32, F16, keep, "applied", {}, 0),
    "missing module, float32": (("llama",), F32, F32, scaled(0, Q), "partly", {Q: NONE}, 1),
    "missing module, bfloat16": (("llama",), BF16, BF16, scaled(0, K), "partly", {K: NONE}, 1),
    "missing module, float16 of float32": (("llama",), F32, F16, scaled(0, UP), "partly", {UP: NONE}, 1),
    "missing embedding": (
        ("embedding",), F32, F32, scaled(0, "embed"), "partly", {"model.embed_tokens": NONE}, 1,
    ),
    "missing tied embedding": (
        ("tied",), BF16, BF16, scaled(0, "embed"), "partly", {"model.embed_tokens": NONE}, 1,
    ),
    "missing saved head": (("saved",), F32, F32, scaled(0, "lm_head"), "partly", {"lm_head": NONE}, 1),
    "missing DoRA": (("dora",), F32, F32, scaled(0, UP), "partly", {UP: NONE}, 1),
    "missing bias": (
        ("biases",), F32, F32, scaled(0, "query.bias"), "partly",
        {"bert.encoder.layer.0.attention.self.query.bias": NONE}, 1,
    ),
    "equal to the base, float32": (("llama",), F32, F32, scaled(0), "not applied", many(6, NONE), 1),
    "equal to the base, bfloat16": (("llama",), BF16, BF16, scaled(0), "not applied", many(6, NONE), 1),
    "equal to the base, float16 of float32": (
        ("llama",), F32, F16, scaled(0), "not applied", many(6, NONE), 1,
    ),
    "half, float32": (("llama",), F32, F32, scaled(0.5), "partly", many(6, ("wrong scale", 0.5)), 1),
    "half, bfloat16": (("llama",), BF16, BF16, scaled(0.5, Q), "partly", {Q: ("wrong scale", 0.5)}, 1),
    "double, float32": (("llama",), F32, F32, scaled(2, UP), "partly", {UP: ("wrong scale", 2.0)}, 1),
    "double, float16": (("llama",), F16, F16, scaled(2), "partly", many(6, ("wrong scale", 2.0)), 1),
    "negated, float32": (("llama",), F32, F32, scaled(-1), "partly", many(6, ("wrong sign", -1.0)), 1),
    "negated, bfloat16": (("llama",), BF16, BF16, scaled(-1, K), "partly", {K: ("wrong sign", -1.0)}, 1),
    "wrong alpha": (("llama",), F32, F32, scaled(1.3), "partly", many(6, ("wrong scale", 1.3)), 1),
    "alpha ignored": (
        ("llama",), F32, F32, scaled(1 / SCALING), "partly", many(6, ("wrong scale", 1 / SCALING)), 1,
    ),
    "rsLoRA ignored": (
        ("rslora",), F32, F32, scaled(RANK**-0.5), "partly", many(6, ("wrong scale", RANK**-0.5)), 1,
    ),
    "rsLoRA assumed": (
        ("llama",), BF16, BF16, scaled(RANK**0.5), "partly", many(6, ("wrong scale", RANK**0.5)), 1,
    ),
    "wrong base": (
        ("llama",), F32, F32, noisy(lambda n: True), "not applied", many(6, ("other change", None)), 1,
    ),
    "wrong base, bfloat16": (
        ("llama",), BF16, BF16, noisy(lambda n: True), "not applied", many(6, ("other change", None)), 1,
    ),
    "transposed module": (("llama",), F32, F32, transposed(Q), "partly", {Q: ("transposed", None)}, 1),
    "transposed Conv1D": (
        ("conv1d",), BF16, BF16, transposed("transformer.h.0.attn.c_proj"), "partly",
        {"transformer.h.0.attn.c_proj": ("transposed", None)}, 1,
    ),
    "transposed expert": (
        ("square-experts",), F32, F32, transposed(f"{BLOCK}mlp.experts.1.down_proj"), "partly",
        {f"{BLOCK}mlp.experts.1.down_proj": ("transposed", None)}, 1,
    ),
    "expert stored transposed": (
        ("square-experts",), BF16, BF16, stored_transposed(f"{BLOCK}mlp.experts.2.up_proj"), "partly",
        {f"{BLOCK}mlp.experts.2.up_proj": ("transposed", None)}, 1,
    ),
    "transposed gate and up": (
        ("gate-up",), F32, F32, transposed(f"{BLOCK}mlp.gate_up_proj"), "partly",
        {f"{BLOCK}mlp.gate_up_proj[{part}]": ("transposed", None) for part in ("gate", "up")}, 1,
    ),
    "part of a fused qkv missing": (
        ("fused",), F32, F32, part_only(slice(24, 32), f"{BLOCK}self_attn.qkv_proj.weight"), "partly",
        {f"{BLOCK}self_attn.qkv_proj[v]": NONE}, 1,
    ),
    "DoRA merged as LoRA": (
        ("dora",), F32, F32, without_magnitude, "partly",
        dict.fromkeys(ALL3, ("other change", None)), 1,
    ),
    "TensorFloat-32": (
        ("llama",), F32, F32, in_tensor_float32, "partly", dict.fromkeys(ALL3, ("other change", 1.0)), 1,
    ),
    "below rounding, right": (SMALL, BF16, BF16, keep, "applied", {}, 0),
    "below rounding, PEFT": (SMALL, BF16, BF16, by_peft(BF16, safe=False), "applied", {}, 0),
    "below rounding, PEFT, safe": (SMALL, BF16, BF16, by_peft(BF16, safe=True), "applied", {}, 0),
    "below rounding, all in bfloat16": (SMALL, BF16, BF16, in_half(BF16), "applied", {}, 0),
    "below rounding, missing": (SMALL, BF16, BF16, scaled(0, Q), "partly", {Q: NONE}, 1),
    "below rounding, half": (SMALL, BF16, BF16, scaled(0.5, Q), "partly", {Q: ("wrong scale", 0.5)}, 1),
    "below rounding, negated": (SMALL, BF16, BF16, scaled(-1, Q), "partly", {Q: ("wrong sign", -1.0)}, 1),
    "below rounding, one entry off": (SMALL, BF16, BF16, one_entry, "partly", {Q: ("other change", None)}, 1),
    "no stored bit can move": (
        ("llama", "hidden"), BF16, BF16, keep, "open", many(6, ("open", 0.0)), 5,
    ),
    "two adapters with weights": (
        ("llama", "plain", 2), F32, F32, weighted([0.5, 0.5], [0.5, 0.5]), "applied", {}, 0,
    ),
    "two adapters, weights ignored": (
        ("llama", "plain", 2), F32, F32, weighted([0.5, 0.5], [1.0, 1.0]), "partly",
        many(6, ("wrong scale", 2.0)), 1,
    ),
    "two adapters, one missing": (
        ("llama", "plain", 2), F32, F32, weighted([0.5, 0.5], [0.5, 0.0]), "not applied",
        many(6, ("other change", None)), 1,
    ),
    "two adapters, below rounding": (
        ("llama", "small", 2), BF16, BF16, one_after_another, "applied", {}, 0,
    ),
    "norm changed": (("llama",), F32, F32, noisy(lambda n: n == "model.norm.weight"), "applied", {}, 1),
    "head changed": (("llama",), BF16, BF16, noisy(lambda n: n == "lm_head.weight"), "applied", {}, 1),
    "module changed on top": (
        ("llama",), F32, F32, noisy(lambda n: n == f"{Q}.weight", 1e-3), "partly",
        {Q: ("other change", None)}, 1,
    ),
    "NaN": (("llama",), F32, F32, nan_in(Q), "partly", {Q: ("other change", None)}, 1),
}  # fmt: skip


CAUSES = {
    "double, float32": "the adapter was applied twice",
    "wrong alpha": "as if lora_alpha were 9.1 instead of 7",
    "alpha ignored": "alpha was ignored",
    "rsLoRA ignored": "rsLoRA was ignored",
    "rsLoRA assumed": "rsLoRA was assumed",
    "transposed expert": "the update was added transposed",
    "expert stored transposed": "the merged matrix is stored transposed",
    "DoRA merged as LoRA": "the factors were merged without DoRA's magnitudes",
    "TensorFloat-32": "to the precision of TensorFloat-32 only",
    "NaN": "the merged model has 1 value that is NaN or infinite",
}


def exit_code(report):
    return 1 if report.has_failed else 5 if report.is_open else 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_what_is_planted_is_found_and_nothing_else(case, builds, tmp_path):
    what, base_dtype, dtype, plant, verdict, modules, code = CASES[case]
    merge = Merge(built=builds(*what), base_dtype=base_dtype, dtype=dtype)
    plant(merge)
    report = merge.verified(tmp_path)
    found = {module.name: module for module in report.modules}
    assert len(found) == len(report.modules)
    if "*" in modules:
        count, expected = modules["*"]
        assert len(found) == count
        modules = dict.fromkeys(found, expected)
    for name, module in found.items():
        status, strength = modules.get(name, RIGHT)
        assert module.status == status, module
        if strength is not None and module.status != "open":
            assert module.strength == pytest.approx(strength, abs=0.02 if dtype == F32 else 0.26), module
        if module.status == "applied" and module.strength_error is not None:
            assert abs(module.strength - 1) <= module.strength_error
            assert module.residual <= module.rounding
    assert set(modules) <= set(found)
    if case in CAUSES:
        assert CAUSES[case] in " ".join(finding.message for finding in report.findings)
    assert report.verdict == verdict
    assert exit_code(report) == code
    assert report.from_json(report.to_json()) == report
