"""Tiny models with planted tasks, for trying a whole study in seconds.

A language of a few dozen words in which the animal decides the verb and the colour the place, so that a model
has something to know and to forget. The tasks ask which of two words is in a sentence. What comes of a study
on them says nothing about the paper's claims.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.train.settings import TuneSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intruscope.studies.scale import Base

WIDTH = 64
_ANIMALS = {"dog": "barks", "cat": "purrs", "cow": "grazes", "owl": "hoots", "bee": "hums", "fox": "hides"}
_PLACES = {"red": "barn", "grey": "town", "green": "field", "blue": "lake"}
_SIGNS = {"planted": ("sunny", "rainy"), "planted2": ("early", "late")}
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>")
_SENTENCES = {"train": 600, "held_out": 40, "text": 40}
_EXAMPLES = {"train": 192, "eval": 64}
_STEPS = 80


def write_tiny(base: Base, folder: Path) -> None:
    """Write model, texts and tasks of a base into a folder.

    Args:
        base: ``masked`` makes a BERT, ``causal`` a Llama.
        folder: Exists, empty.
    """
    from intruscope.forgetting.texts import read_texts
    from intruscope.train.tune import tune

    for place, (name, count) in enumerate(_SENTENCES.items()):
        _write_sentences(folder / f"{name}.jsonl", count, seed=place)
    is_masked = base.kind == "masked"
    if is_masked:
        for name in _SIGNS:
            for place, (split, count) in enumerate(_EXAMPLES.items()):
                rows = list(_examples(name, count, seed=10 + place))
                record = {"classes": _SIGNS[name], "rows": rows}
                (folder / f"{name}.{split}.json").write_text(json.dumps(record), encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        start = Path(name) / "start"
        _write_model(start, is_masked=is_masked)
        settings = TuneSettings(
            method="full", rate=5e-3, steps=_STEPS, batch=32, max_length=base.max_length, watch_every=0
        )
        tune(str(start), out=Path(name) / "run", settings=settings, data=read_texts([folder / "train.jsonl"]))
        shutil.move(Path(name) / "run" / "model", folder / "model")
    if not is_masked:  # it is tuned on other verses than it grew up with
        _write_sentences(folder / "train.jsonl", _SENTENCES["train"], seed=3, swapped=True)
        _write_sentences(folder / "held_out.jsonl", _SENTENCES["held_out"], seed=4, swapped=True)


def _words() -> list[str]:
    pairs = [*_ANIMALS.items(), *_PLACES.items(), *_SIGNS.values()]
    return [*_SPECIAL, "the", "in", "on", "a", "day", *(word for pair in pairs for word in pair)]


def _sentence(draw: random.Random, *, swapped: bool = False) -> str:
    """``swapped``: another verb for each animal."""
    animal = draw.choice(list(_ANIMALS))
    verbs = list(_ANIMALS.values())
    verb = verbs[(verbs.index(_ANIMALS[animal]) + swapped) % len(verbs)]
    colour = draw.choice(list(_PLACES))
    return f"the {animal} {verb} in the {colour} {_PLACES[colour]}"


def _write_sentences(path: Path, count: int, *, seed: int, swapped: bool = False) -> None:
    draw = random.Random(seed)  # noqa: S311 - a text, not a secret
    lines = [json.dumps({"text": _sentence(draw, swapped=swapped)}) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _examples(name: str, count: int, *, seed: int) -> Iterator[dict[str, str]]:
    draw = random.Random(seed)  # noqa: S311 - a task, not a secret
    for _ in range(count):
        label = draw.randrange(2)
        sign, animal = _SIGNS[name][label], draw.choice(list(_ANIMALS))
        sentence = f"{sign} {sign} day the {animal} {_ANIMALS[animal]} on a {sign} {sign} day"
        yield {"sentence": sentence, "label": sign}


def _write_model(folder: Path, *, is_masked: bool) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    from intruscope.adapters.live_models import quiet

    words = {word: number for number, word in enumerate(_words())}
    tokenizer = Tokenizer(WordLevel(vocab=words, unk_token="[UNK]"))  # noqa: S106 - a word, no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    first, last = ("[CLS]", "[SEP]") if is_masked else ("<s>", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}" if is_masked else f"{first} $A",
        special_tokens=[(word, words[word]) for word in (first, last)],
    )
    special: dict[str, Any] = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    special |= (
        {"cls_token": first, "sep_token": last, "mask_token": "[MASK]"}
        if is_masked
        else {"bos_token": first, "eos_token": last}
    )
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special)
    shape: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "pad_token_id": words["[PAD]"],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any
        if is_masked:
            model = transformers.BertForMaskedLM(transformers.BertConfig(**shape))
        else:
            ids = {"bos_token_id": words["<s>"], "eos_token_id": words["</s>"]}
            model = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**shape, **ids, num_key_value_heads=4)
            )
    with quiet():
        model.save_pretrained(folder)
        wrapped.save_pretrained(folder)
