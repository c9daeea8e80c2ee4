"""Tiny language models with real tokenizers, all trained or seeded here."""

from __future__ import annotations

import copy
import functools

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from intruscope.adapters.live import LanguageModel
from intruscope.adapters.live_models import max_context

TEXT = """It was a bright cold day in April, and the clocks were striking thirteen.
The naïve café owner, whose crème brûlée was famous, said nothing at all.
A screaming comes across the sky. It has happened before, but there is nothing to compare it to now.
Call me.
In the beginning the universe was created; this has made a lot of people very angry.
Many years later he was to remember that distant afternoon — 氷 was new to him — and its ice.
She waited.
All happy families are alike, and each unhappy family is unhappy in its own way, they say.
"""
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def _merges():
    """Every other word of the text grows letter by letter, from the left, with the space before it."""
    words = sorted({word for word in TEXT.replace(".", " ").replace(",", " ").split() if word.isascii()})
    found = []
    for word in words[::2]:
        grown = "Ġ"
        for letter in word:
            if (grown, letter) not in found:
                found.append((grown, letter))
            grown += letter
    return found


@functools.cache
def byte_tokenizer(*, begins: bool):
    """Byte-level BPE; with ``begins`` it puts <s> in front, as Llama's does.

    Its merges are written down: the library's trainers break ties by chance.
    """
    merges = _merges()
    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=10**30
    )


@functools.cache
def word_tokenizer():
    """WordPiece with [CLS] and [SEP], as BERT's: most words of the text, and its letters."""
    words = sorted({word for word in TEXT.replace(".", " ").replace(",", " ").split() if word.isalpha()})
    letters = sorted({c for c in TEXT if not c.isspace()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *letters, *(f"##{c}" for c in letters), *(w for w in words[::2] if len(w) > 1)]
    tokenizer = Tokenizer(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )


def _gpt2(words):
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=24, n_layer=2, n_head=4, vocab_size=words, n_positions=64)
    )


def _llama(words):
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **SMALL, vocab_size=words, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=1
        )
    )


def _masked(kind, words, **more):
    config = transformers.AutoConfig.for_model(
        kind, **{**SMALL, "vocab_size": words, "max_position_embeddings": 40, "pad_token_id": 0, **more}
    )
    return transformers.AutoModelForMaskedLM.from_config(config)


MASKED = {
    "bert": {},
    "roberta": {},
    "distilbert": {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 32},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "modernbert": {"global_attn_every_n_layers": 1, "cls_token_id": 2, "sep_token_id": 3},
    "deberta-v2": {"position_buckets": 8, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
}


class Made:
    """Models by name, made on first use; random weights large enough that predictions differ."""

    @functools.cache  # noqa: B019 - one for the session
    def _made(self, name):
        torch.manual_seed(0)
        if name in ("gpt2", "llama"):
            tokenizer = byte_tokenizer(begins=name == "llama")
            model = (_gpt2 if name == "gpt2" else _llama)(len(tokenizer))
            kind = "causal"
        else:
            tokenizer = word_tokenizer()
            model, kind = _masked(name, len(tokenizer), **MASKED[name]), "masked"
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6.0)
        return model.eval(), tokenizer, kind

    def __call__(self, name):
        model, tokenizer, kind = self._made(name)
        limit = max_context(model, tokenizer)
        return LanguageModel(model=copy.deepcopy(model), tokenizer=tokenizer, kind=kind, max_context=limit)
