"""Tiny models with tokenizers on disk, and a task and a text to train them on."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "forgetting"))
from forgetting_models import TEXT, byte_tokenizer, word_tokenizer


def write_bert(folder):
    """A masked language model, as a base."""
    tokenizer = word_tokenizer()
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_llama(folder, **changes):
    """A causal language model, as a base."""
    tokenizer = byte_tokenizer(begins=True)
    torch.manual_seed(1)
    usual = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    config = transformers.LlamaConfig(**(usual | changes))
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_gpt2(folder):
    """A causal language model with Conv1D and a tied head, as a base."""
    tokenizer = word_tokenizer()
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=64, n_layer=1, n_head=4,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def without_dropout(folder):
    """The base, so that nothing in training is drawn but the order of the examples."""
    config = json.loads((folder / "config.json").read_text())
    none = {key: 0.0 for key in config if key.endswith(("dropout_prob", "pdrop"))}
    assert len(none) >= 2
    (folder / "config.json").write_text(json.dumps(config | none))
    return folder


def write_task(file, count=48):
    """Whether a sentence speaks of cold or of happy."""
    words = ("bright cold day in April", "happy families are alike")
    rows = [f"{words[i % 2]} number {i % 7}\t{('cold', 'happy')[i % 2]}" for i in range(count)]
    file.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return file


def write_choices(file, count=64, *, seed=0, shuffled=False):
    """Which of two endings fits: bright goes with clocks, happy with families; by chance when shuffled."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        kind = draw.randrange(2)
        words = [draw.choice(["the", "was", "to", "in", "and"]) for _ in range(3)]
        words.insert(draw.randrange(4), ("bright", "happy")[kind])
        endings = ["clocks were striking", "families are alike"]
        answer = kind
        if draw.randrange(2):
            endings, answer = endings[::-1], 1 - answer
        if shuffled:
            answer = draw.randrange(2)
        rows.append({"prompt": " ".join(words), "choices": endings, "answer": answer})
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def write_text(file):
    file.write_text(TEXT * 3)
    return file


def write_chains(file, stride, *, lines, seed=0):
    """Lines of a language of twenty words: after three words by chance, each follows from the one before.

    It is ``stride`` places on in a circle of words.
    """
    known = word_tokenizer().get_vocab()
    words = [
        word for word in dict.fromkeys(TEXT.replace(".", " ").replace(",", " ").split()) if word in known
    ]
    draw = random.Random(seed)
    rows = []
    for _ in range(lines):
        places = [draw.randrange(20) for _ in range(3)]
        places += [places[-1] + stride * step for step in range(1, 11)]
        rows.append(" ".join(words[place % 20] for place in places))
    file.write_text("\n".join(rows) + "\n")
    return file


def write_learned(folder):
    """A base that has learned one language, and four texts by name.

    ``learn``, ``replay`` and ``measure`` are in its language, ``task`` is in another.
    """
    draws = {"learn": (1, 200, 0), "replay": (1, 60, 1), "measure": (1, 24, 2), "task": (3, 60, 3)}
    texts = {
        name: write_chains(folder / f"{name}.txt", stride, lines=lines, seed=seed)
        for name, (stride, lines, seed) in draws.items()
    }
    base = write_gpt2(folder / "base")
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    tokens = torch.tensor(word_tokenizer()(texts["learn"].read_text(), verbose=False)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        starts = torch.randint(len(tokens) - 24, (16, 1), generator=generator)
        rows = tokens[starts + torch.arange(24)]
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    model.save_pretrained(base)
    return base, texts
