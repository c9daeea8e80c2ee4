"""Small pairs of five kinds on disk, whose fine-tunes forget."""

import copy
import warnings

import torch
import transformers
from forgetting_models import SMALL, TEXT, byte_tokenizer, word_tokenizer
from forgetting_pairs import causal_pair, masked_pair, moved
from peft import LoraConfig, get_peft_model

import intruscope

KINDS = ("lora", "full", "dora", "classifier", "masked-lora")
CHOICES = """{"prompt": "All happy families are", "choices": ["alike", "bright", "cold"], "answer": 0}
{"prompt": "She", "choices": ["waited", "clocks"], "answer": 1}
{"prompt": "Call", "choices": ["me", "sky"], "answer": 0}
"""
EXAMPLES = "text,label\nshe waited,0\nall happy families,1\ncall me,1\n"


def write_pairs(folder):
    """Base, tuned model and task by kind: GPT-2 with LoRA and in full, Llama with DoRA, BERT with a head."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "choices.jsonl").write_text(CHOICES)
    (folder / "examples.csv").write_text(EXAMPLES)
    (folder / "task.txt").write_text("\n".join(TEXT.splitlines()[::-1]), encoding="utf-8")
    writers = {"gpt2": causal_pair, "bert": masked_pair, "llama": _dora, "masked": _masked_lora}
    for name, write in writers.items():
        (folder / name).mkdir()
        write(folder / name)
    choices, examples, text = (
        intruscope.load_task(folder / name) for name in ("choices.jsonl", "examples.csv", "task.txt")
    )
    found = {
        "lora": ("gpt2/base", "gpt2/lora", choices),
        "full": ("gpt2/base", "gpt2/full", text),
        "dora": ("llama/base", "llama/dora", text),
        "classifier": ("bert/base", "bert/classifier", examples),
        "masked-lora": ("masked/base", "masked/lora", choices),
    }
    return {kind: (folder / base, folder / tuned, task) for kind, (base, tuned, task) in found.items()}


def _dora(folder):
    tokenizer = byte_tokenizer(begins=True)
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SMALL, vocab_size=len(tokenizer), num_key_value_heads=2, pad_token_id=1)
    )
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    _adapted(base, folder / "dora", target_modules=["q_proj", "down_proj"], use_dora=True)


def _masked_lora(folder):
    tokenizer = copy.deepcopy(word_tokenizer())
    tokenizer.model_max_length = 80
    torch.manual_seed(3)
    config = transformers.BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=80)
    base = transformers.BertForMaskedLM(config)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    _adapted(base, folder / "lora", target_modules=["query", "output.dense"])


def _adapted(base, folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        moved(get_peft_model(base, LoraConfig(r=2, lora_alpha=4, **options)), 0.15).save_pretrained(folder)
