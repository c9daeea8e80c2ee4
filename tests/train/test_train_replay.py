"""Text that is replayed in training: the gradient is the sum, and the model forgets less."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import TrainerCallback
from tune_models import (
    without_dropout,
    write_bert,
    write_chains,
    write_choices,
    write_gpt2,
    write_learned,
    write_llama,
    write_task,
    write_text,
)

from intruscope.errors import MalformedInput, UsageError
from intruscope.forgetting.tasks import load_task
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import Sequences, Window
from intruscope.methods.registry import find, registered
from intruscope.train.encoding import encode, kept_batches
from intruscope.train.loading import load_for
from intruscope.train.plan import plan_of, training_arguments
from intruscope.train.replay import ReplayOrder, check_apart, make_replay
from intruscope.train.run import attach, trainer_for
from intruscope.train.settings import TuneSettings
from intruscope.train.tune import tune
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
TRAINED = [method for method in registered() if "no_training" not in method.departures]
BATCH = 4
WEIGHT = 0.7


class Stopped(Exception):
    """Ends a run from its progress."""


def settings(method="lora", **changes):
    usual = {"method": method, "steps": 8, "batch": BATCH, "rate": 5e-3, "save_every": 4, "watch_every": 0}
    return TuneSettings(**(usual | changes))


def same(first, second):
    files = [load_file(next(run.model.glob("*model.safetensors"))) for run in (first, second)]
    return files[0].keys() == files[1].keys() and all(
        torch.equal(files[0][name], files[1][name]) for name in files[0]
    )


# --- the order ---------------------------------------------------------------------------------------------


def windows(lengths):
    found = [
        Window(ids=np.arange(n + 2), scored=np.arange(1, n + 1), sequence=i) for i, n in enumerate(lengths)
    ]
    return Sequences(
        windows=tuple(found), bytes_N=np.array(lengths), unit="line", context=64, stride=None, num_left_out=0
    )


@pytest.mark.parametrize("masked", [False, True])
def test_every_pass_takes_every_sequence_once_and_steps_are_known_without_those_before(masked):
    text = windows([3, 20, 7, 1, 12])
    order = ReplayOrder(text, masked=masked, batch=4, seed=3)
    steps = [order.rows(step) for step in range(5)]
    rows = [row for step in steps for row in step]
    passes = [[row.window.sequence for row in rows[i : i + 5]] for i in range(0, 20, 5)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in passes) and len(set(map(tuple, passes))) > 1
    for row in rows:
        allowed = set(row.window.scored.tolist())
        assert set(row.positions.tolist()) <= allowed and len(set(row.positions)) == len(row.positions)
        assert len(row.positions) == (max(1, round(0.15 * len(allowed))) if masked else len(allowed))
    assert order.num_tokens(5) == sum(len(row.positions) for row in rows)
    assert order.num_tokens(2) == sum(len(row.positions) for row in steps[0] + steps[1])
    again = ReplayOrder(text, masked=masked, batch=4, seed=3).rows(4)
    for first, second in zip(steps[4], again, strict=True):
        assert first.window is second.window and np.array_equal(first.positions, second.positions)
    other = ReplayOrder(text, masked=masked, batch=20, seed=4).rows(0)
    assert [row.window.sequence for row in other] != [row.window.sequence for row in rows]


# --- one step's gradient against a sum by hand -------------------------------------------------------------


class Gradients(TrainerCallback):
    """The gradients of the first step, before the optimiser takes it; no other step is done."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_log = True


def base_of(kind, folder):
    if kind == "causal":
        return write_llama(folder)
    return without_dropout((write_gpt2 if kind == "endings" else write_bert)(folder))


def prepared(kind, method, target, parts, folder):
    base = base_of(kind, folder / "base")
    text = write_text(folder / "text.txt")
    if kind == "causal":
        data = read_texts([write_chains(folder / "task.txt", 1, lines=12)])
    elif kind in ("endings", "choices"):
        data = load_task(write_choices(folder / "task.jsonl", BATCH))
    else:
        data = load_task(write_task(folder / "task.tsv", BATCH))
    chosen = settings(
        method, steps=4, accumulate=parts, examples=BATCH, max_length=16, replay_weight=WEIGHT,
        replay_target=target,
    )  # fmt: skip
    source, found = open_model(str(base)), find(method)
    loaded = load_for(source, data, seed=0)
    training = encode(loaded, data, 16, at_most=BATCH)
    small = {"dropout": 0.0, "num_preserved": 2}
    options = found.options({p.name: small[p.name] for p in found.parameters if p.name in small})
    plan = plan_of(source, chosen, found, options, data, None, (), 1)
    arguments = training_arguments(plan, folder / "run", len(training.examples))
    arguments.max_grad_norm, arguments.save_strategy = 0.0, "no"
    # Not the replayed text, on which such a method hardly moves.
    kept = kept_batches(loaded, data, 16) if found.needs_kept else None
    attached = attach(loaded, found, options, training, arguments, kept=kept)
    with torch.no_grad():  # so that the adapter, and what is new, are not at their start
        generator = torch.Generator().manual_seed(5)
        for _, parameter in attached.trainable():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    trainer = trainer_for(attached, loaded, arguments, training)
    trainer.replay = make_replay(
        attached, found, loaded.tokenizer, source, read_texts([text]), chosen, batch=BATCH, max_length=16
    )
    return base, trainer, training


def log_probabilities(language, rows, mask_id):
    """(M, words) in float64 at every predicted token, row by row, without padding; and the tokens."""
    found, tokens = [], []
    for row in rows:
        ids = torch.tensor(row.window.ids)
        places = torch.tensor(row.positions)
        tokens.append(ids[places].clone())
        if mask_id is not None:
            ids[places] = mask_id
        logits = language(input_ids=ids[None]).logits[0]
        found.append(logits[places if mask_id is not None else places - 1].double().log_softmax(-1))
    return torch.cat(found), torch.cat(tokens)


@pytest.mark.parametrize(
    ("kind", "method", "target", "parts"),
    [
        *(("causal", method.name, "base", 1) for method in TRAINED),
        ("causal", "lora", "text", 1),
        ("causal", "full", "base", 2),
        ("endings", "lora", "base", 2),
        ("choices", "lora", "text", 1),
        ("classification", "lora", "base", 1),
        ("classification", "full", "text", 2),
    ],
)
def test_the_gradient_of_a_step_is_that_of_the_sum_by_hand(kind, method, target, parts, tmp_path):
    base, trainer, training = prepared(kind, method, target, parts, tmp_path)
    rows = trainer.replay._order.rows(0)
    # By hand: the task's loss, and each row of the text on its own under the base's head.
    model = trainer.model.train()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    batch = training.collate(training.examples.rows)
    task = model(**{key: torch.as_tensor(value) for key, value in batch.items()}).loss
    is_masked = kind in ("classification", "choices")
    auto = transformers.AutoModelForMaskedLM if is_masked else transformers.AutoModelForCausalLM
    mask_id = trainer.processing_class.mask_token_id if is_masked else None
    before = auto.from_pretrained(base).eval()
    language = auto.from_pretrained(base) if is_masked else inner
    if is_masked:
        language.bert = inner.bert
    now, tokens = log_probabilities(language, rows, mask_id)
    if target == "text":
        general = -now.gather(1, tokens[:, None]).mean()
    else:
        with torch.no_grad():
            then, _ = log_probabilities(before, rows, mask_id)
        general = (then.exp() * (then - now)).sum(1).mean()
        assert float(general.detach()) > 1e-4
    (task.double() + WEIGHT * general).backward()
    task, general = float(task.detach()), float(general.detach())
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    seen = Gradients()
    trainer.add_callback(seen)
    trainer.train()
    assert expected.keys() == seen.found.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(seen.found[name], gradient, rtol=1e-4, atol=1e-5 * largest)
    logged = [entry["replay_loss"] for entry in trainer.state.log_history if "replay_loss" in entry]
    assert logged == [pytest.approx(general, rel=1e-4)]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == [pytest.approx(task, rel=1e-3)]  # the task's alone


# --- runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return write_learned(tmp_path_factory.mktemp("learned"))


def continued(learned, out, weight, **changes):
    base, texts = learned
    usual = {"steps": 24, "rate": 2e-2, "max_length": 24, "watch_every": 24, "replay_weight": weight}
    return tune(
        str(base), out=out, settings=settings(**(usual | changes)), data=read_texts([texts["task"]]),
        forget_text=[texts["measure"]], replay=read_texts([texts["replay"]]), pictures=False,
    )  # fmt: skip


def test_replay_lowers_forgetting_and_says_what_was_replayed(learned, tmp_path):
    reports = {
        name: continued(learned, tmp_path / name, weight, replay_target=target)
        for name, weight, target in (("none", 0.0, "text"), ("text", 1.0, "text"), ("base", 1.0, "base"))
    }
    forgotten = {name: report.watch["intruders/forgetting"] for name, report in reports.items()}
    assert forgotten["none"] > 1.0
    assert max(forgotten["text"], forgotten["base"]) < 0.3 * forgotten["none"]
    for name in reports:  # the task is learned
        log = json.loads((tmp_path / name / "run.json").read_text())["log"]
        losses = [entry["loss"] for entry in log if "loss" in entry]
        assert losses[-1] < 0.6 * losses[0]
    record = json.loads((tmp_path / "text" / "run.json").read_text())
    texts = learned[1]
    assert record["plan"]["replay"] == {
        "text": [str(texts["replay"])], "sha256": read_texts([texts["replay"]]).sha256, "weight": 1.0,
        "target": "text",
    }  # fmt: skip
    replayed = record["replay"]
    assert replayed["num_replayed"] == 24 * BATCH
    assert replayed["loss"] == pytest.approx(reports["text"].watch["intruders/text_loss"], abs=0.5)
    assert replayed["sha256"] == record["plan"]["replay"]["sha256"]
    words = replayed["num_tokens"] / replayed["num_sequences"]
    assert replayed["num_predicted"] == pytest.approx(words * 24 * BATCH, rel=0.1)
    assert (
        reports["none"].replay is None
        and json.loads((tmp_path / "none" / "run.json").read_text())["plan"]["replay"]["weight"] == 0.0
    )


def test_weight_zero_is_the_run_without_replay_bit_for_bit(tmp_path):
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))  # with dropout
    text = read_texts([write_text(tmp_path / "text.txt")])
    runs = [
        tune(
            str(base), out=tmp_path / name, settings=settings(replay_weight=weight), data=task,
            replay=text if replays else None,
        )
        for name, weight, replays in (("plain", 1.0, False), ("zero", 0.0, True), ("one", 1.0, True))
    ]  # fmt: skip
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


@pytest.mark.parametrize(("method", "target"), [("lora", "base"), ("full", "text")])
def test_a_run_stopped_in_the_middle_replays_as_if_it_had_not_been(method, target, tmp_path):
    """With dropout, and masks that are drawn."""
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))
    text = read_texts([write_text(tmp_path / "text.txt")])
    chosen = settings(method, replay_target=target, replay_weight=2.0, accumulate=2)

    def until_step_6(event):
        if event.done == 6:
            raise Stopped

    whole = tune(str(base), out=tmp_path / "whole", settings=chosen, data=task, replay=text)
    with pytest.raises(Stopped):
        tune(
            str(base), out=tmp_path / "stopped", settings=chosen, data=task, replay=text,
            on_progress=until_step_6,
        )  # fmt: skip
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-4").is_dir()
    resumed = tune(str(base), out=tmp_path / "stopped", settings=chosen, data=task, replay=text)
    assert same(whole, resumed)
    assert whole.replay.num_predicted == resumed.replay.num_predicted > 0


def test_a_loss_on_the_text_that_is_nan_ends_the_run(tmp_path, monkeypatch):
    from intruscope.errors import IncompleteResult
    from intruscope.train.replay import Replay

    backward = Replay.backward

    def poisoned(self, step, *args, **kwargs):
        return backward(self, step, *args, **kwargs) * (float("nan") if step == 5 else 1.0)

    monkeypatch.setattr(Replay, "backward", poisoned)
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))
    text = read_texts([write_text(tmp_path / "text.txt")])
    with pytest.raises(IncompleteResult, match="loss.*step 6.*checkpoint-4"):
        tune(str(base), out=tmp_path / "run", settings=settings(), data=task, replay=text)


# --- what is refused ---------------------------------------------------------------------------------------


def test_a_base_without_a_language_model_head_is_refused_before_the_first_step(tmp_path):
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))
    body = transformers.BertModel.from_pretrained(base, add_pooling_layer=False)
    body.save_pretrained(base)
    text = read_texts([write_text(tmp_path / "text.txt")])
    with pytest.raises(MalformedInput, match="without a language-model head"):
        tune(str(base), out=tmp_path / "run", settings=settings(), data=task, replay=text)
    assert not (tmp_path / "run").exists()


def test_texts_that_overlap_are_refused_and_shared_headings_are_not(tmp_path):
    licence = "Licensed under the terms that are in the file beside this one.\n"
    lines = [f"This is the sentence with number {n} of a long text.\n" for n in range(40)]

    def corpus(name, own):
        (tmp_path / name).write_text(licence + "".join(own) + "Yes.\n")
        return read_texts([tmp_path / name])

    replayed = corpus("replayed", lines[:20])
    check_apart(replayed, corpus("other", lines[20:]))
    for name, own in (("copy", lines[:20]), ("most", lines[:20] + lines[30:]), ("few", lines[16:])):
        with pytest.raises(UsageError, match="also replayed"):
            check_apart(replayed, corpus(name, own))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_refused(weight, tmp_path):
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))
    with pytest.raises(UsageError, match="replay weight"):
        tune(str(base), out=tmp_path / "run", settings=settings(replay_weight=weight), data=task)
