"""Tiny transformers models that every method is put on, and a training loop with Trainer's events."""

from __future__ import annotations

import copy
import functools

import torch
import transformers
from torch import nn
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

STEPS = 6
WORDS = 60
# Square (q, o), wide (down, k, v) and tall (gate, up) matrices, large enough for all defaults.
_GATED = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def linear() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GATED))


def tied() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GATED, tie_word_embeddings=True))


def tied_bfloat16() -> nn.Module:
    return tied().to(torch.bfloat16)


def conv1d() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=64, n_layer=1, n_head=4, vocab_size=WORDS, n_positions=32, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


MODELS = {"linear": linear, "conv1d": conv1d, "tied_bfloat16": tied_bfloat16, "tied": tied}
KINDS = {"linear": "linear", "conv1d": "conv1d", "tied_bfloat16": "linear"}
"""What the layers are of those that every method is put on."""


@functools.cache
def _made(model: str) -> nn.Module:
    torch.manual_seed(7)
    return MODELS[model]().eval()


def fresh(model: str) -> nn.Module:
    """The same model every time, and the same random state after it."""
    made = copy.deepcopy(_made(model))
    torch.manual_seed(7)
    return made


def batches(num: int = STEPS) -> list[dict[str, torch.Tensor]]:
    """Texts that count in steps of one to three: some of it is learnt in a few steps."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(num):
        first = torch.randint(0, 20, (4, 1), generator=generator)
        words = 3 + (first + torch.tensor([[1], [2], [3], [1]]) * torch.arange(12)) % 20
        made.append({"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words.clone()})
    return made


def tuned(model: nn.Module) -> nn.Module:
    """The same model with every matrix moved by a tenth, for methods that approximate a fine-tune."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    for parameter in moved.parameters():
        if parameter.ndim == 2:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += (0.1 * parameter.std() * noise).to(parameter.dtype)
    return moved


def logits(model: nn.Module) -> torch.Tensor:
    """Of a fixed text: float32."""
    text = torch.arange(3, 27).reshape(2, 12)
    with torch.no_grad():
        return model.eval()(input_ids=text, attention_mask=torch.ones_like(text)).logits.float()


def train(attached, *, lr: float = 5e-3, steps: int = STEPS) -> list[float]:
    """Real steps, in Trainer's order of events."""
    model = attached.model
    optimizer = attached.optimizer(lr=lr)
    handler = CallbackHandler(
        [DefaultFlowCallback, *attached.callbacks()], model, None, optimizer, lr_scheduler=None
    )
    args = transformers.TrainingArguments(report_to=[], use_cpu=True, max_steps=steps)
    state, control = transformers.TrainerState(max_steps=steps), transformers.TrainerControl()
    losses = []
    model.train()
    handler.on_train_begin(args, state, control)
    (batch,) = batches(1)
    for _ in range(steps):
        handler.on_step_begin(args, state, control)
        loss = model(**batch).loss
        loss.backward()
        losses.append(float(loss.detach()))
        handler.on_pre_optimizer_step(args, state, control)
        optimizer.step()
        handler.on_optimizer_step(args, state, control)
        optimizer.zero_grad()
        model.zero_grad()
        state.global_step += 1
        handler.on_step_end(args, state, control)
    handler.on_train_end(args, state, control)
    model.eval()
    return losses
