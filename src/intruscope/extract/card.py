"""The model card of an extracted adapter: how it was made, and its error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from intruscope.writing.folder import quoted, shown_name

if TYPE_CHECKING:
    from intruscope.extract.records import ExtractRecord

_MAX_NAMED = 12


def card(plan: ExtractRecord, manifest: str) -> bytes:
    """The whole card.

    Args:
        plan: A plan that is not empty.
        manifest: Name of the file with the details.
    """
    base, tuned = shown_name(plan.pairing.base), shown_name(plan.pairing.tuned)
    sums = plan.totals
    rank = f"of rank {plan.stored_rank}" if plan.stored_rank else "with a rank of its own for each module"
    # A local path says nothing to another reader; a name on the hub does.
    named = plan.base.name.partition("@")[0] if plan.base.revision else base
    header = f"---\nbase_model: {json.dumps(named)}\nlibrary_name: peft\n---\n\n"
    lines = [
        f"# {tuned}, as an adapter",
        "",
        "## Extracted with Intruscope",
        "",
        f"Made from `{tuned}` on the base `{base}`: a LoRA {rank}, the closest there is to the update of "
        f"each of {sums.num_matrices} matrices (truncated singular value decompositions, no training). "
        f"Chosen by {plan.choice.kind} {plan.choice.value:g}, matrices `{quoted(plan.which)}`.",
        "",
        "| | |",
        "|---|---|",
        f"| relative error of the update (Frobenius, all matrices) | {sums.relative_error:.3g} |",
        f"| share of its squared norm that is kept | {sums.energy:.2%} |",
        f"| the same error with everything else that changed | {sums.relative_error_with_rest:.3g} |",
        f"| intruder dimensions of the tuned model, of base and adapter | {sums.tuned_intruders}, "
        f"{sums.extracted_intruders} ({sums.kept_intruders} of the tuned model's are kept) |",
        f"| parameters | {sums.num_parameters:,} |",
        "",
    ]
    for status, said in (("left out", "Changed by the fine-tune and not in this adapter"),
                         ("lost", "Changed by the fine-tune, and PEFT has no place for it")):  # fmt: skip
        names = [f"`{quoted(rest.name)}`" for rest in plan.rest if rest.status == status]
        if names:
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            lines += [f"{said}: {', '.join(names[:_MAX_NAMED])}{more}.", ""]
    lines += [f"Details: `{manifest}`.", ""]
    return (header + "\n".join(lines)).encode()
