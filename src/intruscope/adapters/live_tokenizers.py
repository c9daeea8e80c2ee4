"""The tokenizers of a live pair, from the folders of its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intruscope.adapters.live_models import quiet, require
from intruscope.errors import MalformedInput, UsageError, printable


def choose_tokenizers(given: Any, base: Path | None, tuned: Path | None) -> tuple[Any, Any]:
    """The tokenizers of the language model and of the task.

    Args:
        given: A tokenizer, the folder of one, or None.
        base: The base's folder.
        tuned: The tuned model's folder.

    Raises:
        UsageError: there is no tokenizer.
        MalformedInput: base and tuned model give the same token different ids.
    """
    if given is not None:
        found = open_tokenizer(Path(given)) if isinstance(given, (str, Path)) else given
        if found is None:
            fact = "this folder holds no tokenizer (tokenizer.json or similar)"
            raise UsageError(fact, remedy="name the folder that holds it", file=given)
        return found, found
    first = open_tokenizer(base) if base is not None else None
    second = open_tokenizer(tuned) if tuned is not None else None
    if first is None and second is None:
        fact = "there is no tokenizer beside the base or the tuned model"
        raise UsageError(fact, remedy="name its folder with --tokenizer (tokenizer= in Python)", file=base)
    if first is not None and second is not None:
        words, tuned_words = first.get_vocab(), second.get_vocab()
        other = next((word for word, number in words.items() if tuned_words.get(word) != number), None)
        if other is not None:
            raise MalformedInput(
                f"the tokenizers disagree: the id of '{printable(other)}' is {words[other]} in the base and "
                f"{tuned_words.get(other)} in the tuned model",
                remedy="name the one that both models were trained with: --tokenizer FOLDER",
                file=tuned,
            )
    return first or second, second or first


def open_tokenizer(folder: Path) -> Any | None:
    """Open the tokenizer of a folder; None when it holds none.

    Raises:
        MalformedInput: the tokenizer cannot be read.
    """
    require("transformers")
    from transformers import AutoTokenizer

    names = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "tokenizer_config.json",
    )
    if not any((folder / name).exists() for name in names):
        return None
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged file can raise anything in there
        raise MalformedInput(
            f"cannot read the tokenizer ({printable(error)})",
            remedy="download it again, or give another with --tokenizer",
            file=folder,
        ) from error
