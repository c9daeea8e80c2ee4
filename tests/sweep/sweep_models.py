"""A tiny masked language model, a classifier tuned from it, a text and a task, all as files."""

import random
import warnings

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LINEAR = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


def tokenizer():
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )


def config(**more):
    return BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.25,
        **more,
    )


def write_base(folder):
    torch.manual_seed(0)
    BertForMaskedLM(config()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_adapter(folder, base, *, size, rank=2, seed=1, seed_b=None):
    """LoRA on every linear layer; a large one leaves intruders, a small one none.

    A is drawn from ``seed``, as PEFT does; B too, unless ``seed_b`` is given.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = BertForSequenceClassification.from_pretrained(base, num_labels=2)
        adapted = get_peft_model(
            model,
            LoraConfig(
                r=rank,
                lora_alpha=2 * rank,
                target_modules=list(LINEAR),
                modules_to_save=["classifier", "pooler"],
                task_type="SEQ_CLS",
            ),
        )
        if seed_b is not None:
            torch.manual_seed(seed_b)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, size)
        adapted.save_pretrained(folder)
    return folder


def write_text(path, num_lines=24):
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(6, 12))) for _ in range(num_lines)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_task(path, num_rows=20):
    draw = random.Random(1)
    rows = [f"{' '.join(draw.choices(WORDS, k=6))}\t{draw.randint(0, 1)}" for _ in range(num_rows)]
    path.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return path
