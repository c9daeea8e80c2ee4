"""Options are declared once: a settings class becomes a command, its checks, its help and its docs."""

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal

import click
import pytest
from cli_support import invoke

from intruscope import ScanSettings
from intruscope.cli.command import PANELS, Settings, command, only
from intruscope.cli.main import app
from intruscope.cli.outputs import TABLE
from intruscope.errors import UsageError
from intruscope.options import REQUIRED, check_options, documented, option, options_of, shared


@documented
@dataclass(frozen=True, kw_only=True)
class Toy:
    """A toy.

    Attributes:
        hidden: Not on the command line.
    """

    count: int | Literal["all"] = option(3, help="How many.", minimum=1, flag="num")
    share: float | None = option(None, help="Which part.", above=0, below=1)
    size_bytes: int | None = option(
        None, help="Size in GiB.", about="Size in bytes.", flag="size", above=0, scale=2**30
    )
    names: tuple[str, ...] = option((), help="A name.", flag="name")
    steps: tuple[float, ...] = option((0.1, 0.2), help="Steps.", comma=True, all=(1.0, 2.0), minimum=0)
    kind: Literal["flat", "deep"] = option("flat", help="The kind.", panel="How it runs")
    rule: str = option("one", help="The rule.", choices=("one", "two"))
    fast: bool = option(False, help="Be fast.", needs=("--name", "--size"))
    place: Path | None = option(None, help="A place.", panel="Output", environment="TOY_PLACE")
    hidden: int = 7

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A class with a field that a verb fills in."""

    part: Toy
    depth: int = option(1, help="How deep.", maximum=9)


def play(
    toy: Annotated[
        Toy, only(Toy, "count", "share", "size_bytes", "names", "steps", "kind", "rule", "fast", "place")
    ],
    whole: Annotated[partial[Whole], Settings(Whole, partial=True)],
    where: str = option(REQUIRED, help="Where.", panel="Input", positional=True),
    quiet: bool = option(False, help="Say nothing.", panel="How it runs", short="-q"),
) -> int:
    """Play with a toy.

    For long.
    """
    seen.append((toy, whole(part=toy), where, quiet))
    return 3


seen: list = []


def played(*arguments):
    seen.clear()
    assert command(play)(list(arguments), standalone_mode=False) == 3
    return seen[-1]


def test_what_is_not_given_is_the_default_of_the_class():
    assert played("here") == (Toy(), Whole(part=Toy()), "here", False)


def test_what_is_given_arrives_as_the_field_s_type():
    toy, whole, where, quiet = played(
        *("there", "--num", "all", "--share", "0.25", "--size", "1.5", "--name", "a", "--name", "b,c"),
        *(
            "--steps",
            "3, 0.5",
            "--kind",
            "deep",
            "--rule",
            "two",
            "--fast",
            "--place",
            "x/y",
            "--depth",
            "2",
            "-q",
        ),
    )
    assert (where, quiet, whole.depth) == ("there", True, 2)
    assert toy == Toy(
        count="all",
        share=0.25,
        size_bytes=3 << 29,
        names=("a", "b,c"),
        steps=(3.0, 0.5),
        kind="deep",
        rule="two",
        fast=True,
        place=Path("x/y"),
    )
    assert isinstance(toy.size_bytes, int)
    assert played("there", "--num", "5", "--steps", "all")[0] == Toy(count=5, steps=(1.0, 2.0))


def test_a_verb_may_offer_some_of_a_class():
    def part(toy: Annotated[Toy, only(Toy, "count")]) -> int:
        return toy.count

    found = command(part, name="other")
    assert found.name == "other"
    assert [one.flag for one in found.parameters] == ["--num", "--verbose"]
    assert found(["--num", "9"], standalone_mode=False) == 9


def test_the_environment_gives_what_the_command_line_leaves_out(monkeypatch):
    monkeypatch.setenv("TOY_PLACE", "from/there")
    assert played("here")[0].place == Path("from/there")
    assert played("here", "--place", "mine")[0].place == Path("mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num", "0"), "--num must be a whole number of at least 1 or 'all', not '0'"),
        (("--num", "1.5"), "--num must be a whole number of at least 1 or 'all', not '1.5'"),
        (("--share", "1"), "--share must be a number above 0 and below 1, not '1'"),
        (("--share", "inf"), "--share must be a number above 0 and below 1, not 'inf'"),
        (("--size", "-1"), "--size must be a number above 0, not '-1'"),
        (("--steps", "1,-2"), "--steps must be a number of at least 0, not '-2'"),
        (("--kind", "high"), "--kind must be 'flat' or 'deep', not 'high'"),
        (("--rule", "three"), "--rule must be 'one' or 'two', not 'three'"),
        (("--depth", "10"), "--depth must be a whole number of at most 9, not '10'"),
    ],
)
def test_a_value_out_of_range_is_refused_in_words(arguments, message):
    with pytest.raises(UsageError) as caught:
        command(play)(["here", *arguments], prog_name="play", standalone_mode=False)
    assert caught.value.fact == message
    assert caught.value.remedy == "see play --help"


def test_an_option_without_effect_is_pointed_out(capsys):
    played("here", "--fast")
    assert capsys.readouterr().err == "note: --fast has no effect without --name or --size\n"
    played("here", "--fast", "--size", "1")
    played("here")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "values",
    [{"count": 0}, {"share": float("nan")}, {"share": 1.0}, {"steps": (1.0, -1.0)}, {"size_bytes": 0}],
)
def test_the_library_refuses_the_same_values(values):
    with pytest.raises(UsageError, match=f"{next(iter(values))} must be"):
        Toy(**values)


def test_a_scan_in_a_notebook_refuses_what_the_command_refuses():
    for values in ({"k": 0}, {"epsilon": 0.0}, {"epsilon": 1.5}, {"null_trials": -1}, {"seed": -1}):
        with pytest.raises(UsageError, match="must be"):
            ScanSettings(**values)


def test_docstrings_list_the_options():
    assert "hidden: Not on the command line." in Toy.__doc__
    assert "\n        count: How many." in Toy.__doc__
    assert "\n        size_bytes: Size in bytes." in Toy.__doc__
    for each, known in options_of(ScanSettings):
        assert f"{each.name}: {known.help}" in ScanSettings.__doc__


def test_a_shared_option_differs_only_where_it_is_told_to():
    @dataclass(frozen=True, kw_only=True)
    class Other:
        count: int = shared(Toy, "count")
        share: float = shared(Toy, "share", default=0.5, help="Another part.")

    (_, count), (_, share) = options_of(Other)
    assert (Other().count, count.minimum, count.flag, count.help) == (3, 1, "num", "How many.")
    assert (Other().share, share.help, share.above) == (0.5, "Another part.", 0)
    assert next(known.help for each, known in options_of(Toy) if each.name == "share") == "Which part."


def commands(group, prefix=()):
    for name, found in group.commands.items():
        if isinstance(found, click.Group):
            yield from commands(found, (*prefix, name))
        else:
            yield (*prefix, name), found


@pytest.mark.parametrize("columns", ["80", "120"])
def test_every_help_lists_every_option_once_in_a_panel_and_fits(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for words, found in commands(app):
        shown = invoke(*words, "--help")
        assert shown.returncode == 0
        assert max(map(len, shown.stdout.splitlines())) <= min(int(columns), 100)
        headings = [line[:-1] for line in shown.stdout.splitlines() if line.endswith(":") and line[0] != " "]
        assert headings == [panel for panel in PANELS if panel in headings]
        first = [
            line.split()[0 if line[2:4] == "--" else -1]
            for line in shown.stdout.splitlines()
            if line[:3] == "  -"
        ]
        assert len(first) == len([one for one in found.parameters if not one.option.positional]) + 1
        for one in found.parameters:
            assert one.option.help[0].isupper() and one.option.help.endswith((".", ")")), one
            assert one.flag in shown.stdout
        assert found.parameters == sorted(found.parameters, key=lambda one: PANELS.index(one.option.panel))


def test_the_help_of_the_program_lists_every_verb_in_its_panel():
    shown = invoke("--help").stdout
    for panel, verbs in app.panels.items():
        section = shown.partition(f"{panel}:\n")[2].partition("\n\n")[0]
        assert [line.split()[0] for line in section.splitlines()] == list(verbs)
    assert max(map(len, shown.splitlines())) <= 80
    for verb in app.commands:
        assert import_module(f"intruscope.cli.{verb}")


def test_every_writer_of_the_table_exists():
    for written in TABLE.values():
        for name in (written.summary, *(output.writer for output in written.files.values())):
            module, _, function = name.partition(":")
            assert callable(attrgetter(function)(import_module(f"intruscope.{module}"))), name


def test_a_base_with_an_adapter_is_refused_beside_a_tuned_model(models, tmp_path):
    done = invoke("scan", f"{models[0]}+{tmp_path}", models[1])
    assert done.returncode == 2
    assert "carries an adapter" in done.stderr
