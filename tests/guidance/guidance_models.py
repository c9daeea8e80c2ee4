"""Tiny causal models with adapters, batches of prompts, and guidance computed naively."""

import copy
import warnings

import torch
from forgetting_models import TEXT
from forgetting_pairs import moved
from peft import LoraConfig, get_peft_model

TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"]}


def adapted(language, name, size=0.3, **options):
    """The model with a LoRA as if trained; the given one stays as it is."""
    options = {"target_modules": TARGETS[name], "fan_in_fan_out": name == "gpt2", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", **options)
        return moved(get_peft_model(copy.deepcopy(language.model), config), size)


def batch(language, lengths=(5, 11, 8)):
    """Prompts of these lengths, padded on the left: ids and mask."""
    lines = TEXT.splitlines()
    prompts = [language.tokenizer(lines[i])["input_ids"][:n] for i, n in enumerate(lengths)]
    longest = max(lengths)
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def generate(model, ids, mask=None, *, processors=(), seed=0, tokens=6, **options):
    """New tokens of ``generate``; none of these models ends a text itself."""
    options = {
        "max_new_tokens": tokens,
        "pad_token_id": 0,
        "eos_token_id": None,
        "do_sample": False,
        **options,
    }
    torch.manual_seed(seed)
    found = model.generate(ids, attention_mask=mask, logits_processor=list(processors), **options)
    return found[:, ids.shape[1] :] if torch.is_tensor(found) else found


def next_log_probs(model, ids):
    """Log-probabilities after one row of tokens, from a forward pass of its own."""
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0, -1]
    return logits.double().log_softmax(-1)
