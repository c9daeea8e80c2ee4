"""The files beside repaired weights: the manifest, and a section of the model card."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from intruscope.repair.interventions import INTERVENTIONS
from intruscope.repair.records import SCHEMA
from intruscope.writing.folder import quoted, shown_name

if TYPE_CHECKING:
    from intruscope.repair.records import RepairRecord

MANIFEST_NAME = "intruscope_repair.json"


def plan_record(plan: RepairRecord) -> dict[str, Any]:
    """The plan as plain data: the manifest's content without its files."""
    settings = plan.survey.settings
    return {
        "schema": SCHEMA,
        "intruscope": version("intruscope"),
        "base": plan.survey.pairing.base,
        "tuned": plan.survey.pairing.tuned,
        "writes": plan.writes,
        "control": plan.control,
        "strength": plan.strength,
        "which": plan.which,
        "seed": plan.seed,
        "rank": plan.rank,
        "compact": plan.compact,
        "settings": {"k": settings.k, "epsilon": settings.epsilon, "seed": settings.seed},
        "nothing_to_repair": not plan.edits,
        "totals": asdict(plan.totals),
        "matrices": [asdict(matrix) for matrix in plan.matrices],
        "scaled": [edit.name for edit in plan.edits if not edit.num_directions],
        "modules": [asdict(module) for module in plan.modules],
        "undecided_vectors": plan.num_left,
        "findings": [asdict(finding) for finding in plan.findings],
        **({} if plan.fit is None else {"fit": asdict(plan.fit)}),
    }


def readme_bytes(plan: RepairRecord, before: bytes | None) -> bytes:
    """The model card with a section on the repair; the original's text stays as it is."""
    start = before if before is not None else _new_card(plan).encode()
    return start.rstrip(b"\n") + b"\n\n" + _section(plan).encode()


def _new_card(plan: RepairRecord) -> str:
    name = plan.survey.pairing.base if plan.merges else plan.survey.pairing.tuned
    if plan.writes == "checkpoint":
        return f"# {shown_name(name)}, repaired\n"
    base = getattr(plan.survey.tuned, "base_name", None)
    header = f"base_model: {json.dumps(base)}\n" if base else ""
    return f"---\n{header}library_name: peft\n---\n\n# {shown_name(name)}, repaired\n"


def _section(plan: RepairRecord) -> str:
    sums = plan.totals
    base, tuned = shown_name(plan.survey.pairing.base), shown_name(plan.survey.pairing.tuned)
    lines = ["## Repaired with Intruscope", ""]
    made = f"Made from `{tuned}` on the base `{base}`"
    if plan.fit is not None:
        fit = plan.fit
        lines.append(
            f"{made}: {fit.title}, with the loss on text at weight {fit.weight:g}. {fit.explanation} Fitted "
            f"on `{quoted(fit.task)}` and `{quoted(fit.text)}`."
        )
    elif plan.control != "intruders":
        control = INTERVENTIONS[plan.control]
        lines.append(
            f"{made}: {control.title} (a control), strength {plan.strength:g}. {control.explanation}"
        )
    elif plan.edits:
        lines.append(f"{made}: {_edited(plan)} by {plan.strength:g} (selection: `{quoted(plan.which)}`).")
    else:
        lines.append(f"{made}: merged; no vector was changed.")
    if sums.update_before is not None and sums.update_after is not None:
        lines += [
            "",
            "| energy in the intruders' directions, edited matrices | before | after |",
            "|---|---|---|",
            f"| share of the update | {sums.update_before:.1%} | {sums.update_after:.1%} |",
            f"| share of the weights | {sums.tuned_before or 0.0:.2%} | {sums.tuned_after or 0.0:.2%} |",
        ]
    if sums.num_still_counted:
        lines += [
            "",
            f"Their directions are as they were: a scan still counts at least {sums.num_still_counted} of "
            "them. Compare energies, not counts.",
        ]
    if plan.stored_rank is not None and any(module.touched for module in plan.modules):
        before = "before: an adapter of another kind" if plan.lora else f"before: {_ranks_before(plan)}"
        lines += ["", f"The adapter's rank is {plan.stored_rank} ({before})."]
    lines += ["", f"Details: `{MANIFEST_NAME}`.", ""]
    return "\n".join(lines)


def _edited(plan: RepairRecord) -> str:
    vectors = [vector for matrix in plan.matrices for vector in matrix.vectors]
    intruders = all(vector.verdict == "intruder" for vector in vectors)
    what = "intruder dimension" if intruders else "singular vector"
    named = "" if intruders else ", chosen by name,"
    plural, were = ("", "was") if len(vectors) == 1 else ("s", "were")
    matrices = "1 matrix" if len(plan.matrices) == 1 else f"{len(plan.matrices)} matrices"
    return f"{len(vectors)} {what}{plural}{named} in {matrices} {were} multiplied"


def _ranks_before(plan: RepairRecord) -> str:
    ranks = sorted({module.before for module in plan.modules})
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
