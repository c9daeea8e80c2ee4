"""Is the shipped model what its card says, small enough, and untouched by the text it is tested on?"""

from __future__ import annotations

import hashlib
import json
import platform

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

from intruscope.demo.card import model_card
from intruscope.demo.finetune import END_OF_TEXT, encode
from intruscope.demo.run import MODEL, MODEL_FILES
from intruscope.demo.texts import Text, digest, is_held_out, library_texts

RECIPE = json.loads((MODEL / "recipe.json").read_text())
TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def test_it_fits_in_nine_megabytes() -> None:
    sizes = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert sum(sizes.values()) <= 9_000_000
    assert sizes.keys() == {*MODEL_FILES, "recipe.json"}


def test_the_weights_are_those_that_the_recipe_made() -> None:
    weights = (MODEL / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == RECIPE["weights_sha256"]
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.bfloat16"}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert sum(tensor.numel() for tensor in tensors.values()) == RECIPE["num_parameters"]
    assert "lm_head.weight" not in tensors  # tied
    assert sum(name.endswith("_proj.weight") for name in tensors) == 28


def test_held_out_files_were_not_in_the_training_list() -> None:
    assert RECIPE["held_out_files"]
    assert all(is_held_out(name) for name in RECIPE["held_out_files"])
    if platform.python_version() != RECIPE["python"]:
        pytest.skip(f"the training list is that of Python {RECIPE['python']}")
    train, held_out = library_texts(held_out=False), library_texts(held_out=True)
    assert [text.name for text in held_out] == RECIPE["held_out_files"]
    if digest(train) != RECIPE["train_sha256"]:
        pytest.skip("this build of Python carries another library source")
    assert len(train) == RECIPE["num_train_files"]
    assert len(encode(TOKENIZER, train[:3])) < RECIPE["num_train_tokens"]


def test_the_card_is_that_of_the_recipe_and_names_the_licence() -> None:
    card = (MODEL / "README.md").read_text()
    assert card == model_card(RECIPE, is_large=False)
    assert "PSF" in card and "Apache-2.0" in card and RECIPE["python"] in card
    assert RECIPE["weights_sha256"] in card


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back_unchanged(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False).ids) == text.replace(
        END_OF_TEXT, ""
    )


def test_documents_are_closed_by_the_end_token() -> None:
    tokens = encode(TOKENIZER, [Text(name="a", content="x = 1\n"), Text(name="b", content="")])
    end = TOKENIZER.token_to_id(END_OF_TEXT)
    assert (tokens == end).sum() == 2 and tokens[-1] == end and tokens[-2] == end
    assert TOKENIZER.get_vocab_size() == RECIPE["recipe"]["architecture"]["vocabulary"]
