"""The files of an extracted adapter: weights, config, model card, and the manifest last."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.errors import UsageError
from intruscope.extract.card import card
from intruscope.extract.records import SCHEMA
from intruscope.weights.written import num_bytes
from intruscope.writing.folder import README, output_folder
from intruscope.writing.lora import LoraAdapter, write_lora

if TYPE_CHECKING:
    from intruscope.extract.records import ExtractRecord
    from intruscope.progress import OnProgress

MANIFEST_NAME = "intruscope_extract.json"
_BEYOND_THE_FACTORS = 1 << 20


def write_extracted(plan: ExtractRecord, out: Path | str, *, on_progress: OnProgress) -> Path:
    """See :meth:`intruscope.extract.plan.ExtractPlan.apply`."""
    if plan.is_empty:
        raise UsageError(
            "there is nothing to write: no selected matrix changed",
            remedy="see plan.findings, or select other matrices with which",
        )
    out = Path(out)
    adapter = LoraAdapter(
        base=plan.base,
        names=plan.names,
        modules=plan.modules,
        others=plan.others,
        factors=plan.factors,
        rank=plan.stored_rank,
        saved=plan.saved,
    )
    tensors = adapter.tensors()
    size = _BEYOND_THE_FACTORS + sum(map(num_bytes, tensors.values()))
    with output_folder(out, (plan.base, plan.tuned), num_bytes=size, on_progress=on_progress) as target:
        write_lora(adapter.config(), tensors, target)
        target.write(README, card(plan, MANIFEST_NAME))
        target.finish(MANIFEST_NAME, plan_record(plan))
    return out


def plan_record(plan: ExtractRecord) -> dict[str, Any]:
    """The plan as plain data: the manifest's content without its files."""
    return {
        "schema": SCHEMA,
        "intruscope": version("intruscope"),
        "base": plan.pairing.base,
        "tuned": plan.pairing.tuned,
        "choice": asdict(plan.choice),
        "which": plan.which,
        "rank": plan.stored_rank,
        "compact": plan.compact,
        "dtype": plan.dtype,
        "save_rest": plan.save_rest,
        "nothing_to_extract": plan.is_empty,
        "totals": asdict(plan.totals),
        "curve": [asdict(point) for point in plan.curve],
        "best_curve": [asdict(point) for point in plan.best],
        "allocation": None if plan.allocation is None else {
            "num_parameters": plan.allocation.num_parameters,
            "gap": plan.allocation.gap,
        },
        "matrices": [asdict(matrix) for matrix in plan.matrices],
        "rest": [asdict(rest) for rest in plan.rest],
        "findings": [asdict(finding) for finding in plan.findings],
    }  # fmt: skip
