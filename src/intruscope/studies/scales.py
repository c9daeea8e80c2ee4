"""The sizes of a study: seconds, hours, some minutes of a GPU, and the paper's own.

Rates are data here, each with its source. Those of ``mini`` come from pilots that were seen before
(LOG.md, 2026-11-26): at the paper's alpha * rate = 2.4e-3 these small bases grow hardly any intruders, and at
twice the rates below training may fail. So a verdict at this scale speaks of rates near that edge.
"""

from __future__ import annotations

from dataclasses import replace

from intruscope.errors import UsageError, nearest, printable
from intruscope.studies.grid import Checkpoint
from intruscope.studies.scale import GROWN, MADE, SHIPPED, Base, Cost, Merging, Rates, Scale, Turns

PAPER_ALPHA_TIMES_RATE = 2.4e-3
"""arXiv 2410.21228, appendix A."""
_IN_DEPTH = ("counts", "trajectory", "equal_fit", "correlations", "interventions")
"""What QQP and MNLI take part in: their pairs are three times as long as SST-2's sentences."""
_PILOTS = (
    "pilots of 2026-11-26 that were seen before (LOG.md): where LoRA grows intruders and training does not "
    "fail"
)
MINILM = Base(
    name="minilm-mlm",
    source="models/minilm-mlm",
    kind="masked",
    examples={"sst2": 10_000, "qqp": 6000, "mnli": 6000},
    text=("text/minilm_mlm_heldout.txt",),
    rates=Rates(
        lora={1: 2.8e-3, 8: 1.4e-3, 16: 1e-3, 64: 5e-4, 384: 2e-4},
        low=PAPER_ALPHA_TIMES_RATE / 16,
        high=2.8e-3,
        full=1e-4,
        full_lowest=2e-5,
        full_low=5e-5,
        full_high=3e-4,
        vera=8e-3,
        source=_PILOTS,
    ),
    epochs=1,
    batch=16,
    max_length=48,
    bf16=False,
    group_by_length=True,
    look_every=100,
    look_examples=256,
    text_sequences=64,
    sweep_sequences=64,
    sweep_examples=250,
    only={"qqp": _IN_DEPTH, "mnli": _IN_DEPTH},
    turns=Turns(tasks=("qqp", "sst2", "fever"), examples=2000, head_examples=500, eval_examples=500),
    cost=Cost(training=140.0, measuring=30.0, looks=110.0, interventions=300.0, chain=240.0, full_width=1.8),
)
DEMO = Base(
    name="demo",
    source=SHIPPED,
    kind="causal",
    examples={"reference": 800},
    text=(),
    rates=Rates(
        lora={1: 1e-2, 8: 5e-3, 16: 3.6e-3, 64: 1.8e-3, 256: 8e-4},
        low=1.25e-3,
        high=1e-2,
        full=8e-4,
        full_lowest=1e-4,
        full_low=2e-4,
        full_high=2.4e-3,
        vera=3e-2,
        source="the demonstration's (full 8e-4, rank 8 at 5e-3 to 6.5e-3), the other ranks in the "
        "proportions of minilm-mlm, a quarter and twice of rank 8's for low and high",
    ),
    epochs=1,
    batch=4,
    max_length=128,
    bf16=False,
    look_every=25,
    look_examples=3,
    text_sequences=64,
    sweep_sequences=32,
    sweep_examples=64,
    cost=Cost(training=40.0, measuring=25.0, looks=25.0, interventions=220.0, full_width=1.7),
)
MINI = Scale(name="mini", bases=(MINILM, DEMO), seeds=(0, 1, 2))

WIDE = Base(
    name="wide",
    source=GROWN,
    kind="causal",
    examples=DEMO.examples,
    text=(),
    rates=Rates(
        lora={1: 5e-3, 8: 2.5e-3, 16: 1.8e-3, 64: 9e-4, 512: 3.2e-4},
        low=6.25e-4,
        high=5e-3,
        full=4e-4,
        full_lowest=5e-5,
        full_low=1e-4,
        full_high=1.2e-3,
        vera=1.5e-2,
        source="half of demo's, which is half as wide (full width by the root of the rank); set before "
        "anything was run on this base",
    ),
    epochs=1,
    batch=4,
    max_length=128,
    bf16=False,
    look_every=50,
    look_examples=3,
    text_sequences=64,
    sweep_sequences=32,
    sweep_examples=64,
)
"""The shipped model's larger twin: 21M parameters, the same texts, the same task."""
MIDI = Scale(name="midi", bases=(WIDE,), seeds=(0, 1, 2))

_TINY = "tried: tiny models learn their planted tasks with them"
TINY_BERT = Base(
    name="tiny-bert",
    source=MADE,
    kind="masked",
    examples={"planted": 192},
    text=(),
    rates=Rates(
        lora={1: 2e-2, 8: 1e-2, 16: 1e-2, 64: 3e-3},
        low=5e-3,
        high=2e-2,
        full=3e-3,
        full_lowest=1.5e-3,
        full_low=2e-3,
        full_high=6e-3,
        vera=2e-1,
        source=_TINY,
    ),
    epochs=2,
    batch=16,
    max_length=16,
    bf16=False,
    look_every=6,
    look_examples=32,
    text_sequences=24,
    sweep_sequences=12,
    sweep_examples=24,
    turns=Turns(tasks=("planted", "planted2"), examples=64, head_examples=48, eval_examples=48),
    cost=Cost(training=1.0, measuring=1.0, looks=1.0, interventions=2.0, chain=6.0),
)
TINY_LLAMA = Base(
    name="tiny-llama",
    source=MADE,
    kind="causal",
    examples={"verses": 128},
    text=(),
    rates=replace(TINY_BERT.rates),
    epochs=1,
    batch=8,
    max_length=24,
    bf16=False,
    look_every=8,
    look_examples=8,
    text_sequences=12,
    sweep_sequences=8,
    sweep_examples=8,
    only={"verses": ("counts", "trajectory", "equal_fit", "interventions")},
    cost=Cost(training=0.5, measuring=0.5, looks=1.0, interventions=2.0),
)
SMOKE = Scale(name="smoke", bases=(TINY_BERT, TINY_LLAMA), seeds=(0, 1))

_PAPER_RANKS = (1, 8, 16, 64, 768)
ROBERTA = Base(
    name="roberta-base",
    source="FacebookAI/roberta-base",
    kind="masked",
    examples={
        "mnli": 392_702,
        "qqp": 363_846,
        "sst2": 67_349,
        "siqa": 33_410,
        "winogrande": 10_234,
        "fever": 145_449,
    },
    text=("text/pretraining_sample.txt",),
    rates=Rates(
        lora={rank: PAPER_ALPHA_TIMES_RATE / (2 * rank) for rank in _PAPER_RANKS},
        low=PAPER_ALPHA_TIMES_RATE / 16 / 4,
        high=PAPER_ALPHA_TIMES_RATE / 16 * 4,
        full=1e-5,
        full_lowest=2.5e-6,
        full_low=5e-6,
        full_high=1e-4,
        vera=1e-2,
        source="arXiv 2410.21228, appendix A; a quarter and four times of it for low and high, and "
        "full_high, are ours; VeRA's from arXiv 2310.11454",
    ),
    epochs=5,
    batch=16,
    max_length=512,
    bf16=True,
    look_every=2000,
    look_examples=1000,
    text_sequences=None,
    sweep_sequences=1000,
    sweep_examples=5000,
    turns=Turns(
        tasks=("mnli", "qqp", "sst2", "siqa", "winogrande", "fever"),
        examples=100_000,
        head_examples=10_000,
        eval_examples=None,
    ),
)


def _llama(task: str, arm: str, name: str) -> Checkpoint:
    return Checkpoint(
        base="meta-llama/Llama-2-7b-hf", tuned=f"LoRA-TMLR-2024/{name}", task=f"llama2-{task}", arm=arm
    )


PAPER = Scale(
    name="paper",
    bases=(ROBERTA,),
    seeds=(0, 1, 2),
    checkpoints=tuple(
        [
            _llama(task, f"lora_r{rank}", f"{task}-lora-rank-{rank}-alpha-{2 * rank}")
            for task in ("metamath", "magicoder")
            for rank in (16, 64, 256, 2048)
        ]
        + [
            _llama("metamath", "full", "metamath-full-finetuning-lr-1e-05"),
            _llama("magicoder", "full", "magicoder-full-finetuning-lr-5e-05"),
        ]
    ),
)
MERGED = replace(
    MINILM,
    examples={},
    only={},
    turns=None,
    merging=Merging(
        tasks=("sst2", "qqp", "mnli", "mrpc", "cola"),
        rate=1.4e-3,
        steps=(125,) * 5,
        batch=16,
        max_lengths=(40,) * 5,
        bf16=True,
        score_bf16=True,
        held_out=120,
        choosing_every=2,
        text_sequences=24,
        sizes=(2, 3, 5),
        strengths=(0.3, 0.6, 1.0),
        same_start=3,
    ),
    cost=Cost(training=0.0, measuring=0.0, looks=0.0, interventions=0.0, merge_set=700.0),
)
"""The masked base of mini for the study of merging, at mini's learning rate of rank 8."""
MERGED_DEMO = replace(
    DEMO,
    examples={},
    merging=Merging(
        tasks=("reference", "stories", "shakespeare", "wikitext", "novel"),
        rate=5e-3,
        steps=(80,) * 5,
        batch=4,
        max_lengths=(128,) * 5,
        bf16=False,
        score_bf16=True,
        held_out=30,
        choosing_every=3,
        text_sequences=16,
        sizes=(2, 3, 5),
        strengths=(0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0),
        same_start=3,
        texts={
            "stories": "text/tinystories_sample.txt",
            "shakespeare": "text/tinyshakespeare.txt",
            "wikitext": "text/wikitext2_valid.txt",
            "novel": "text/The-Adventures-of-Sherlock-Holmes_1661.txt",
        },
    ),
    cost=Cost(training=0.0, measuring=0.0, looks=0.0, interventions=0.0, merge_set=350.0),
)
"""The shipped model for the study of merging: five kinds of text, and one head for all."""
MERGING = Scale(name="merging", bases=(MERGED_DEMO, MERGED), seeds=(0, 1, 2))
SCALES = {scale.name: scale for scale in (SMOKE, MINI, MIDI, PAPER, MERGING)}


def find_scale(name: str) -> Scale:
    """A scale by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in SCALES:
        raise UsageError(
            f"unknown scale {printable(name)}; known scales are {', '.join(SCALES)}",
            remedy=nearest(name, SCALES, what="scale") or "choose one of them",
        )
    return SCALES[name]
