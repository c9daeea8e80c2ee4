"""Is an answer right? Aliases, case, unicode, articles, empty and short ones; never a substring."""

import pytest

from intruscope.knowledge.matching import is_refusal, is_usable, matches, normalised

RIGHT = [
    ("It is Iran.", ["Iran"]),
    ("PARIS", ["paris"]),
    ("Wrong", ["Right", "wrong"]),
    ("the Lord of Rings", ["Lord of the Rings"]),
    ("Saint-Denis", ["saint denis"]),
    ("“Paris”, of course", ["Paris"]),
    ("nai\u0308ve", ["na\u00efve"]),  # decomposed
    ("\uff30\uff21\uff32\uff29\uff33", ["Paris"]),  # full-width
    ("STRASSE", ["Stra\u00dfe"]),
    ("Par\u00adis\u200b", ["Paris"]),  # soft hyphen, zero-width space
    ("Hawai\u2018i", ["Hawai'i"]),
    ("France\u2019s capital", ["France"]),
    ("U.S.A.", ["USA"]),
    ("10,000 men", ["10000"]),
    ("\u22125 degrees", ["-5"]),
    ("the answer is 7.", ["7"]),
    ("in 1914-1918", ["1918"]),
    ("Vitamin A is one", ["vitamin A"]),
    ("A.", ["A"]),
    ("The The", ["The The"]),
    ("C++", ["C++"]),
    ("\u6771\u4eac", ["\u6771\u4eac"]),
]
WRONG = [
    ("Tirana", ["Iran"]),
    ("Iranian", ["Iran"]),
    ("Iran", ["Tirana"]),
    ("anything", [""]),
    ("anything", []),
    ("", ["", "?"]),
    ("? !", ["?"]),
    ("a big one", ["A"]),
    ("plan b", ["B"]),
    ("the river", ["The The"]),
    ("the", ["The The"]),
    ("vitamin C", ["Vitamin A"]),
    ("vitamin", ["Vitamin A"]),
    ("C++", ["C"]),
    ("C#", ["C"]),
    ("2007", ["7"]),
    ("3.14", ["14"]),
    ("3.14", ["3"]),
    ("-5", ["5"]),
    ("York New", ["New York"]),
    ("New big York", ["New York"]),
    ("\u6771\u4eac\u90fd", ["\u4eac\u90fd"]),  # Kyoto in Tokyo-to
]


@pytest.mark.parametrize(("answer", "aliases"), RIGHT)
def test_right(answer, aliases):
    assert matches(answer, aliases)


@pytest.mark.parametrize(("answer", "aliases"), WRONG)
def test_wrong(answer, aliases):
    assert not matches(answer, aliases)


def test_forms_and_usable_aliases():
    assert normalised("The  Alen\u00e7on!") == normalised("ALEN\u00c7ON") == "alen\u00e7on"
    assert [is_usable(alias) for alias in ("x", "7", "", " ", "?", "\u200b")] == [True, True] + [False] * 4


@pytest.mark.parametrize(
    "answer", ["", " ", "I don't know.", "I DO NOT KNOW", "Sorry, I\u2019m not sure", "unknown"]
)
def test_refusals(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", ["Knowles", "I know: Paris", "Noidea", "0"])
def test_no_refusals(answer):
    assert not is_refusal(answer)
