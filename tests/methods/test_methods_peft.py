"""What makes each of PEFT's methods that method: against naive float64 twins, on tiny models."""

from __future__ import annotations

import math

import methods_models as tiny
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from intruscope.errors import UsageError
from intruscope.methods import find
from intruscope.methods.contract import Setting
from intruscope.methods.targets import weight_of

pytestmark = pytest.mark.filterwarnings("ignore")
BERT = transformers.BertConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, num_labels=3,
    vocab_size=tiny.WORDS, max_position_embeddings=16,
)  # fmt: skip
QUERY = "model.layers.0.self_attn.q_proj"


def attach(name, model="linear", targets=("q_proj", "down_proj"), steps=tiny.STEPS, **options):
    """The method on a model, and the weights before: (out, in), float64."""
    method = find(name)
    base = tiny.fresh(model)
    setting = Setting(targets=targets, total_steps=steps, batches=tiny.batches())
    names = [n for n, _ in base.named_modules() if n.endswith(tuple(targets))]
    before = {n: weight_of(base.get_submodule(n)).double().clone() for n in names}
    return method.attach(base, setting, method.options(options)), before


def layer_of(attached, name):
    return attached.model.get_base_model().get_submodule(name)


def factors(attached, name):
    layer = layer_of(attached, name)
    return layer.lora_A["default"].weight.detach().double(), layer.lora_B["default"].weight.detach().double()


def close(got, expected, tolerance=1e-5):
    return (got.double() - expected).norm() <= tolerance * max(expected.norm(), 1e-3)


@pytest.mark.parametrize(
    ("name", "scale"), [("lora", 6 / 4), ("rslora", 6 / 2), ("lora_plus", 6 / 4), ("lora_fa", 6 / 4)]
)
def test_the_update_is_the_scaled_product(name, scale):
    attached, before = attach(name, rank=4, alpha=6)
    tiny.train(attached)
    for matrix in before:
        a, b = factors(attached, matrix)
        assert close(attached.update(matrix), scale * b @ a)


def test_lora_plus_moves_b_by_the_ratio():
    attached, _ = attach("lora_plus", ratio=32, rank=4)
    rates = {
        id(p): group["lr"] for group in attached.optimizer(lr=1e-3).param_groups for p in group["params"]
    }
    assert len(rates) == len(attached.trainable())
    for name, parameter in attached.trainable():
        assert rates[id(parameter)] == pytest.approx(32e-3 if "lora_B" in name else 1e-3)


def test_lora_fa_steps_along_the_projected_gradient():
    attached, _ = attach("lora_fa", rank=48, alpha=8)
    (batch,) = tiny.batches(1)
    attached.model(**batch).loss.backward()
    a, before = factors(attached, QUERY)
    gradient = layer_of(attached, QUERY).lora_B["default"].weight.grad.double()
    attached.optimizer(lr=1e-3).step()
    moved = factors(attached, QUERY)[1] - before
    projected = (48 / 8) ** 2 * gradient @ torch.linalg.inv(a @ a.T)
    # AdamW's first step is the sign; PEFT projects in bfloat16, so that signs of small numbers are left out.
    clear = projected.abs() > 0.05 * projected.abs().max()
    assert clear.sum() > 20
    assert torch.equal(moved[clear].sign(), -projected[clear].sign())
    assert not torch.equal(projected[clear].sign(), gradient[clear].sign()), "the projection changes nothing"


def test_dora_scales_the_rows_of_the_sum():
    attached, before = attach("dora", rank=4, alpha=8)
    tiny.train(attached)
    for name, base in before.items():
        a, b = factors(attached, name)
        magnitude = layer_of(attached, name).lora_magnitude_vector["default"].weight.detach().double()
        whole = base + 2 * b @ a
        tuned = magnitude.reshape(-1, 1) * whole / torch.linalg.vector_norm(whole, dim=1, keepdim=True)
        assert close(attached.update(name), tuned - base)


@pytest.mark.parametrize("model", ["linear", "tied_bfloat16"])
def test_pissa_takes_the_top_out_of_the_base_and_saves_a_lora_of_twice_the_rank(model, tmp_path):
    attached, before = attach("pissa", model, rank=4, alpha=8)
    for name, base in before.items():
        left, values, right = torch.linalg.svd(base, full_matrices=False)
        top = left[:, :4] * values[:4] @ right[:4]
        a, b = factors(attached, name)
        assert close(2 * b @ a, top, 1e-2 if model == "tied_bfloat16" else 1e-5)
        rest = weight_of(layer_of(attached, name).base_layer).double()
        assert close(rest, base - top, 1e-2 if model == "tied_bfloat16" else 1e-5)
    tiny.train(attached)
    attached.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert saved[f"base_model.model.{QUERY}.lora_A.weight"].shape[0] == 8


def test_olora_starts_from_the_qr_decomposition():
    attached, before = attach("olora", rank=4, alpha=8)
    for name, base in before.items():
        q, r = torch.linalg.qr(base)
        a, b = factors(attached, name)
        assert close(b @ a, q[:, :4] @ r[:4])
        assert close(b.T @ b, torch.eye(4, dtype=torch.float64))
        assert close(weight_of(layer_of(attached, name).base_layer).double(), base - 2 * q[:, :4] @ r[:4])


@pytest.mark.parametrize(
    ("model", "targets"), [("linear", ("q_proj", "down_proj")), ("conv1d", ("attn.c_attn", "mlp.c_proj"))]
)
def test_mica_stays_in_the_bottom_of_the_spectrum(model, targets):
    attached, before = attach("mica", model, targets, rank=4, alpha=8)
    tiny.train(attached)
    for name, base in before.items():
        left = torch.linalg.svd(base, full_matrices=False)[0]
        update = attached.update(name).double()
        assert (left[:, :-4].T @ update).norm() <= 1e-4 * update.norm()


def test_eva_starts_along_the_main_directions_of_the_inputs():
    attached, _ = attach("eva", targets=("q_proj", "down_proj"), rank=4, rho=1)
    seen = {}
    base = tiny.fresh("linear")
    for name in attached.names:
        base.get_submodule(name).register_forward_hook(
            lambda _module, inputs, _outputs, name=name: seen.setdefault(name, []).append(
                inputs[0].flatten(0, 1)
            )
        )
    with torch.no_grad():
        for batch in tiny.batches():
            base(**batch)
    for name, parts in seen.items():
        inputs = torch.cat(parts).double()
        right = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)[2][:4]
        a = factors(attached, name)[0]
        cosines = torch.linalg.svdvals(torch.linalg.qr(a.T)[0].T @ right.T)
        assert cosines[:3].min() > 0.9, name  # incremental over few batches: the last one may still turn


def test_eva_refuses_what_peft_would_run_on_for_ever():
    method, setting = find("eva"), Setting(targets=("q_proj",))
    with pytest.raises(UsageError, match="EVA computes its start from training data"):
        method.attach(tiny.fresh("linear"), setting, method.options())
    setting = Setting(targets=("q_proj",), batches=tiny.batches())
    with pytest.raises(UsageError, match="a batch has only 48 tokens, and EVA needs at least 64"):
        method.attach(tiny.fresh("linear"), setting, method.options({"rank": 32}))
    answers = torch.arange(12) < 2  # of a prompt that does not count
    masked = [{**each, "labels": torch.where(answers, each["labels"], -100)} for each in tiny.batches()]
    with pytest.raises(UsageError, match="a batch has only 8 tokens, and EVA needs at least 16"):
        method.attach(
            tiny.fresh("linear"), Setting(targets=("q_proj",), batches=masked), method.options({"rank": 8})
        )
    bert = transformers.BertForSequenceClassification(BERT)
    batches = [{key: batch[key] for key in ("input_ids", "attention_mask")} for batch in tiny.batches()]
    with pytest.raises(UsageError, match="the layer's input has 2 axes"):
        method.attach(bert, Setting(batches=batches), method.options({"rank": 2}))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_adalora_prunes_inside_trainer_and_not_without_its_callback(accumulate, tmp_path):
    """With the callback the ranks come down to the budget, at the right step; without it they never do."""
    for callbacks in (True, False):
        attached, _ = attach(
            "adalora", steps=20, rank=3, start_rank=6, targets=("q_proj", "v_proj", "down_proj")
        )
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=20, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            gradient_accumulation_steps=accumulate, save_strategy="no", disable_tqdm=True, learning_rate=5e-3,
        )  # fmt: skip
        rows = [{key: value[i] for key, value in tiny.batches(1)[0].items()} for i in range(4)] * 20
        trainer = transformers.Trainer(
            attached.model,
            arguments,
            train_dataset=rows,
            callbacks=list(attached.callbacks()) if callbacks else [],
            optimizers=(attached.optimizer(lr=5e-3), None),
        )
        trainer.train()
        gates = [layer_of(attached, name).lora_E["default"] for name in attached.names]
        assert sum(int((gate != 0).sum()) for gate in gates) == 3 * (3 if callbacks else 6)
        ranks = [int(torch.linalg.matrix_rank(attached.update(name), atol=1e-6)) for name in attached.names]
        assert sum(ranks) == 3 * (3 if callbacks else 6)


def test_adalora_pays_for_what_is_not_orthogonal_in_training_only():
    attached, _ = attach("adalora", orthogonality=0.7)
    (batch,) = tiny.batches(1)
    with torch.no_grad():
        plain = float(attached.model.eval()(**batch).loss)
        trained = float(attached.model.train()(**batch).loss)
    penalties = []
    for name in attached.names:
        layer = layer_of(attached, name)
        for gram in (
            layer.lora_A["default"] @ layer.lora_A["default"].T,
            layer.lora_B["default"].T @ layer.lora_B["default"],
        ):
            penalties.append(float(torch.linalg.norm(gram.detach() - torch.eye(len(gram)))))
    assert trained - plain == pytest.approx(0.7 * sum(penalties) / len(penalties), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 20}, "must be less than start_rank, which is 12"),
        ({"warmup_share": 0.6, "final_share": 0.6}, "no step is left for pruning"),
    ],
)
def test_adalora_refuses_a_schedule_that_cannot_prune(options, message):
    with pytest.raises(UsageError, match=message):
        attach("adalora", **options)
    method = find("adalora")
    with pytest.raises(UsageError, match="needs the number of steps"):
        method.attach(tiny.fresh("linear"), Setting(), method.options())


def test_vera_and_randlora_share_their_random_matrices_and_cut_them_to_each_shape():
    attached, before = attach("vera", rank=6, targets=("q_proj", "k_proj", "up_proj"))
    tiny.train(attached)
    for name in before:
        layer = layer_of(attached, name)
        num_out, num_in = before[name].shape
        a, b = (m["default"].double() for m in (layer.vera_A, layer.vera_B))
        assert (a.shape, b.shape) == ((6, 64), (96, 6))
        scale_b, scale_d = (
            p["default"].detach().double() for p in (layer.vera_lambda_b, layer.vera_lambda_d)
        )
        expected = torch.diag(scale_b) @ b[:num_out] @ torch.diag(scale_d) @ a[:, :num_in]
        assert close(attached.update(name), expected)
    attached, before = attach(
        "randlora", rank=24, alpha=48, targets=("q_proj", "k_proj", "up_proj", "down_proj")
    )
    tiny.train(attached)
    for name, base in before.items():
        layer, (num_out, num_in) = layer_of(attached, name), base.shape
        least, most = min(num_out, num_in), max(num_out, num_in)
        small, large = (m["default"].double() for m in (layer.randlora_A, layer.randlora_B))
        across, along = (
            p["default"].detach().double() for p in (layer.randlora_lambda, layer.randlora_gamma)
        )
        assert across.shape == (24, math.ceil(least / 24))
        num = across.shape[1]
        # PEFT flattens its two stacks in different orders: which random columns go together is permuted.
        columns = large[:most, :num].flatten(1)
        total = sum(
            columns[:, i::num] @ torch.diag(across[:, i]) @ small[:, 0, :least] @ torch.diag(along[i])
            for i in range(num)
        )
        assert close(attached.update(name), 2 * (total if num_in == least else total.T)), name


def test_loha_multiplies_and_lokr_tiles():
    attached, before = attach("loha", rank=3, alpha=6)
    tiny.train(attached)
    for name in before:
        layer = layer_of(attached, name)
        w1a, w1b, w2a, w2b = (
            getattr(layer, f"hada_{part}")["default"].detach().double()
            for part in ("w1_a", "w1_b", "w2_a", "w2_b")
        )
        assert close(attached.update(name), 2 * (w1a @ w1b) * (w2a @ w2b))
    attached, before = attach("lokr", rank=3, alpha=6)
    tiny.train(attached)
    for name in before:
        layer = layer_of(attached, name)
        small, a, b = (
            getattr(layer, f"lokr_{part}")["default"].detach().double() for part in ("w1", "w2_a", "w2_b")
        )
        assert close(attached.update(name), 2 * torch.kron(small, a @ b))


def test_oft_keeps_every_singular_value_only_where_it_is_exact():
    for exact in (True, False):
        attached, before = attach("oft", exact=exact, block_size=16)
        tiny.train(attached, lr=3e-2, steps=10)
        for name, base in before.items():
            values = torch.linalg.svdvals(base)
            tuned = torch.linalg.svdvals(base + attached.update(name).double())
            assert (tuned - values).abs().max() <= (1e-5 if exact else 1.0) * values[0]
            if not exact:
                assert (tuned - values).abs().max() > 1e-3 * values[0]
            assert attached.update(name).norm() > 0.1 * base.norm()


def test_boft_turns_and_scales():
    attached, before = attach("boft", block_size=8)
    tiny.train(attached)
    for name, base in before.items():
        scales = layer_of(attached, name).boft_s["default"].detach().double()
        assert (scales - 1).abs().max() > 1e-3
        turned = (base + attached.update(name).double()) / scales
        assert close(turned @ turned.T, base @ base.T)
        assert not close(turned, base, 1e-2)


def test_boft_says_where_a_block_does_not_fit():
    with pytest.raises(UsageError, match=r"PEFT rejects these options of boft.*divisible by boft_block_size"):
        attach("boft", block_size=7)


def test_miss_adds_one_matrix_to_every_group_of_columns():
    attached, before = attach("miss", rank=10, targets=("q_proj", "down_proj"))
    tiny.train(attached)
    for name, base in before.items():
        block = layer_of(attached, name).miss_block["default"].detach().double()
        columns = torch.arange(base.shape[1]) % 10
        assert base.shape[1] % 10, "the last group is cut"
        assert close(attached.update(name), block.T[:, columns])


def test_osf_projects_its_gradients_off_the_upper_directions():
    """A step along the gradient stays off them; AdamW's, which rescales each number, only nearly does."""
    attached, before = attach("osf", preserved=0.5)
    (batch,) = tiny.batches(1)
    attached.model(**batch).loss.backward()
    torch.optim.SGD([p for _, p in attached.trainable()], lr=1.0).step()
    for name, base in before.items():
        left, _, right = torch.linalg.svd(base, full_matrices=False)
        kept = min(base.shape) // 2
        update = attached.update(name).double()
        assert (left[:, :kept].T @ update).norm() <= 1e-3 * update.norm()
        assert (update @ right[:kept].T).norm() <= 1e-3 * update.norm()


def test_full_trains_only_the_targets_where_some_are_named():
    attached, before = attach("full", targets=("q_proj",))
    assert [name for name, _ in attached.trainable()] == [f"{QUERY}.weight"]
    tiny.train(attached)
    assert attached.names == (QUERY,)
    tuned = attached.model.get_submodule(QUERY).weight.detach().double()
    assert close(attached.update(QUERY), tuned - before[QUERY])


@pytest.mark.parametrize("name", ["lora", "pissa", "olora"])
def test_a_classifiers_head_is_trained_whole_and_saved_along(name, tmp_path):
    method = find(name)
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(BERT).eval()
    state = {key: value.clone() for key, value in bert.state_dict().items()}
    attached = method.attach(bert, Setting(train_whole=("pooler.dense",)), method.options({"rank": 2}))
    whole = {name for name, _ in attached.trainable() if "lora_" not in name}
    assert {name.rpartition(".default.")[0].removeprefix("base_model.model.") for name in whole} == {
        "bert.pooler.dense.modules_to_save", "classifier.modules_to_save"
    }  # fmt: skip
    assert not any("pooler" in name or "classifier" in name for name in attached.names)
    for _, parameter in attached.trainable():
        parameter.data.add_(0.1)
    attached.save(tmp_path / "saved")
    again = transformers.BertForSequenceClassification(BERT)
    again.load_state_dict(state)
    loaded = method.load(again, tmp_path / "saved")
    text = torch.arange(3, 15).reshape(1, 12)
    logits = [each.model.eval()(input_ids=text).logits for each in (loaded, attached)]
    if "moves_base" in method.departures:  # saved as a LoRA against the unchanged base: other roundings
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(*logits)
    for each in ("bert.pooler.dense", "classifier"):
        assert torch.equal(weight_in(loaded.model, each), weight_in(attached.model, each))


def weight_in(model, name):
    """The weight of a module that is trained whole."""
    return model.base_model.model.get_submodule(name).modules_to_save["default"].weight


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        (transformers.BertForMultipleChoice, {"classifier"}),
        (transformers.BertForQuestionAnswering, {"qa_outputs"}),
        (transformers.BertForTokenClassification, {"classifier"}),
        (transformers.BertForMaskedLM, set()),
    ],
)
def test_a_new_head_is_trained_whole_and_a_language_models_is_not(kind, head):
    method = find("lora")
    done = method.attach(kind(BERT), Setting(targets=("query",)), method.options())
    whole = {name.split(".")[2] for name, _ in done.trainable() if ".lora_" not in name}
    assert whole == head
    if head:
        with pytest.raises(UsageError, match="both a target and to be trained in full"):
            method.attach(kind(BERT), Setting(targets=("query", *head)), method.options())


def test_a_folder_that_is_no_adapter_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("lora", "full", "lora_plus"):
        with pytest.raises(ValueError, match=r"error\[malformed\].*empty"):
            find(name).load(tiny.fresh("linear"), tmp_path / "empty")


def test_updates_of_other_matrices_are_refused_by_name():
    for name, words in (("lora", "it changes 1"), ("full", "not among the 1 watched ones")):
        attached, _ = attach(name, targets=("q_proj",))
        with pytest.raises(UsageError, match=rf"nowhere.*{words}, such as model.layers.0.self_attn.q_proj"):
            attached.update("nowhere")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ranc": 4}, "has no option ranc.*did you mean the option rank"),
        ({"rank": 0}, "must be a whole number from 1"),
        ({"rank": 2.5}, "must be a whole number from 1"),
        ({"rank": "four"}, "must be a whole number from 1"),
        ({"rank": True}, "must be a whole number from 1"),
        ({"alpha": float("nan")}, "must be a number from 0"),
        ({"dropout": 1}, "must be a number from 0 up to 0.99"),
        ({"block_size": 4}, "lora has no option block_size"),
    ],
)
def test_options_are_checked(given, message):
    with pytest.raises(UsageError, match=message):
        find("lora").options(given)


def test_options_are_read_as_the_command_line_gives_them():
    options = find("oft").options({"block_size": "16", "exact": "False", "module_dropout": "0.5"})
    assert options == {"block_size": 16, "exact": False, "module_dropout": 0.5}
    assert type(options["block_size"]) is int
    assert find("sora").options({"prox": "official"})["prox"] == "official"
    with pytest.raises(UsageError, match="must be one of paper, official"):
        find("sora").options({"prox": "other"})


def test_defaults_are_those_of_peft_where_they_say_so():
    config = LoraConfig()
    defaults = find("lora").options()
    assert (defaults["rank"], defaults["alpha"], defaults["dropout"]) == (
        config.r,
        config.lora_alpha,
        config.lora_dropout,
    )
    attached, _ = attach("lora")
    plain = get_peft_model(tiny.fresh("linear"), LoraConfig(target_modules=["q_proj", "down_proj"]))
    ours = attached.model.peft_config["default"]
    assert (ours.r, ours.lora_alpha) == (
        plain.peft_config["default"].r,
        plain.peft_config["default"].lora_alpha,
    )
