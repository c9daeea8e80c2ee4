"""Settings, each declared once: a field of a dataclass carries what the command line and the docs need.

The command line builds its parameters from these fields, ``docs/options.md`` its tables, and
:func:`documented` the docstring that a notebook shows. Nothing heavy is imported here.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from intruscope.errors import UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

Panel = Literal["Input", "What to compute", "Output", "How it runs"]
"""Where ``--help`` lists an option."""
REQUIRED: Any = MISSING
"""Default of an option that must be given."""
_KEY = "option"
_BEYOND_USE = 10**6


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is known about one setting besides its name, type and default.

    Attributes:
        help: One or two sentences for ``--help`` and the docs.
        panel: Where ``--help`` lists it.
        flag: Name on the command line without dashes; by default the field's, with dashes for underscores.
        short: One-letter form, such as ``-o``.
        positional: An argument without a flag.
        metavar: Placeholder of the value in ``--help``.
        choices: The allowed words, where the type does not list them.
        minimum: Smallest allowed number.
        above: Every allowed number is larger than this.
        maximum: Largest allowed number.
        below: Every allowed number is smaller than this.
        scale: The command line takes the value in units of so many of the field's (GiB for bytes).
        comma: The command line takes a tuple as one value with commas, not as a repeated option.
        all: What the word ``all`` stands for on the command line.
        environment: Environment variable that gives the value where the option is left out.
        needs: Options (flags) without any of which this one has no effect.
        about: Text for the docstring where ``help`` does not fit the field.
    """

    help: str
    panel: Panel = "What to compute"
    flag: str | None = None
    short: str | None = None
    positional: bool = False
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    scale: float | None = None
    comma: bool = False
    all: tuple[Any, ...] | None = None
    environment: str | None = None
    needs: tuple[str, ...] = ()
    about: str | None = None

    @property
    def range(self) -> str:
        """The allowed numbers in words, without limits that no sensible value reaches."""
        limits = [
            f"{word} {limit:.15g}"
            for word, limit in (
                ("at least", self.minimum),
                ("above", self.above),
                ("at most", self.maximum),
                ("below", self.below),
            )
            if limit is not None and limit < _BEYOND_USE
        ]
        return " and ".join(limits)

    def allows(self, value: object) -> bool:
        """Whether a value is in range; anything but a number is."""
        if isinstance(value, tuple):
            return all(map(self.allows, value))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return (
            math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )


MAX_SEED = 2**63 - 1
"""Largest seed that every generator takes."""


def option(default: T, *, help: str, **metadata: Any) -> T:
    """A field of a settings class, or a parameter of a verb, with its metadata.

    Args:
        default: Its default; :data:`REQUIRED` for none.
        help: See :class:`Option`, as for everything else.
        **metadata: Further attributes of :class:`Option`.

    Returns:
        A dataclass field. Its type is that of the default, as :func:`dataclasses.field` declares it.
    """
    found: Any = field(default=default, metadata={_KEY: Option(help=help, **metadata)})
    return found  # type: ignore[no-any-return]


def shared(settings: type, name: str, *, default: Any = None, **changes: Any) -> Any:
    """The same option in another settings class.

    Args:
        settings: The class that declares it.
        name: Of its field.
        default: Where it differs.
        **changes: Attributes of :class:`Option` that differ.
    """
    (original,) = (each for each in fields(settings) if each.name == name)
    return field(
        default=original.default if default is None else default,
        metadata={_KEY: replace(original.metadata[_KEY], **changes)},
    )


def option_of(declared: object) -> Option | None:
    """The metadata of a field; None for anything else."""
    return declared.metadata.get(_KEY) if isinstance(declared, Field) else None


def options_of(settings: Any) -> Iterator[tuple[Field[Any], Option]]:
    """The fields of a settings class that are options, in order."""
    for each in fields(settings):
        found = option_of(each)
        if found is not None:
            yield each, found


def check_options(settings: Any) -> None:
    """Refuse numbers that are out of range; for ``__post_init__``.

    Raises:
        UsageError: one is.
    """
    for each, known in options_of(settings):
        value = getattr(settings, each.name)
        if not known.allows(value):
            raise UsageError(
                f"{each.name} must be {known.range or 'a finite number'}, not {printable(value)}",
                remedy=f"change {each.name}",
            )


def documented(settings: type[T]) -> type[T]:
    """Complete the docstring of a settings class with its options, as a class decorator."""
    doc = (settings.__doc__ or "").rstrip()
    lines = "" if "Attributes:" in doc else "\n\n    Attributes:"
    for each, known in options_of(settings):
        lines += f"\n        {each.name}: {known.about or known.help}"
    settings.__doc__ = f"{doc}{lines}\n    "
    return settings
