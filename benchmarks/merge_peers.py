"""Claim: every rule gives the update of its formula; of PEFT's types only ``cat`` and a large ``svd`` do.

With rsLoRA none of PEFT's types does. Two random LoRAs of rank ``--rank`` on one Linear of ``--width``,
weights 1 and 0.5. The error is ‖ΔW − formula‖_F / ‖formula‖_F: ΔW is what PEFT adds to the layer once the
merged adapter is loaded, and the formula is computed in float64 on explicit updates.

``linear``, ``cat`` and ``svd`` are compared with the weighted sum, ``ties*`` with TIES of the whole updates
at the same density. ``dare_*`` and ``magnitude_prune`` drop entries, so that their distance from the weighted
sum is only indicative. mergekit 0.1 merges full weights only and is not run: its ``task_arithmetic``,
``linear`` and ``ties`` are the rules ``sum``, ``mean`` and ``ties`` in the space ``dense``.

Time: the merge of one layer in memory, without files; median of ``--repeats``.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import intruscope
from benchmarks.common import median_seconds, publish
from intruscope.merge.options import MergeOptions
from intruscope.merge.rules import RULES, Place, merge_space
from intruscope.merge.spaces import make_space
from intruscope.merge.trimming import matrix_thresholds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

WEIGHTS, DENSITY = (1.0, 0.5), 0.2
PEFT_TYPES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cat": {},
    "svd": {},
    "svd, twice the rank": {"combination_type": "svd"},
    "ties": {"density": DENSITY},
    "ties_svd": {"density": DENSITY},
    "dare_linear": {"density": DENSITY},
    "dare_ties": {"density": DENSITY},
    "magnitude_prune": {"density": DENSITY},
}


class Block(nn.Module):
    """One layer under the name of a Llama's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width, bias=False)


def adapted(width: int, rank: int, *, rslora: bool) -> tuple[PeftModel, list[tuple[Tensor, Tensor]]]:
    """A PeftModel with two adapters, and the factors (scaling included) of each in float64."""
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["proj"], use_rslora=rslora)
    model = get_peft_model(Block(width), config, adapter_name="a")
    model.add_adapter("b", config)
    layer = model.base_model.model.proj
    forms = []
    for name in ("a", "b"):
        for part in (layer.lora_A, layer.lora_B):
            nn.init.normal_(part[name].weight, std=width**-0.5)
        left = layer.lora_B[name].weight.detach().double() * layer.scaling[name]
        forms.append((left, layer.lora_A[name].weight.detach().double()))
    return model, forms


def ties(parts: Sequence[Tensor]) -> Tensor:
    """TIES on whole updates, from its paper."""
    kept = [
        torch.where(p.abs() >= k, p, 0.0)
        for p, k in zip(parts, matrix_thresholds(parts, DENSITY), strict=True)
    ]
    weighted = [w * k for w, k in zip(WEIGHTS, kept, strict=True)]
    sign = sum(weighted).sign()
    agree = [(w * sign > 0) * abs(factor) for w, factor in zip(weighted, WEIGHTS, strict=True)]
    total = sum(torch.where(a > 0, w, 0.0) for w, a in zip(weighted, agree, strict=True))
    return torch.where(sum(agree) > 0, total / sum(agree).clamp(min=1e-300), 0.0)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def of_peft(model: PeftModel, name: str, options: dict[str, Any], rank: int) -> tuple[Tensor, int, float]:
    """What PEFT's merge adds to the layer, its rank, and the seconds it takes."""
    options = {"combination_type": name, **options}
    if "twice" in name:
        options["svd_rank"] = 2 * rank

    def merge() -> PeftModel:
        made = copy.deepcopy(model)
        made.add_weighted_adapter(["a", "b"], list(WEIGHTS), "merged", **options)
        return made

    copying = median_seconds(lambda: copy.deepcopy(model), 3)
    torch.manual_seed(0)
    layer = merge().base_model.model.proj
    seconds = max(0.0, median_seconds(merge, 3) - copying)
    return layer.get_delta_weight("merged").detach().double(), layer.lora_A["merged"].out_features, seconds


def of_ours(model: PeftModel, rule: str, space: str, folder: Path) -> tuple[Tensor, int]:
    """The same of a merge that was written and loaded again by PEFT."""
    model.save_pretrained(folder)
    base = nn.Module.state_dict(model.get_base_model())
    plain = {"proj.weight": base["proj.base_layer.weight"]}
    report = intruscope.merge(
        plain, folder / "a", folder / "b", rule=rule, space=space, weights=WEIGHTS, density=DENSITY,
        trim="matrix", rank=plain["proj.weight"].shape[0] if space == "dense" else None,
    ).apply(folder / f"{rule}-{space}")  # fmt: skip
    loaded = PeftModel.from_pretrained(Block(plain["proj.weight"].shape[0]), folder / f"{rule}-{space}")
    layer = loaded.base_model.model.proj
    assert report.rank is not None
    return layer.get_delta_weight("default").detach().double(), report.rank


def merged(forms: list[tuple[Tensor, Tensor]], rule: str, space: str) -> Callable[[], object]:
    """The merge of one layer, from factors to factors."""
    options = MergeOptions(weights=WEIGHTS, density=DENSITY, trim="matrix")
    return lambda: merge_space(make_space(forms, space=space), RULES[rule], options, Place(name="proj"))


def rows(width: int, rank: int, repeats: int, *, rslora: bool) -> list[dict[str, object]]:
    """The table of one pair of adapters."""
    model, forms = adapted(width, rank, rslora=rslora)
    dense = [left @ right for left, right in forms]
    total = WEIGHTS[0] * dense[0] + WEIGHTS[1] * dense[1]
    found = []
    for name, options in PEFT_TYPES.items():
        delta, stored, seconds = of_peft(model, name, options, rank)
        wanted = ties(dense) if name.startswith("ties") else total
        against = "ties, whole updates" if name.startswith("ties") else "weighted sum"
        found.append({"tool": f"PEFT {name}", "rslora": rslora, "formula": against, "rank": stored,
                      "error": relative(delta, wanted), "milliseconds": 1e3 * seconds})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for rule, space in (
            ("sum", "core"), ("mean", "core"), ("ties", "dense"), ("ties", "core"), ("knots", "knots"),
            ("tsv", "core"), ("iso", "core"), ("svc", "core"), ("pico", "core"),
        ):  # fmt: skip
            delta, stored = of_ours(model, rule, space, Path(folder) / f"{rule}-{space}-in")
            options = MergeOptions(weights=WEIGHTS, density=DENSITY, trim="matrix")
            # The rule on explicit updates; for the spaces with bases, their coordinates of these.
            exact = make_space(dense, space=space if RULES[rule].elementwise else "dense")
            wanted = merge_space(exact, RULES[rule], options, Place(name="proj"))
            wanted = {"sum": total, "mean": total / sum(WEIGHTS)}.get(rule, wanted)
            wanted = ties(dense) if (rule, space) == ("ties", "dense") else wanted
            seconds = median_seconds(merged(forms, rule, space), repeats)
            found.append(
                {
                    "tool": f"intruscope {rule}, {space}",
                    "rslora": rslora,
                    "formula": "its own",
                    "rank": stored,
                    "error": relative(delta, wanted),
                    "milliseconds": 1e3 * seconds,
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    table = [
        row for rslora in (False, True) for row in rows(given.width, given.rank, given.repeats, rslora=rslora)
    ]
    publish(
        "merge_peers",
        {"width": given.width, "rank": given.rank, "weights": WEIGHTS, "density": DENSITY, "rows": table},
    )


if __name__ == "__main__":
    main()
