"""What the paper reports for each claim, to compare with the results here.

Source: arXiv 2410.21228, versions 1 and 3, and the public review. Its models are larger (RoBERTa-base,
LLaMA-2-7B), its rates lower and its runs longer than those of the smaller scales: compare
signs and orders of figures, not their sizes.
"""

from __future__ import annotations

REPORTED: dict[str, str] = {
    "C1": "v3, figure 4: LoRA has intruders at every epsilon from about .3; full fine-tuning almost "
    "none, even at .6 to .9.",
    "C2": "RoBERTa: intruders for r <= 16, none at r = 768; LLaMA-2: up to r = 256, none at 2048 "
    "(MetaMath). The review: the count rises, then falls with rank.",
    "C3": "v1: full fine-tuning on Magicoder has some at high epsilon.",
    "C4": "v1, v3: LoRA above full for any k; r = 1 is the exception in the last 20%.",
    "C5": "v1, v3, figure 5: over training an intruder's singular value and rank rise, its alignment falls.",
    "C6": "v1 appendix F, v3 appendix J: at r = 8, more data give more intruders; at r = 1 the count levels "
    "off.",
    "C7": "v1, v3: at alpha 8 all ranks have intruders, lower effective rank, more forgetting, equal "
    "accuracy.",
    "C8": "v3 appendix H: LoRA below half of full; at r = 768 above 100 for alpha = 2r and below 50 for "
    "alpha 8. v1 gives 300 for r = 768 and elsewhere an impossible 'above 768'.",
    "C9": "v1, v3: training only B sharply reduces the number of high-ranking intruders.",
    "C10": "v3: five seeds with hardly any spread.",
    "C11": "v3: AdaLoRA, LoRA+, PiSSA and VeRA all have some.",
    "C12": "v3, figure 6: at equal fit LoRA forgets less. v1: a U-shape over the ranks, best at r = 64, r = "
    "1 "
    "and 768 worse than full. The versions disagree.",
    "C13": "v3, figure 7: more intruders and more forgetting at similar accuracy. No full fine-tuning above "
    "1e-5 is shown.",
    "C14": "v3, figure 8: rank correlation .971 (RoBERTa, n = 15) and .59 (LLaMA-2, p = .0006, n = 30).",
    "C15": "v3: -.338 (n = 15) and -.318 (n = 30), not significant.",
    "C16": "v3, table 3 at strength .7, change of accuracy / of forgetting: MNLI r1 -.6% / -11.0%, r8 "
    "-.2% / -14.5%; QQP r1 -.4% / -28.9%, r8 0 / -33.2%; FEVER r1 +.6% / -8.7%, r8 +1.3% / -9.7%.",
    "C17": "v3, figure 12: above 1 forgetting rises; accuracy is flat up to 1.5.",
    "C18": "v3: shrinking the neighbour raises forgetting and costs more accuracy.",
    "C19": "v1, figure 8: LoRA forgets earlier tasks faster than full fine-tuning, the lowest ranks fastest.",
    "C20": "v3, figure 9: LoRA accumulates intruders from task to task; full fine-tuning keeps the diagonal.",
    "C21": "v3: a recommendation without figures.",
    "C22": "The review: no systematic difference.",
    "C23": "The review: full at 2.5e-6 to 1e-5 has 0 intruders in all epochs.",
    "C24": "v1, figure 17: every rank falls below the untrained base on the first tasks.",
}
