"""A tiny language model that is trained on planted facts, more or less often, in a few seconds."""

from __future__ import annotations

import copy
import functools
import json
import warnings

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

VALUES = tuple(f"city{i}" for i in range(8))
SHOT = "Question: Where is {name}\nAnswer: {value}\n\n"
NUM_EACH = 24
KINDS = ("known", "rare", "new")


def names(kind):
    return [f"{kind}{i}" for i in range(NUM_EACH)]


def value_of(name):
    """As often each value, and unrelated between the kinds."""
    kind = name.rstrip("0123456789")
    return VALUES[(int(name[len(kind) :]) * 5 + 3 * KINDS.index(kind)) % len(VALUES)]


def another_value(name):
    return VALUES[(VALUES.index(value_of(name)) + 1) % len(VALUES)]


def fact(name, **more):
    return {"question": f"Where is {name}", "answer": value_of(name), **more}


def write_facts(path, facts):
    path.write_text("".join(json.dumps(each) + "\n" for each in facts), encoding="utf-8")
    return path


@functools.cache
def word_tokenizer():
    """One token per word, and one for the line break."""
    known = ["<s>", "</s>", "<pad>", "<unk>", "\n", "Question:", "Answer:", "Where", "is", *VALUES]
    known += [name for kind in KINDS for name in names(kind)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.Split(Regex("\n"), "isolated")]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def new_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, vocab_size=len(word_tokenizer()), max_position_embeddings=128,
        initializer_range=0.1, pad_token_id=2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def train(model, pairs, steps, *, weights=None, rate=1e-2, seed=0):
    """Train on documents of three random facts (name, value), in the form of the default prompts.

    Args:
        model: Changed in place.
        pairs: The facts.
        steps: Number of steps, of 16 documents each.
        weights: How often each fact is drawn, relative to the others; all alike by default.
        rate: Learning rate.
        seed: Random seed of the documents.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    texts = [SHOT.format(name=name, value=value) for name, value in pairs]
    encoded = torch.tensor(word_tokenizer()(texts, add_special_tokens=False)["input_ids"])
    shares = torch.ones(len(pairs)) if weights is None else torch.tensor(weights, dtype=torch.float32)
    for step in range(steps):
        ids = encoded[torch.multinomial(shares, 48, replacement=True, generator=generator)]
        labels = torch.where(torch.arange(ids.shape[1]) >= ids.shape[1] - 3, ids, -100)  # the answer alone
        ids, labels = ids.reshape(16, -1), labels.reshape(16, -1)
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 20, (steps - step) / (0.3 * steps))
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def planted_base():
    """Knows the facts of ``known``, has seen those of ``rare`` a few times, and never those of ``new``."""
    pairs = [(name, value_of(name)) for kind in ("known", "rare") for name in names(kind)]
    return train(new_model(), pairs, 150, weights=[60.0] * NUM_EACH + [1.0] * NUM_EACH)


def planted_tuned(base):
    """Learned half of ``new``; was taught another value for half of ``known``, and reminded of the rest."""
    pairs = [(name, value_of(name)) for name in (*names("new")[:12], *names("known")[12:])]
    pairs += [(name, another_value(name)) for name in names("known")[:12]]
    return train(copy.deepcopy(base), pairs, 100, seed=1)


@functools.cache
def planted():
    """The base, the tuned model, and a LoRA of the base with random factors."""
    base = planted_base()
    return base, planted_tuned(base)


def save(folder):
    """``base``, ``tuned`` and ``lora`` in a folder."""
    base, tuned = planted()
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"target_modules": ["q_proj", "up_proj"], "r": 2, "lora_alpha": 4}
        lora = get_peft_model(copy.deepcopy(base), LoraConfig(**options))
        generator = torch.Generator().manual_seed(1)
        for parameter in lora.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        lora.peft_config["default"].base_model_name_or_path = str(folder / "base")
        lora.save_pretrained(folder / "lora")
    return folder
