"""What stands under a study's pictures: which figures of the paper each is like, and what differs."""

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
        figure: Figures of the paper (arXiv 2410.21228) that it is like, by version.
        shows: How to read it.
        differs: What is otherwise than in the paper.
        claims: Those that it is about.
    """

    title: str
    figure: str
    shows: str
    differs: str
    claims: tuple[str, ...]


ABOUT: Mapping[str, About] = {
    "similarity": About(
        title="One matrix: which leading vectors are the base’s",
        figure="version 1, figures 1 and 2",
        shows="Absolute cosine of each of the base’s leading left singular vectors (down) with each of the "
        "tuned matrix’s (across), by falling singular value. An intruder is a column without a strong cell; "
        "behind it the diagonal shifts.",
        differs="The paper’s matrices are of RoBERTa-base and LLaMA-2-7B. Ours is the output projection of "
        "the middle layer, the same for every arm, of the first task and seed; all of this was set before "
        "any run.",
        claims=("C1", "C20"),
    ),
    "profile": About(
        title="One intruder: close to no vector of the base",
        figure="version 1, figure 3 (inferred)",
        shows="Absolute cosine of one tuned vector with every vector of the base. A vector that the base "
        "has peaks at its counterpart; an intruder peaks nowhere.",
        differs="The first intruder and the first other vector of the matrix above, in the first arm that "
        "has both; not a picked example.",
        claims=("C1",),
    ),
    "epsilon": About(
        title="Intruders by threshold",
        figure="versions 1 and 3, figure 4",
        shows="Share of the ten leading vectors of every matrix that intrude, by epsilon: mean, and range "
        "over the tasks and seeds of a base. Open grey marks: as many as the same update spectrum makes in "
        "random directions, at epsilon .5.",
        differs="The paper draws counts of RoBERTa-base and LLaMA-2-7B without range and without chance.",
        claims=("C1", "C2"),
    ),
    "depth": About(
        title="Intruders at every rank of singular values",
        figure="versions 1 and 3, on k and on ranks (no number)",
        shows="Left: intruders (epsilon .5) among the k leading vectors of every matrix. Right: among all "
        "vectors, by the fifth of the ranks that they lie in. Mean, and range over the tasks and seeds of a "
        "base.",
        differs="The paper’s models have two to ten times as many ranks.",
        claims=("C4",),
    ),
    "courses": About(
        title="While training goes on: single intruders",
        figure="versions 1 and 3, figure 5",
        shows="Each line is an intruder of the last look, from the look that first saw it among the ten "
        "leading vectors: its singular value above; below its largest cosine with the base, which makes it "
        "an intruder under .5 (dotted).",
        differs="The paper follows one vector. Here they are at most twelve an arm, every so manieth of "
        "all, of the first task and seed.",
        claims=("C5",),
    ),
    "lives": About(
        title="While training goes on: intruders and forgetting",
        figure="versions 1 and 3, beside figure 5",
        shows="Intruders above, forgetting below, at every look; a line for each seed, with a mark at its "
        "end.",
        differs="The paper has no such picture: it follows one vector, not how many there are.",
        claims=("C5", "C23"),
    ),
    "equal-fit": About(
        title="Forgetting at equal fit",
        figure="version 3, figure 6; version 1 draws the opposite",
        shows="First row: each arm where its held-out loss first comes down to the lowest that all arms of "
        "its task and seed reach. Second row: at the end of training. Third row: the fit at the end. A mark "
        "is the mean over seeds, the line their range.",
        differs="The paper reads each arm at its end. Version 3 says that LoRA forgets less; version 1 "
        "said a U over the ranks, with r = 1 and full width worse than full fine-tuning.",
        claims=("C12",),
    ),
    "rates": About(
        title="The learning rate",
        figure="version 3, figure 7",
        shows="Intruders, forgetting and fit over the learning rate: mean, and range over seeds.",
        differs="The paper shows LoRA alone, and no full fine-tuning above a rate of 1e-5.",
        claims=("C3", "C13", "C23"),
    ),
    "scatter": About(
        title="Forgetting and the number of intruders, run by run",
        figure="version 3, figure 8",
        shows="A mark for each run: every rank, rate and alpha of LoRA, and full fine-tuning at every "
        "rate, as far as a task has them. First row: forgetting over the number of intruders. Second row: "
        "over the norm of the update. Third row: fit over the number of intruders.",
        differs="The paper has one panel for each model, no norm, and no full fine-tuning at high rates. "
        "Both count and norm grow with the rate: where the second row is as tight as the first, the count "
        "tells no more than the norm.",
        claims=("C14", "C15", "C21"),
    ),
    "sequence": About(
        title="Task after task",
        figure="version 1, figure 8 and (at alpha 8) figure 17; version 3, figure 9",
        shows="Accuracy of each task after every stage, read by a head retrained on the frozen body; what "
        "earlier tasks lost since their own stage, in the mean; and intruders against the original base. "
        "Mean, and range over seeds; open marks are alpha 8.",
        differs="The paper has six tasks and no range, and draws version 3’s figure 9 as similarity maps "
        "where we count.",
        claims=("C19", "C20", "C24"),
    ),
    "interventions": About(
        title="Interventions on intruders",
        figure="version 3, figure 12 (and its table 3)",
        shows="Change of fit above, of forgetting below, over the strength to which the top intruder of "
        "each matrix is turned (1: the tuned model), beside every control at the same strength: mean, and "
        "range over seeds.",
        differs="The paper’s only control is the neighbour; its strengths go from 0 to 2, and it has no "
        "range. Text has no accuracy: there it is the held-out loss.",
        claims=("C16", "C17", "C18"),
    ),
    "alpha": About(
        title="Alpha 8 instead of twice the rank",
        figure="versions 1 and 3, on alpha and effective rank (version 3, appendix H)",
        shows="A mark is the mean over seeds, the line their range; open marks are alpha 8; open grey "
        "marks what chance makes.",
        differs="The paper has ranks up to 768, and tables where we draw. At rank 16 alpha times the rate "
        "is the same for both alphas, and at alpha 8 for all ranks.",
        claims=("C7", "C8"),
    ),
    "data-size": About(
        title="Intruders by the size of the data",
        figure="version 1, appendix F; version 3, appendix J",
        shows="Intruders (k = 10, epsilon .5) over the number of training examples: mean, and range over "
        "seeds.",
        differs="A quarter, a half and all of a few thousand examples; full fine-tuning on all of them "
        "alone. More examples are more steps too, here as in the paper.",
        claims=("C6",),
    ),
    "methods": About(
        title="Other methods beside LoRA r 8",
        figure="version 3, on other methods; versions 1 and 3, on training B alone (no numbers)",
        shows="A mark is the mean over seeds, the line their range; open grey marks are what chance makes.",
        differs="No rate was tuned: a method may do better than it does here.",
        claims=("C9", "C11"),
    ),
}
"""By kind of picture, in the order in which a page shows them."""
