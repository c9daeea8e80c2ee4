"""Tiny pairs for fits: a masked model with a classifier, and a causal model whose q, k and v are fused."""

import random
import warnings

import torch
import transformers
from forgetting_models import byte_tokenizer
from peft import LoraConfig, get_peft_model
from sweep_models import WORDS


def write_causal(folder, *, kind):
    """GPT-2 (Conv1D, fused q, k and v) and a fine-tune of it: ``lora`` or ``full``."""
    tokenizer = byte_tokenizer(begins=False)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=24, n_layer=2, n_head=4, vocab_size=len(tokenizer), n_positions=64, initializer_range=0.2
    )
    base = transformers.GPT2LMHeadModel(config)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(1)
    if kind == "full":
        with torch.no_grad():
            for name, parameter in base.named_parameters():
                if name.endswith(("c_fc.weight", "c_attn.weight")):
                    parameter += 0.1 * torch.randn_like(parameter)
        base.save_pretrained(folder / "tuned")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        targets = ["c_attn", "c_fc"]
        tuned = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=targets))
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.3)
        tuned.save_pretrained(folder / "tuned")


def write_words(path, *, num_lines, seed):
    """Lines of random words."""
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(6, 12))) for _ in range(num_lines)]
    path.write_text("\n".join(lines) + "\n")
    return path
