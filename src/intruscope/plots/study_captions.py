"""Captions of a study's pictures: the matching figures of the paper, and the differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class About:
    """The words of a picture.

    Attributes:
        title: Its heading.
        figure: Matching figures of the paper (arXiv 2410.21228), by version; empty where it has none.
        shows: How to read it.
        differs: Differences from the paper; empty where there is nothing to compare.
        claims: Ids of the claims that it illustrates.
    """

    title: str
    figure: str
    shows: str
    differs: str
    claims: tuple[str, ...]


ABOUT: Mapping[str, About] = {
    "similarity": About(
        title="Similarity of leading vectors in one matrix",
        figure="version 1, figures 1 and 2",
        shows="Absolute cosine of each of the base’s leading left singular vectors (down) with each of the "
        "tuned matrix’s (across), in descending order of singular value. An intruder is a column without a "
        "strong "
        "cell; after it the diagonal shifts.",
        differs="The paper shows matrices of RoBERTa-base and LLaMA-2-7B. This is the output projection of "
        "the "
        "middle layer for the first task and seed, the same for every arm; it was chosen before any run.",
        claims=("C1", "C20"),
    ),
    "profile": About(
        title="Cosines of one intruder with the base’s vectors",
        figure="version 1, figure 3 (inferred)",
        shows="Absolute cosine of one tuned vector with every vector of the base. A vector of the "
        "base has a peak at its counterpart; an intruder has no peak.",
        differs="The first intruder and the first other vector of the matrix above, in the first arm that "
        "has "
        "both; the example was not hand-picked.",
        claims=("C1",),
    ),
    "epsilon": About(
        title="Intruders by threshold",
        figure="versions 1 and 3, figure 4",
        shows="Share of the ten leading vectors of every matrix that are intruders, by epsilon: mean and "
        "range "
        "over the tasks and seeds of a base. Open grey marks: the share expected by chance (same update "
        "spectrum, random directions) at epsilon .5.",
        differs="The paper shows counts for RoBERTa-base and LLaMA-2-7B, without ranges and without chance.",
        claims=("C1", "C2"),
    ),
    "depth": About(
        title="Intruders at every rank of singular values",
        figure="versions 1 and 3, on k and on ranks (unnumbered)",
        shows="Left: intruders (epsilon .5) among the k leading vectors of every matrix. Right: among all "
        "vectors, by fifth of the ranks. Mean and range over the tasks and seeds of a base.",
        differs="The paper’s models have two to ten times as many ranks.",
        claims=("C4",),
    ),
    "courses": About(
        title="Single intruders during training",
        figure="versions 1 and 3, figure 5",
        shows="Each line is an intruder of the last look, followed from when it first was among the ten "
        "leading vectors. Above: its singular value. Below: its largest cosine with the base; below .5 "
        "(dotted) "
        "it is an intruder.",
        differs="The paper follows one vector. Here up to twelve are shown per arm, sampled evenly from all "
        "intruders of the first task and seed.",
        claims=("C5",),
    ),
    "lives": About(
        title="Intruders and forgetting during training",
        figure="versions 1 and 3, compare figure 5",
        shows="Intruders (above) and forgetting (below) at every look; one line per seed, with a mark at its "
        "end.",
        differs="The paper has no such picture: it follows one vector instead of counting them.",
        claims=("C5", "C23"),
    ),
    "equal-fit": About(
        title="Forgetting at equal fit",
        figure="version 3, figure 6; version 1 draws the opposite",
        shows="First row: each arm at the point where its held-out loss first reaches the lowest value that "
        "all "
        "arms of its task and seed reach. Second row: at the end of training. Third row: the fit at the end. "
        "Marks are means over seeds, lines their range.",
        differs="The paper evaluates each arm at its end. Version 3 says that LoRA forgets less; version 1 "
        "reported a U-shape over the ranks, with r = 1 and full width worse than full fine-tuning.",
        claims=("C12",),
    ),
    "rates": About(
        title="Effect of the learning rate",
        figure="version 3, figure 7",
        shows="Intruders, forgetting and fit by learning rate: mean and range over seeds.",
        differs="The paper shows only LoRA, and no full fine-tuning with a rate above 1e-5.",
        claims=("C3", "C13", "C23"),
    ),
    "scatter": About(
        title="Forgetting and number of intruders by run",
        figure="version 3, figure 8",
        shows="One mark per run: LoRA at every rank, learning rate and alpha, and full fine-tuning at every "
        "rate, as available for the task. First row: forgetting against the number of intruders. Second row: "
        "against the norm of the update. Third row: fit against the number of intruders.",
        differs="The paper has one panel per model, no norm, and no full fine-tuning at high rates. Both the "
        "count and the norm grow with the rate: if the second row is as tight as the first, the count says "
        "no "
        "more than the norm.",
        claims=("C14", "C15", "C21"),
    ),
    "sequence": About(
        title="Training on task after task",
        figure="version 1, figure 8 and (at alpha 8) figure 17; version 3, figure 9",
        shows="Accuracy of each task after each stage, with a head retrained on the frozen body; mean change "
        "on earlier tasks since their own stage; and intruders against the original base. Mean and range "
        "over "
        "seeds; open marks: alpha 8.",
        differs="The paper has six tasks and no ranges, and version 3’s figure 9 shows similarity maps "
        "instead of "
        "counts.",
        claims=("C19", "C20", "C24"),
    ),
    "interventions": About(
        title="Interventions on intruders",
        figure="version 3, figure 12 (and its table 3)",
        shows="Change of fit (above) and of forgetting (below) by the strength of the top intruder of each "
        "matrix (1: the tuned model), and every control at the same strength: mean and range over seeds.",
        differs="The paper’s only control is the neighbour; its strengths go from 0 to 2, and it shows no "
        "ranges. "
        "Text has no accuracy; the held-out loss is shown instead.",
        claims=("C16", "C17", "C18"),
    ),
    "alpha": About(
        title="Alpha 8 instead of twice the rank",
        figure="versions 1 and 3, on alpha and effective rank (version 3, appendix H)",
        shows="Marks are means over seeds, lines their range. Open marks: alpha 8. Open grey marks: expected "
        "by chance.",
        differs="The paper has ranks up to 768, and tables instead of pictures. At rank 16, alpha times the "
        "learning rate is the same for both alphas; at alpha 8 it is the same for all ranks.",
        claims=("C7", "C8"),
    ),
    "data-size": About(
        title="Intruders by amount of data",
        figure="version 1, appendix F; version 3, appendix J",
        shows="Intruders (k = 10, epsilon .5) by number of training examples: mean and range over seeds.",
        differs="A quarter, half and all of a few thousand examples; full fine-tuning only on all of them. "
        "As in "
        "the paper, more examples also mean more steps.",
        claims=("C6",),
    ),
    "methods": About(
        title="Other methods compared with LoRA r 8",
        figure="version 3, on other methods; versions 1 and 3, on training only B (unnumbered)",
        shows="Marks are means over seeds, lines their range. Open grey marks: expected by chance.",
        differs="No learning rate was tuned, so a method may do better than shown here.",
        claims=("C9", "C11"),
    ),
}
"""By kind of picture, in the order in which a page shows them."""

ABOUT_MERGING: Mapping[str, About] = {
    "merge-kept": About(
        title="What each way to merge keeps",
        figure="",
        shows="Share of what the adapters can do alone that is left in their merge, at the strength that was "
        "best on other examples: mean over sets of adapters and range. Open marks are controls, or are told "
        "the task. For text, 0% is no better than the base; for tasks with labels, accuracies are counted "
        "from 0, so random directions show what the heads do alone.",
        differs="",
        claims=("M1",),
    ),
    "merge-intruders": About(
        title="Intruders that only the merge has",
        figure="",
        shows="Intruders of sums that the intruders of their adapters do not span: mean over sets and range. "
        "Two adapters: all pairs of a set together. Open grey marks: the same sums in random directions.",
        differs="",
        claims=("M2",),
    ),
    "merge-forgetting": About(
        title="What predicts the forgetting of a sum",
        figure="",
        shows="One mark for the sum of every two and of every three adapters of a set, at full strength: its "
        "forgetting against each figure that is known before the sum is run, and, last, against what its "
        "adapters forget one by one.",
        differs="",
        claims=("M3",),
    ),
}
"""The same for merges, which the paper has none of."""
