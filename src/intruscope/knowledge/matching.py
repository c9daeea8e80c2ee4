"""Whether a model's answer gives a fact: whole words of an alias in normalised text, never a substring.

"Tirana" does not give "Iran", and "vitamin C" does not give "vitamin A". Scripts that write words without
spaces between them (Chinese, Japanese, Thai) have no words to find: there, an alias must be everything that
stands between two spaces or punctuation marks.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Words = tuple[str, ...]

_ARTICLES = frozenset(("a", "an", "the"))
_KEPT_SYMBOLS = frozenset("+#%")
"""Symbols that tell names apart: C, C++ and C#; 5 and 5%. Currency signs are kept too."""
_MINUS = re.compile(r"(?<!\S)-(?=\d)")
_DASH = str.maketrans({"\u2212": "-", "\u2019": "'", "\u02bc": "'", "\u2018": "'"})
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ACRONYM = re.compile(r"\b(?:[^\W\d_]\.){2,}")
_POSSESSIVE = re.compile(r"(?<=\w)'s\b")
_DECIMAL = re.compile(r"(?<=\d)\.(?=\d)")
_POINT, _NEGATIVE = "\ue000", "\ue001"  # stand for marks that are kept; NFKC text does not hold them
_REFUSALS = tuple(
    tuple(phrase.split())
    for phrase in (
        "i do not know", "i dont know", "i am not sure", "im not sure", "not sure", "no idea", "unknown",
        "i cannot", "i cant", "i am unable", "im unable", "i am sorry", "im sorry", "no information",
        "cannot answer", "cant answer", "not applicable",
    )
)  # fmt: skip


@lru_cache(maxsize=1 << 16)
def words_of(text: str) -> Words:
    """The words of a text in comparable form.

    NFKC, case folded, without invisible characters, apostrophes and possessive endings; dots of acronyms and
    commas between thousands are dropped; other punctuation separates words, except in numbers (3.14, -5).
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_DASH)
    text = "".join(each for each in text if unicodedata.category(each) not in ("Cf", "Co"))
    text = _ACRONYM.sub(lambda found: found.group().replace(".", ""), text)
    text = _THOUSANDS.sub("", _POSSESSIVE.sub("", text)).replace("'", "")
    text = _MINUS.sub(_NEGATIVE, _DECIMAL.sub(_POINT, text))
    text = "".join(each if _is_kept(each) else " " for each in text)
    return tuple(text.replace(_POINT, ".").replace(_NEGATIVE, "-").split())


def _is_kept(character: str) -> bool:
    kind = unicodedata.category(character)
    if kind[0] in "PS":
        return character in _KEPT_SYMBOLS or kind == "Sc"
    return kind != "Cc"


def normalised(text: str) -> str:
    """A text in the form in which answers are compared and counted, without articles."""
    return " ".join(_without_articles(words_of(text)))


def _without_articles(words: Words) -> Words:
    """Without articles, except at the end, where an "a" is a name: vitamin A, hepatitis A."""
    return tuple(word for place, word in enumerate(words) if word not in _ARTICLES or place == len(words) - 1)


def is_usable(alias: str) -> bool:
    """Whether an alias holds anything that could be matched."""
    return bool(words_of(alias))


def matches(answer: str, aliases: Sequence[str]) -> bool:
    """Whether an answer gives one of the aliases.

    Args:
        answer: What a model said.
        aliases: Accepted answers. Those without a letter or digit never match; one of a single letter must be
            the whole answer.
    """
    said = words_of(answer)
    return any(_gives(said, words_of(alias)) for alias in aliases)


def _gives(said: Words, alias: Words) -> bool:
    if not alias:
        return False
    if len(alias) == 1 and len(alias[0]) == 1 and not alias[0].isdigit():
        return said == alias
    if _contains(said, alias):
        return True
    bare = _without_articles(alias)
    return not _ARTICLES.issuperset(bare) and _contains(_without_articles(said), bare)


def _contains(words: Words, part: Words) -> bool:
    return any(words[first : first + len(part)] == part for first in range(len(words) - len(part) + 1))


def is_refusal(answer: str) -> bool:
    """Whether an answer is empty or says that the model does not know."""
    said = words_of(answer)
    return not said or any(_contains(said, phrase) for phrase in _REFUSALS)
