"""Claim: of 200 odd but valid models, none gets a silent wrong answer.

Each model is a tiny config of transformers whose matrices are stored in an unusual way (``Conv1D``, fused,
tied or nested parts, an unknown model type, no config), fine-tuned in full and with LoRA. The scan's plan is
held against the model in memory, module by module: which matrix each name stands for, which rows a fused part
has, the tuned matrix, and the intruders by dense float64 decompositions (``tests/weights/odd_models.py``). A
model is *right* where everything agrees and nothing is missing, *warned* where all that is given agrees and
the plan names what is missing, *refused* where it ends in an error, and *silently wrong* otherwise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import transformers

from benchmarks.common import publish

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "weights"))

from odd_models import all_cases, run_case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", help="Only these.")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    counts: Counter[str] = Counter()
    remarks: dict[str, list[str]] = {}
    num_matrices = 0
    for case in all_cases():
        if given.families and case.family not in given.families:
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_case(case, Path(folder))
        verdict = "silently wrong" if outcome.verdict == "wrong" else outcome.verdict
        counts[verdict] += 1
        num_matrices += outcome.num_matrices
        if verdict != "right":
            remarks[f"{case.name}: {verdict}"] = [note[:200] for note in outcome.notes[:2]]
    publish(
        "odd_models",
        {
            "models": counts.total(),
            "matrices": num_matrices,
            **{verdict: counts[verdict] for verdict in ("right", "warned", "refused", "silently wrong")},
            "transformers": transformers.__version__,
            "remarks": remarks,
        },
    )


if __name__ == "__main__":
    main()
