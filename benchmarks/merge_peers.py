"""Claim: every rule gives the update of its formula; of PEFT's types only ``cat`` and a large ``svd`` do.

With rsLoRA none of PEFT's types does. mergekit's ``linear``, ``task_arithmetic`` and ``ties`` do.

Two random LoRAs of rank ``--rank`` on one Linear of ``--width``, weights 1 and 0.5. The error is
‖ΔW − formula‖_F / ‖formula‖_F: ΔW is what PEFT adds to the layer once the merged adapter is loaded, and the
formula is computed in float64 on explicit updates.

``linear``, ``cat`` and ``svd`` are compared with the weighted sum, ``ties*`` with TIES of the whole updates
at the same density. ``dare_*`` and ``magnitude_prune`` drop entries, so that their distance from the weighted
sum is only indicative.

mergekit is not a dependency; its rows appear only where it can be imported. It merges full weights (base plus
update, here in float32 and in memory), and its ΔW is the merged weight minus the base. Its ``linear`` and
``task_arithmetic`` are the rules ``mean`` and ``sum``, and its ``ties`` is ``ties`` with ``space="dense"``
and ``trim="matrix"``, up to one entry per update. :data:`MERGEKIT_DIFFERS` lists the differences.

Time: the merge of one layer in memory, without files; median of ``--repeats``.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from importlib.metadata import version
from importlib.util import find_spec
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
MERGEKIT_METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "linear": {},
    "ties": {"density": DENSITY},
    "dare_linear": {"density": DENSITY},
    "dare_ties": {"density": DENSITY},
}
MERGEKIT_DIFFERS = {
    "all": "Inputs and output are full weights: base plus update is rounded before and after the merge.",
    "linear": "Divides by the sum of the weights by default (normalize), as the rule mean does.",
    "ties": "Trims each tensor by itself and rounds the number of kept entries down; intruscope rounds it to "
    "the nearest. Elects signs by weighted sums and divides by the agreeing weights, as intruscope does; "
    "an exactly zero sum counts as positive.",
    "dare_linear": "Rescales what is kept to the L1 norm of the update by default (rescale); the paper "
    "divides by the density.",
    "dare_ties": "Rescales like dare_linear, and adds the agreeing entries up without dividing by their "
    "weights unless normalize is set.",
}
"""How mergekit 0.1.5 defines these rules by default, where definitions differ. Part of the record."""


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


def ties(parts: Sequence[Tensor], density: float = DENSITY) -> Tensor:
    """TIES on whole updates, from its paper."""
    kept = [
        torch.where(p.abs() >= k, p, 0.0)
        for p, k in zip(parts, matrix_thresholds(parts, density), strict=True)
    ]
    weighted = [w * k for w, k in zip(WEIGHTS, kept, strict=True)]
    sign = sum(weighted).sign()
    agree = [(w * sign > 0) * abs(factor) for w, factor in zip(weighted, WEIGHTS, strict=True)]
    total = sum(torch.where(a > 0, w, 0.0) for w, a in zip(weighted, agree, strict=True))
    return torch.where(sum(agree) > 0, total / sum(agree).clamp(min=1e-300), 0.0)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def of_peft(
    model: PeftModel, name: str, options: dict[str, Any], rank: int, repeats: int
) -> tuple[Tensor, int, float]:
    """What PEFT's merge adds to the layer, its rank, and the seconds it takes."""
    options = {"combination_type": name, **options}
    if "twice" in name:
        options["svd_rank"] = 2 * rank

    def merge(into: PeftModel) -> PeftModel:
        into.add_weighted_adapter(["a", "b"], list(WEIGHTS), "merged", **options)
        return into

    torch.manual_seed(0)
    layer = merge(copy.deepcopy(model)).base_model.model.proj
    copies = [
        copy.deepcopy(model) for _ in range(repeats)
    ]  # a merge adds to its model, so each needs its own
    seconds = median_seconds(lambda: merge(copies.pop()), repeats)
    return layer.get_delta_weight("merged").detach().double(), layer.lora_A["merged"].out_features, seconds


def of_mergekit(model: PeftModel, method: str, options: dict[str, Any], repeats: int) -> tuple[Tensor, float]:
    """What mergekit's merge of the two full weights adds to the base, and the seconds it takes."""
    from mergekit.merge_methods import merge_tensors

    layer = model.base_model.model.proj
    base = layer.base_layer.weight.detach()
    tensors = {name: base + layer.get_delta_weight(name).detach() for name in ("a", "b")}
    base_index = None
    if method != "linear":  # which would average the base as a third model
        base_index = len(tensors)
        tensors["base"] = base
    parameters = {"weight": dict(zip("ab", WEIGHTS, strict=True)), **options}

    def merge() -> Tensor:
        return merge_tensors(
            list(tensors.values()), method, parameters=parameters, ids=list(tensors), base_index=base_index
        )

    torch.manual_seed(0)
    delta = merge().double() - base.double()
    return delta, median_seconds(merge, repeats)


def mergekit_rows(
    model: PeftModel, dense: Sequence[Tensor], repeats: int, *, rslora: bool
) -> list[dict[str, object]]:
    """The rows of mergekit; none where it is not installed."""
    if find_spec("mergekit") is None:
        return []
    total = WEIGHTS[0] * dense[0] + WEIGHTS[1] * dense[1]
    entries = dense[0].numel()
    rounded_down = ties(dense, int(DENSITY * entries) / entries)
    formulas = {
        "linear": {"weighted mean": total / sum(WEIGHTS)},
        "ties": {"ties, whole updates": ties(dense), "the same, count rounded down": rounded_down},
    }
    found: list[dict[str, object]] = []
    for name, options in MERGEKIT_METHODS.items():
        delta, seconds = of_mergekit(model, name, options, repeats)
        found += [
            {"tool": f"mergekit {name}", "rslora": rslora, "formula": against, "rank": None,
             "error": relative(delta, wanted), "milliseconds": 1e3 * seconds}
            for against, wanted in formulas.get(name, {"weighted sum": total}).items()
        ]  # fmt: skip
    return found


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
        delta, stored, seconds = of_peft(model, name, options, rank, repeats)
        wanted = ties(dense) if name.startswith("ties") else total
        against = "ties, whole updates" if name.startswith("ties") else "weighted sum"
        found.append({"tool": f"PEFT {name}", "rslora": rslora, "formula": against, "rank": stored,
                      "error": relative(delta, wanted), "milliseconds": 1e3 * seconds})  # fmt: skip
    found += mergekit_rows(model, dense, repeats, rslora=rslora)
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
    record: dict[str, object] = {
        "width": given.width,
        "rank": given.rank,
        "weights": WEIGHTS,
        "density": DENSITY,
    }
    record |= {"threads": torch.get_num_threads(), "peft": version("peft")}
    if find_spec("mergekit") is not None:
        record["mergekit"] = {"version": version("mergekit"), "differs": MERGEKIT_DIFFERS}
    publish("merge_peers", {**record, "rows": table})


if __name__ == "__main__":
    main()
