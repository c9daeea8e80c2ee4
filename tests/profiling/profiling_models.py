"""Tiny bases on disk: an encoder of Linear, a decoder of Conv1D."""

import torch
import transformers

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def bert_config(**options):
    return transformers.BertConfig(
        vocab_size=60, intermediate_size=64, max_position_embeddings=40, **(SIZES | options)
    )


def gpt2_config(**options):
    return transformers.GPT2Config(
        vocab_size=60,
        n_positions=40,
        n_embd=32,
        n_layer=3,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        **options,
    )


def write(folder, cls, config):
    torch.manual_seed(1)
    cls(config).save_pretrained(folder)
    return folder


def write_bert(folder):
    """With its language-model head."""
    return write(folder, transformers.BertForMaskedLM, bert_config())


def write_gpt2(folder):
    """The same, causal."""
    return write(folder, transformers.GPT2LMHeadModel, gpt2_config())


def write_classifier(folder):
    """A BERT that is one."""
    return write(folder, transformers.BertForSequenceClassification, bert_config(num_labels=3))
