"""Claim: unlike PEFT's ``reduce_intruder_dimension``, correct for every layer kind, and tens of times faster.

Correctness: small models with strong updates, saved to disk. Both tools scale all intruders among the top 10
to 0.75. The reference is the paper's formula, W + (0.75 − 1) Σ σ u vᵀ over the output-side intruders, from
dense float64 decompositions. The error is ‖result − reference‖_F divided by ‖reference − W‖_F, so doing
nothing scores 1. For the saved module, whose reference has no intruder edit, it is divided by ‖W − W_base‖_F.

Time: PEFT's function on one Linear of ``--width`` in a PeftModel, compared with the whole command
``intruscope repair`` on ``--matrices`` such layers on disk (including start-up, reading and writing), per
matrix, in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import nn

from benchmarks.common import heavy_tailed, lora_factors, publish, write_pair
from intruscope import RunOptions
from intruscope.repair import repair
from intruscope.weights.layout import base_matrices
from intruscope.weights.source import open_model

if TYPE_CHECKING:
    from collections.abc import Callable

STRENGTH, TOP, EPSILON, RANK = 0.75, 10, 0.5, 4
WIDTH, INNER, WORDS = 96, 160, 256


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=WORDS,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_embd=WIDTH, n_layer=1, n_head=4, n_inner=INNER, vocab_size=WORDS)
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=WORDS,
    )
    return transformers.BertForSequenceClassification(config)


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, object], str]] = {
    "Linear": (llama, {"target_modules": ["up_proj"]}, "model.layers.0.mlp.up_proj"),
    "Conv1D, square": (
        gpt2,
        {"target_modules": ["attn.c_proj"], "fan_in_fan_out": True},
        "transformer.h.0.attn.c_proj",
    ),
    "Conv1D, rectangular": (
        gpt2,
        {"target_modules": ["c_fc"], "fan_in_fan_out": True},
        "transformer.h.0.mlp.c_fc",
    ),
    "Embedding": (llama, {"target_modules": ["embed_tokens"]}, "model.embed_tokens"),
    "modules_to_save": (bert, {"target_modules": ["query"], "modules_to_save": ["classifier"]}, "classifier"),
}


def matrix(folder: Path, name: str) -> torch.Tensor:
    """One (out, in) matrix of a saved model, float64."""
    listing = base_matrices(open_model(folder)).matrices.values()
    return next(view.load().double() for views in listing for view in views if view.name == name)


def truth(base: torch.Tensor, tuned: torch.Tensor, *, edited: bool) -> torch.Tensor:
    """The paper's formula for all intruders, from two dense decompositions."""
    if not edited:
        return tuned
    base_left = torch.linalg.svd(base, full_matrices=False)[0]
    left, values, right_t = torch.linalg.svd(tuned, full_matrices=False)
    alignment = (base_left.T @ left[:, :TOP]).abs().amax(dim=0)
    chosen = torch.nonzero(alignment < EPSILON).flatten()
    assert len(chosen), "the case has no intruder"
    return tuned + (STRENGTH - 1.0) * (left[:, chosen] * values[chosen]) @ right_t[chosen]


def adapted(case: str, folder: Path) -> None:
    """Save a base, and an adapter with updates strong enough for intruders."""
    make, options, _ = CASES[case]
    torch.manual_seed(0)
    model = make()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and min(parameter.shape) > 8:
            parameter.data = 0.3 * heavy_tailed(*parameter.shape, torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder / "base")
    peft_model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, **options))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name or "lora_embedding" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.25
        elif "modules_to_save" in name:
            parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator)
    peft_model.save_pretrained(folder / "adapter")


def merged(case: str, folder: Path, adapter: Path, out: Path, change: Callable[[PeftModel], None]) -> Path:
    """The result of PEFT's merge after a change to the model in memory."""
    make, _, _ = CASES[case]
    model = PeftModel.from_pretrained(make().from_pretrained(folder / "base"), adapter)
    change(model)
    model.merge_and_unload(safe_merge=True).save_pretrained(out)
    return out


def by_peft(model: PeftModel) -> None:
    reduce_intruder_dimension(
        model, top_k=TOP, threshold_epsilon=EPSILON, mitigation_lambda=STRENGTH, logging_sink=None
    )


def compare(case: str) -> dict[str, object]:
    """Errors of both tools on one layer kind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapted(case, folder)
        wanted = CASES[case][2]
        base = matrix(folder / "base", wanted)
        before = merged(case, folder, folder / "adapter", folder / "tuned", lambda _: None)
        tuned = matrix(before, wanted)
        edited = case != "modules_to_save"
        expected = truth(base, tuned, edited=edited)
        scale = float((expected - (tuned if edited else base)).norm())

        def error(folder: Path) -> float:
            return float((matrix(folder, wanted) - expected).norm()) / scale

        plan = repair(
            str(folder / "base"),
            str(folder / "adapter"),
            strength=STRENGTH,
            which=f"{wanted}:all" if edited else "all",
            options=RunOptions(workers=0),
        )
        plan.apply(folder / "ours")
        ours = error(merged(case, folder, folder / "ours", folder / "ours-merged", lambda _: None))
        try:
            theirs: float | str = error(
                merged(case, folder, folder / "adapter", folder / "theirs-merged", by_peft)
            )
        except (RuntimeError, ValueError, AssertionError) as refusal:
            theirs = f"{type(refusal).__name__}: {str(refusal).splitlines()[0]}"
        return {
            "layer": case,
            "shape": list(tuned.shape),
            "intruscope": ours,
            "peft": theirs,
            "rank": plan.stored_rank,
        }


class OneLinear(nn.Module):
    """A model that is a single layer."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.up_proj = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.up_proj.weight.data = weight


def time_peft(width: int) -> float:
    """Seconds for PEFT's function on one Linear."""
    generator = torch.Generator().manual_seed(7)
    model = get_peft_model(
        OneLinear(heavy_tailed(width, width, generator)),
        LoraConfig(r=16, lora_alpha=16, target_modules=["up_proj"]),
    )
    a, b = lora_factors(width, width, 16, 6.0, generator)
    layer = model.base_model.model.up_proj
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a, b
    started = time.perf_counter()
    by_peft(model)
    return time.perf_counter() - started


def time_command(width: int, matrices: int, repeats: int) -> list[float]:
    """Seconds for the whole command, without resuming."""
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, adapter = write_pair(folder, [(width, width)] * matrices)
        for repeat in range(repeats):
            command = [sys.executable, "-m", "intruscope", "repair", str(base), str(adapter), "-q"]
            command += ["-o", str(folder / f"out-{repeat}"), "--work", str(folder / f"work-{repeat}")]
            started = time.perf_counter()
            subprocess.run([*command, "--which", "all", "--strength", str(STRENGTH)], check=True)
            seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--matrices", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="peft")
    rows = [compare(case) for case in CASES]
    seconds = time_command(given.width, given.matrices, given.repeats)
    peft_seconds = time_peft(given.width)
    ours = statistics.median(seconds)
    publish(
        "repair_peft",
        {
            "correctness": rows,
            "time": {
                "width": given.width,
                "matrices": given.matrices,
                "command_seconds": round(ours, 2),
                "command_seconds_all": [round(value, 2) for value in seconds],
                "peft_seconds_per_matrix": round(peft_seconds, 2),
                "ratio": round(peft_seconds * given.matrices / ours, 1),
            },
        },
    )


if __name__ == "__main__":
    main()
