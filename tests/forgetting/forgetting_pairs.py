"""Pairs on disk as their users would save them."""

import copy
import warnings

import torch
import transformers
from forgetting_models import SMALL, TEXT, byte_tokenizer, word_tokenizer
from peft import LoraConfig, get_peft_model


def moved(model, size=0.3, seed=1):
    """Stand in for training: every trainable number is moved."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def causal_pair(folder):
    """base, a LoRA adapter of it, a full fine-tune; returns the models."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(begins=False)
    config = transformers.GPT2Config(
        n_embd=24, n_layer=2, n_head=4, vocab_size=len(tokenizer), n_positions=64
    )
    base = transformers.GPT2LMHeadModel(config).eval()
    stream = tokenizer(TEXT, return_tensors="pt")["input_ids"][0]
    ids = stream[: len(stream) // 60 * 60].reshape(-1, 60)
    optimizer = torch.optim.AdamW(base.parameters(), lr=1e-2)
    for _ in range(15):  # so that what is moved away from is better than what is moved to
        loss = base(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    full = moved(copy.deepcopy(base), 0.05)
    full.save_pretrained(folder / "full")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "bias": "all"}
        lora = moved(get_peft_model(copy.deepcopy(base), LoraConfig(r=2, lora_alpha=4, **options)), 0.1)
        lora.peft_config["default"].base_model_name_or_path = str(folder / "base")
        lora.save_pretrained(folder / "lora")
    return base, lora, full


def masked_pair(folder):
    """A masked base and a classifier's adapter of it."""
    torch.manual_seed(0)
    tokenizer = copy.deepcopy(word_tokenizer())
    tokenizer.model_max_length = 80  # no line of the text is longer
    config = transformers.BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=80)
    base = transformers.BertForMaskedLM(config).eval()
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    base.bert.save_pretrained(folder / "headless")
    tokenizer.save_pretrained(folder / "headless")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host = transformers.BertForSequenceClassification.from_pretrained(folder / "base", num_labels=2)
        options = {"target_modules": ["query", "value"], "modules_to_save": ["classifier", "pooler"]}
        tuned = moved(get_peft_model(host, LoraConfig(r=2, lora_alpha=4, task_type="SEQ_CLS", **options)))
        tuned.save_pretrained(folder / "classifier")
    return base, tuned
