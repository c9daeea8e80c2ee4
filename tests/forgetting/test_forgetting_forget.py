"""The whole measurement, by name and from memory, against both models run by hand."""

import json
import math
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
import transformers
from forgetting_models import TEXT
from forgetting_pairs import causal_pair, masked_pair, moved
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import intruscope
from intruscope.errors import IntruscopeError, MalformedInput
from intruscope.forgetting import measurement as measurement_module
from intruscope.forgetting.losses import measure, positions_per_sequence
from intruscope.forgetting.measurement import MAX_CHECK_SHARE, NUM_CHECKED, sequences_to_check
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut, spread
from intruscope.report.forgetting import forgetting_sentence
from intruscope.weights.output import json_text

pytestmark = pytest.mark.filterwarnings("ignore")
LINES = TEXT.splitlines()


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder, causal_pair(folder)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder, masked_pair(folder)


def line_nats(model, tokenizer):
    """Nats and tokens of every line, by the model's own shifted loss."""
    found = []
    for line in LINES:
        ids = tokenizer(line, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=ids).loss)
        found.append((loss * (ids.shape[1] - 1), ids.shape[1] - 1))
    return np.array(found).T


@pytest.mark.parametrize("which", ["lora", "full"])
def test_figures_are_those_of_both_models_run_by_hand(which, causal):
    folder, (base, lora, full) = causal
    report = intruscope.forget(folder / "base", folder / which, text=folder / "text.txt", unit="line")
    from intruscope.adapters.live_tokenizers import open_tokenizer

    tokenizer = open_tokenizer(folder / "base")
    before, tokens = line_nats(base, tokenizer)
    after, _ = line_nats({"lora": lora, "full": full}[which], tokenizer)
    assert report.base_loss.nats_per_token.estimate == pytest.approx(before.sum() / tokens.sum(), abs=1e-5)
    assert report.tuned_loss.nats_per_token.estimate == pytest.approx(after.sum() / tokens.sum(), abs=1e-5)
    expected = (after - before).sum() / tokens.sum()
    assert report.forgetting.estimate == pytest.approx(expected, abs=1e-5)
    assert expected > 0.01
    assert report.forgetting.low < expected < report.forgetting.high
    assert report.num_tokens == tokens.sum()
    assert report.num_sequences == len(LINES)
    assert report.tuned_loss.perplexity == pytest.approx(np.exp(after.sum() / tokens.sum()), rel=1e-4)
    per_byte = report.base_loss.nats_per_byte * report.num_bytes
    assert per_byte == pytest.approx(before.sum(), rel=1e-5)


def test_an_adapter_alone_and_base_plus_adapter_and_a_file(causal):
    folder, _ = causal
    options = {"text": folder / "text.txt", "unit": "line"}
    pair = intruscope.forget(folder / "base", folder / "lora", **options)
    names = [
        (folder / "lora",),
        (f"{folder / 'base'}+{folder / 'lora'}",),
        (folder / "base" / "model.safetensors", folder / "lora" / "adapter_model.safetensors"),
    ]
    for name in names:
        same = intruscope.forget(*name, **options)
        assert same.forgetting == pair.forgetting
        assert same.base_loss == pair.base_loss


def test_models_in_memory_give_the_same_and_stay_as_they_are(causal):
    folder, (base, _, full) = causal
    from intruscope.adapters.live_tokenizers import open_tokenizer

    before = {key: value.clone() for key, value in full.state_dict().items()}
    options = {"text": folder / "text.txt", "unit": "line"}
    named = intruscope.forget(folder / "base", folder / "full", **options)
    got = intruscope.forget(base, full, tokenizer=open_tokenizer(folder / "base"), **options)
    assert got.forgetting == named.forgetting
    assert got.forgetting == intruscope.forget(folder / "base", full, **options).forgetting
    assert all(torch.equal(value, before[key]) for key, value in full.state_dict().items())
    with pytest.raises(IntruscopeError, match="one model is in memory and the other is given by name"):
        intruscope.forget(base, folder / "full", **options)


def test_the_other_way_round_and_against_itself(causal):
    folder, _ = causal
    options = {"text": folder / "text.txt", "unit": "line"}
    there = intruscope.forget(folder / "base", folder / "full", **options)
    back = intruscope.forget(folder / "full", folder / "base", tokenizer=folder / "base", **options)
    assert back.forgetting.estimate == pytest.approx(-there.forgetting.estimate, abs=1e-9)
    assert forgetting_sentence(there).startswith("The fine-tune forgot: the loss on this text went from")
    assert forgetting_sentence(back).startswith("The fine-tune forgot nothing here")
    same = intruscope.forget(folder / "base", folder / "base", **options)
    assert (same.forgetting.estimate, same.forgetting.low, same.forgetting.high) == (0.0, 0.0, 0.0)
    assert forgetting_sentence(same).startswith("This text shows no measurable forgetting")


@pytest.mark.parametrize("protocol", ["exact", "fast"])
def test_a_masked_model_and_its_classifier(protocol, masked, tmp_path, monkeypatch):
    folder, (base, tuned) = masked
    monkeypatch.setattr(measurement_module, "MAX_CHECK_SHARE", math.inf)  # check all eight lines
    (tmp_path / "task.csv").write_text("text,label\nshe waited,0\nall happy families,1\ncall me,1\n")
    task = intruscope.load_task(tmp_path / "task.csv")
    report = intruscope.forget(
        folder / "base", folder / "classifier", text=folder / "text.txt", protocol=protocol, tasks=[task]
    )
    assert report.settings.protocol == f"masked-pseudo-loss-{protocol}/1"
    assert (report.settings.unit, report.settings.stride) == ("line", None)
    from intruscope.adapters.live_tokenizers import open_tokenizer

    tokenizer = open_tokenizer(folder / "base")
    body = tuned.base_model.model.bert
    change, tokens = 0.0, 0
    for line in LINES if protocol == "exact" else []:
        ids = tokenizer(line, return_tensors="pt")["input_ids"][0]
        for i in range(1, len(ids) - 1):
            masked_ids = ids.clone()
            masked_ids[i] = tokenizer.mask_token_id
            with torch.no_grad():
                for model, sign in ((base.bert, -1), (body, 1)):
                    logits = base.cls(model(input_ids=masked_ids[None]).last_hidden_state)[0, i]
                    change -= sign * float(torch.log_softmax(logits, 0)[ids[i]])
            tokens += 1
    if protocol == "exact":
        assert report.num_tokens == tokens
        assert report.forgetting.estimate == pytest.approx(change / tokens, abs=1e-5)
        assert report.fast_error is None
    else:
        exact = intruscope.forget(folder / "base", folder / "classifier", text=folder / "text.txt")
        # All sequences were checked here, so that the error is known to the last digit.
        assert report.num_checked == report.num_sequences <= NUM_CHECKED
        error = report.forgetting.estimate - exact.forgetting.estimate
        assert report.fast_error.estimate == pytest.approx(error, abs=1e-6)
        assert report.fast_error.low <= error <= report.fast_error.high
    (figures,) = report.tasks
    assert (figures.base, figures.difference, figures.num_examples) == (None, None, 3)
    right = []
    for text, label in (("she waited", 0), ("all happy families", 1), ("call me", 1)):
        with torch.no_grad():
            right.append(int(tuned(**tokenizer(text, return_tensors="pt")).logits.argmax()) == label)
    assert figures.tuned.estimate == pytest.approx(np.mean(right))


def test_the_check_of_the_fast_protocol_costs_a_modest_share_of_what_it_saves(masked, tmp_path):
    folder, _ = masked
    models = folder / "base", folder / "classifier"
    (tmp_path / "text.txt").write_text("\n".join(LINES * 5), encoding="utf-8")
    report = intruscope.forget(*models, text=tmp_path / "text.txt", protocol="fast")
    sequences = cut(read_texts([tmp_path / "text.txt"]), load_pair(*models).language_model())
    exact, fast = (positions_per_sequence(sequences, protocol) for protocol in ("exact", "fast"))
    lengths = [len(window.ids) for window in sequences.windows]
    assert list(exact) == [length * (length - 2) for length in lengths]  # a pass for each token but two
    assert list(fast) == [length * min(length - 2, 7) for length in lengths]
    checked = sequences_to_check(sequences)
    assert 2 <= report.num_checked == len(checked) < NUM_CHECKED
    saved = exact.sum() - fast.sum()
    assert exact[list(checked)].sum() <= MAX_CHECK_SHARE * saved
    more = spread(len(exact), len(checked) + 1)
    assert exact[more].sum() > MAX_CHECK_SHARE * saved  # as many as it allows
    # The error is that of these very lines, with the masks of the whole measurement.
    few = sequences.only(checked)
    assert few.num_sequences == len(checked)
    pair = load_pair(*models)
    change = {}
    for name in ("fast", "exact"):
        with pair.as_base():
            before = measure(pair.language_model(), sequences, protocol=name).nats
        with pair.as_tuned():
            change[name] = measure(pair.language_model(), sequences, protocol=name).nats - before
    error = (change["fast"] - change["exact"])[list(checked)]
    tokens = [length - 2 for length in lengths]
    expected = error.sum() / sum(tokens[i] for i in checked)
    assert report.fast_error.estimate == pytest.approx(expected, abs=1e-7)


def test_a_text_too_small_for_the_check_is_measured_exactly(masked):
    folder, _ = masked
    models, notices = (folder / "base", folder / "classifier"), []
    options = {"text": folder / "text.txt", "max_sequences": 4}
    report = intruscope.forget(*models, protocol="fast", on_notice=notices.append, **options)
    exact = intruscope.forget(*models, protocol="exact", **options)
    assert report.settings.protocol == "masked-pseudo-loss-exact/1"
    assert (report.forgetting, report.fast_error, report.num_checked) == (exact.forgetting, None, 0)
    assert ["so the exact protocol is used" in notice for notice in notices] == [True]


def test_a_task_whose_head_is_missing_leaves_the_forgetting(masked, tmp_path):
    folder, _ = masked
    headless = shutil.copytree(folder / "classifier", tmp_path / "adapter")
    weights = load_file(headless / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "classifier" not in name}
    assert len(kept) < len(weights)
    save_file(kept, headless / "adapter_model.safetensors")
    config = json.loads((headless / "adapter_config.json").read_text())
    config["modules_to_save"] = ["pooler"]
    (headless / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "task.csv").write_text("text,label\nshe waited,0\ncall me,1\n")
    (tmp_path / "choice.json").write_text(json.dumps([{"prompt": "She", "choices": ["a", "b"], "answer": 0}]))
    tasks = [intruscope.load_task(tmp_path / name) for name in ("task.csv", "choice.json")]
    options = {"text": folder / "text.txt", "protocol": "exact"}
    report = intruscope.forget(folder / "base", headless, tasks=tasks, **options)
    whole = intruscope.forget(folder / "base", folder / "classifier", **options)
    assert report.forgetting == whole.forgetting
    assert [task.name for task in report.tasks] == [str(tmp_path / "choice.json")]
    (finding,) = report.findings
    assert (finding.code, finding.severity) == ("task-not-scored", "error")
    assert "task.csv was not scored" in finding.message
    assert "classifier" in finding.message
    assert report.to_json()["findings"][0]["message"] == finding.message
    assert whole.findings == ()


def relabelled(adapter, folder, **changes):
    """A copy of an adapter whose config says something else."""
    copy = shutil.copytree(adapter, folder)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return copy


def test_a_task_type_that_is_wrong_is_named_with_the_modules_and_the_adapters_base(masked, tmp_path):
    folder, _ = masked
    changes = {"task_type": "CAUSAL_LM", "base_model_name_or_path": "org/own-base"}
    adapter = relabelled(folder / "classifier", tmp_path / "adapter", **changes)
    with pytest.raises(MalformedInput) as caught:
        intruscope.forget(folder / "base", adapter, text=folder / "text.txt")
    assert "the adapter trained" in caught.value.fact
    assert "classifier" in caught.value.fact
    assert "BertForMaskedLM, the base with task_type CAUSAL_LM" in caught.value.fact
    assert "it names org/own-base" in caught.value.remedy


def test_a_task_type_that_does_not_matter_is_no_obstacle(masked, tmp_path):
    """CAUSAL_LM on a BERT whose body alone was trained: PEFT's class for it would want a causal model."""
    folder, _ = masked
    torch.manual_seed(0)
    base = transformers.BertForMaskedLM.from_pretrained(folder / "base")
    config = LoraConfig(r=2, target_modules=["query", "value"])
    tuned = moved(get_peft_model(base, config), 0.2)
    tuned.save_pretrained(tmp_path / "plain")
    adapter = relabelled(tmp_path / "plain", tmp_path / "adapter", task_type="CAUSAL_LM")
    options = {"text": folder / "text.txt", "max_sequences": 3}
    report = intruscope.forget(folder / "base", adapter, **options)
    expected = intruscope.forget(folder / "base", tuned, **options)
    assert report.forgetting.estimate == pytest.approx(expected.forgetting.estimate, abs=1e-6)
    assert abs(expected.forgetting.estimate) > 1e-3


def test_labels_that_do_not_fit_are_refused_before_the_work(masked, tmp_path):
    folder, _ = masked
    (tmp_path / "task.csv").write_text("text,label\nshe waited,0\ncall me,7\n")
    stages = []
    with pytest.raises(MalformedInput, match="label '7'"):
        intruscope.forget(
            folder / "base",
            folder / "classifier",
            text=folder / "text.txt",
            tasks=[intruscope.load_task(tmp_path / "task.csv")],
            on_progress=lambda event: stages.append(event.stage),
        )
    assert set(stages) == {"loading"}


def test_a_task_of_choices_is_paired_with_the_base(causal, tmp_path):
    folder, _ = causal
    rows = [{"prompt": "She", "choices": ["waited.", "said"], "answer": i % 2} for i in range(6)]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    report = intruscope.forget(
        folder / "base",
        folder / "full",
        text=folder / "text.txt",
        unit="line",
        tasks=[intruscope.load_task(tmp_path / "t.json"), intruscope.load_task(folder / "text.txt")],
    )
    choice, held = report.tasks
    assert choice.base.estimate == choice.tuned.estimate == 0.5
    assert 0 <= choice.mcnemar_p <= 1
    assert choice.difference.low <= choice.difference.estimate <= choice.difference.high
    assert held.metric == "nats/token"
    assert held.difference.estimate == pytest.approx(held.tuned.estimate - held.base.estimate)
    assert held.mcnemar_p is None


def test_the_contract_of_the_json(causal):
    folder, _ = causal
    options = {"text": folder / "text.txt", "context": 32}
    report = intruscope.forget(folder / "base", folder / "lora", **options)
    report.save(folder / "forget.json")
    assert intruscope.ForgettingReport.load(folder / "forget.json") == report
    with pytest.raises(IntruscopeError, match=r"schema intruscope.forget/1; ScanReport reads"):
        intruscope.ScanReport.load(folder / "forget.json")
    frame = report.to_pandas().set_index(["figure", "model", "unit"])
    found = frame.loc[("forgetting", "tuned - base", "nats/token")]
    assert (found.estimate, found.low) == (report.forgetting.estimate, report.forgetting.low)
    assert f'<div class="big">{report.forgetting.estimate:+.3f} ' in report._repr_html_()
    data = json.loads(json_text(report.to_json()))
    assert data["schema"] == "intruscope.forget/1"
    assert data["forgetting"]["unit"] == "nats/token"
    gap = data["tuned"]["loss"] - data["base"]["loss"]
    assert data["forgetting"]["estimate"] == pytest.approx(gap)
    assert data["forgetting"]["low"] < data["forgetting"]["estimate"] < data["forgetting"]["high"]
    assert data["protocol"] == "causal-cross-entropy/1"
    assert data["settings"] == asdict(report.settings)
    assert (data["settings"]["context"], data["settings"]["stride"]) == (32, 16)
    assert data["num_sequences"] == report.num_sequences > 5
    assert data["text_sha256"] == report.texts[0].sha256
    assert {"base", "tuned", "num_tokens", "texts", "tasks", "environment"} <= data.keys()
    again = intruscope.forget(
        folder / "base", folder / "lora", text=folder / "text.txt", context=32, batch_tokens=50
    )
    assert again.forgetting.estimate == pytest.approx(report.forgetting.estimate, abs=1e-6)
