"""The fine-tuning methods as JSON, as a table in the terminal, and as pages of the documentation."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from intruscope.methods.contract import Method, Parameter

SCHEMA = "intruscope.methods/1"
_KIND_NAMES = {"linear": "Linear", "conv1d": "Conv1D"}
_DEPARTURES = {
    "moves_base": "It changes the base's weights at the start; the update is measured against the original "
    "weights.",
    "trains_base": "The model's own weights are trained; nothing is added to it.",
    "nonzero_at_start": "The update is not zero before the first training step.",
    "uneven_ranks": "Each matrix has its own rank; the option sets their mean.",
    "no_training": "The update is computed, not trained.",
    "no_static_update": "Its update depends on the input, so there is no single update.",
}


def methods_json(methods: Iterable[Method]) -> dict[str, Any]:
    """The object of the schema ``intruscope.methods/1``.

    Args:
        methods: In order.

    Returns:
        Plain data.
    """
    return {
        "schema": SCHEMA,
        "methods": [
            {
                "name": method.name,
                "title": method.title,
                "paper": method.paper,
                "source": method.source,
                "mergeable": method.mergeable,
                "plain_lora": method.plain_lora,
                "layers": sorted(method.layers),
                "departures": sorted(method.departures),
                "cost": method.cost,
                "how_updated": method.how_updated,
                "rate": method.rate,
                "rate_source": method.rate_source,
                "parameters": [_parameter_json(parameter) for parameter in method.parameters],
            }
            for method in methods
        ],
    }


def _parameter_json(parameter: Parameter) -> dict[str, Any]:
    return {**asdict(parameter), "choices": list(parameter.choices)}


def methods_table(methods: Iterable[Method]) -> list[RenderableType]:
    """A terminal table of all methods."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("name", "method", "paper", "implemented by", "options (defaults)"):
        table.add_column(name)
    for method in methods:
        options = ", ".join(f"{p.name}={_shown(p.default)}" for p in method.parameters)
        table.add_row(method.name, Text(method.title), Text(method.paper), method.source, Text(options))
    return [table, Text("Details of one method: intruscope methods NAME", style="dim")]


def method_details(method: Method) -> list[RenderableType]:
    """The terminal page of one method."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("option", "default", "values", "meaning", "source of the default"):
        table.add_column(name)
    for p in method.parameters:
        table.add_row(p.name, _shown(p.default), Text(p.expected), Text(p.meaning), Text(p.source))
    facts = "\n".join(f"{what}: {said}" for what, said in _facts(method))
    return [Text(method.documentation.strip()), table if method.parameters else Text(""), Text(facts)]


def method_page(method: Method) -> str:
    """The page of a method, in Markdown."""
    summary, _, rest = method.documentation.strip().partition("\n\n")
    lines = [f"# {method.title} (`{method.name}`)", "", _markdown(summary), ""]
    if rest:
        lines += [_markdown(rest), ""]
    if "no_training" not in method.departures:
        keep = " --keep-text TEXT" if method.needs_kept else ""
        lines += [
            "```",
            f"intruscope tune BASE --method {method.name} --task TASK{keep} --out DIR",
            "```",
            "",
        ]
    if method.parameters:
        lines += ["| option | default | values | meaning | source of the default |", "|---|---|---|---|---|"]
        for p in method.parameters:
            cells = (f"`{p.name}`", _shown(p.default), p.expected, _markdown(p.meaning), _markdown(p.source))
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += [f"- **{what}**: {_markdown(said)}" for what, said in _facts(method)]
    return "\n".join(lines) + "\n\n[All methods](../methods.md)\n"


def methods_index(methods: Iterable[Method]) -> str:
    """The table of all methods, in Markdown, with links to their pages in ``methods/``."""
    lines = ["| method | summary | paper | implemented by |", "|---|---|---|---|"]
    for method in methods:
        summary = method.documentation.strip().partition("\n\n")[0]
        said = " ".join((summary.partition(": ")[2] or summary).split())
        link = f"[`{method.name}`](methods/{method.name}.md)"
        lines.append(f"| {link} | {_markdown(said)} | {method.paper} | {method.source} |")
    return "\n".join(lines) + "\n"


def _facts(method: Method) -> list[tuple[str, str]]:
    facts = [
        ("Paper", f"{method.paper}."),
        (
            "Implementation",
            "PEFT's." if method.source == "peft" else "Intruscope's, built on PEFT's extension points.",
        ),
        ("Cost", method.cost),
        ("Update", method.how_updated),
        (
            "Layers",
            " and ".join(_KIND_NAMES[kind] for kind in _in_order(method)),
        ),
    ]
    if method.rate is not None:
        facts.append(("Learning rate", f"{method.rate:g} ({method.rate_source})."))
    if method.plain_lora:
        facts.append(("Saved as", "an ordinary PEFT LoRA, which loads without Intruscope."))
    if not method.mergeable:
        facts.append(("Merging", "not possible: no single matrix can replace it."))
    if method.own_optimizer:
        facts.append(("Optimiser", "its own; another optimiser would make it another method."))
    facts += [("Note", _DEPARTURES[departure]) for departure in sorted(method.departures)]
    return facts


def _in_order(method: Method) -> list[str]:
    return sorted(method.layers, reverse=True)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _markdown(text: str) -> str:
    """Docstring markup in Markdown's; a bar would end a cell."""
    return re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|")
