"""The sizes of a study: seconds, hours, some minutes of a GPU, and the paper's own.

Rates are data here, each with its source. Those of ``mini`` come from pilots that were seen before
(LOG.md, 2026-11-26): at the paper's alpha * rate = 2.4e-3 these small bases grow hardly any intruders, and at
twice the rates below training may fail. So a verdict at this scale speaks of rates near that edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from intruscope.errors import UsageError, nearest, printable
from intruscope.studies.grid import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

PAPER_ALPHA_TIMES_RATE = 2.4e-3
"""arXiv 2410.21228, appendix A."""
SHIPPED, GROWN, MADE = "shipped", "grown", "made"
_IN_DATA = ("models/", "text/")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of one base.

    Attributes:
        lora: By rank, at alpha twice the rank; the largest rank is full width.
        low, high: Learning rates of LoRA at rank 8 in the study of rates.
        full: Learning rate of full fine-tuning.
        full_lowest, full_low, full_high: Learning rates of full fine-tuning in the study of rates.
        vera: Learning rate of VeRA, which trains only vectors.
        source: Where the rates come from.
    """

    lora: Mapping[int, float]
    low: float
    high: float
    full: float
    full_lowest: float
    full_low: float
    full_high: float
    vera: float
    source: str

    @property
    def width(self) -> int:
        """The rank of full width."""
        return max(self.lora)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds on one core, about; every run notes what it took.

    Attributes:
        training: Cost of training one run on all its examples, mean over tasks.
        measuring: Cost of measuring one run.
        looks: Additional cost of a run's looks.
        interventions: Additional cost of a run's interventions.
        chain: Cost of one chain.
        merge_set: Cost of one set of adapters with all its merges.
        full_width: Cost factor of LoRA at full width.
    """

    training: float
    measuring: float
    looks: float
    interventions: float
    chain: float = 0.0
    merge_set: float = 0.0
    full_width: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The sequential study of a base.

    Attributes:
        tasks: In the order of training.
        examples: Number of training examples of each task.
        head_examples: Number of examples each head is fitted on.
        eval_examples: Number of examples each task is scored on; None for all.
    """

    tasks: tuple[str, ...]
    examples: int
    head_examples: int
    eval_examples: int | None


@dataclass(frozen=True, kw_only=True)
class Merging:
    """The study of merging on a base; every setting as in :class:`intruscope.studies.grid.MergeSet`.

    Attributes:
        tasks: In the order in which merges grow.
        rate: Learning rate of LoRA at rank 8.
        steps: Optimizer steps of each adapter.
        batch: Examples per step.
        max_length: Longest input in tokens.
        bf16: Train in bfloat16 autocast.
        score_bf16: Measure in bfloat16, which on the shipped model changes forgetting by .001 nats.
        half_examples: Held-out examples in each half.
        text_sequences: Number of sequences of the text.
        sizes: Numbers of adapters that are merged.
        strengths: Factors that are tried beside 1/T.
        same_start: Number of tasks, the first ones, that also have adapters that start from the same factors.
        texts: Files within the data folder, by the tasks that are text to be learned from them.
    """

    tasks: tuple[str, ...]
    rate: float
    steps: int
    batch: int
    max_length: int
    bf16: bool
    score_bf16: bool
    half_examples: int
    text_sequences: int
    sizes: tuple[int, ...]
    strengths: tuple[float, ...]
    same_start: int
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model that runs start from, and how they are trained and measured.

    Attributes:
        name: Short; part of every run's key.
        source: A path within the data folder, a name of the hub, ``shipped`` with the package, ``grown`` as
            the shipped one was, or ``made`` from a configuration.
        kind: Of the language model. Tasks of a masked one are classification or choices; a causal one is
            trained on text of its own.
        examples: Number of training examples by task.
        text: Of forgetting, within the data folder; empty where the base brings its own.
        rates: Learning rates.
        epochs: Passes over the data.
        batch: Examples per step.
        max_length: Longest input in tokens.
        bf16: Train in bfloat16 autocast.
        group_by_length: Batch examples of similar length.
        look_every: Steps between looks of the runs that are watched.
        look_examples: Held-out examples of which a look takes the loss; of text, documents.
        text_sequences: Of the text, that forgetting is measured on; None for all.
        sweep_sequences: Of the text, for the interventions.
        sweep_examples: Of the held-out task, for the interventions.
        turns: The sequential study, if there is one.
        merging: The study of merging, if there is one.
        only: Of tasks that take part in some studies only, which, by recipe.
        cost: Cost of its runs; None if unknown.
    """

    name: str
    source: str
    kind: Literal["masked", "causal"]
    examples: Mapping[str, int]
    text: tuple[str, ...]
    rates: Rates
    epochs: int
    batch: int
    max_length: int
    bf16: bool
    look_every: int
    look_examples: int
    text_sequences: int | None
    sweep_sequences: int
    sweep_examples: int
    turns: Turns | None = None
    merging: Merging | None = None
    cost: Cost | None = None
    group_by_length: bool = False
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def takes_part(self, task: str, recipe: str) -> bool:
        """Whether a study has runs on a task of this base."""
        return recipe in self.only.get(task, (recipe,))

    @property
    def tasks(self) -> tuple[str, ...]:
        """That it is trained on."""
        return tuple(self.examples)

    @property
    def every_task(self) -> tuple[str, ...]:
        """Those, and what only the sequential study or that of merging uses."""
        others = [part.tasks for part in (self.turns, self.merging) if part is not None]
        return tuple(dict.fromkeys([*self.tasks, *(task for tasks in others for task in tasks)]))

    @property
    def files(self) -> tuple[str, ...]:
        """What of a data folder it needs."""
        texts = self.merging.texts.values() if self.merging is not None else ()
        return tuple(name for name in (self.source, *self.text, *texts) if name.startswith(_IN_DATA))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size of the studies.

    Attributes:
        name: Name on the command line.
        bases: Each with its tasks.
        seeds: Seeds of every run.
        checkpoints: Published fine-tunes that are scanned, not trained. Their names are as the organisation
            forms them; no hub was in reach to check them.
    """

    name: str
    bases: tuple[Base, ...]
    seeds: tuple[int, ...]
    checkpoints: tuple[Checkpoint, ...] = ()

    def base(self, name: str) -> Base:
        """A base by its name."""
        return next(base for base in self.bases if base.name == name)


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
        steps=125,
        batch=16,
        max_length=40,
        bf16=True,
        score_bf16=True,
        half_examples=60,
        text_sequences=24,
        sizes=(2, 5),
        strengths=(0.3, 0.6, 1.0),
        same_start=3,
    ),
    cost=Cost(training=0.0, measuring=0.0, looks=0.0, interventions=0.0, merge_set=600.0),
)
"""The masked base of mini for the study of merging, at mini's learning rate of rank 8."""
MERGED_DEMO = replace(
    DEMO,
    examples={},
    merging=Merging(
        tasks=("reference", "stories", "shakespeare", "wikitext", "novel"),
        rate=5e-3,
        steps=80,
        batch=4,
        max_length=128,
        bf16=False,
        score_bf16=True,
        half_examples=8,
        text_sequences=16,
        sizes=(2, 5),
        strengths=(0.3, 0.6, 1.0),
        same_start=3,
        texts={
            "stories": "text/tinystories_sample.txt",
            "shakespeare": "text/tinyshakespeare.txt",
            "wikitext": "text/wikitext2_valid.txt",
            "novel": "text/The-Adventures-of-Sherlock-Holmes_1661.txt",
        },
    ),
    cost=Cost(training=0.0, measuring=0.0, looks=0.0, interventions=0.0, merge_set=250.0),
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
