"""Our own methods against naive float64 twins: values, gradients, starts, ranks, and what PEFT loads alone.

The contract suite checks what all methods have in common; here is what makes each of them that method.
"""

import pytest
import torch
from our_methods import (
    LINEAR,
    MODELS,
    assert_peft_alone_runs_it,
    assert_trains_on,
    attached,
    factor_state,
    llama,
    logits,
    tokens,
    train,
)

from intruscope.methods import find
from intruscope.methods.contract import Setting

# What transformers and PEFT warn of among themselves.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.mark.parametrize(("make", "setting"), MODELS)
class TestMelora:
    def test_update_is_the_block_diagonal_of_the_small_products(self, make, setting, tmp_path):
        done = attached("melora", make, setting, rank=2, num_blocks=4, alpha=6)
        train(done.model)
        for name in done.names:
            state = factor_state(done, name)
            expected = torch.block_diag(
                *(3.0 * b @ a for a, b in zip(state["A.weight"], state["B.weight"], strict=True))
            )
            torch.testing.assert_close(done.update(name).double(), expected, rtol=1e-5, atol=1e-6)
            assert torch.linalg.matrix_rank(expected) == 2 * 4
        assert_peft_alone_runs_it(done, make, tmp_path / "saved")
        assert_trains_on("melora", done, make, tmp_path / "saved")

    def test_has_the_parameters_of_one_adapter_of_its_rank(self, make, setting):
        done = attached("melora", make, setting, rank=2, num_blocks=4)
        shapes = [done.update(name).shape for name in done.names]
        assert sum(p.numel() for _, p in done.trainable()) == sum(2 * (o + i) for o, i in shapes)


def test_melora_refuses_blocks_that_do_not_divide_a_side():
    from intruscope.errors import UsageError

    with pytest.raises(UsageError, match="num_blocks = 5 does not divide both sides of a matrix of 16 x 16"):
        attached("melora", llama, LINEAR, num_blocks=5)


@pytest.mark.parametrize("scale", ["scalar", "per_output"])
@pytest.mark.parametrize(("make", "setting"), MODELS)
def test_multilora_sums_scaled_products_and_starts_at_zero(make, setting, scale, tmp_path):
    done = attached("multilora", make, setting, rank=2, num_adapters=3, alpha=6, scale=scale)
    for name in done.names:
        state = factor_state(done, name)
        assert not done.update(name).any()
        assert all(state[key].any() for key in ("A.weight", "B.weight"))  # so that the scale can move
    train(done.model)
    for name in done.names:
        state = factor_state(done, name)
        downs = state["A.weight"].chunk(3)
        terms = zip(state["B.scale"], state["B.weight"], downs, strict=True)
        expected = 3.0 * sum(torch.diag(c.expand(b.shape[0])) @ b @ a for c, b, a in terms)
        torch.testing.assert_close(done.update(name).double(), expected, rtol=1e-4, atol=1e-5)
        assert state["B.scale"].shape[1] == (expected.shape[0] if scale == "per_output" else 1)
    assert_peft_alone_runs_it(done, make, tmp_path / "saved")
    assert_trains_on("multilora", done, make, tmp_path / "saved")


@pytest.mark.parametrize(("make", "setting"), MODELS)
def test_b_only_keeps_a_first_factor_of_singular_values_one(make, setting, tmp_path):
    done = attached("b_only", make, setting, rank=3, alpha=6)
    starts = {name: factor_state(done, name)["A.weight"] for name in done.names}
    assert all(name.split(".default")[0].endswith("lora_B") for name, _ in done.trainable())
    done.model.set_adapter("default")  # PEFT switches everything on here
    train(done.model)
    for name, start in starts.items():
        state = factor_state(done, name)
        torch.testing.assert_close(torch.linalg.svdvals(start), torch.ones(3).double(), rtol=1e-5, atol=0)
        assert torch.equal(state["A.weight"], start)
        torch.testing.assert_close(
            done.update(name).double(), 2 * state["B.weight"] @ start, rtol=1e-4, atol=1e-5
        )
    assert_peft_alone_runs_it(done, make, tmp_path / "saved")
    assert_trains_on("b_only", done, make, tmp_path / "saved")


def test_b_only_draws_by_the_seed():
    first, again = attached("b_only", llama, LINEAR), attached("b_only", llama, LINEAR)
    other = attached("b_only", llama, Setting(targets=LINEAR.targets, seed=4))
    name = first.names[0]
    assert torch.equal(factor_state(first, name)["A.weight"], factor_state(again, name)["A.weight"])
    assert not torch.equal(factor_state(first, name)["A.weight"], factor_state(other, name)["A.weight"])


class TestSora:
    @pytest.mark.parametrize(
        ("prox", "expected"),
        [
            ("paper", [0.0, 0.0, 0.5, 1.0, 2.0, -0.5, -2.0, 0.0]),
            ("official", [0.0, 1.0, 0.0, 1.0, 2.0, 0.0, -2.0, 0.0]),
        ],
    )
    def test_gates_shrink_as_the_paper_and_as_the_program_say(self, prox, expected):
        from intruscope.methods.sora_layers import shrink

        gates = torch.tensor([0.0, 1.0, 1.5, 2.0, 3.0, -1.5, -3.0, 0.4])
        shrink(gates, 1.0, prox)
        assert gates.tolist() == expected

    @pytest.mark.parametrize(("prox", "l1"), [("paper", 0.0), ("official", 10.0)])
    def test_steps_are_those_of_two_separate_optimisers(self, prox, l1):
        """The twin: float64, an AdamW without the gates, another on them, L1 in the loss, then the prox."""
        options = {"rank": 4, "threshold": 0.05, "prox": prox}
        ours, twin = (attached("sora", llama, LINEAR, **options) for _ in range(2))
        for done in (ours, twin):
            done.model.double()
        one = ours.optimizer(lr=0.01, weight_decay=0.1)
        rest = [p for n, p in twin.trainable() if not n.endswith(".gate")]
        gates = [p for n, p in twin.trainable() if n.endswith(".gate")]
        first = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1)
        second = torch.optim.AdamW(gates, lr=0.01, weight_decay=0.0)
        for _ in range(3):
            one.zero_grad()
            ours.model(input_ids=tokens(), labels=tokens()).loss.backward()
            one.step()
            first.zero_grad(), second.zero_grad()
            loss = twin.model(input_ids=tokens(), labels=tokens()).loss
            count = sum(gate.numel() for gate in gates)
            (loss + l1 * sum(gate.abs().sum() for gate in gates) / count).backward()
            first.step(), second.step()
            for gate in gates:
                moved = gate.data.abs() - 0.05
                small = moved < (0.05 if prox == "official" else 0.0)
                gate.data = torch.where(small, 0.0, moved * gate.data.sign())
        for (name, mine), (_, theirs) in zip(ours.trainable(), twin.trainable(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=name)

    @pytest.mark.parametrize(("make", "setting"), MODELS)
    def test_saving_drops_the_ranks_that_are_gone(self, make, setting, tmp_path):
        done = attached("sora", make, setting, rank=4, alpha=8)
        train(done.model)
        kept = {}
        with torch.no_grad():
            for position, (name, gate) in enumerate(done.gates()):
                gate[: position % 5] = 0  # in some matrix none, in another all
                kept[name.removeprefix("base_model.model.").partition(".lora_A")[0]] = 4 - position % 5
        for name in done.names:
            state = factor_state(done, name)
            expected = 2 * state["B.weight"] @ torch.diag(state["A.gate"]) @ state["A.weight"]
            torch.testing.assert_close(done.update(name).double(), expected, rtol=1e-4, atol=1e-5)
        alone = assert_peft_alone_runs_it(done, make, tmp_path / "saved")
        for name, rank in kept.items():
            assert alone.base_model.model.get_submodule(name).lora_A["default"].weight.shape[0] == max(
                rank, 1
            )
        assert_trains_on("sora", done, make, tmp_path / "saved")


class TestPrilora:
    def test_ranks_grow_with_depth_around_their_mean(self):
        from intruscope.methods.prilora import ranks_by_depth

        names = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(12)] + ["project_in"]
        ranks = list(ranks_by_depth(names, 8).values())
        assert ranks == [4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12, 8]
        assert ranks_by_depth(["project_in"], 5) == {"project_in": 5}

    @pytest.mark.parametrize(("make", "setting"), MODELS)
    def test_prunes_what_the_inputs_say_matters_least(self, make, setting, tmp_path):
        """The twin: inputs recorded by a hook of our own, norms and importance in float64, entry by entry."""
        options = {"rank": 2, "alpha": 6, "prune_every": 2, "pruned_fraction": 0.4, "norm_memory": 0.7}
        done = attached("prilora", make, setting, **options)
        layers = {name: done.model.base_model.model.get_submodule(name) for name in done.names}
        seen = {name: [] for name in layers}
        for name, layer in layers.items():
            layer.register_forward_pre_hook(lambda _, x, name=name: seen[name].append(x[0].double()))
        train(done.model)
        done.model.train()
        for _ in range(2):
            done.model(input_ids=tokens())
            train(done.model)
        done.model.eval()
        logits(done.model)  # what is evaluated does not count
        before = {name: layer.lora_A["default"].weight.detach().clone() for name, layer in layers.items()}
        (callback,) = done.callbacks()
        for step in (1, 2):
            callback.on_step_end(None, type("State", (), {"global_step": step}), None)
            for name, layer in layers.items():
                after = layer.lora_A["default"].weight
                if step == 1:
                    assert torch.equal(after, before[name])
                    continue
                first, second = (x.flatten(0, 1).pow(2).mean(0).sqrt() for x in seen[name][:2])
                importance = before[name].double().abs() * (0.7 * first + 0.3 * second)
                for row, scores in zip(after, importance, strict=True):
                    pruned = set(scores.argsort()[: int(0.4 * len(scores))].tolist())
                    assert {j for j, value in enumerate(row) if value == 0} == pruned
                kept = after != 0
                assert torch.equal(after[kept], before[name][kept])
        assert_peft_alone_runs_it(done, make, tmp_path / "saved")
        again = assert_trains_on("prilora", done, make, tmp_path / "saved")
        assert again.options == done.options

    def test_every_layer_has_one_scale(self):
        done = attached("prilora", llama, LINEAR, rank=4, alpha=6)
        layers = [done.model.base_model.model.get_submodule(name) for name in done.names]
        assert {layer.r["default"] for layer in layers} == {2, 6}
        assert {layer.scaling["default"] for layer in layers} == {1.5}


@pytest.mark.parametrize("name", ["sora", "melora", "multilora", "chain"])
def test_a_classifiers_head_is_saved_with_the_ordinary_lora(name, tmp_path):
    from peft_models import bert

    done = attached(name, bert, Setting(targets=("query", "intermediate.dense")))
    train(done.model)
    assert any("classifier" in key for key, _ in done.trainable())
    assert_peft_alone_runs_it(done, bert, tmp_path / "saved")
    assert_trains_on(name, done, bert, tmp_path / "saved")


def test_another_methods_state_or_none_is_refused(tmp_path):
    from intruscope.errors import MalformedInput

    done = attached("melora", llama, LINEAR)
    done.save(tmp_path / "melora")
    with pytest.raises(MalformedInput, match="saved by melora, not by multilora"):
        find("multilora").load(llama(), tmp_path / "melora")
    attached("lora", llama, LINEAR).save(tmp_path / "lora")
    with pytest.raises(MalformedInput, match="has no method.json"):
        find("melora").load(llama(), tmp_path / "lora")
    (tmp_path / "melora" / "training_state" / "adapter_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(MalformedInput, match="could not be loaded"):
        find("melora").load(llama(), tmp_path / "melora")
