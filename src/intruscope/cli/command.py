"""Commands built from functions whose parameters are settings classes and single options.

Each option of a class becomes a parameter of the command; what was given on the command line becomes an
object of that class again, with the class's own defaults for the rest.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import click
from click.core import ParameterSource

from intruscope.cli.screen import note
from intruscope.errors import UsageError, printable
from intruscope.options import Option, Panel, option, option_of, options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PANELS: tuple[Panel, ...] = get_args(Panel)
_WIDTH = 100
"""Columns of the help at most, on wider terminals too."""
VERBOSE = option(False, help="Show tracebacks for internal errors.", panel="How it runs", short="-v")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a command.

    Attributes:
        name: Unique in the command.
        hint: Its type.
        default: None where it must be given.
        required: It must be given.
        option: What else is known of it.
    """

    name: str
    hint: Any
    default: Any
    required: bool
    option: Option

    @property
    def flag(self) -> str:
        """As it is written on the command line, or as an argument's placeholder."""
        if self.option.positional:
            return (self.option.metavar or self.name).upper()
        return "--" + (self.option.flag or self.name.replace("_", "-"))

    @property
    def default_text(self) -> str:
        """The default as it would be typed; empty where there is none to show."""
        default = self.default
        if default is None or default is False or default == ():
            return ""
        if default == self.option.all:
            return "all"
        if isinstance(default, tuple):
            return ",".join(map(str, default))
        if self.option.scale:
            default /= self.option.scale
        return f"{default:g}" if isinstance(default, float) else str(default)


class Group(Protocol):
    """Several parameters that become one argument of a verb."""

    def parameters(self) -> Iterator[Parameter]:
        """Each of them."""

    def make(self, given: dict[str, Any]) -> Any:
        """The argument, from those that were given."""


@dataclass(frozen=True)
class Settings:
    """A settings class, or some of its options, as a group.

    Attributes:
        of: The class.
        names: Fields that the verb offers; all that are options by default.
        without: Fields that it does not offer.
        partial: The class has fields that are no options and have no default: the verb gets a
            :class:`functools.partial` and completes it.
    """

    of: type
    names: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    partial: bool = False

    def parameters(self) -> Iterator[Parameter]:
        """Those of the class that the verb offers, in its order."""
        hints = get_type_hints(self.of)
        for each, known in options_of(self.of):
            if each.name not in self.without and (not self.names or each.name in self.names):
                yield _parameter(each.name, hints[each.name], each.default, known)

    def make(self, given: dict[str, Any]) -> Any:
        """An object of the class."""
        return functools.partial(self.of, **given) if self.partial else self.of(**given)


def only(settings: type, *names: str) -> Settings:
    """Some options of a class, for ``Annotated`` parameters of a verb."""
    known = {each.name for each, _ in options_of(settings)}
    assert known.issuperset(names), set(names) - known
    return Settings(settings, names)


def command(function: Callable[..., int | None], *, name: str | None = None) -> click.Command:
    """A command that calls a function; its docstring is the help, what it returns the exit code.

    Args:
        function: Its parameters are settings classes, ``Annotated`` with a :class:`Group`, or single options
            whose defaults come from :func:`intruscope.options.option`.
        name: By default the function's.
    """
    groups: dict[str, Group] = {}
    owners: dict[str, str] = {}
    parameters: list[Parameter] = []
    hints = get_type_hints(function, include_extras=True)
    for each in inspect.signature(function).parameters.values():
        group = _group(hints[each.name])
        if group is not None:
            groups[each.name] = group
            found = list(group.parameters())
        else:
            known = option_of(each.default)
            assert known is not None, each.name
            found = [_parameter(each.name, hints[each.name], each.default.default, known)]
        for one in found:
            assert one.name not in owners, one.name
            owners[one.name] = each.name
        parameters += found
    single = [n for n in inspect.signature(function).parameters if n not in groups]

    def call(**values: Any) -> int | None:
        context = click.get_current_context()
        given = {
            one.name: values[one.name]
            for one in parameters
            if context.get_parameter_source(one.name) is not ParameterSource.DEFAULT
        }
        _warn_of_ignored(parameters, given, context)
        arguments: dict[str, Any] = {
            key: group.make({n: value for n, value in given.items() if owners[n] == key})
            for key, group in groups.items()
        }
        defaults = {one.name: one.default for one in parameters}
        arguments |= {key: given.get(key, defaults[key]) for key in single}
        return function(**arguments)

    verbose = _parameter("verbose", bool, False, option_of(VERBOSE))
    return _Command(
        name or function.__name__,
        parameters=sorted([*parameters, verbose], key=_place),
        callback=call,
        help=inspect.getdoc(function),
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH},
    )


def _place(one: Parameter) -> tuple[int, int]:
    """By panel; in it arguments, then what must be given, then the rest as declared."""
    return PANELS.index(one.option.panel), 0 if one.option.positional else 1 if one.required else 2


def _group(hint: Any) -> Group | None:
    if get_origin(hint) is Annotated:
        return next((extra for extra in get_args(hint)[1:] if hasattr(extra, "parameters")), None)
    return Settings(hint) if isinstance(hint, type) and is_dataclass(hint) else None


def _parameter(name: str, hint: Any, default: Any, known: Option | None) -> Parameter:
    assert known is not None
    missing = default is MISSING
    return Parameter(
        name=name, hint=hint, default=None if missing else default, required=missing, option=known
    )


def _warn_of_ignored(parameters: list[Parameter], given: Mapping[str, Any], context: click.Context) -> None:
    """Say which options have no effect, since what they belong to was not asked for."""
    offered = {one.flag for one in parameters}
    asked = {one.flag for one in parameters if one.name in given}
    for one in parameters:
        needs = [flag for flag in one.option.needs if flag in offered]
        source = context.get_parameter_source(one.name)
        if needs and source is ParameterSource.COMMANDLINE and asked.isdisjoint(needs):
            note(f"{one.flag} has no effect without {' or '.join(needs)}")


class _Value(click.ParamType):  # type: ignore[type-arg]
    """One text of the command line as a value of a field's type."""

    name = "value"

    def __init__(self, parameter: Parameter) -> None:
        self._parameter = parameter
        self.many, self.words, self._kinds = _analysed(parameter.hint)
        known = parameter.option
        if known.choices:
            self.words, self._kinds = known.choices, ()
        self.is_flag = bool in self._kinds
        self.repeated = self.many and not known.comma
        self.metavar = known.metavar or self._placeholder()

    def _placeholder(self) -> str:
        if self.words:
            numbers = ["N"] if int in self._kinds else []
            return "|".join([*numbers, *self.words])
        return {int: "N", float: "X", Path: "PATH"}.get(self._kinds[0], "TEXT")

    def convert(self, value: Any, param: Any, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """A value in range; defaults pass as they are.

        Raises:
            UsageError: it is none.
        """
        if not isinstance(value, str):
            return value
        if not (self.many and self._parameter.option.comma):
            return self._one(value)
        if value.strip() == "all" and self._parameter.option.all is not None:
            return self._parameter.option.all
        return tuple(self._one(part.strip()) for part in value.split(",") if part.strip())

    def _one(self, text: str) -> Any:
        known = self._parameter.option
        if text in self.words:
            return text
        for kind in self._kinds:
            try:
                value = float(text) if known.scale else kind(text)
            except (ValueError, OverflowError):
                continue
            if known.allows(value):
                return int(value * known.scale) if known.scale else value
        flag = self._parameter.flag
        raise UsageError(
            f"{flag} must be {self._expected()}, not '{printable(text)}'",
            remedy=f"see {_path(click.get_current_context(silent=True))} --help",
        )

    def _expected(self) -> str:
        limits = self._parameter.option.range
        if int in self._kinds and not self._parameter.option.scale:
            number = ["a whole number" + (" of " if limits.startswith("at") else " ") * bool(limits) + limits]
        elif int in self._kinds or float in self._kinds:
            number = ["a number" + (" of " if limits.startswith("at") else " ") * bool(limits) + limits]
        else:
            number = []
        *most, last = [*number, *(f"'{word}'" for word in self.words)]
        return f"{', '.join(most)} or {last}" if most else last


def _path(context: click.Context | None) -> str:
    return context.command_path if context is not None else "intruscope"


def _analysed(hint: Any) -> tuple[bool, tuple[str, ...], tuple[Any, ...]]:
    """Whether there may be several, the words that are allowed, and the types of anything else."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = [_analysed(each) for each in get_args(hint) if each is not type(None)]
        return (
            any(many for many, _, _ in parts),
            sum((words for _, words, _ in parts), ()),
            sum((kinds for _, _, kinds in parts), ()),
        )
    if get_origin(hint) is Literal:
        return False, get_args(hint), ()
    if get_origin(hint) in (tuple, list):
        _, words, kinds = _analysed(get_args(hint)[0])
        return True, words, kinds
    return False, (), (hint,)


class _Command(click.Command):
    """A command whose help lists its parameters in panels."""

    def __init__(self, name: str, *, parameters: list[Parameter], **settings: Any) -> None:
        self.parameters = parameters
        super().__init__(name, params=[_click_parameter(one) for one in parameters], **settings)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the panels."""
        for panel in PANELS:
            rows = [
                help_row(one, declared)
                for one, declared in zip(self.parameters, self.params, strict=True)
                if one.option.panel == panel
            ]
            if panel == PANELS[-1]:
                rows.append(("-h, --help", "Show this message and exit."))
            if rows:
                with formatter.section(panel):
                    formatter.write_dl(rows)


def _click_parameter(one: Parameter) -> click.Parameter:
    value = _Value(one)
    shown: dict[str, Any] = {} if one.default is None else {"default": one.default}
    if one.option.positional:
        return click.Argument(
            [one.name],
            type=value,
            required=one.required,
            nargs=-1 if value.repeated else 1,
            metavar=one.flag + "..." * value.repeated if one.required else f"[{one.flag}]",
        )
    names = [one.name, one.flag, *([one.option.short] if one.option.short else [])]
    if value.is_flag:
        return click.Option(names, is_flag=True, default=False)
    return click.Option(
        names,
        type=value,
        required=one.required,
        multiple=value.repeated,
        metavar=value.metavar,
        envvar=one.option.environment,
        **shown,
    )


def help_row(one: Parameter, declared: click.Parameter) -> tuple[str, str]:
    """What the help says of a parameter: how it is written, and what it does."""
    names, notes = one.flag, list[str]()
    if isinstance(declared, click.Option):
        names = f"{one.option.short}, {names}" if one.option.short else names
        names += "" if declared.is_flag else f" {declared.metavar}"
        notes += ["required"] if one.required else []
        notes += ["repeatable"] if declared.multiple else []
        words = declared.type.words if isinstance(declared.type, _Value) else ()
        notes += ["choices: " + ", ".join(words)] if words and one.option.metavar else []
    notes += [f"default: {one.default_text}"] if one.default_text else []
    notes += [f"env: {one.option.environment}"] if one.option.environment else []
    return names, one.option.help + (f" [{'; '.join(notes)}]" if notes else "")


class Verbs(click.Group):
    """A group whose help lists its verbs in panels; a verb is imported when it is looked up."""

    def __init__(
        self,
        name: str,
        panels: Mapping[str, Mapping[str, str]],
        load: Callable[[str], click.Command],
        *,
        help: str,
    ) -> None:
        self.panels = panels
        super().__init__(
            name,
            commands=_Lazy([verb for verbs in panels.values() for verb in verbs], load),
            callback=_show_help_alone,
            invoke_without_command=True,
            help=help,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH},
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the panels."""
        width = max(len(verb) for verbs in self.panels.values() for verb in verbs)
        for panel, verbs in self.panels.items():
            with formatter.section(panel):
                formatter.write_dl([(verb.ljust(width), summary) for verb, summary in verbs.items()])


@click.pass_context
def _show_help_alone(context: click.Context) -> None:
    """Without a verb, show the help and fail."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


class _Lazy(MutableMapping[str, click.Command]):
    """Commands by name, each made when it is first looked up."""

    def __init__(self, names: Sequence[str], load: Callable[[str], click.Command]) -> None:
        self._found: dict[str, click.Command | None] = dict.fromkeys(names)
        self._load = load

    def __getitem__(self, name: str) -> click.Command:
        found = self._found[name] or self._load(name)
        self._found[name] = found
        return found

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
