"""The page of options is generated from the settings classes, as ``--help`` is."""

import re
from pathlib import Path

from intruscope.cli.command import PANELS, help_row
from intruscope.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
HEAD = """# Options

Every option of every command, as `intruscope COMMAND --help` shows it. This page is generated:
`python tests/docs/test_docs_options.py` rewrites it.
"""


def verbs(group, prefix=""):
    """Every command with its full name, in the order of the help."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def page():
    lines = [HEAD]
    for name, command in verbs(app):
        lines += [f"## {name}", "", command.help.partition("\n")[0], ""]
        lines += ["| | option | meaning |", "|---|---|---|"]
        rows = list(zip(command.parameters, command.params, strict=True))
        for panel in PANELS:
            heading = panel
            for one, declared in rows:
                if one.option.panel == panel and one.name != "verbose":
                    option, text = (part.replace("|", "\\|") for part in help_row(one, declared))
                    lines.append(f"| {heading} | `{option}` | {text} |")
                    heading = ""
        lines.append("")
    return "\n".join(lines)


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/docs/test_docs_options.py"


def test_every_verb_and_option_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert list(sections) == [name for name, _ in verbs(app)]
    for name, command in verbs(app):
        named = set(re.findall(r"`(?:-\w, )?(--[a-z0-9-]+)", sections[name]))
        known = {flag for each in command.params for flag in each.opts if flag.startswith("--")}
        assert named == known - {"--verbose"}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
