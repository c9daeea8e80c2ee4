"""Several fine-tunes of one base, opened through the one door and lined up matrix by matrix."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intruscope.adapters.folder import AdapterSource
from intruscope.adapters.opening import is_named, open_pair
from intruscope.errors import UsageError, printable
from intruscope.weights.names import last_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intruscope.adapters.opening import ModelLike, OpenedPair
    from intruscope.weights.matrices import MatrixPair
    from intruscope.weights.source import ModelSource


@dataclass(frozen=True, kw_only=True, eq=False)
class FineTunes:
    """A base and what was trained from it, known from headers; no weight is read yet.

    Attributes:
        base: The model that all of them start from.
        members: One opened pair for each fine-tune, in the order given; all share ``base``.
        labels: A short, unique name for each.
    """

    base: ModelSource
    members: tuple[OpenedPair, ...]
    labels: tuple[str, ...]

    def matrices(self) -> dict[str, tuple[MatrixPair | None, ...]]:
        """For each matrix that any of them changes its pair in each; None where a fine-tune leaves it alone.

        In the order of the base, as far as the first fine-tune that changes a matrix tells it.
        """
        found: dict[str, list[MatrixPair | None]] = {}
        for index, member in enumerate(self.members):
            for pair in member.pairing.pairs:
                found.setdefault(pair.name, [None] * len(self.members))[index] = pair
        order = {tensor: place for place, tensor in enumerate(self.base.tensors)}

        def place(name: str) -> int:
            pair = next(pair for pair in found[name] if pair is not None)
            return order.get(pair.base.tensor.name, len(order))

        return {name: tuple(found[name]) for name in sorted(found, key=place)}


def open_fine_tunes(
    base: ModelLike,
    tuned: Sequence[ModelLike],
    *,
    allow_pickle: bool = False,
    same_base: bool = False,
    least: int = 2,
) -> FineTunes:
    """Open a base once, and several fine-tunes of it.

    Args:
        base: See :func:`intruscope.adapters.opening.open_pair`; a model alone.
        tuned: Adapters or full checkpoints, by name or in memory.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        same_base: Trust that all adapters are of this base, although their configs name different ones.
        least: Fewest fine-tunes that make sense.

    Raises:
        UsageError: too few fine-tunes, or adapters whose configs name different bases.
        IntruscopeError: as :func:`intruscope.adapters.opening.open_pair`.
    """
    if len(tuned) < least:
        raise UsageError(
            f"{len(tuned)} fine-tune{'s are' if len(tuned) != 1 else ' is'} given, and at least {least} are "
            "needed",
            remedy="name the base first, then every adapter or checkpoint",
        )
    members: list[OpenedPair] = []
    for each in tuned:
        # The base is opened once: later pairs take the source that the first one opened.
        members.append(open_pair(members[0].base if members else base, each, allow_pickle=allow_pickle))
    labels = unique_labels([_name_of(each, index) for index, each in enumerate(tuned)])
    if not same_base:
        check_same_base([member.tuned for member in members], labels)
    return FineTunes(base=members[0].base, members=tuple(members), labels=labels)


def check_same_base(sources: Sequence[ModelSource | AdapterSource], labels: Sequence[str]) -> None:
    """Refuse adapters whose configs name different bases.

    Args:
        sources: Opened fine-tunes; full checkpoints and adapters that name no base are not asked.
        labels: Their names, for the message.

    Raises:
        UsageError: two configs name different models. Only the last part of a name counts: one adapter may
            name a folder and another the hub.
    """
    stated = [
        (label, source.base_name)
        for source, label in zip(sources, labels, strict=True)
        if isinstance(source, AdapterSource) and source.base_name is not None
    ]
    bases = {last_part(name) for _, name in stated}
    if len(bases) > 1:
        named = ", ".join(f"{printable(label)}: {printable(name)}" for label, name in stated)
        raise UsageError(
            f"the adapters name different bases ({named})",
            remedy="combine adapters of one base; if these names stand for the same model, add --same-base",
        )


def unique_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Short names for fine-tunes: the last part of each path, longer or numbered where two agree.

    Args:
        names: As the user gave them.
    """
    paths = [Path(name.rstrip("/") or name) for name in names]
    short = [path.name or name for path, name in zip(paths, names, strict=True)]
    longer = [
        f"{path.parent.name}/{label}" if path.parent.name else label
        for path, label in zip(paths, short, strict=True)
    ]
    num_short, num_longer = Counter(short), Counter(longer)
    unique, seen = [], Counter[str]()
    for label, long in zip(short, longer, strict=True):
        if num_short[label] == 1:
            unique.append(label)
        elif num_longer[long] == 1:
            unique.append(long)
        else:
            seen[label] += 1
            unique.append(f"{label}#{seen[label]}")
    return tuple(unique)


def _name_of(model: ModelLike, index: int) -> str:
    return str(model) if is_named(model) else str(getattr(model, "name", "") or f"fine-tune {index + 1}")
