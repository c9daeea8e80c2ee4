"""Methods made to forget less, against naive float64 twins: what each leaves alone, and what it trains.

Where something stays as it is, plain LoRA is the clean twin: trained alike, it changes that.
"""

import dataclasses
import sys
import types

import pytest
import torch
from our_methods import (
    LINEAR,
    MODELS,
    assert_trains_on,
    attached,
    factor_state,
    llama,
    tokens,
    train,
)
from peft import LoraConfig, get_peft_model

from intruscope.errors import UsageError
from intruscope.methods.contract import Setting
from intruscope.methods.kept import input_moments
from intruscope.methods.targets import weight_of

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TEXT = [{"input_ids": torch.tensor([[7, 3, 11, 5]])}]
"""Four tokens: the inputs of no layer span more than four directions."""


def keeping(setting, kept=TEXT):
    return dataclasses.replace(setting, kept=kept)


def base_of(done, name):
    layer = done.model.base_model.model.get_submodule(name)
    return weight_of(layer.get_base_layer()).double()


def logits(model, text):
    with torch.no_grad():
        return model.eval()(input_ids=text).logits


@pytest.mark.parametrize(("make", "setting"), MODELS)
class TestOplora:
    def test_leading_triplets_of_the_base_stay_exactly(self, make, setting, tmp_path):
        plain = attached("lora", make, setting, rank=4, alpha=8)
        done = attached("oplora", make, setting, rank=4, alpha=8, num_preserved=3)
        for each in (done, plain):
            train(each.model)
        for name in done.names:
            base = base_of(done, name)
            left, values, right = torch.linalg.svd(base, full_matrices=False)
            left, values, right = left[:, :3], values[:3], right[:3].T

            def disturbed(each, *, name=name, base=base, left=left, values=values, right=right):
                tuned = base + each.update(name).double()
                return float(
                    (tuned @ right - left * values).norm() + (tuned.T @ left - right * values).norm()
                )

            size = float(done.update(name).norm())
            assert disturbed(done) <= 1e-5 * size
            assert disturbed(plain) > 0.05 * size
            state = factor_state(done, name)
            off_left = torch.eye(len(left)) - left @ left.T
            off_right = torch.eye(len(right)) - right @ right.T
            expected = 2 * off_left @ state["B.weight"] @ state["A.weight"] @ off_right
            torch.testing.assert_close(done.update(name).double(), expected, rtol=1e-4, atol=1e-6)
        done.save(tmp_path / "saved")
        assert_trains_on("oplora", done, make, tmp_path / "saved")


def test_oplora_refuses_to_leave_everything_alone():
    with pytest.raises(UsageError, match="num_preserved = 16 leaves nothing to train in a matrix of 16 x 16"):
        attached("oplora", llama, LINEAR)


def minor(base, _, rank):
    """MiLoRA: the last directions of the base."""
    left, values, right = torch.linalg.svd(base, full_matrices=False)
    return left[:, -rank:], values[-rank:], right[-rank:]


def least(base, inputs, rank):
    """CorDA: the last directions of base times covariance, and back."""
    covariance = inputs.T @ inputs
    covariance = covariance / covariance.diagonal().mean() + 0.01 * torch.eye(len(covariance))
    left, values, right = torch.linalg.svd(base @ covariance, full_matrices=False)
    return left[:, -rank:], values[-rank:], right[-rank:] @ torch.linalg.inv(covariance)


def null(base, inputs, rank):
    """LoRA-Null: the base on the directions that the inputs use least."""
    unused = torch.linalg.svd(inputs.T, full_matrices=True)[0][:, -rank:]
    left, values, right = torch.linalg.svd(base @ unused @ unused.T, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


def inputs_of(make, names, text):
    """What each module is given: (tokens, in), float64."""
    torch.manual_seed(0)
    model, seen = make().eval(), {}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: given[0].flatten(0, -2).double()})
        )
    logits(model, text)
    return seen


@pytest.mark.parametrize(
    ("method", "part", "options"),
    [
        ("milora", minor, {}),
        ("corda", least, {}),
        ("lora_null", null, {"freeze_a": True}),
        ("lora_null", null, {"freeze_a": False}),
    ],
    ids=["milora", "corda", "lora_null", "lora_null-free"],
)
@pytest.mark.parametrize(("make", "setting"), MODELS)
def test_training_is_that_of_an_adapter_whose_start_left_the_base(
    make, setting, method, part, options, tmp_path
):
    """The twin is the papers' way: PEFT's LoRA in float64, a start by NumPy's book, and a base without it."""
    text = torch.arange(96).reshape(8, 12) * 7 % 37  # more tokens than inputs: no direction is in doubt
    done = attached(method, make, keeping(setting, [{"input_ids": text}]), rank=3, alpha=6, **options)
    torch.manual_seed(0)
    fan_in = make is not llama
    config = LoraConfig(r=3, lora_alpha=6, target_modules=list(done.names), fan_in_fan_out=fan_in)
    twin = get_peft_model(make().double().eval(), config).double()
    seen = inputs_of(make, done.names, text)
    before = {}
    for name in done.names:
        layer = twin.base_model.model.get_submodule(name)
        before[name] = weight_of(layer.get_base_layer()).clone()
        left, values, right = part(before[name], seen[name], 3)
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_((values / 2).sqrt()[:, None] * right)
            layer.lora_B["default"].weight.copy_(left * (values / 2).sqrt())
            rest = before[name] - left * values @ right
            layer.get_base_layer().weight.copy_(rest.T if fan_in else rest)
        layer.lora_A["default"].weight.requires_grad_(not options.get("freeze_a", False))
    for model in (done.model, twin):
        trained = [p for p in model.parameters() if p.requires_grad]
        for _ in range(3):
            # Steps along the gradient do not depend on the signs of singular vectors, nor magnify rounding.
            found = torch.autograd.grad(model(input_ids=tokens(), labels=tokens()).loss, trained)
            size = sum(each.square().sum() for each in found).sqrt()
            with torch.no_grad():
                for parameter, gradient in zip(trained, found, strict=True):
                    parameter -= 0.2 / size * gradient
    merged = twin.merge_and_unload()
    for name in done.names:
        expected = weight_of(merged.get_submodule(name)) - before[name]
        update = done.update(name).double()
        assert expected.norm() > 1e-3 * before[name].norm()
        assert (update - expected).norm() <= 2e-3 * expected.norm(), name
        assert torch.equal(base_of(done, name).float(), before[name].float())
    done.save(tmp_path / "saved")
    assert_trains_on(method, done, make, tmp_path / "saved")


def test_lora_null_leaves_the_text_to_keep_as_it_is():
    """Four tokens leave every layer a null space: trained hard, the model says the same about them."""
    torch.manual_seed(0)
    base = llama().eval()
    (kept,), other = (each["input_ids"] for each in TEXT), torch.tensor([[30, 2, 19, 33]])
    moved = {}
    for name, options in {"lora_null": {}, "lora": {}}.items():
        done = attached(name, llama, keeping(LINEAR), rank=4, alpha=8, **options)
        optimizer = done.optimizer(lr=0.02)
        for _ in range(5):
            optimizer.zero_grad()
            done.model(input_ids=tokens(), labels=tokens()).loss.backward()
            optimizer.step()
        moved[name] = [
            float((logits(done.model, text) - logits(base, text)).norm() / logits(base, text).norm())
            for text in (kept, other)
        ]
    assert moved["lora_null"][0] < 1e-5
    assert moved["lora_null"][1] > 0.01
    assert moved["lora"][0] > 0.01


def test_cordas_start_is_that_of_peft(monkeypatch):
    """On one text, where PEFT's weighting is a common factor. PEFT imports attrs for one decorator."""
    monkeypatch.setitem(sys.modules, "attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    (text,) = (each["input_ids"] for each in TEXT)
    done = attached("corda", llama, keeping(LINEAR), rank=3, alpha=6)
    torch.manual_seed(0)
    model = llama().eval()
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=list(done.names), init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="kpm"),
    )  # fmt: skip
    preprocess_corda(model, config, run_model=lambda: model(input_ids=text))
    theirs = get_peft_model(model, config)
    for name in done.names:
        state, layer = factor_state(done, name), theirs.base_model.model.get_submodule(name)
        expected = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).double()
        start = state["B.start"] @ state["A.start"]
        assert (start - expected).norm() <= 1e-3 * expected.norm(), name


def test_text_to_keep_is_needed_and_its_padding_does_not_count():
    for name in ("corda", "lora_null"):
        with pytest.raises(UsageError, match=r"starts from text whose knowledge .* --keep-text"):
            attached(name, llama, LINEAR, rank=2)
    torch.manual_seed(0)
    model, names = llama().eval(), ["model.layers.0.mlp.down_proj"]
    padded = {
        "input_ids": torch.tensor([[7, 3, 11, 5, 0, 0], [1, 2, 3, 4, 5, 6]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]),
    }
    together = input_moments(model, names, [padded])
    apart = input_moments(model, names, [*TEXT, {"input_ids": padded["input_ids"][1:]}])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-8)
    (inputs,) = inputs_of(llama, names, TEXT[0]["input_ids"]).values()
    torch.testing.assert_close(
        input_moments(model, names, TEXT)[names[0]], inputs.T @ inputs, rtol=1e-6, atol=1e-12
    )
    assert not model.get_submodule(names[0])._forward_pre_hooks


@pytest.mark.parametrize("name", ["milora", "corda", "lora_null"])
def test_ranks_above_the_smaller_side_are_refused(name):
    with pytest.raises(UsageError, match="rank 20 exceeds the smaller side of a matrix of 16 x 16"):
        attached(name, llama, keeping(LINEAR), rank=20)


class TestClora:
    @pytest.mark.parametrize("weight", [0.0, 0.7])
    def test_steps_are_those_of_a_loss_with_the_penalty(self, weight):
        """The twin: AdamW on the loss with the penalty in it, float64; without weight that is plain LoRA."""
        ours = attached("clora", llama, LINEAR, rank=4, weight=weight, fraction=0.25)
        twin = attached("lora", llama, LINEAR, rank=4)
        for done in (ours, twin):
            done.model.double()
        one, other = ours.optimizer(lr=0.01), twin.optimizer(lr=0.01)
        directions = ours.directions()
        for _ in range(3):
            one.zero_grad(), other.zero_grad()
            ours.model(input_ids=tokens(), labels=tokens()).loss.backward()
            one.step()
            penalty = 0.0
            for name, (down, up) in directions.items():
                layer = twin.model.base_model.model.get_submodule(name)
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                penalty += (a @ down.double()).square().sum() + (up.double().T @ b).square().sum()
            (twin.model(input_ids=tokens(), labels=tokens()).loss + weight * penalty / 2).backward()
            other.step()
        for (name, mine), (_, theirs) in zip(ours.trainable(), twin.trainable(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8, msg=name)

    def test_directions_are_orthonormal_and_come_back_from_the_seed(self, tmp_path):
        done = attached("clora", llama, LINEAR, fraction=0.25)
        done.save(tmp_path / "saved")
        again = assert_trains_on("clora", done, llama, tmp_path / "saved").directions()
        other = attached("clora", llama, Setting(targets=LINEAR.targets, seed=4), fraction=0.25).directions()
        for name, (down, up) in done.directions().items():
            shape = done.update(name).shape
            assert [p.shape for p in (up, down)] == [(size, size // 4) for size in shape]
            for mine, same, drawn in zip((down, up), again[name], other[name], strict=True):
                torch.testing.assert_close(mine.T @ mine, torch.eye(mine.shape[1]), rtol=0, atol=1e-5)
                assert torch.equal(mine, same)
                assert not torch.equal(mine, drawn)


def test_delora_adds_parts_of_unit_length_within_its_bound():
    done = attached("delora", llama, LINEAR, rank=3, bound=2.0)
    train(done.model)
    for name in done.names:
        layer, base = done.model.base_model.model.get_submodule(name), base_of(done, name)
        a, b, bound = (
            getattr(layer, f"delora_{part}")["default"].detach().double() for part in ("A", "B", "lambda")
        )
        parts = [torch.outer(b[:, i] / b[:, i].norm(), a[i] / a[i].norm()) for i in range(3)]
        norms = base.norm(dim=0)
        update = done.update(name).double()
        torch.testing.assert_close(update, bound / 3 * sum(parts) * norms, rtol=1e-4, atol=1e-5)
        assert 0.5 < (update / norms).norm() <= bound * (1 + 1e-6)
