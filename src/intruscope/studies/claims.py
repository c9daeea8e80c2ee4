"""The claims that runs decide: the claim in our words, its source, and the function that decides it.

The paper's are C1 to C24; M1 to M3 are ours, about merging.

Source: arXiv 2410.21228, versions 1 (October 2024) and 3 (October 2025), and its public review.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intruscope.errors import UsageError, printable
from intruscope.studies import claims_forgetting as forgetting
from intruscope.studies import claims_merging as merging
from intruscope.studies import claims_sequence as sequence
from intruscope.studies import claims_weights as weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from intruscope.studies.evidence import Rows
    from intruscope.studies.verdicts import Statement


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that runs can check.

    Attributes:
        id: C1 to C24, or M1 to M3.
        text: What it says.
        paper_version: Where: v1, v3, the review, or this project.
        recipe: The study whose runs decide it; claims of one recipe share runs.
        judge: From rows of figures to statements; see :mod:`intruscope.studies.verdicts`.
    """

    id: str
    text: str
    paper_version: str
    recipe: str
    judge: Callable[[Rows], list[Statement]]


CLAIMS = (
    Claim(
        id="C1",
        text="LoRA has intruders among the ten leading singular vectors; full fine-tuning has almost none, "
        "even with epsilon from .6 to .9",
        paper_version="v1, v3 (figure 4)",
        recipe="counts",
        judge=weights.c1,
    ),
    Claim(
        id="C2",
        text="Intruders appear up to rank 16 and not at full width; their number first rises, then falls "
        "with rank",
        paper_version="v1, v3, review",
        recipe="counts",
        judge=weights.c2,
    ),
    Claim(
        id="C3",
        text="Full fine-tuning with a large update has some intruders at a high epsilon",
        paper_version="v1",
        recipe="rates",
        judge=weights.c3,
    ),
    Claim(
        id="C4",
        text="Intruders occur at all ranks of singular values, and LoRA has more than full fine-tuning for "
        "any k",
        paper_version="v1, v3",
        recipe="counts",
        judge=weights.c4,
    ),
    Claim(
        id="C5",
        text="During training, an intruder's singular value rises and its alignment with the base falls",
        paper_version="v1, v3 (figure 5)",
        recipe="trajectory",
        judge=weights.c5,
    ),
    Claim(
        id="C6",
        text="The number of intruders grows with the amount of data at rank 8, and levels off at rank 1",
        paper_version="v1 (appendix F), v3 (appendix J)",
        recipe="data_size",
        judge=weights.c6,
    ),
    Claim(
        id="C7",
        text="With alpha 8 instead of twice the rank, all ranks have intruders, effective rank is lower and "
        "forgetting is higher at equal accuracy",
        paper_version="v1, v3",
        recipe="alpha",
        judge=weights.c7,
    ),
    Claim(
        id="C8",
        text="The effective rank of a full update is more than twice that of LoRA, whatever LoRA's rank",
        paper_version="v1, v3 (appendix H)",
        recipe="alpha",
        judge=weights.c8,
    ),
    Claim(
        id="C9",
        text="Training only B, with all singular values of A equal to 1, sharply reduces the number of "
        "intruders",
        paper_version="v1, v3",
        recipe="methods",
        judge=weights.c9,
    ),
    Claim(
        id="C10",
        text="The seed hardly affects the number of intruders",
        paper_version="v3",
        recipe="correlations",
        judge=weights.c10,
    ),
    Claim(
        id="C11",
        text="AdaLoRA, LoRA+, PiSSA and VeRA have intruders too",
        paper_version="v3",
        recipe="methods",
        judge=weights.c11,
    ),
    Claim(
        id="C12",
        text="At equal fit LoRA forgets less than full fine-tuning (v1 reported a U-shape over the ranks, "
        "with "
        "r = 1 and full width worse than full fine-tuning)",
        paper_version="v3 (figure 6); v1 disagrees",
        recipe="equal_fit",
        judge=forgetting.c12,
    ),
    Claim(
        id="C13",
        text="A higher learning rate causes more intruders and more forgetting at similar accuracy",
        paper_version="v3 (figure 7)",
        recipe="rates",
        judge=forgetting.c13,
    ),
    Claim(
        id="C14",
        text="The number of intruders correlates with forgetting (rank correlation .97 and .59)",
        paper_version="v3 (figure 8)",
        recipe="correlations",
        judge=forgetting.c14,
    ),
    Claim(
        id="C15",
        text="The number of intruders does not correlate with accuracy",
        paper_version="v3",
        recipe="correlations",
        judge=forgetting.c15,
    ),
    Claim(
        id="C16",
        text="Scaling down the top intruders removes much of the forgetting at little cost in accuracy",
        paper_version="v3 (figure 12, tables 3 and 4)",
        recipe="interventions",
        judge=forgetting.c16,
    ),
    Claim(
        id="C17",
        text="Scaling them up increases forgetting at the same accuracy",
        paper_version="v3",
        recipe="interventions",
        judge=forgetting.c17,
    ),
    Claim(
        id="C18",
        text="Scaling down a neighbouring base vector instead increases forgetting and costs more accuracy",
        paper_version="v3",
        recipe="interventions",
        judge=forgetting.c18,
    ),
    Claim(
        id="C19",
        text="Trained on task after task, LoRA forgets earlier tasks faster than full fine-tuning, low "
        "ranks fastest",
        paper_version="v1 (figure 8), v3",
        recipe="sequence",
        judge=sequence.c19,
    ),
    Claim(
        id="C20",
        text="LoRA accumulates intruders from task to task, and full fine-tuning does not",
        paper_version="v3 (figure 9)",
        recipe="sequence",
        judge=sequence.c20,
    ),
    Claim(
        id="C21",
        text="Of models with equal accuracy, prefer the one with fewer intruders: it has forgotten less",
        paper_version="v3",
        recipe="correlations",
        judge=forgetting.c21,
    ),
    Claim(
        id="C22",
        text="The number of intruders does not differ systematically between attention and MLP layers",
        paper_version="review",
        recipe="counts",
        judge=weights.c22,
    ),
    Claim(
        id="C23",
        text="Full fine-tuning at low learning rates has no intruders at any time during training",
        paper_version="review",
        recipe="rates",
        judge=forgetting.c23,
    ),
    Claim(
        id="C24",
        text="Trained on task after task at alpha 8, every rank ends below the untrained base on the first "
        "tasks",
        paper_version="v1 (figure 17)",
        recipe="sequence",
        judge=sequence.c24,
    ),
)


_HERE = "this project"
MERGING_CLAIMS = (
    Claim(
        id="M1",
        text="TIES, KnOTS, DARE-TIES, TSV, Iso-C, Pico and SVC keep more of what the adapters can do than a "
        "plain sum, each at the strength that is best on other examples",
        paper_version=_HERE,
        recipe="merging",
        judge=merging.m1,
    ),
    Claim(
        id="M2",
        text="A sum of adapters has intruders that none of the adapters has, and more than sums of random "
        "directions",
        paper_version=_HERE,
        recipe="merging",
        judge=merging.m2,
    ),
    Claim(
        id="M3",
        text="Inflation, merged-only intruders, cosine and sign conflict predict what a merge forgets better "
        "than its norm alone",
        paper_version=_HERE,
        recipe="merging",
        judge=merging.m3,
    ),
)
"""Claims about merging several adapters; the paper does not merge."""


def claims_of(scale_name: str) -> tuple[Claim, ...]:
    """The claims that the runs of a scale decide."""
    return MERGING_CLAIMS if scale_name == "merging" else CLAIMS


def find_claim(name: str) -> Claim:
    """A claim by its id, whatever its case.

    Raises:
        UsageError: there is none.
    """
    for claim in (*CLAIMS, *MERGING_CLAIMS):
        if claim.id == name.strip().upper():
            return claim
    raise UsageError(
        f"unknown claim {printable(name)}; the claims are C1 to C{len(CLAIMS)} and "
        f"M1 to M{len(MERGING_CLAIMS)}",
        remedy="see intruscope study list",
    )
