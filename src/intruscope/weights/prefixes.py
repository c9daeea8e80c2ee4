"""Which prefix to take off the names of two models so that the same module has the same name in both.

``bert.encoder.layer.0`` of one is ``encoder.layer.0`` of the other. A prefix can also be the name of a tower
(``text_model.``, ``decoder.``), and then taking it off could put one tower's matrices on another's. So a
prefix of one tower never stands for that of another, and where names fit several places all are returned.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MAX_PREFIX_WORDS = 3
_MAX_CANDIDATES = 16
_TOWERS = {
    "vision": "vision", "visual": "vision", "image": "vision", "pixel": "vision",
    "text": "text", "language": "text", "llm": "text",
    "audio": "audio", "speech": "audio",
    "encoder": "encoder", "decoder": "decoder", "generator": "generator", "discriminator": "discriminator",
    "qformer": "qformer", "thinker": "thinker", "talker": "talker",
    "student": "student", "teacher": "teacher",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NameMatch:
    """How the names of two models agree.

    Attributes:
        base, tuned: The prefix to take off each side.
        towers: Names of towers in the prefix of one side that the other side does not mention.
        rivals: Prefixes of the base under which the tuned names fit as well, elsewhere.
    """

    base: str = ""
    tuned: str = ""
    towers: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[str, ...]:
        """Prefixes of all parts of the base that the names fit."""
        return (self.base, *self.rivals)


@dataclass(frozen=True)
class _Try:
    base: str
    tuned: str
    towers: tuple[str, ...]
    names: frozenset[str]


def match_names(
    base: Iterable[str], tuned: Iterable[str], *, fits: Callable[[str, str], bool] | None = None
) -> NameMatch:
    """Find the prefixes under which the most names agree; none when names agree as they are.

    Args:
        base: Names of the base's modules or tensors.
        tuned: Likewise.
        fits: Whether a base name and a tuned name can be of one module, by their shapes; names alone decide
            by default.

    Returns:
        The best match. Prefixes have one to three words, and taking one off leaves every name of that side
        unique. Prefixes that name two different towers never match.
    """
    base_names, tuned_names = list(base), list(tuned)
    if set(base_names) <= set(tuned_names) or set(tuned_names) <= set(base_names):
        return NameMatch()  # nothing could agree better
    base_towers, tuned_towers = _tower_words(base_names), _tower_words(tuned_names)
    base_stripped = _all_stripped(base_names)
    tuned_stripped = _all_stripped(tuned_names)
    pairs = [("", ""), *((p, "") for p in base_stripped if p), *(("", p) for p in tuned_stripped if p)]
    both = [(b, t) for b in base_stripped if b for t in tuned_stripped if t]
    tries: list[_Try] = []
    for group in (pairs, both):
        for one, other in group:
            mine, theirs = base_stripped[one], tuned_stripped[other]
            names = mine.keys() & theirs.keys()
            # A prefix of both that only few of the names carry would make one tensor another's by chance.
            carried = (
                sum(mine[name] != name and theirs[name] != name for name in names) if one and other else 0
            )
            if not names or (one and other and 2 * carried < len(names)):
                continue
            towers = _towers_of(one, base_towers), _towers_of(other, tuned_towers)
            if not (towers[0] <= towers[1] or towers[1] <= towers[0]):
                continue
            tries.append(_Try(one, other, tuple(sorted(towers[0] ^ towers[1])), frozenset(names)))
        if any(len(found.names) == min(len(base_names), len(tuned_names)) for found in tries):
            break
    if not tries:
        return NameMatch()

    def twins(found: _Try) -> set[tuple[str, str]]:
        mine, theirs = base_stripped[found.base], tuned_stripped[found.tuned]
        return {(mine[name], theirs[name]) for name in found.names}

    def num_fitting(found: _Try) -> int:
        return sum(fits(*pair) for pair in twins(found)) if fits is not None else len(found.names)

    scores = {found: (num_fitting(found), len(found.names), not found.towers) for found in tries}
    best = max(tries, key=scores.__getitem__)
    place = {other: one for one, other in twins(best)}

    def is_rival(found: _Try) -> bool:
        """Whether it puts most of the tuned names on other names of the base, with as much right."""
        moved = sum(place.get(other, one) != one for one, other in twins(found))
        if scores[found] == scores[best]:
            return 2 * moved > len(place)
        # Fewer names, but without taking a tower's name off.
        return bool(best.towers) and not found.towers and moved > 1 and 2 * moved > len(found.names)

    rivals: dict[frozenset[tuple[str, str]], str] = {}
    if best.base or best.tuned:  # names that agree as they are leave no doubt
        for found in tries:
            if is_rival(found):
                rivals.setdefault(frozenset(twins(found)), found.base)
    return NameMatch(
        base=best.base, tuned=best.tuned, towers=best.towers, rivals=tuple(dict.fromkeys(rivals.values()))
    )


def find_prefixes(base: Iterable[str], tuned: Iterable[str]) -> tuple[str, str]:
    """The prefixes of :func:`match_names`, by names alone."""
    found = match_names(base, tuned)
    return found.base, found.tuned


def _all_stripped(names: list[str]) -> dict[str, dict[str, str]]:
    """For each prefix that may be taken off (and for none): the rest of each name, and the name."""
    counts: Counter[str] = Counter()
    for name in names:
        words = name.split(".")[:-1]
        for length in range(1, min(_MAX_PREFIX_WORDS, len(words)) + 1):
            if not any(word.isdigit() for word in words[:length]):
                counts[".".join(words[:length]) + "."] += 1
    found = {"": {name: name for name in names}}
    for prefix, _ in counts.most_common(_MAX_CANDIDATES):
        rest = {name.removeprefix(prefix): name for name in names}
        if len(rest) == len(names):
            found[prefix] = rest
    return found


def _tower_words(names: list[str]) -> frozenset[str]:
    """Words in which the stacks of blocks of one model differ: each is the name of a tower."""
    branches: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for name in names:
        words = name.split(".")
        at = next((i for i, word in enumerate(words) if word.isdigit()), 0)
        for length in range(at):
            branches[tuple(words[:length])].add(words[length])
    return frozenset(word for words in branches.values() if len(words) > 1 for word in words)


def _towers_of(prefix: str, tower_words: frozenset[str]) -> frozenset[str]:
    """The towers that a prefix names."""
    found = set()
    for word in filter(None, prefix.split(".")):
        known = {_TOWERS[part] for part in re.split(r"[_\d]+", word) if part in _TOWERS}
        if known:
            found |= known
        elif word in tower_words:
            found.add(word)
    return frozenset(found)
