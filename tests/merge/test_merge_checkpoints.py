"""Full checkpoints in and out: matrices, experts, biases, norms and heads, tensor by tensor."""

import copy

import pytest
import torch
from merge_models import family, fine_tuned, peft_models
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import intruscope
from intruscope.merge.options import MergeOptions
from intruscope.merge.rules import Place, merge_ties, merge_tsv

pytestmark = pytest.mark.filterwarnings("ignore")
BERT = {"r": 2, "target_modules": ["query", "dense"], "exclude_modules": r".*pooler.*"}

HEAD = ("classifier", "bert.pooler")


def saved(folder, base, **models):
    """A base and named models beside it, on disk."""
    base.save_pretrained(folder / "base")
    for label, model in models.items():
        model.save_pretrained(folder / label)
    return [folder / "base", *(folder / label for label in models)]


def stored(folder):
    return {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize(
    "make", [peft_models.llama, peft_models.gpt2, peft_models.mixtral, peft_models.tied_llama]
)
def test_the_mean_of_checkpoints_is_the_mean_of_every_number(make, tmp_path):
    torch.manual_seed(0)
    base = make()
    names = saved(tmp_path, base, a=fine_tuned(base, 1), b=fine_tuned(base, 2))
    report = intruscope.merge(*names, weights=(3.0, 1.0)).apply(tmp_path / "out")
    assert report.writes == "checkpoint"
    before, one, other, found = (stored(folder) for folder in (*names, tmp_path / "out"))
    assert found.keys() == before.keys()
    for name, numbers in found.items():
        expected = 0.75 * one[name] + 0.25 * other[name]
        torch.testing.assert_close(numbers, expected, rtol=1e-6, atol=1e-7)
    assert type(base).from_pretrained(tmp_path / "out")


def test_elementwise_rules_take_vectors_too_and_spectral_ones_average_them(tmp_path):
    torch.manual_seed(0)
    base = peft_models.llama()
    names = saved(tmp_path, base, a=fine_tuned(base, 1), b=fine_tuned(base, 2))
    before, *tuned = (stored(folder) for folder in names)
    options = MergeOptions(density=0.4, trim="matrix", scaling=0.7)
    for rule, matrix, vector in (
        ("ties", merge_ties, merge_ties),
        ("tsv", merge_tsv, lambda parts, *_: 0.7 * sum(parts) / 2),
    ):
        report = intruscope.merge(*names, rule=rule, density=0.4, trim="matrix", scaling=0.7).apply(
            tmp_path / rule
        )
        assert report.vector_rule == ("ties" if rule == "ties" else "mean")
        assert ("vectors-averaged" in {f.code for f in report.findings}) == (rule == "tsv")
        found = stored(tmp_path / rule)
        for name, numbers in found.items():
            parts = [each[name] - before[name] for each in tuned]
            # An embedding is stored (words, width), and its matrix is (width, words).
            parts = [part.T if "embed" in name else part for part in parts]
            expected = (matrix if parts[0].ndim > 1 else vector)(parts, options, Place(name=name))
            expected = expected.T if "embed" in name else expected
            torch.testing.assert_close(numbers - before[name], expected, rtol=1e-4, atol=1e-6)
        assert set(report.vectors) == {name for name in before if before[name].ndim == 1}


def test_an_adapter_and_a_checkpoint_of_one_base_and_bases_in_bfloat16(tmp_path):
    torch.manual_seed(0)
    base = peft_models.llama().bfloat16()
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj"]))
    peft_models.train(adapted)
    names = saved(tmp_path, base, a=adapted, b=fine_tuned(base, 2))
    intruscope.merge(*names, rule="sum", scaling=0.5).apply(tmp_path / "out")
    before, other, found = (stored(folder) for folder in (names[0], names[2], tmp_path / "out"))
    for name, numbers in found.items():
        expected = before[name] + 0.5 * (other[name] - before[name])
        if ".q_proj." in name:
            layer = adapted.base_model.model.get_submodule(name.removesuffix(".weight"))
            expected += 0.5 * layer.get_delta_weight("default").detach().double()
        assert torch.equal(numbers, expected.bfloat16().double()), name  # rounded once


@pytest.mark.parametrize("bias", [{"lora_bias": True}, {"bias": "all"}])
def test_biases_that_adapters_trained_are_merged_into_a_checkpoint_or_named(bias, tmp_path):
    torch.manual_seed(0)
    base = peft_models.bert()
    models = {}
    for seed, label in enumerate("ab"):
        models[label] = get_peft_model(copy.deepcopy(base), LoraConfig(**BERT, **bias, lora_alpha=6))
        generator = torch.Generator().manual_seed(seed)
        for parameter in models[label].parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    names = saved(tmp_path, base, **models)
    asked = {"heads": "none"} if "bias" in bias else {}  # the head's bias was trained too
    intruscope.merge(*names, merged=True, **asked).apply(tmp_path / "out")
    before, found = stored(names[0]), stored(tmp_path / "out")
    merged = [
        {k: v.double() for k, v in copy.deepcopy(model).double().merge_and_unload().state_dict().items()}
        for model in models.values()
    ]
    for name, numbers in found.items():
        expected = sum(each[name] for each in merged) / 2
        expected = before[name] if name.startswith(HEAD) else expected
        torch.testing.assert_close(numbers, expected, rtol=1e-5, atol=1e-6, msg=name)
    report = intruscope.merge(*names, **asked).report
    assert report.writes == "adapter"
    assert report.left_out
    assert "vectors-left-out" in {finding.code for finding in report.findings}


class Heads:
    """Two classifiers' adapters with heads of their own, on one body."""

    def __init__(self, folder):
        torch.manual_seed(0)
        self.base = peft_models.bert()
        self.models = {}
        for seed, label in enumerate("ab"):
            config = LoraConfig(**BERT, task_type="SEQ_CLS")
            self.models[label] = get_peft_model(copy.deepcopy(self.base), config)
            generator = torch.Generator().manual_seed(seed)
            for parameter in self.models[label].parameters():
                if parameter.requires_grad:
                    parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        self.names = saved(folder, self.base, **self.models)

    def head(self, label):
        return self.models[label].base_model.model.classifier.modules_to_save["default"]


def test_heads_are_kept_as_told_and_never_merged(tmp_path):
    heads = Heads(tmp_path)
    with pytest.raises(intruscope.IntruscopeError, match=r"a: classifier; b: classifier.*--heads LABEL"):
        intruscope.merge(*heads.names)
    plan = intruscope.merge(*heads.names, heads="b")
    assert plan.report.heads == {"a": ("classifier",), "b": ("classifier",)}
    plan.apply(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(copy.deepcopy(heads.base), tmp_path / "adapter")
    kept = loaded.base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(kept.weight, heads.head("b").weight)
    assert torch.equal(kept.bias, heads.head("b").bias)
    delta = [m.base_model.model.bert.encoder.layer[0].attention.self.query.get_delta_weight("default")
             for m in (loaded, *heads.models.values())]  # fmt: skip
    torch.testing.assert_close(delta[0], (delta[1] + delta[2]) / 2, rtol=1e-4, atol=1e-6)
    intruscope.merge(*heads.names, heads="a", merged=True).apply(tmp_path / "model")
    found = stored(tmp_path / "model")
    assert torch.equal(found["classifier.weight"], heads.head("a").weight.double())
    assert torch.equal(found["classifier.bias"], heads.head("a").bias.double())
    intruscope.merge(*heads.names, heads="none", merged=True).apply(tmp_path / "bare")
    assert torch.equal(stored(tmp_path / "bare")["classifier.weight"], heads.base.classifier.weight.double())
    intruscope.merge(*heads.names, heads="none").apply(tmp_path / "headless")
    assert not [
        key for key in load_file(tmp_path / "headless" / "adapter_model.safetensors") if "classifier" in key
    ]


def test_a_head_in_one_alone_is_not_taken_over_silently_either(tmp_path):
    heads = Heads(tmp_path)
    headless = intruscope.merge(*heads.names, heads="none").apply(tmp_path / "c").out
    with pytest.raises(intruscope.IntruscopeError, match="a: classifier; c: none"):
        intruscope.merge(heads.names[0], heads.names[1], headless)
    with pytest.raises(intruscope.IntruscopeError, match=r"none of the fine-tunes \(a, c\)"):
        intruscope.merge(heads.names[0], heads.names[1], headless, heads="b")
    assert intruscope.merge(heads.names[0], heads.names[1], headless, heads="a").report.kept_heads == "a"


def test_the_heads_of_whole_classifiers_are_heads_too(tmp_path):
    torch.manual_seed(0)
    base = peft_models.bert()
    tuned = {label: fine_tuned(base, seed) for seed, label in enumerate("ab")}
    names = saved(tmp_path, base, **tuned)
    with pytest.raises(intruscope.IntruscopeError, match="a: bert.pooler.dense, classifier; b: bert"):
        intruscope.merge(*names)
    report = intruscope.merge(*names, heads="b", rank=3).apply(tmp_path / "cut")
    assert {module.module for module in report.modules}.isdisjoint({"classifier", "bert.pooler.dense"})
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "cut").base_model.model
    for saved_whole, wanted in (
        (loaded.classifier, tuned["b"].classifier),
        (loaded.bert.pooler.dense, tuned["b"].bert.pooler.dense),
    ):
        kept = saved_whole.modules_to_save["default"]
        assert torch.equal(kept.weight, wanted.weight)
        assert torch.equal(kept.bias, wanted.bias)
    intruscope.merge(*names, heads="b").apply(tmp_path / "out")
    found, one, other = (stored(folder) for folder in (tmp_path / "out", *names[1:]))
    for name, numbers in found.items():
        expected = other[name] if name.startswith(HEAD) else (one[name] + other[name]) / 2
        torch.testing.assert_close(numbers, expected, rtol=1e-6, atol=1e-7, msg=name)


def test_heads_that_are_still_the_bases_need_no_choice(tmp_path):
    torch.manual_seed(0)
    base = peft_models.bert()
    tuned = {label: fine_tuned(base, seed) for seed, label in enumerate("ab")}
    for model in tuned.values():
        model.classifier.load_state_dict(base.classifier.state_dict())
        model.bert.pooler.load_state_dict(base.bert.pooler.state_dict())
    names = saved(tmp_path, base, **tuned)
    report = intruscope.merge(*names).apply(tmp_path / "out")
    assert not report.heads
    before, found = stored(names[0]), stored(tmp_path / "out")
    assert all(torch.equal(found[name], before[name]) for name in found if name.startswith(HEAD))
    with torch.no_grad():
        tuned["a"].classifier.bias += 1.0
    tuned["a"].save_pretrained(names[1])
    with pytest.raises(intruscope.IntruscopeError, match="a: classifier; b: none"):
        intruscope.merge(*names)


def test_a_checkpoint_keeps_every_byte_that_no_fine_tune_changes(tmp_path):
    models = family("llama")
    intruscope.merge(*models.names[:3], merged=True).apply(tmp_path / "out")
    before, found = (
        load_file(folder / "model.safetensors") for folder in (models.names[0], tmp_path / "out")
    )
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {
        f"{module.name}.weight" for module in intruscope.merge(*models.names[:3]).report.modules
    }
    assert (tmp_path / "out" / "config.json").read_bytes() == (models.names[0] / "config.json").read_bytes()
