"""The verb: every prompt at every gamma, from models as their users have them."""

import copy
import json
import warnings

import pytest
import torch
import transformers
from cli_support import fingerprint, invoke
from forgetting_models import byte_tokenizer
from forgetting_pairs import causal_pair, masked_pair, moved
from guidance_models import generate
from peft import LoraConfig, PeftModel, get_peft_model

import intruscope
from intruscope.errors import IntruscopeError, MalformedInput, UnsupportedFormat, UsageError
from intruscope.forgetting.models import load_pair
from intruscope.guidance import GuideReport
from intruscope.guidance.run import read_prompts
from intruscope.report.guidance import guide_summary

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPTS = ["It was", "Many years later he was", "Call"]
OPTIONS = {"prompts": PROMPTS, "max_tokens": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs of both kinds as files, which nothing may change."""
    folder = tmp_path_factory.mktemp("guide")
    for name, make in (("causal", causal_pair), ("masked", masked_pair)):
        (folder / name).mkdir()
        make(folder / name)
    before = fingerprint(folder)
    yield folder
    assert fingerprint(folder) == before


@pytest.fixture(scope="module")
def names(folder):
    """The adapter trained its base's biases: only the files still have the base."""
    return folder / "causal" / "base", folder / "causal" / "lora"


@pytest.fixture(scope="module")
def modules(names):
    """Base and tuned model as transformers and PEFT load them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base, host = (transformers.GPT2LMHeadModel.from_pretrained(names[0]) for _ in range(2))
        return base, PeftModel.from_pretrained(host, names[1]).eval()


def alone(model, prompt, **options):
    """What a model writes after one prompt."""
    ids = torch.tensor([byte_tokenizer(begins=False)(prompt)["input_ids"]])
    return tuple(generate(model, ids, tokens=7, **options)[0].tolist())


def texts(report):
    return [each.text for each in report.completions]


def test_prompts_side_by_side(names, modules):
    seen = []
    report = intruscope.guide(*names, **OPTIONS, on_progress=seen.append)
    assert report.settings.gammas == (0.0, 0.5, 1.0)
    found = {(each.prompt, each.gamma): each for each in report.completions}
    assert list(found) == [(index, gamma) for index in range(3) for gamma in (0.0, 0.5, 1.0)]
    for index, prompt in enumerate(PROMPTS):
        assert found[index, 0.0].tokens == alone(modules[0], prompt)
        assert found[index, 1.0].tokens == alone(modules[1], prompt)
    tokenizer = byte_tokenizer(begins=False)
    assert texts(report) == [tokenizer.decode(each.tokens) for each in report.completions]
    assert not any(each.ended for each in report.completions)
    assert len({found[1, gamma].tokens for gamma in (0.0, 0.5, 1.0)}) > 1
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (9, 9, "texts")
    data = json.loads(json.dumps(report.to_json()))
    assert data["schema"] == "intruscope.guide/1"
    assert GuideReport.from_json(data) == report
    assert [row[:2] for row in report.rows()] == [(PROMPTS[i], gamma) for i, gamma in found]
    assert PROMPTS[2] in report._repr_html_()


def test_samples_are_those_of_the_models_and_repeat(names, modules):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    options = {"prompts": [PROMPTS[1]], "max_tokens": 7, "sample": True, "temperature": 0.7, "top_p": 0.9}
    report = intruscope.guide(*names, gammas=(0.0, 0.6, 1.0), seed=5, **options)
    assert torch.equal(torch.get_rng_state(), before)
    way = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "seed": 5}
    ends = [alone(model, PROMPTS[1], **way) for model in modules]
    assert [report.completions[place].tokens for place in (0, 2)] == ends
    assert intruscope.guide(*names, gammas=(0.0, 0.6, 1.0), seed=5, **options) == report
    assert texts(intruscope.guide(*names, gammas=(0.0, 0.6, 1.0), seed=6, **options)) != texts(report)


def test_models_in_memory(names, modules):
    tokenizer = byte_tokenizer(begins=False)
    state = {name: tensor.clone() for name, tensor in modules[0].state_dict().items()}
    full = moved(transformers.GPT2LMHeadModel.from_pretrained(names[0]), 0.05)
    report = intruscope.guide(modules[0], full, tokenizer=tokenizer, gammas=(1.0,), **OPTIONS)
    assert [each.tokens for each in report.completions] == [alone(full, prompt) for prompt in PROMPTS]
    assert all(torch.equal(value, state[name]) for name, value in modules[0].state_dict().items())


def test_the_base_beside_a_loaded_pair_shares_its_tensors(names, modules):
    pair = load_pair(*names)
    base = pair.base_language_model().model
    beside = dict(base.named_parameters())
    with pair.as_base():
        held = {name: p.data_ptr() for name, p in pair.language_model().model.named_parameters()}
    assert {name: parameter.data_ptr() for name, parameter in beside.items()} == held
    ids = torch.tensor([byte_tokenizer(begins=False)(PROMPTS[1])["input_ids"]])
    for state in (pair.as_tuned, pair.as_base):
        with state():
            assert torch.equal(base(ids).logits, modules[0](ids).logits)


def test_an_end_of_text_ends_it(names, modules):
    whole = {gamma: alone(model, PROMPTS[1]) for gamma, model in zip((0.0, 1.0), modules, strict=True)}
    tokenizer = copy.deepcopy(byte_tokenizer(begins=False))
    later = next(token for token in whole[1.0] if token != whole[1.0][0])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(later)
    end = tokenizer.eos_token_id
    report = intruscope.guide(*names, tokenizer=tokenizer, **{**OPTIONS, "prompts": [PROMPTS[1]]})
    for found in (report.completions[0], report.completions[2]):
        expected = whole[found.gamma]
        assert found.ended == (end in expected)
        assert found.tokens == expected[: expected.index(end) if found.ended else None]
    assert report.completions[2].ended
    assert 0 < len(report.completions[2].tokens) < 7


def test_prompts_go_into_the_chat_template_of_the_tuned_model(names, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(names[0])
    tokenizer.chat_template = "<{{ messages[0].content }}>{% if add_generation_prompt %} He{% endif %}"
    tuned = transformers.GPT2LMHeadModel.from_pretrained(names[0])
    moved(tuned, 0.05).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    chat = intruscope.guide(names[0], tmp_path, **OPTIONS)
    assert chat.is_chat
    assert chat.prompts == tuple(PROMPTS)
    filled = {**OPTIONS, "prompts": [f"<{prompt}> He" for prompt in PROMPTS]}
    written = intruscope.guide(names[0], tmp_path, plain=True, **filled)
    assert not written.is_chat
    assert texts(written) == texts(chat)
    assert texts(intruscope.guide(names[0], tmp_path, plain=True, **OPTIONS)) != texts(chat)
    tokenizer.chat_template = "{{ raise_exception('no users') }}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(MalformedInput, match=r"the chat template cannot be filled in \(no users\)"):
        intruscope.guide(names[0], tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"gammas": (0.5, float("nan"))}, "gamma is nan"),
        ({"gammas": (float("inf"),)}, "gamma is inf"),
        ({"gammas": (-1.0,)}, "gamma is -1"),
        ({"gammas": (0.5, 0.5)}, "has a value twice"),
        ({"gammas": ()}, "gamma is empty"),
        ({"prompts": []}, "no prompts given"),
        ({"prompts": "She"}, "no prompts given"),
        ({"prompts": [""]}, "a prompt is empty"),
        ({"max_tokens": 63}, "leaves no room for 63 new ones: the model's longest input is 64"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"plausibility": 1.5}, "plausibility must be at least 0 and at most 1"),
    ],
)
def test_requests_that_are_none(options, why, names):
    with pytest.raises(UsageError, match=why):
        intruscope.guide(*names, **{**OPTIONS, **options})


def test_masked_models_and_other_vocabularies(names, folder, tmp_path):
    with pytest.raises(UnsupportedFormat, match="masked language model, which cannot continue a text"):
        intruscope.guide(folder / "masked" / "base", folder / "masked" / "classifier", **OPTIONS)
    grown = transformers.GPT2LMHeadModel.from_pretrained(names[0])
    grown.resize_token_embeddings(grown.config.vocab_size + 3)
    grown.save_pretrained(tmp_path / "grown")
    with pytest.raises(IntruscopeError, match="vocabular"):
        intruscope.guide(names[0], tmp_path / "grown", **OPTIONS)
    host = transformers.GPT2LMHeadModel.from_pretrained(names[0])
    pissa = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights="pissa")
    get_peft_model(host, pissa).save_pretrained(tmp_path / "pissa")
    with pytest.raises(IntruscopeError, match="pissa, which also changed the base"):
        intruscope.guide(names[0], tmp_path / "pissa", **OPTIONS)


def test_the_command(names, tmp_path):
    (tmp_path / "prompts.txt").write_text("Many years later he was\n\nCall\n", encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text('{"id": 1, "prompt": "Call\\nme"}\n{"id": 2, "prompt": "She"}\n')
    assert read_prompts(tmp_path / "prompts.jsonl") == ("Call\nme", "She")
    out = tmp_path / "guide.json"
    done = invoke(
        "guide", *names, "--gamma", "0,0.5,1", "--prompt", "It was", "--prompts", tmp_path / "prompts.txt",
        "--max-tokens", "7", "--json", out, "--csv", tmp_path / "guide.csv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = GuideReport.load(out)
    assert report == intruscope.guide(*map(str, names), **OPTIONS)
    assert len((tmp_path / "guide.csv").read_text().splitlines()) >= 10
    shown = done.stdout.splitlines()
    assert shown[2] == "It was"
    assert [line.split() for line in shown if "gamma" in line] == [
        ["gamma", "0", "(base)", "gamma", "0.5", "gamma", "1", "(tuned)"]
    ] * 3
    assert len(guide_summary(report)) == 7
    for options, why in (
        (("--gamma", "0,nan", "--prompt", "x"), "--gamma"),
        ((), "no prompts given"),
        (("--prompts", tmp_path / "none.txt"), "no such file"),
    ):
        wrong = invoke("guide", *names, *options)
        assert wrong.returncode == 2
        assert why in wrong.stderr
