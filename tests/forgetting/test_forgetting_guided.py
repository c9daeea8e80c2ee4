"""Losses and scores of guidance, against a mixture computed naively from both models run alone."""

import json

import numpy as np
import pytest
import torch
from forgetting_models import TEXT
from forgetting_pairs import causal_pair, masked_pair, moved
from peft import LoraConfig, get_peft_model
from transformers import BertForMultipleChoice

import intruscope
from intruscope.errors import UsageError
from intruscope.forgetting.guided import Guided
from intruscope.forgetting.losses import measure, rows_of
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.scores import score
from intruscope.forgetting.tasks import load_task
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut
from intruscope.report.forgetting import forgetting_sentence, forgetting_summary

pytestmark = pytest.mark.filterwarnings("ignore")
GAMMA = 0.4


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    causal_pair(folder)
    return _with_data(folder, "lora")


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    masked_pair(folder)
    return _with_data(folder, "classifier")


def _with_data(folder, tuned):
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    rows = [
        {"prompt": "She", "choices": ["waited", "said"], "answer": 0},
        {"prompt": "A", "choices": ["naïve", "famous owner"], "answer": 1},
    ]
    (folder / "choices.json").write_text(json.dumps(rows))
    (folder / "labels.csv").write_text("text,label\nshe waited,0\nall happy families,1\ncall me,1\n")
    return folder, load_pair(folder / "base", folder / tuned)


def in_both(pair, run):
    """What a call gives in either state, in float64."""
    found = []
    for state in (pair.as_base, pair.as_tuned):
        with state(), torch.no_grad():
            found.append(run().double())
    return found


def mixture(before, after):
    """Log-probabilities, written out: normalised p_base^(1 - gamma) p_tuned^gamma."""
    product = before.softmax(-1) ** (1 - GAMMA) * after.softmax(-1) ** GAMMA
    return (product / product.sum(-1, keepdim=True)).log()


def tokens_nats(pair, ids):
    """Of every token but the first, from left to right."""
    model, ids = pair.language_model().model, torch.tensor(ids)
    log_p = mixture(*in_both(pair, lambda: model(input_ids=ids[None]).logits[0, :-1]))
    return -log_p.gather(-1, ids[1:, None])[:, 0]


def test_text_of_a_causal_model(causal):
    folder, pair = causal
    language = pair.language_model()
    sequences = cut(read_texts([folder / "text.txt"]), language, unit="line")
    got = measure(
        language, sequences, protocol="causal", guided=Guided(pair=pair, gamma=GAMMA), batch_tokens=99
    )
    expected = [float(tokens_nats(pair, w.ids.tolist()).sum()) for w in sequences.windows]
    assert got.nats == pytest.approx(expected, abs=1e-4)
    for gamma, state in ((0.0, pair.as_base), (1.0, pair.as_tuned)):
        guided = measure(language, sequences, protocol="causal", guided=Guided(pair=pair, gamma=gamma))
        with state():
            assert np.array_equal(guided.nats, measure(language, sequences, protocol="causal").nats)
        assert not np.allclose(guided.nats, got.nats, rtol=1e-3)


def test_text_of_a_masked_model(masked):
    folder, pair = masked
    language = pair.language_model()
    sequences = cut(read_texts([folder / "text.txt"]), language)
    got = measure(language, sequences, protocol="fast", seed=3, guided=Guided(pair=pair, gamma=GAMMA))
    expected = np.zeros(sequences.num_sequences)
    for row in rows_of(sequences.windows, "fast", 3):
        ids = torch.tensor(row.window.ids)
        hidden = ids.clone()
        hidden[row.positions] = language.tokenizer.mask_token_id
        log_p = mixture(*in_both(pair, lambda ids=hidden: language.model(input_ids=ids[None]).logits[0]))
        for place in row.positions:
            expected[row.window.sequence] -= float(log_p[place, ids[place]])
    assert got.nats == pytest.approx(expected, abs=1e-4)


def test_a_classification(masked):
    folder, pair = masked
    model = pair.task_model()
    task = load_task(folder / "labels.csv")
    got = score(pair, task, guided=Guided(pair=pair, gamma=GAMMA))
    for index, ((text, _), label) in enumerate(zip(task.texts, task.labels, strict=True)):
        encoded = model.tokenizer(text, return_tensors="pt")
        log_p = mixture(*in_both(pair, lambda encoded=encoded: model.model(**encoded).logits[0]))
        assert got.nats_N[index] == pytest.approx(-float(log_p[int(label)]), abs=1e-5)
        assert got.right_N[index] == (int(log_p.argmax()) == int(label))
    with pair.as_tuned():
        plain = score(pair, task)
    assert np.array_equal(score(pair, task, guided=Guided(pair=pair, gamma=1.0)).nats_N, plain.nats_N)
    assert not np.allclose(got.nats_N, plain.nats_N, rtol=1e-3)


def test_multiple_choice_by_the_language_model(causal):
    folder, pair = causal
    tokenizer = pair.language_model().tokenizer
    task = load_task(folder / "choices.json")
    got = score(pair, task, guided=Guided(pair=pair, gamma=GAMMA))
    for index, choice in enumerate(task.choices):
        totals = []
        for prompt, ending in zip(choice.prompts, choice.endings, strict=True):
            num_prompt = len(tokenizer(prompt)["input_ids"])
            totals.append(
                -float(tokens_nats(pair, tokenizer(prompt + ending)["input_ids"])[num_prompt - 1 :].sum())
            )
        expected = np.logaddexp.reduce(totals) - totals[choice.answer]
        assert got.nats_N[index] == pytest.approx(expected, abs=1e-4)


def test_multiple_choice_by_a_head(masked, tmp_path):
    folder, _ = masked
    host = BertForMultipleChoice.from_pretrained(folder / "base")
    config = LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier", "pooler"])
    moved(get_peft_model(host, config)).save_pretrained(tmp_path / "chooser")
    pair = load_pair(folder / "base", tmp_path / "chooser")
    task, model = load_task(folder / "choices.json"), pair.choice_model()
    got = score(pair, task, guided=Guided(pair=pair, gamma=GAMMA))
    for index, choice in enumerate(task.choices):
        encoded = [
            model.tokenizer(prompt, ending, return_tensors="pt")
            for prompt, ending in zip(choice.prompts, choice.endings, strict=True)
        ]

        def scores(encoded=encoded):
            return torch.cat(
                [model.model(**{key: value[None] for key, value in one.items()}).logits[0] for one in encoded]
            )

        expected = -float(mixture(*in_both(pair, scores))[choice.answer])
        assert got.nats_N[index] == pytest.approx(expected, abs=1e-5)


def test_a_report_of_guidance_says_so(causal):
    folder, pair = causal
    models, options = (folder / "base", folder / "lora"), {"text": folder / "text.txt", "unit": "line"}
    task = load_task(folder / "choices.json")
    report = intruscope.forget(*models, gamma=GAMMA, tasks=[task], **options)
    language = pair.language_model()
    sequences = cut(read_texts([folder / "text.txt"]), language, unit="line")
    expected = measure(language, sequences, protocol="causal", guided=Guided(pair=pair, gamma=GAMMA))
    assert report.tuned_loss.nats_per_token.estimate == pytest.approx(expected.nats_per_token, abs=1e-6)
    plain = intruscope.forget(*models, tasks=[task], **options)
    assert report.base_loss == plain.base_loss
    assert 0.0 < report.forgetting.estimate < plain.forgetting.estimate
    assert report.tasks[0].base == plain.tasks[0].base
    assert intruscope.forget(*models, gamma=1.0, tasks=[task], **options).tasks == plain.tasks
    nothing = intruscope.forget(*models, gamma=0.0, **options).forgetting
    assert (nothing.estimate, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    assert forgetting_sentence(report).startswith("With guidance at gamma 0.4, the model forgot: the loss on")
    assert [row[1] for row in report.rows()][:3] == ["base", "guided", "guided - base"]
    assert list(forgetting_summary(report)[1].columns[0].cells) == ["base", "guided"]
    assert intruscope.ForgettingReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    fleet = intruscope.forget_fleet(folder / "base", [folder / "lora"], gamma=GAMMA, **options).reports[0]
    assert fleet.forgetting.estimate == pytest.approx(report.forgetting.estimate, abs=1e-6)
    with pytest.raises(UsageError, match="not on skills"):
        intruscope.forget(*models, gamma=GAMMA, skills=["piqa"], **options)
    with pytest.raises(UsageError, match="not that of guidance"):
        intruscope.forget_where(*models, gamma=GAMMA, **options)
    for gamma in (float("nan"), float("inf"), -1.0):
        with pytest.raises(UsageError, match="gamma is"):
            intruscope.forget(*models, gamma=gamma, **options)
