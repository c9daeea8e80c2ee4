"""Tiny models and data to train on; wide enough for a look to start from the last one."""

from __future__ import annotations

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

WIDTH = 64


def llama(seed=0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2(seed=0):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=50, n_positions=64, n_embd=WIDTH, n_layer=1, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def with_lora(model, *, targets="all-linear", seed=0, **options):
    torch.manual_seed(seed)
    config = {"r": 2, "lora_alpha": 64, "target_modules": targets, "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(**(config | options)))


class Tokens(torch.utils.data.Dataset):
    """Sequences that count upwards, so that there is something to learn."""

    def __init__(self, count=64, length=12):
        self.rows = [torch.arange(i, i + length) % 50 for i in range(count)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def arguments(folder, **options):
    usual = {
        "output_dir": str(folder), "max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 2e-2,
        "report_to": [], "save_steps": 4, "logging_steps": 5, "disable_tqdm": True, "use_cpu": True,
        "seed": 7, "dataloader_pin_memory": False, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return TrainingArguments(**(usual | options))


def trainer(model, folder, **options):
    own = {
        name: options.pop(name)
        for name in ("callbacks", "processing_class", "data_collator")
        if name in options
    }
    return Trainer(model=model, args=arguments(folder, **options), train_dataset=Tokens(), **own)
