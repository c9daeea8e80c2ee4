"""A tiny BERT that lacks a pooler, and tasks planted in four words each.

Each word is of one of two kinds. A task asks whether two of the four are of the same kind, which no linear
head can read from words that were not brought together: the body must learn it.
"""

from __future__ import annotations

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

from intruscope.forgetting.tasks import classification_task
from intruscope.sequence.records import ChainSettings, ChainTask
from intruscope.train.settings import TuneSettings

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
KINDS = (("red", "blue", "green"), ("cat", "dog", "bird"))
TARGETS = ("query", "value", "dense")


def write_base(folder, *, seed=0, pooler=False):
    """A masked language model on disk, in float16 as many are; with a pooler if asked for."""
    words = {word: i for i, word in enumerate((*SPECIAL, *KINDS[0], *KINDS[1]))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {name: f"[{name[:-6].upper()}]" for name in
             ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")}  # fmt: skip
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=16, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.15,
    )  # fmt: skip
    cls = transformers.BertForPreTraining if pooler else transformers.BertForMaskedLM
    model = cls(config).to(torch.float16)
    model.config.architectures = ["BertForMaskedLM"]
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def examples(num, seed):
    """Sentences of four words, and the kind of each word."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(2, (num, 4), generator=generator)
    which = torch.randint(3, (num, 4), generator=generator)
    sentences = [
        " ".join(KINDS[k][w] for k, w in zip(kind, word, strict=True))
        for kind, word in zip(kinds.tolist(), which.tolist(), strict=True)
    ]
    return sentences, kinds


def planted(name, first, second, *, num=200, seed=0):
    """The task whether two of the words are of one kind."""

    def side(count, seed, where):
        sentences, kinds = examples(count, seed)
        same = (kinds[:, first] == kinds[:, second]).tolist()
        rows = [
            {"text": text, "label": ("other", "same")[s]} for text, s in zip(sentences, same, strict=True)
        ]
        return classification_task(rows, f"{name} {where}")

    return ChainTask(name=name, train=side(num, seed, "train"), held_out=side(num, seed + 1, "held out"))


def three_tasks(**changes):
    """Tasks that need different words brought together."""
    return [
        planted("ends", 0, 3, **changes),
        planted("middle", 1, 2, **changes),
        planted("front", 0, 1, **changes),
    ]


def settings(method="lora", *, chain=None, **training):
    usual = {"method": method, "steps": 30, "batch": 16, "rate": 5e-3, "watch_every": 0, "max_length": 16}
    others = {"map_size": 4, "workers": 0} | (chain or {})
    return ChainSettings(training=TuneSettings(**(usual | training)), **others)
