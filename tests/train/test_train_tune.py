"""A run gives what its record says, goes on where it was killed, and stops where there is nothing to save."""

import json
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from tune_models import (
    without_dropout,
    write_bert,
    write_choices,
    write_gpt2,
    write_llama,
    write_task,
    write_text,
)

from intruscope.engine.journal import Journal
from intruscope.errors import (
    IncompleteResult,
    OutputConflict,
    ResourceExhausted,
    UnsupportedFormat,
    UsageError,
)
from intruscope.forgetting.tasks import load_task
from intruscope.forgetting.texts import read_texts
from intruscope.methods.registry import find, registered
from intruscope.train.encoding import kept_batches
from intruscope.train.loading import load_for
from intruscope.train.look_file import read_looks
from intruscope.train.recipes import PAPER
from intruscope.train.settings import TuneSettings
from intruscope.train.trainer import SteadyTrainer
from intruscope.train.tune import tune
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def settings(method="lora", **changes):
    usual = {"method": method, "steps": 12, "batch": 8, "rate": 5e-3, "save_every": 4, "watch_every": 4}
    return TuneSettings(**(usual | changes))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_classifier_is_trained_scored_saved_and_recorded(method, tmp_path):
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))
    before = {p.name: p.read_bytes() for p in base.iterdir()}
    out = tmp_path / "run"
    rate = 5e-3 if method == "full" else 2e-2
    chosen = settings(method, accumulate=2, steps=36, rate=rate)
    report = tune(
        str(base), out=out, settings=chosen, data=task, held_out=task,
        forget_text=[write_text(tmp_path / "text.txt")],
    )  # fmt: skip
    assert len(report.accuracy) == 6 and report.accuracy[-1] == 1.0
    assert {p.name: p.read_bytes() for p in base.iterdir()} == before
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "model")
    batch = tokenizer([first for first, _ in task.texts], return_tensors="pt", padding=True)
    logits = []
    for seed in (1, 2):  # the base has no pooler: whoever loads the adapter draws one
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            base if method == "lora" else out / "model", num_labels=2
        )
        model = PeftModel.from_pretrained(model, out / "model") if method == "lora" else model
        logits.append(model.eval()(**batch).logits)
    torch.testing.assert_close(*logits)
    right = logits[0].argmax(-1) == torch.tensor(task.numbers(("cold", "happy")))
    assert bool(right.all())
    if method == "full":
        stored, start = load_file(out / "model" / "model.safetensors"), load_file(base / "model.safetensors")
        for name in start:
            if name in stored:
                assert torch.equal(stored[name], start[name]) == ("embeddings" in name and "Norm" not in name)
    record = json.loads((out / "run.json").read_text())
    assert record["schema"] == "intruscope.tune/1"
    assert record["plan"]["rate"] == rate and record["plan"]["warmup"] == 0.06
    assert record["plan"]["data_sha256"] == task.sha256
    rates = [entry["learning_rate"] for entry in record["log"] if "learning_rate" in entry]
    assert max(rates) <= rate and rates[-1] < 0.2 * rate
    assert "intruders/forgetting" in record["watch"]
    assert [look.step for look in read_looks(out / "intruders" / "looks.jsonl")[1]] == [*range(0, 37, 4)]
    assert not (out / "checkpoints").exists()
    with pytest.raises(OutputConflict, match="finished"):
        tune(str(base), out=out, settings=settings(method), data=task)


@pytest.mark.parametrize("method", ["pissa", "adalora", "chain", "vera", "oft", "eva"])
def test_any_method_is_watched_and_saved(method, tmp_path):
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))
    report = tune(str(base), out=tmp_path / "run", settings=settings(method), data=task)
    looks = read_looks(tmp_path / "run" / "intruders" / "looks.jsonl")[1]
    assert [look.step for look in looks] == [0, 4, 8, 12]
    assert not looks[0].intruders and looks[-1].matrices != looks[0].matrices
    assert report.num_trained > 0 and any((tmp_path / "run" / "model").iterdir())


@pytest.mark.parametrize("kind", ["classifier", "causal"])
def test_a_method_that_starts_from_text_to_keep_leaves_it_as_it_is(kind, tmp_path):
    """The text has fewer tokens than any layer has inputs: LoRA-Null changes nothing on it, LoRA does."""
    base = (write_llama if kind == "causal" else write_bert)(tmp_path / "base")
    kept = tmp_path / "kept.txt"
    kept.write_text("a bright cold day\nthe clocks were striking\n")
    data = load_task(write_task(tmp_path / "task.tsv"))
    if kind == "causal":
        data = read_texts([write_text(tmp_path / "text.txt")])
    moved = {}
    for method in ("lora", "lora_null"):
        chosen = settings(method, steps=6, rate=0.05, watch_every=0, max_length=6, options={"rank": 2})
        keep = read_texts([kept]) if method == "lora_null" else None
        out = tmp_path / method
        tune(str(base), out=out, settings=chosen, data=data, keep_text=keep)
        record = json.loads((out / "run.json").read_text())
        assert record["plan"].get("keep_text_sha256") == (keep.sha256 if keep is not None else None)
        loaded = load_for(open_model(str(base)), data, seed=0)
        (batch,) = kept_batches(loaded, read_texts([kept]), 6)
        real = batch["attention_mask"].bool()
        before = loaded.model.base_model(**batch)[0].detach()[real]
        tuned = find(method).load(loaded.model, out / "model").model
        after = tuned.get_base_model().base_model(**batch)[0].detach()[real]
        moved[method] = float((after - before).norm() / before.norm())
    assert moved["lora_null"] < 1e-4 < 1e-2 < moved["lora"]
    with pytest.raises(UsageError, match=r"lora_null starts from text .* --keep-text"):
        tune(str(base), out=tmp_path / "none", settings=settings("lora_null"), data=data)
    with pytest.raises(
        UsageError, match="lora does not start from text to keep, so --keep-text has no effect"
    ):
        tune(str(base), out=tmp_path / "none", settings=settings("lora"), data=data, keep_text=keep)
    with pytest.raises(UsageError, match="measured on is also the text to keep"):
        tune(
            str(base), out=tmp_path / "none", settings=settings("lora_null"), data=data, keep_text=keep,
            forget_text=[kept],
        )  # fmt: skip
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("kind", "method"), [("causal", "lora"), ("masked", "lora"), ("masked", "eva")])
def test_a_language_model_learns_its_text(kind, method, tmp_path):
    base = (write_llama if kind == "causal" else write_bert)(tmp_path / "base")
    text = write_text(tmp_path / "text.txt")
    chosen = settings(method, steps=30, max_length=24, watch_every=15, bf16=True)
    report = tune(
        str(base), out=tmp_path / "run", settings=chosen, data=read_texts([text]), forget_text=[text]
    )
    assert report.watch["intruders/forgetting"] < -0.1  # it is the very text that is trained on
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").exists()


def test_the_papers_numbers_are_held_over_the_ranks():
    lora = find("lora")
    for rank in (1, 8, 64):
        options = lora.options(PAPER.completed(lora, {"rank": rank}))
        assert options["alpha"] == 2 * rank
        assert PAPER.rate(lora, options) * options["alpha"] == pytest.approx(2.4e-3)
    eight = lora.options(PAPER.completed(lora, {"rank": 64, "alpha": 8}))
    assert PAPER.rate(lora, eight) == pytest.approx(3e-4)
    assert PAPER.rate(find("full"), {}) == 1e-5


def test_a_method_without_alpha_has_a_cited_rate_of_its_own_or_asks_for_one():
    for method in registered():
        has_alpha = any(parameter.name == "alpha" for parameter in method.parameters)
        assert (method.rate is None) == (not method.rate_source)
        assert method.rate is None or not has_alpha, method.name
        if "no_training" not in method.departures:
            assert PAPER.rate(method, method.options()) > 0
    vera = find("vera")
    assert PAPER.rate(vera, vera.options()) == vera.rate == 1e-2
    with pytest.raises(UsageError, match="--lr"):
        PAPER.rate(replace(vera, rate=None), vera.options())


@pytest.mark.parametrize("kind", ["classification", "choices", "endings"])
def test_a_batch_in_parts_is_the_batch(kind, tmp_path):
    """Also its size: gradients are clipped at 1, so twice the loss would be another run."""
    write = write_gpt2 if kind == "endings" else write_bert
    base = without_dropout(write(tmp_path / "base"))
    file = tmp_path / "task"
    task = write_task(file.with_suffix(".tsv")) if kind == "classification" else None
    task = load_task(task or write_choices(file.with_suffix(".jsonl")))
    logs, files = [], []
    for parts in (1, 4):
        out = tmp_path / f"run{parts}"
        chosen = settings(accumulate=parts, steps=6, watch_every=0)
        report = tune(str(base), out=out, settings=chosen, data=task)
        files.append(load_file(report.model / "adapter_model.safetensors"))
        logs.append(json.loads((out / "run.json").read_text())["log"])
    norms = [[entry["grad_norm"] for entry in log if "grad_norm" in entry] for log in logs]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    largest = max(float(tensor.abs().max()) for tensor in files[0].values())
    for name, tensor in files[0].items():
        # All choices' scores share a bias: its gradient is rounding alone, which AdamW scales up.
        if kind != "choices" or not name.endswith("classifier.bias"):
            torch.testing.assert_close(tensor, files[1][name], rtol=1e-3, atol=1e-3 * largest)


def test_processes_that_share_one_models_weights_are_refused(tmp_path, monkeypatch):
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UnsupportedFormat, match="FSDP or DeepSpeed.*data parallelism"):
        tune(str(base), out=tmp_path / "run", settings=settings(), data=task)
    assert not (tmp_path / "run").exists()


class Poisoned(SteadyTrainer):
    """A Trainer whose loss is no number from the seventh step on."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        return loss * float("nan") if self.state.global_step >= 6 else loss


def test_a_loss_that_is_nan_ends_the_run_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))
    monkeypatch.setattr("intruscope.train.run.SteadyTrainer", Poisoned)
    with pytest.raises(IncompleteResult, match="loss.*step 7.*checkpoint-4"):
        tune(str(base), out=tmp_path / "run", settings=settings(), data=task)
    kept = tmp_path / "run" / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors"
    assert all(bool(torch.isfinite(t).all()) for t in load_file(kept).values())
    assert not (tmp_path / "run" / "model").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))
    first = tune(str(base), out=tmp_path / "first", settings=settings(), data=task)
    plan = json.loads((tmp_path / "first" / "run.json").read_text())["plan"]
    out = tmp_path / "second"
    out.mkdir()
    Journal(out / "journal", plan).close()
    shutil.copytree(tmp_path / "first" / "intruders", out / "intruders")
    (out / "checkpoints" / "checkpoint-4").mkdir(parents=True)  # cut in the middle: not in the journal
    second = tune(str(base), out=out, settings=settings(), data=task)
    files = [load_file(report.model / "adapter_model.safetensors") for report in (first, second)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


class Hungry(SteadyTrainer):
    def compute_loss(self, *args, **kwargs):
        torch.empty(1 << 55, dtype=torch.uint8)


def test_a_batch_without_room_names_its_figure(tmp_path, monkeypatch):
    base, task = write_bert(tmp_path / "base"), load_task(write_task(tmp_path / "task.tsv"))
    monkeypatch.setattr("intruscope.train.run.SteadyTrainer", Hungry)
    with pytest.raises(ResourceExhausted, match=r"36028797018963968.*--batch"):
        tune(str(base), out=tmp_path / "run", settings=settings(), data=task)
    assert not (tmp_path / "run").exists()


def command(base, task, out):
    numbers = {"rank": 2, "lr": 5e-3, "steps": 16, "batch": 8, "save-every": 4, "watch": 4}
    options = [part for name, number in numbers.items() for part in (f"--{name}", number)]
    return [base, "--task", task, "--out", out, "--method", "lora", "-q", *options]


@pytest.mark.slow
def test_a_run_killed_in_the_middle_ends_as_if_it_had_not_been(commands, tmp_path):
    base, task = write_bert(tmp_path / "base"), write_task(tmp_path / "task.tsv")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert commands.run(*command(base, task, whole)).is_well
    running = commands.start(*command(base, task, killed))
    records = killed / "journal" / "records.jsonl"
    deadline = time.monotonic() + 200
    while not (records.exists() and b"checkpoint-4" in records.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert commands.stop(running).codes == (-signal.SIGKILL,)
    assert not (killed / "run.json").exists()
    assert commands.run(*command(base, task, killed)).is_well
    done = commands.run(*command(base, task, killed))
    assert done.codes == (7,) and "finished run" in done.stderr
    first = load_file(whole / "model" / "adapter_model.safetensors")
    second = load_file(killed / "model" / "adapter_model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    looks = [read_looks(folder / "intruders" / "looks.jsonl")[1] for folder in (whole, killed)]
    assert [look.step for look in looks[1]] == [0, 4, 8, 12, 16]
    verdicts = [[v.verdict for look in each for m in look.matrices for v in m.vectors] for each in looks]
    assert verdicts[0] == verdicts[1]
