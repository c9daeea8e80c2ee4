"""One live model in two states: each state is what transformers and PEFT run, and nothing is left behind."""

import copy
import json

import peft_models
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from intruscope.adapters.live_loading import load_modules, load_opened
from intruscope.adapters.live_switch import adapter_edits
from intruscope.adapters.opening import open_pair
from intruscope.errors import IntruscopeError
from intruscope.spectra.scan import plan
from intruscope.weights.source import open_model

IDS = torch.tensor([[5, 7, 11, 2, 9, 30, 1, 3]])
# Every way of adapting a language model that is read.
LANGUAGE = [
    name
    for name, (make, _) in peft_models.CASES.items()
    if make
    in (
        peft_models.llama,
        peft_models.tied_llama,
        peft_models.gpt2,
        peft_models.phi3,
        peft_models.gpt_neox,
        peft_models.bloom,
        peft_models.falcon,
        peft_models.mixtral,
        peft_models.qwen3_moe,
        peft_models.gpt_oss,
    )
]


LOADED_AS_A_PAIR = {
    "embedding-tied", "tokens-tied",  # the head shares the tensor
    "experts-stored-apart", "experts-down-only", "experts-rank",  # transformers fuses what files keep apart
}  # fmt: skip
"""Adapters that are more than edits of the base's tensors."""


class Tokenizer:
    """Stands in where no text is read."""

    model_max_length = 16
    pad_token_id = None
    eos_token_id = 0

    def get_vocab(self):
        return {}


# PEFT warns of tied weights and of names that newer transformers have renamed.
pytestmark = pytest.mark.filterwarnings("ignore")


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


def saved_pair(folder, make, options):
    """A base on disk, its adapter on disk, and PEFT's own model of both."""
    torch.manual_seed(0)
    base = make().eval()
    base.save_pretrained(folder / "base")
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**{"r": 3, "lora_alpha": 6, **options}))
    peft_models.train(model)
    model.save_pretrained(folder / "adapter")
    return base, model.eval()


def live(folder, base="base", tuned="adapter", **options):
    opened = open_pair(folder / base, folder / tuned)
    return load_opened(opened, **{"tokenizer": Tokenizer(), **options})


@pytest.mark.parametrize("name", LANGUAGE)
def test_both_states_are_what_transformers_and_peft_run(name, tmp_path):
    make, options = peft_models.CASES[name]
    base, tuned = saved_pair(tmp_path, make, options)
    # Experts run in no wider type on a CPU, and PEFT initialises MiCA in none.
    narrow = "experts" in name or name == "mica"
    pair = live(tmp_path, dtype="float32" if narrow else "float64")
    dtype = torch.float32 if narrow else torch.float64
    language = pair.language_model()
    with pair.as_base():
        assert torch.equal(logits(language.model), logits(base.to(dtype)))
    expected = logits(tuned.to(dtype))
    got = logits(language.model)
    assert (got - expected).abs().max() <= (2e-5 if narrow else 1e-12) * expected.abs().max()
    with pair.as_base():
        assert (logits(language.model) - expected).abs().max() > 1e-3 * expected.abs().max()
    assert torch.equal(logits(language.model), got)
    # Switched on in a base that is loaded alone, it runs the same.
    host = live(tmp_path, tuned="base", dtype="float32" if narrow else "float64")
    edits = adapter_edits(open_pair(tmp_path / "base", tmp_path / "adapter"), host)
    assert (edits is None) == (name in LOADED_AS_A_PAIR)
    if edits is not None:
        model = host.language_model().model
        before = logits(model)
        with host.with_edits(edits):  # an update's scaling is rounded to float32
            assert (logits(model) - expected).abs().max() <= (2e-5 if narrow else 1e-6) * expected.abs().max()
        assert torch.equal(logits(model), before)


def test_a_file_under_a_name_of_its_own(tmp_path):
    _, tuned = saved_pair(tmp_path, peft_models.llama, {"target_modules": ["q_proj"]})
    named = tmp_path / "adapter" / "mine.safetensors"
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(named)
    pair = live(tmp_path, tuned="adapter/mine.safetensors")
    assert torch.allclose(logits(pair.language_model().model), logits(tuned), atol=1e-5)


def test_in_float32_the_base_is_bit_equal(tmp_path):
    base, _ = saved_pair(tmp_path, peft_models.llama, {"target_modules": ["q_proj", "embed_tokens"]})
    pair = live(tmp_path)
    with pair.as_base():
        assert torch.equal(logits(pair.language_model().model), logits(base))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_methods_that_move_the_base_in_memory(init, tmp_path):
    """PEFT's adapter-off is the residual; the base given by name is the base."""
    torch.manual_seed(0)
    base = peft_models.llama().eval()
    base.save_pretrained(tmp_path / "base")
    inside = copy.deepcopy(base)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "up_proj"], init_lora_weights=init)
    tuned = get_peft_model(inside, config)
    peft_models.train(tuned)
    tuned.eval()
    with tuned.disable_adapter():
        assert not torch.allclose(logits(tuned), logits(base), atol=1e-3)
    source = open_model(tmp_path / "base")
    pair = load_modules(source, tuned, tokenizer=Tokenizer())
    with pair.as_base():
        assert torch.equal(logits(pair.language_model().model), logits(base))
    assert torch.allclose(logits(pair.language_model().model), logits(tuned), atol=1e-5)
    with pytest.raises(IntruscopeError, match="moved the weights"):
        load_modules(inside, tuned, tokenizer=Tokenizer())


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", ["dora", "tokens", "head-saved", "embedding-saved", "conv1d"])
def test_models_in_memory_are_copied_and_left_alone(name, merged):
    make, options = peft_models.CASES[name]
    torch.manual_seed(0)
    base = make().eval()
    inside = copy.deepcopy(base)
    tuned = get_peft_model(inside, LoraConfig(**{"r": 3, "lora_alpha": 6, **options}))
    peft_models.train(tuned)
    tuned.eval()
    expected = logits(tuned)
    before = {key: value.clone() for key, value in tuned.state_dict().items()}
    if merged:
        tuned.merge_adapter()
    for given in (base, inside):  # the base apart, and the base inside of the PeftModel
        pair = load_modules(given, tuned, tokenizer=Tokenizer())
        model = pair.language_model().model
        with pair.as_base():
            # Merging and unmerging in place rounds once each way, which the copy inherits.
            assert torch.allclose(logits(model), logits(base), atol=1e-5 if merged else 0, rtol=0)
        assert torch.allclose(logits(model), expected, atol=1e-5)
    if merged:
        tuned.unmerge_adapter()
    else:
        assert all(torch.equal(value, tuned.state_dict()[key]) for key, value in before.items())
    assert torch.allclose(logits(tuned), expected, atol=1e-5)


def test_biases_trained_in_place_are_refused_in_memory():
    inside = peft_models.gpt2()
    tuned = get_peft_model(inside, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, bias="all"))
    with pytest.raises(IntruscopeError, match="bias='all' trained the biases") as caught:
        load_modules(inside, tuned, tokenizer=Tokenizer())
    assert "by name or path" in caught.value.remedy


def bert_pair(folder, *, full=False, pooler=True):
    """A masked language model, and a classifier trained from its body."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, vocab_size=40, intermediate_size=24,
        max_position_embeddings=16,
    )  # fmt: skip
    base = transformers.BertForMaskedLM(config).eval()
    base.save_pretrained(folder / "base")
    tuned = transformers.BertForSequenceClassification.from_pretrained(folder / "base", num_labels=3)
    if not full:
        saved = ["classifier", "pooler"] if pooler else ["classifier"]
        options = {"target_modules": ["query", "dense"], "task_type": "SEQ_CLS", "modules_to_save": saved}
        options["exclude_modules"] = ["pooler.dense", "bert.pooler.dense"]
        tuned = get_peft_model(tuned, LoraConfig(r=3, lora_alpha=6, bias="lora_only", **options))
    peft_models.train(tuned)
    tuned.eval().save_pretrained(folder / "adapter")
    return base, tuned


@pytest.mark.parametrize("full", [False, True])
def test_a_classifier_gets_the_head_of_the_base_back(full, tmp_path):
    base, tuned = bert_pair(tmp_path, full=full)
    pair = live(tmp_path)
    language, task = pair.language_model(), pair.task_model()
    assert language.kind == "masked"
    assert task.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert torch.allclose(logits(task.model), logits(tuned), atol=1e-5)
    # By hand: the base's head over the tuned body.
    plain = tuned if full else PeftModel.from_pretrained(
        transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3),
        tmp_path / "adapter",
    ).merge_and_unload()  # fmt: skip
    expected = base.cls(plain.eval().bert(input_ids=IDS).last_hidden_state)
    assert torch.allclose(logits(language.model), expected, atol=1e-5)
    with pair.as_base():
        assert torch.equal(logits(language.model), logits(base))
        # The classifier's own head stays; its body is the base's.
        body = base.bert(input_ids=IDS).last_hidden_state
        expected = task.model.classifier(task.model.bert.pooler(body))
        assert torch.allclose(logits(task.model), expected, atol=1e-5)
    assert torch.allclose(logits(task.model), logits(tuned), atol=1e-5)


def test_a_pooler_that_nobody_saved_is_refused_for_the_task_alone(tmp_path):
    bert_pair(tmp_path, pooler=False)
    pair = live(tmp_path)
    assert pair.language_model().kind == "masked"
    with pytest.raises(IntruscopeError, match=r"pooler.*neither in the base nor in the tuned"):
        pair.task_model()


def test_a_causal_classifier_with_conv1d(tmp_path):
    torch.manual_seed(0)
    base = peft_models.gpt2().eval()
    base.save_pretrained(tmp_path / "base")
    host = transformers.GPT2ForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=5, pad_token_id=0
    )
    tuned = get_peft_model(
        host, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="SEQ_CLS")
    )
    peft_models.train(tuned)
    tuned.eval().save_pretrained(tmp_path / "adapter")
    pair = live(tmp_path)
    assert torch.allclose(logits(pair.task_model().model), logits(tuned), atol=1e-5)
    model = pair.language_model().model
    expected = base.lm_head(tuned.base_model.model.transformer(input_ids=IDS).last_hidden_state)
    assert torch.allclose(logits(model), expected, atol=1e-5)
    with pair.as_base():
        assert torch.equal(logits(model), logits(base))


def test_full_checkpoints_with_and_without_the_prefix(tmp_path):
    base = peft_models.gpt2().eval()
    base.save_pretrained(tmp_path / "base")
    tuned = copy.deepcopy(base)
    peft_models.train(tuned)
    tuned.save_pretrained(tmp_path / "tuned")
    tuned.transformer.save_pretrained(tmp_path / "body")  # names without "transformer."
    for name in ("tuned", "body"):
        pair = live(tmp_path, tuned=name)
        model = pair.language_model().model
        assert torch.equal(logits(model), logits(tuned))
        with pair.as_base():
            assert torch.equal(logits(model), logits(base))


EDITED = {
    "conv1d": "h.0.attn.c_attn[k]",
    "square-wide-tall": "model.layers.1.mlp.up_proj",
    "fused-qkv-per-head": "gpt_neox.layers.0.attention.query_key_value[v]",
    "fused-qkv-grouped": "model.layers.1.mlp.gate_up_proj[up]",
    "embedding": "model.embed_tokens",
    "experts-stored-fused": "model.layers.0.mlp.experts.gate_up_proj[2][gate]",
}


@pytest.mark.parametrize("name", EDITED)
def test_an_edit_reaches_the_rows_and_the_orientation_that_a_scan_means(name, tmp_path):
    """The edited live model is the model whose file was edited through the scan's own view."""
    from safetensors.torch import save_file

    make, options = peft_models.CASES[name]
    saved_pair(tmp_path, make, options)
    matrix = EDITED[name].replace("h.0", "transformer.h.0") if name == "conv1d" else EDITED[name]
    pair = live(tmp_path)
    pairs = {p.name: p for p in plan(str(tmp_path / "base"), str(tmp_path / "adapter")).pairs}
    for planned in pairs.values():  # everything that a scan pairs can be edited
        assert pair.base_matrix(planned.name).shape == planned.base.shape
    base_OI = pair.base_matrix(matrix)
    assert torch.equal(base_OI, pairs[matrix].base.load().float() if matrix in pairs else base_OI)
    generator = torch.Generator().manual_seed(3)
    update_OI = torch.randn(base_OI.shape, generator=generator)
    got = {}
    with pair.with_update({matrix: update_OI}):
        got["live"] = logits(pair.language_model().model)
    # By hand, on the tensors of the merged model.
    state = {key: value.clone() for key, value in pair.language_model().model.state_dict().items()}
    view = pair._places[matrix].view
    stored = state[pair._places[matrix].parameter]
    whole = stored if view.expert is None else stored[view.expert]
    whole = whole.T if view.transposed else whole
    rows = list(range(whole.shape[0])) if view.rows is None else list(view.rows.indices())
    for row, new in zip(rows, base_OI + update_OI, strict=True):
        whole[row] = new
    (tmp_path / "edited").mkdir()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "edited" / "model.safetensors")
    edited = make().eval()
    edited.load_state_dict(load_file(tmp_path / "edited" / "model.safetensors"))
    assert torch.allclose(got["live"], logits(edited), atol=1e-6)
    unedited = logits(pair.language_model().model)
    assert not torch.allclose(got["live"], unedited, atol=1e-4)
    with pair.with_update({matrix: pair.tuned_matrix(matrix) - base_OI}):
        assert torch.allclose(logits(pair.language_model().model), unedited, atol=1e-5)


class Scaled:
    """An edit that keeps a share of the update."""

    def __init__(self, name, share):
        self.name, self.share = name, share

    def applied(self, base_OI, tuned_OI):
        return base_OI.double() + self.share * (tuned_OI.double() - base_OI.double())


def test_edits_of_matrices_and_of_other_tensors_and_what_they_leave(tmp_path):
    base = peft_models.bert().eval()
    config = base.config
    base = transformers.BertForMaskedLM(config).eval()
    base.save_pretrained(tmp_path / "base")
    tuned = copy.deepcopy(base)
    peft_models.train(tuned)
    tuned.save_pretrained(tmp_path / "tuned")
    pair = live(tmp_path, tuned="tuned")
    model = pair.language_model().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    query, bias = "bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.0.output.LayerNorm.bias"
    with pair.with_edits([Scaled(query, 0.25), Scaled(bias, 0.0)]):
        state = model.state_dict()
        expected = 0.75 * base.state_dict()[f"{query}.weight"] + 0.25 * tuned.state_dict()[f"{query}.weight"]
        assert torch.allclose(state[f"{query}.weight"], expected, atol=1e-6)
        assert torch.equal(state[bias], base.state_dict()[bias])
        for name, value in state.items():
            if name not in (f"{query}.weight", bias):
                assert torch.equal(value, before[name]), name
        with pair.as_base():  # a state inside a state
            assert torch.equal(logits(model), logits(base))
        with pair.interpolated(0.0):
            assert torch.allclose(logits(model), logits(base), atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ZeroDivisionError), pair.with_update({query: pair.base_matrix(query)}):
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pair.interpolated(0.5):
        name = f"{query}.weight"
        half = (base.state_dict()[name] + tuned.state_dict()[name]) / 2
        assert torch.allclose(model.state_dict()[name], half, atol=1e-6)
    with (
        pytest.raises(IntruscopeError, match=r"the matrix \[16, 16\]"),
        pair.with_update({query: torch.ones(2, 2)}),
    ):
        pass
    with pytest.raises(IntruscopeError, match="does not hold"), pair.with_edits([Scaled("nowhere", 1.0)]):
        pass


def test_an_edit_of_a_tied_embedding_moves_the_head_with_it(tmp_path):
    saved_pair(tmp_path, peft_models.tied_llama, {"target_modules": ["q_proj"]})
    pair = live(tmp_path)
    model = pair.language_model().model
    with pair.with_edits([Scaled("model.embed_tokens", 1.0)]):
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_strangers_expression_is_never_run(tmp_path):
    """It would take longer than the universe; the keys say what it matched."""
    base, tuned = saved_pair(tmp_path, peft_models.llama, {"target_modules": ["q_proj"]})
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = r"(\w+\.?)+(\w+\.?)+(\w+\.?)+Z"
    path.write_text(json.dumps(config))
    pair = live(tmp_path)
    assert torch.allclose(logits(pair.language_model().model), logits(tuned), atol=1e-5)
    with pair.as_base():
        assert torch.equal(logits(pair.language_model().model), logits(base))


def test_what_parted_is_not_tied_again_by_others(tmp_path):
    _, tuned = saved_pair(tmp_path, peft_models.tied_llama, {"target_modules": ["embed_tokens", "q_proj"]})
    model = live(tmp_path).language_model().model
    model.tie_weights()
    assert torch.allclose(logits(model), logits(tuned), atol=1e-5)


class TestRefused:
    def test_no_head_anywhere(self, tmp_path):
        base, _ = bert_pair(tmp_path)
        base.bert.save_pretrained(tmp_path / "body")
        pair = live(tmp_path, base="body")
        with pytest.raises(IntruscopeError, match="without a language-model head") as caught:
            pair.language_model()
        assert caught.value.exit_code == 4
        assert "ForMaskedLM" in caught.value.remedy
        assert pair.task_model().labels == ("LABEL_0", "LABEL_1", "LABEL_2")

    def test_another_vocabulary(self, tmp_path):
        base = peft_models.llama()
        base.save_pretrained(tmp_path / "base")
        base.resize_token_embeddings(41)
        base.save_pretrained(tmp_path / "tuned")
        with pytest.raises(IntruscopeError, match="vocabulary of 41 words and the base one of 40") as caught:
            live(tmp_path, tuned="tuned")
        assert "resize_token_embeddings(40)" in caught.value.remedy

    def test_another_vocabulary_in_an_adapter(self, tmp_path):
        torch.manual_seed(0)
        base = peft_models.llama()
        base.save_pretrained(tmp_path / "base")
        base.resize_token_embeddings(41)
        options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
        get_peft_model(base, LoraConfig(**options)).save_pretrained(tmp_path / "adapter")
        with pytest.raises(IntruscopeError, match="41 words cannot be compared with one of 40") as caught:
            live(tmp_path)
        assert "resize_token_embeddings(40)" in caught.value.remedy

    def test_weights_that_peft_would_leave_out(self, tmp_path):
        options = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_bias": True}
        saved_pair(tmp_path, peft_models.gpt2, options)
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "lora_bias": False}))
        with pytest.raises(IntruscopeError, match=r"PEFT leaves out 2 tensors.*lora_B.*bias") as caught:
            live(tmp_path)
        assert "adapter_config.json" in caught.value.remedy

    def test_a_regression_is_no_classifier(self, tmp_path):
        torch.manual_seed(0)
        base = peft_models.gpt2()
        base.save_pretrained(tmp_path / "base")
        host = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
        host.save_pretrained(tmp_path / "tuned")
        pair = live(tmp_path, tuned="tuned")
        with pytest.raises(IntruscopeError, match="head of 1 outputs for regression"):
            pair.task_model()

    def test_no_config(self, tmp_path):
        saved_pair(tmp_path, peft_models.llama, {"target_modules": ["q_proj"]})
        (tmp_path / "base" / "config.json").unlink()
        with pytest.raises(IntruscopeError, match=r"no config\.json"):
            live(tmp_path)

    def test_no_tokenizer(self, tmp_path):
        saved_pair(tmp_path, peft_models.llama, {"target_modules": ["q_proj"]})
        with pytest.raises(IntruscopeError, match="no tokenizer beside") as caught:
            live(tmp_path, tokenizer=None)
        assert caught.value.exit_code == 2
        assert "--tokenizer" in caught.value.remedy

    def test_an_encoder_decoder(self, tmp_path):
        config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
        transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
        pair = live(tmp_path, tuned="base")
        with pytest.raises(IntruscopeError, match="encoder-decoder"):
            pair.language_model()

    def test_a_body_that_lacks_a_layer(self, tmp_path):
        from safetensors.torch import save_file

        saved_pair(tmp_path, peft_models.llama, {"target_modules": ["q_proj"]})
        path = tmp_path / "base" / "model.safetensors"
        tensors = load_file(path)
        tensors.pop("model.layers.1.mlp.up_proj.weight")
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(IntruscopeError, match=r"1 tensors .* such as model.layers.1.mlp.up_proj"):
            live(tmp_path)
