"""A run inside transformers' Trainer that was stopped ends as one that was not, whatever the method."""

from __future__ import annotations

import methods_models as tiny
import pytest
import torch
import transformers

from intruscope.methods import registered
from intruscope.methods.contract import Setting

# Trainer, accelerate and PEFT warn of each other's ways.
pytestmark = pytest.mark.filterwarnings("ignore")
_ALIKE = {"rslora", "mica", "b_only", "olora", "melora", "multilora", "milora", "corda"}
"""Their checkpoints and steps are those of another method: lora, pissa, sora or lora_null."""
TRAINED = [m for m in registered() if "no_training" not in m.departures and m.name not in _ALIKE]
STEPS = 6


def prepared(method, folder):
    """Six steps of two accumulated batches, a checkpoint after the third."""
    data = {"batches": tiny.batches(), "kept": tiny.batches(2)}
    targets = Setting(targets=("q_proj", "down_proj"), total_steps=STEPS, **data)
    attached = method.attach(tiny.fresh("linear"), targets, method.options())
    rows = [{key: values[i] for key, values in batch.items()} for batch in tiny.batches(4) for i in range(4)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=3, per_device_train_batch_size=1,
        gradient_accumulation_steps=2, report_to=[], use_cpu=True, seed=5, disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=attached.model,
        args=arguments,
        train_dataset=rows,
        optimizers=(attached.optimizer(lr=5e-3), None),
        callbacks=list(attached.callbacks()),
    )
    return attached, trainer


def moments(trainer):
    """All tensors of the optimiser's state."""
    state = trainer.optimizer.state_dict()["state"]
    return [value for entry in state.values() for value in entry.values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("method", TRAINED, ids=lambda method: method.name)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(method, tmp_path):
    whole, trainer = prepared(method, tmp_path / "whole")
    start = {name: parameter.detach().clone() for name, parameter in whole.trainable()}
    trainer.train()
    again, resumed = prepared(method, tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    ends = dict(again.trainable())
    assert ends.keys() == start.keys()
    for name, parameter in whole.trainable():
        assert not torch.equal(parameter, start[name]), name
        assert torch.equal(parameter, ends[name]), name
    if "no_static_update" not in method.departures:
        for name in whole.names:
            assert torch.equal(whole.update(name), again.update(name)), name
    ours, theirs = moments(trainer), moments(resumed)
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
