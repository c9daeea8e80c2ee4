"""Claim: a full checkpoint with an unrelated base is detected, and no real fine-tune raises the warning.

Measures the statistic of the ``wrong-base-suspected`` finding (median ‖ΔW‖_F / ‖W_base‖_F over the
matrices) on these cases: a model trained from its base (no warning), the same configuration trained from
another seed and untrained weights (warning), and a sibling, which is another model trained from the same
ancestor (cannot be detected: it is as close as a fine-tune).

The size of an adapter's update does not depend on the base. For adapters, the benchmark therefore measures
whether the position of the update in the base's leading singular space does: the share of ‖ΔW‖² within the
base's top vectors, compared with that of a random update, on the base that the adapter was trained on and on
others.

Small Llamas are trained by the benchmark itself. MiniLM cases are added if you name its folder and runs of
``examples/train_minilm.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import publish
from intruscope.demo.finetune import LoopSettings, encode, train, train_linear_weights, with_lora
from intruscope.demo.pretrain import Architecture, new_model
from intruscope.demo.run import MODEL
from intruscope.demo.texts import language_reference, library_texts
from intruscope.spectra.findings import WRONG_BASE_THRESHOLD
from intruscope.spectra.scan import plan
from intruscope.weights.matrices import LowRankUpdate, MatrixPair

SMALL = Architecture(num_layers=2, width=128, feed_forward=344, max_positions=128)
NUM_TOP = 8
# method: rank (0 is full fine-tuning), learning rate, steps; "brief" has hardly started to learn
FINE_TUNES = {
    "full": (0, 1e-3, 100),
    "lora": (8, 5e-3, 100),
    "lora-r1": (1, 5e-3, 50),
    "lora-brief": (8, 5e-4, 10),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A base, the model scanned against it, and how the two are related."""

    name: str
    relation: str  # "right", "other" (unrelated) or "sibling" (same ancestor)
    base: Path
    tuned: Path


def small_models(folder: Path, seeds: range) -> list[Case]:
    """Pretrain one small model per seed, fine-tune each in full and with LoRA, and pair all of them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    library = encode(tokenizer, library_texts(held_out=False)[:80])
    reference = encode(tokenizer, language_reference()[0])
    for seed in seeds:
        base = folder / f"base-{seed}"
        new_model(SMALL, seed=seed + 100).save_pretrained(folder / f"untrained-{seed}")
        model = new_model(SMALL, seed=seed)
        settings = LoopSettings(
            learning_rate=3e-3, num_steps=150, batch=8, context=64, schedule="one-cycle", seed=seed
        )
        train(model, library, settings, precision="float32")
        model.save_pretrained(base)
        for method, (rank, rate, num_steps) in FINE_TUNES.items():
            tuned = type(model).from_pretrained(base, dtype=torch.float32).requires_grad_(False)
            tuned = train_linear_weights(tuned) if rank == 0 else with_lora(tuned, rank=rank, seed=seed)
            settings = LoopSettings(learning_rate=rate, num_steps=num_steps, batch=8, context=64, seed=seed)
            train(tuned, reference, settings, precision="float32")
            options = {} if rank == 0 else {"save_embedding_layers": False}
            tuned.save_pretrained(folder / f"{method}-{seed}", **options)
            if method == "lora":
                tuned.merge_and_unload().save_pretrained(folder / f"merged-{seed}")
    cases = []
    for method in ("merged", *FINE_TUNES):
        for seed in seeds:
            for other in seeds:
                cases.append(
                    Case(
                        name=f"small {method} of seed {seed} on base {other}",
                        relation="right" if seed == other else "other",
                        base=folder / f"base-{other}",
                        tuned=folder / f"{method}-{seed}",
                    )
                )
            cases.append(
                Case(
                    name=f"small {method} of seed {seed} on untrained weights",
                    relation="other",
                    base=folder / f"untrained-{seed}",
                    tuned=folder / f"{method}-{seed}",
                )
            )
    return cases


def minilm_cases(minilm: Path, mlm: Path, runs: Path, folder: Path) -> list[Case]:
    """MiniLM, models trained from it (as a masked LM, on SST-2), and untrained weights."""
    from transformers import AutoConfig, AutoModel

    untrained = folder / "untrained-minilm"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.from_pretrained(minilm)).save_pretrained(untrained)
    cases = [
        Case(name="MiniLM trained on as a masked LM", relation="right", base=minilm, tuned=mlm),
        Case(name="untrained MiniLM", relation="other", base=minilm, tuned=untrained),
    ]
    for run in sorted(path.parent for path in runs.glob("*/figures.json")):
        for name, relation, base in (
            ("MiniLM", "right", minilm),
            ("the masked LM", "sibling", mlm),
            ("untrained MiniLM", "other", untrained),
        ):
            cases.append(Case(name=f"SST-2 {run.name} on {name}", relation=relation, base=base, tuned=run))
    return cases


def statistics_of(pair: MatrixPair) -> dict[str, float]:
    """Relative size of one update, and its shares in the base's leading spaces relative to chance."""
    base_OI = pair.base.load().double()
    update = pair.update.load(base_OI.float())
    if isinstance(update, LowRankUpdate):
        delta_OI = update.left_OR.double() @ update.right_RI.double()
    else:
        delta_OI = update.tuned_OI.double() - base_OI
    energy = float(delta_OI.square().sum())
    if energy == 0.0:
        return {"relative_norm": 0.0}
    relative = {"relative_norm": (energy / float(base_OI.square().sum())) ** 0.5}
    if pair.scope != "paper":
        return relative
    left, _, right = torch.svd_lowrank(base_OI, q=NUM_TOP + 8, niter=4)
    shares = (
        float((left[:, :NUM_TOP].T @ delta_OI).square().sum()) / energy,
        float((delta_OI @ right[:, :NUM_TOP]).square().sum()) / energy,
    )
    return {
        **relative,
        "left_share_over_chance": shares[0] * base_OI.shape[0] / NUM_TOP,
        "right_share_over_chance": shares[1] * base_OI.shape[1] / NUM_TOP,
    }


def measure(case: Case) -> dict[str, object]:
    """Medians over the matrices in the scope ``paper``, and over all matrices as in the finding."""
    torch.manual_seed(0)  # for the randomised SVD
    pairs = plan(str(case.base), str(case.tuned)).pairs
    config = case.tuned / "adapter_config.json"
    adapter = json.loads(config.read_text()) if config.exists() else None
    kind = "full" if adapter is None else "DoRA" if adapter["use_dora"] else "LoRA"
    found = [(pair.scope, statistics_of(pair)) for pair in pairs if min(pair.base.shape) > NUM_TOP + 8]
    record: dict[str, object] = {
        "name": case.name,
        "relation": case.relation,
        "kind": kind,
        "matrices": len(found),
        "relative_norm": statistics.median(values["relative_norm"] for _, values in found),
        "largest_relative_norm": max(values["relative_norm"] for _, values in found),
        "smallest_relative_norm": min(values["relative_norm"] for _, values in found),
    }
    for key in ("left_share_over_chance", "right_share_over_chance"):
        inside = [values[key] for scope, values in found if scope == "paper" and key in values]
        record[key] = statistics.median(inside) if inside else None
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in record.items()}


def separation(records: list[dict[str, object]], key: str) -> dict[str, object]:
    """How well a statistic of LoRA adapters identifies the base: the chance that it is larger there (AUC).

    DoRA is left out: its magnitudes add a multiple of whatever base it is put on.
    """
    right, other = (
        [
            float(record[key])
            for record in records
            if record["kind"] == "LoRA" and record["relation"] == relation
        ]  # type: ignore[arg-type]
        for relation in ("right", "other")
    )
    wins = [(a > b) + 0.5 * (a == b) for a in right for b in other]
    return {
        "auc": round(statistics.mean(wins), 4),
        "right": {"cases": len(right), "smallest": min(right), "largest": max(right)},
        "other": {"cases": len(other), "smallest": min(other), "largest": max(other)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of small models to train and pair")
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--mlm", type=Path)
    parser.add_argument("--runs", type=Path, help="output folder of examples/train_minilm.py")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = small_models(folder, range(given.seeds))
        if given.minilm and given.mlm and given.runs:
            cases += minilm_cases(given.minilm, given.mlm, given.runs, folder)
        records = [measure(case) for case in cases]
    full = [record for record in records if record["kind"] == "full"]
    noticed = {
        relation: [
            float(record["relative_norm"]) > WRONG_BASE_THRESHOLD  # type: ignore[arg-type]
            for record in full
            if record["relation"] == relation
        ]
        for relation in ("right", "other", "sibling")
    }
    publish(
        "wrong_base",
        {
            "threshold": WRONG_BASE_THRESHOLD,
            "full_checkpoints": {
                "false_alarms": f"{sum(noticed['right'])} of {len(noticed['right'])}",
                "noticed": f"{sum(noticed['other'])} of {len(noticed['other'])}",
                "siblings_noticed": f"{sum(noticed['sibling'])} of {len(noticed['sibling'])}",
                "largest_right": max(float(r["relative_norm"]) for r in full if r["relation"] == "right"),  # type: ignore[arg-type]
                "smallest_other": min(float(r["relative_norm"]) for r in full if r["relation"] == "other"),  # type: ignore[arg-type]
            },
            "adapters": {
                key: separation(records, key)
                for key in ("relative_norm", "left_share_over_chance", "right_share_over_chance")
            },
            "cases": records,
        },
    )


if __name__ == "__main__":
    main()
