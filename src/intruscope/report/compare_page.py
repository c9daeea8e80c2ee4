"""The page of a comparison: pairs, maps by layer and kind, the sum, and the merge beside its controls.

It uses the frame, the style and the policy of the scan's page (see :mod:`intruscope.report.html`).
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from intruscope.compare.words import compare_sentence
from intruscope.report.html import render_page, write_page
from intruscope.report.page_data import short
from intruscope.report.words import printable_text
from intruscope.spectra.kinds import KINDS
from intruscope.sweep.words import interval_text

if TYPE_CHECKING:
    from pathlib import Path

    from intruscope.compare.records import (
        CompareReport,
        IntruderCount,
        MergeForgetting,
        MergeModule,
        PairModule,
        PairReport,
        Preflight,
    )

_PAIR_FIELDS = {
    "cosine": "cosine",
    "cosineRandom": "cosine_random_spread",
    "cosineSharedA": "cosine_shared_a_spread",
    "leftAngleRandom": "smallest_left_angle_random",
    "rightAngleRandom": "smallest_right_angle_random",
    "left": "left_overlap",
    "leftRandom": "left_overlap_random",
    "right": "right_overlap",
    "rightRandom": "right_overlap_random",
    "signs": "sign_conflict",
    "signsRandom": "sign_conflict_random_spread",
    "signsSharedA": "sign_conflict_shared_a_spread",
    "shared": "num_shared_intruders",
}
"""What the script calls the fields of a pair's modules. Each module is a bare list of numbers in this order:
45 pairs of 224 matrices are ten thousand of them."""


def write_compare_html(report: CompareReport, path: Path) -> None:
    """Write one page that works from ``file://`` and sends nothing anywhere.

    Raises:
        OutputConflict, ResourceExhausted: see :func:`intruscope.weights.output.write_atomically`.
        ValueError: a record holds NaN or an infinity, which records forbid.
    """
    page = render_page(
        "compare.html.j2",
        styles=("page.css", "compare.css"),
        scripts=("dom.js", "frame.js", "heat.js", "lists.js", "compare.js"),
        data=compare_data(report),
        title="Fine-tunes of one base, side by side",
        subtitle=printable_text(report.base or "compared without their base"),
    )
    write_page(page, path)


def compare_data(report: CompareReport) -> dict[str, Any]:
    """Everything the page draws, as plain data; names from files are escaped here.

    Args:
        report: The comparison.
    """
    places = {module.name: place for place, module in enumerate(report.merge.modules)}
    members = {member.label: place for place, member in enumerate(report.fine_tunes)}
    merge = report.merge
    return {
        "kinds": list(KINDS),
        "sentence": compare_sentence(report),
        "members": [
            {
                "label": printable_text(member.label),
                "kind": printable_text(member.kind),
                "matrices": member.num_matrices,
                "norm": math.sqrt(member.energy),
                "energy": member.energy_fraction,
                "share": member.share,
            }
            for member in report.fine_tunes
        ],
        "findings": [
            [
                finding.severity,
                printable_text(finding.code),
                printable_text(finding.message),
                None if finding.matrix is None else printable_text(finding.matrix),
            ]
            for finding in report.findings
        ],
        "pairFields": [*_PAIR_FIELDS, "leftAngle", "rightAngle"],
        "pairs": [_pair(pair, members, places) for pair in report.pairs],
        "modules": [_module(module) for module in merge.modules],
        "sum": {
            "ratio": merge.energy_ratio,
            "inflation": merge.median_inflation,
            "inflationRandom": merge.median_inflation_random,
            "inflationSharedA": merge.median_inflation_shared_a,
            "largest": merge.max_inflation,
        },
        "preflight": None if merge.preflight is None else _preflight(report, merge.preflight),
        "forgetting": None if merge.forgetting is None else _forgetting(merge.forgetting),
        "settings": [
            [name, "automatic" if value is None else printable_text(str(value))]
            for name, value in asdict(report.settings).items()
        ],
        "environment": [
            [printable_text(str(name)), printable_text(str(value))]
            for name, value in report.environment.items()
        ],
    }


def _pair(pair: PairReport, members: dict[str, int], places: dict[str, int]) -> dict[str, Any]:
    return {
        "a": members[pair.a],
        "b": members[pair.b],
        "cosine": pair.cosine,
        "cosineRandom": pair.cosine_random_spread,
        "cosineSharedA": pair.cosine_shared_a_spread,
        "norms": pair.norm_ratio,
        "left": pair.left_overlap,
        "leftRandom": pair.left_overlap_random,
        "right": pair.right_overlap,
        "rightRandom": pair.right_overlap_random,
        "signs": pair.sign_conflict,
        "signsRandom": pair.sign_conflict_random_spread,
        "signsSharedA": pair.sign_conflict_shared_a_spread,
        "shared": pair.num_shared_intruders,
        "modules": [
            _pair_module(module, places[module.name]) for module in pair.modules if module.name in places
        ],
    }


def _pair_module(module: PairModule, place: int) -> list[float | None]:
    angles = (min(each, default=None) for each in (module.left_angles, module.right_angles))
    values = [*(getattr(module, name) for name in _PAIR_FIELDS.values()), *angles]
    return [place, *(None if value is None else short(value) for value in values)]


def _module(module: MergeModule) -> dict[str, Any]:
    flight = module.preflight
    return {
        "name": printable_text(module.name),
        "kind": printable_text(module.kind),
        "layer": module.layer,
        "energies": [short(energy) for energy in module.energies],
        "shares": None if module.shares is None else [short(share) for share in module.shares],
        "ratio": module.energy_ratio,
        "inflation": module.inflation,
        "inflationRandom": module.inflation_random,
        "inflationSharedA": module.inflation_shared_a,
        "fresh": None if flight is None else flight.merge.num_new,
        "flight": None
        if flight is None
        else {
            "parts": [part.num_intruders for part in flight.parts],
            "merge": flight.merge.num_intruders,
            "random": flight.random_merge.num_new,
            "equal": flight.equal_norm.num_new,
        },
    }


def _preflight(report: CompareReport, flight: Preflight) -> dict[str, Any]:
    labels = [printable_text(member.label) for member in report.fine_tunes]

    def row(name: str, role: str, count: IntruderCount) -> dict[str, Any]:
        energy = flight.base_energy or 1.0
        return {
            "name": name,
            "role": role,
            "intruders": count.num_intruders,
            "undecided": count.num_undecided,
            "energy": count.energy / energy,
            "fresh": count.num_new,
            "freshEnergy": None if count.new_energy is None else count.new_energy / energy,
        }

    return {
        "vectors": flight.num_vectors,
        "rows": [
            *(row(label, "part", count) for label, count in zip(labels, flight.parts, strict=True)),
            row(f"merge, {report.merge.weight:.3g} of each", "merge", flight.merge),
            *(
                row(f"{label} in random directions", "control", count)
                for label, count in zip(labels, flight.random_parts, strict=True)
            ),
            row("merge of these", "control", flight.random_merge),
            row("sum at the norm of one part", "control", flight.equal_norm),
        ],
    }


def _forgetting(found: MergeForgetting) -> dict[str, Any]:
    return {
        "text": printable_text(found.text),
        "sequences": found.num_sequences,
        "tokens": found.num_tokens,
        "base": f"{found.base_loss.estimate:.3f}",
        "models": [
            {
                "name": printable_text(model.name),
                "part": model.part,
                "loss": interval_text(model.loss, 3),
                "forgetting": [model.forgetting.estimate, model.forgetting.low, model.forgetting.high],
                "text": interval_text(model.forgetting, 3, is_signed=True),
                "difference": ""
                if model.merge_difference is None
                else interval_text(model.merge_difference, 3, is_signed=True),
            }
            for model in found.models
        ],
    }
