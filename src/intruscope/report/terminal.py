"""What a terminal shows after a scan and after a dry run; fits 80 columns."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from intruscope.errors import printable, printable_text
from intruscope.plots.series import kinds_in_order
from intruscope.spectra import words
from intruscope.spectra.totals import total
from intruscope.spectra.words import percent, rank_range, sentence, top_energy, update_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

    from intruscope.spectra.records import MatrixReport, ScanReport
    from intruscope.spectra.totals import ScanTotals
    from intruscope.weights.matrices import CoverageEntry, Finding, Pairing

_WIDTH = 80
_MAX_GROUPS = 6
_MAX_KINDS = 16
_MAX_FINDINGS = 12
_STYLE = {"info": "cyan", "warning": "yellow", "error": "bold red"}


def summary(report: ScanReport) -> list[RenderableType]:
    """What a scan found, in the order in which people ask.

    Args:
        report: The scan.

    Returns:
        Renderables for ``rich``: the sentence, a table of intruders by kind and layer, key figures,
        findings and coverage. Names from files are escaped and never read as markup.
    """
    parts: list[RenderableType] = [Text(sentence(report), style="bold"), Text()]
    if report.measured:
        parts += [_intruders(report.measured, report), _figures(report)]
    parts += finding_lines([*report.findings, *(f for matrix in report.matrices for f in matrix.findings)])
    parts.append(_coverage(report.coverage))
    return parts


def plan_table(pairing: Pairing) -> list[RenderableType]:
    """What a scan would compare.

    Args:
        pairing: The plan.

    Returns:
        Renderables: a table of matrices by kind and shape, the ledger's counts with the reasons for
        what is skipped, and the findings.
    """
    table = Table(
        title=f"{len(pairing.pairs)} matrices to compare", box=box.SIMPLE_HEAD, title_justify="left"
    )
    for name, justify in (("kind", "left"), ("shape", "right"), ("matrices", "right"), ("layers", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    table.add_column("scope")
    groups: dict[tuple[str, tuple[int, int], str], list[int | None]] = {}
    for pair in pairing.pairs:
        groups.setdefault((pair.kind, pair.base.shape, pair.scope), []).append(pair.layer)
    for (kind, shape, scope), layers in groups.items():
        table.add_row(
            Text(printable(kind)), f"{shape[0]} x {shape[1]}", str(len(layers)), _span(layers), scope
        )
    parts: list[RenderableType] = [
        Text(f"base   {printable(pairing.base)}\ntuned  {printable(pairing.tuned)}"),
        table,
        _coverage(pairing.coverage),
    ]
    return parts + finding_lines(pairing.findings)


def _intruders(matrices: Sequence[MatrixReport], report: ScanReport) -> Table:
    """Kinds down, groups of layers across; a cell says intruders of candidates."""
    groups = _layer_groups(matrices)
    which = "all" if report.settings.k == "all" else f"top {report.settings.k}"
    title = f"Intruders of candidates ({which}, {matrices[0].sides[0].side} vectors)"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    table.add_column("kind", max_width=14, no_wrap=True)
    for label, _ in groups:
        table.add_column(label, justify="right", no_wrap=True)
    table.add_column("all", justify="right", style="bold", no_wrap=True)
    has_chance = report.totals.chance is not None
    if has_chance:
        table.add_column("chance", justify="right", no_wrap=True)
    kinds = kinds_in_order([report])
    named, rest = (
        (kinds, []) if len(kinds) <= _MAX_KINDS else (kinds[: _MAX_KINDS - 1], kinds[_MAX_KINDS - 1 :])
    )
    lines = [(printable(kind), {kind}) for kind in named] + ([("others", set(rest))] if rest else [])
    for label, members in lines:
        of_kind = [matrix for matrix in matrices if matrix.kind in members]
        cells = [_cell(matrix for matrix in of_kind if matrix.layer in layers) for _, layers in groups]
        table.add_row(Text(label), *cells, _cell(of_kind), *([_by_chance(of_kind)] if has_chance else []))
    table.add_section()
    totals = [_cell(matrix for matrix in matrices if matrix.layer in layers) for _, layers in groups]
    table.add_row(Text("all"), *totals, _cell(matrices), *([_by_chance(matrices)] if has_chance else []))
    return table


def _cell(matrices: Iterable[MatrixReport]) -> Text:
    totals = total(matrices)
    if not totals.num_vectors:
        return Text("·", style="dim")
    style = "bold magenta" if totals.num_intruders else "dim"
    return Text(f"{totals.num_intruders}/{totals.num_vectors}", style=style)


def _by_chance(matrices: Iterable[MatrixReport]) -> Text:
    chance = total(matrices).chance
    return Text("" if chance is None else words.count(chance.expected), style="dim")


def _layer_groups(matrices: Sequence[MatrixReport]) -> list[tuple[str, set[int | None]]]:
    """Equal runs of layers (the last may be shorter), as many as fit; what has no layer comes last."""
    layers = sorted({matrix.layer for matrix in matrices if matrix.layer is not None})
    widest = 2 * len(str(sum(len(matrix.sides[0].verdicts) for matrix in matrices))) + 3
    count = min(len(layers), _MAX_GROUPS, max(1, (_WIDTH - 18 - 8) // widest - 2))
    size = -(-len(layers) // max(count, 1))
    groups: list[tuple[str, set[int | None]]] = []
    for first in range(0, len(layers), max(size, 1)):
        run = layers[first : first + size]
        label = f"layer {run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}"
        groups.append((label, set(run)))
    if any(matrix.layer is None for matrix in matrices):
        groups.append(("outside", {None}))
    return groups


def _figures(report: ScanReport) -> Table:
    """Key figures over the paper's scope."""
    totals = report.totals
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in (
        ("size of ΔW", update_size(totals.relative_update_norm, totals.relative_update_norms)),
        ("effective rank of ΔW", rank_range(totals.effective_ranks)),
        (
            f"ΔW in the base's top {report.settings.k}",
            top_energy(totals.top_energy_fraction, totals.top_energy_chance),
        ),
        ("energy in intruders", _energy(totals)),
        ("verdicts", _listed(totals.verdicts)),
        ("certified", _listed(totals.certificates)),
        _other_side(report.measured),
        ("outside the scope", _other(report.other_totals)),
    ):
        if text:
            table.add_row(name, text)
    return table


def _energy(totals: ScanTotals) -> str | None:
    tuned, update = totals.max_tuned_energy_fraction, totals.max_update_energy_fraction
    if not totals.num_intruders or tuned is None:
        return None
    shares = f"up to {percent(tuned)} of a tuned matrix"
    return shares + (f", {percent(update)} of an update" if update is not None else "")


def _other_side(matrices: Sequence[MatrixReport]) -> tuple[str, str | None]:
    second = [side for matrix in matrices for side in matrix.sides[1:]]
    if not second:
        return "", None
    found = sum(side.num_intruders for side in second)
    return f"{second[0].side} vectors", f"{found}/{sum(len(side.verdicts) for side in second)} intruders"


def _other(totals: ScanTotals) -> str | None:
    if not totals.num_measured:
        return None
    return f"{totals.num_intruders}/{totals.num_vectors} in embeddings, head, router, convolutions"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {word}" for word, number in counts.items())


def finding_lines(findings: Sequence[Finding]) -> list[RenderableType]:
    """Findings as lines.

    Args:
        findings: In any order.

    Returns:
        Gravest first; the same code on many matrices takes one line.
    """
    grouped: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        grouped.setdefault((finding.severity, finding.code), []).append(finding)
    order = {severity: index for index, severity in enumerate(("error", "warning", "info"))}
    lines: list[RenderableType] = []
    for (severity, code), members in sorted(grouped.items(), key=lambda item: order[item[0][0]]):
        first = members[0]
        place = "" if first.matrix is None else f"{printable(first.matrix)}: "
        more = f" (and {len(members) - 1} more)" if len(members) > 1 else ""
        text = Text(f"{severity} [{printable(code)}] ", style=_STYLE[severity])
        lines.append(text.append(f"{place}{printable_text(first.message)}{more}", style="default"))
    hidden = len(lines) - _MAX_FINDINGS
    return lines if hidden <= 0 else [*lines[:_MAX_FINDINGS], Text(f"and {hidden} more kinds of findings")]


def _coverage(ledger: Sequence[CoverageEntry]) -> Text:
    counts = Counter(entry.status for entry in ledger)
    # A matrix is stored in several tensors: one on each side, or factors.
    matrices = len({matrix for entry in ledger for matrix in entry.matrices})
    text = Text(
        f"coverage: {matrices} {'matrix' if matrices == 1 else 'matrices'} compared, in {counts['compared']} "
        f"of {len(ledger)} tensors; {counts['unchanged']} unchanged, {counts['skipped']} skipped",
        style="dim",
    )
    missed = sum(entry.gap for entry in ledger)
    if missed:
        text.append(f", {missed} of these missed", style="yellow")
    reasons = Counter(entry.reason for entry in ledger if entry.status == "skipped")
    for reason, count in reasons.most_common(4):
        text.append(f"\n  {count} skipped: {printable(reason)}")
    if len(reasons) > 4:
        text.append(f"\n  and {len(reasons) - 4} other reasons; --json has them all")
    return text


def _span(layers: Sequence[int | None]) -> str:
    numbers = sorted({layer for layer in layers if layer is not None})
    if not numbers:
        return ""
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
