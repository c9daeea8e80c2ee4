"""The last files of a merge: the model card, and the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from intruscope.merge.findings import MANIFEST_NAME, result_findings
from intruscope.merge.rules import RULES
from intruscope.writing.folder import README, quoted, shown_name

if TYPE_CHECKING:
    from pathlib import Path

    from intruscope.merge.records import MergeReport
    from intruscope.writing.folder import OutputFolder

_KINDS = {
    "adapter": "A LoRA adapter made from",
    "checkpoint": "A full checkpoint made from",
    "emr": "The files of EMR-Merging made from",
}


def finish(target: OutputFolder, report: MergeReport, out: Path) -> MergeReport:
    """Write the model card and the manifest of a merge that is computed.

    Args:
        target: The folder that is being filled.
        report: With all figures but its findings.
        out: Where the folder will lie.
    """
    report = replace(report, out=str(out), findings=result_findings(report))
    target.write(README, card(report))
    target.finish(MANIFEST_NAME, {"intruscope": version("intruscope"), **report.to_json()})
    return report


def card(report: MergeReport) -> bytes:
    """The whole card.

    Args:
        report: Of a merge that is computed.
    """
    rule = RULES[report.settings.rule]
    library = (
        ""
        if report.writes == "emr"
        else "library_name: " + ("peft\n" if report.writes == "adapter" else "transformers\n")
    )
    name, _, revision = report.base.partition(" (")
    # A local path says nothing to another reader; a name on the hub does.
    base = name.partition("@")[0] if revision else shown_name(name)
    header = (
        f"---\nbase_model: {json.dumps(base)}\nbase_model_relation: merge\n{library}tags:\n- merge\n---\n"
    )
    weights = report.settings.weights or (1.0,) * len(report.labels)
    lines = [
        header,
        f"# {len(report.labels)} fine-tunes of {shown_name(base)}, merged",
        "",
        "## Merged with Intruscope",
        "",
        f"{_KINDS[report.writes]} {len(report.labels)} fine-tunes of `{quoted(base)}`: "
        f"{rule.title} ({rule.source}), in the space `{report.space}`"
        + (f", basis `{report.settings.basis}`" if report.space != "dense" else "")
        + f", lambda {report.settings.scaling:g}"
        + (f", density {report.density:g}" if report.density is not None else "")
        + (f", rank {report.rank}" if report.rank is not None else "")
        + ".",
        "",
        "| fine-tune | weight |",
        "|---|---|",
        *(
            f"| `{shown_name(each)}` | {weight:g} |"
            for each, weight in zip(report.tuned, weights, strict=True)
        ),
        "",
    ]
    if report.settings.task is not None:
        lines += [f"It is the model of the task `{quoted(report.settings.task)}`.", ""]
    if report.writes == "emr":
        lines += [
            "Each sub-folder is one task and needs the unified update beside it. PEFT does not load these "
            "files; `intruscope merge ... --task LABEL` writes one task as an ordinary model.",
            "",
        ]
    if report.settings.rank is not None and report.relative_error is not None:
        lines += [f"Relative error of the merged update at this rank: {report.relative_error:.3g}.", ""]
    if report.kept_heads is not None:
        lines += [f"Heads and modules saved whole are those of `{quoted(report.kept_heads)}`.", ""]
    lines += [f"Details: `{MANIFEST_NAME}`.", ""]
    return "\n".join(lines).encode()
