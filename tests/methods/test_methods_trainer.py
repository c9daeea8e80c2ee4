"""Our own methods inside transformers' Trainer: what they do between steps, and after a restart."""

import pytest
import torch
import transformers
from our_methods import LINEAR, attached, llama, tokens

# Trainer, accelerate and PEFT warn of each other's ways.
pytestmark = pytest.mark.filterwarnings("ignore")

CASES = {
    "sora": {"threshold": 0.2},
    "melora": {},
    "multilora": {"scale": "per_output"},
    "chain": {"num_links": 3},
    "rac": {"num_links": 3},
    "lora_experts": {"num_experts": 4, "num_active": 2, "rank": 2},
    "prilora": {"prune_every": 2, "norm_memory": 0.0},
}
STEPS = 6


def run(name, folder, **more):
    """Six steps of two accumulated batches; a checkpoint after the third."""
    done = attached(name, llama, LINEAR, **CASES[name])
    data = [{"input_ids": row, "labels": row} for row in (tokens() + 1) for _ in range(STEPS)]
    args = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=3, per_device_train_batch_size=1,
        gradient_accumulation_steps=2, learning_rate=0.02, warmup_steps=1, report_to=[], use_cpu=True, seed=5,
        disable_tqdm=True, logging_strategy="no", **more,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=done.model,
        args=args,
        train_dataset=data,
        optimizers=(done.optimizer(lr=0.02), None),
        callbacks=list(done.callbacks()),
    )
    return done, trainer


@pytest.mark.parametrize("name", ["sora", "chain", "rac", "prilora"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(name, tmp_path):
    whole, trainer = run(name, tmp_path / "whole")
    trainer.train()
    again, resumed = run(name, tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    ours, theirs = whole.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    if name in ("chain", "rac"):
        assert whole.callbacks()[0].num_tied == again.callbacks()[0].num_tied == 2
    if name == "sora":
        assert any(bool((gate == 0).any()) for _, gate in whole.gates())
    if name == "prilora":
        zeros = [float((p == 0).float().mean()) for n, p in whole.trainable() if "lora_A" in n]
        assert zeros == [0.5] * len(zeros)  # pruned at the last step


@pytest.mark.parametrize("name", ["sora", "melora", "multilora", "chain", "lora_experts"])
def test_trains_under_bfloat16_autocast(name, tmp_path):
    done, trainer = run(name, tmp_path / "run", bf16=True)
    before = {key: parameter.detach().clone() for key, parameter in done.trainable()}
    result = trainer.train()
    assert result.training_loss == result.training_loss  # not NaN
    assert all(parameter.dtype == torch.float32 for _, parameter in done.trainable())
    assert all(not torch.equal(parameter, before[key]) for key, parameter in done.trainable())
