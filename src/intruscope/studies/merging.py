"""A set of adapters and all their merges, measured: what :mod:`intruscope.studies.claims_merging` decides on.

Every merge is a set of matrices put into a loaded model, one model for each task with the head that its own
adapter was trained with. No merged model is written.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.errors import IncompleteResult
from intruscope.forgetting.tasks import TextTask
from intruscope.linalg.forms import dense_of
from intruscope.studies.claims_merging import EMR, LINEAR, RANDOM, SUM, chosen
from intruscope.studies.merging_rules import METHODS, in_random_directions, merged
from intruscope.studies.merging_weights import BaseMatrices, examined, merge_figures, pair_figures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from intruscope.adapters.live import LivePair
    from intruscope.engine.journal import Journal
    from intruscope.forgetting.losses import SequenceLosses
    from intruscope.forgetting.scores import TaskScore
    from intruscope.forgetting.settings import DType
    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.windows import Sequences
    from intruscope.studies.grid import MergeSet
    from intruscope.studies.inputs import Inputs
    from intruscope.studies.merging_rules import Forms
    from intruscope.studies.merging_weights import Examined

ALL_METHODS = (*METHODS, EMR, LINEAR, RANDOM)
_BATCH_TOKENS = 4096
_HALVES_TO_LEARN = 10
"""Sequences of a text, in halves, on which it is decided whether it was learned; of a task, all examples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """A set, loaded.

    Attributes:
        work: The set.
        pairs: By task, the base and its adapter as one live model.
        tasks: By task, the held-out examples of both halves.
        texts: By task that is text, the same as sequences, cut once.
        forms: By task, the adapter's update of each matrix.
        base: The matrices that all adapters change.
        sequences: Of the text of forgetting.
        before: Losses of the base on them.
    """

    work: MergeSet
    pairs: Mapping[str, LivePair]
    tasks: Mapping[str, Task]
    texts: Mapping[str, Sequences]
    forms: Mapping[str, Forms]
    base: BaseMatrices
    sequences: Sequences
    before: SequenceLosses

    def scores(self, task: str, forms: Forms | None, strength: float = 1.0) -> Scores:
        """Each example's score with an update: right or wrong, or minus its loss over the mean of tokens.

        Args:
            task: Whose examples.
            forms: The update; the task's own adapter by default, the base if it is empty.
            strength: What the update is multiplied by.
        """
        pair = self.pairs[task]
        if forms is None:
            state = pair.as_tuned()
        elif not forms:
            state = pair.as_base()
        else:
            state = pair.with_update({name: strength * dense_of(form) for name, form in forms.items()})
        with state:
            if task in self.texts:
                return Scores(_as_score(_losses(pair, self.texts[task])))
            return Scores(_scored(pair, self.tasks[task], self.work))

    def forgetting(self, forms: Forms, strength: float = 1.0) -> float:
        """Loss on the text with an update less that of the base, in nats per token."""
        pair = next(iter(self.pairs.values()))
        with pair.with_update({name: strength * dense_of(form) for name, form in forms.items()}):
            after = _losses(pair, self.sequences)
        return float((after.nats - self.before.nats).sum() / self.before.tokens.sum())


def merge_set_figures(
    work: MergeSet, inputs: Inputs, adapters: Sequence[Path], journal: Journal
) -> dict[str, Any]:
    """Measure every merge of a set, each once.

    Args:
        work: The set.
        inputs: Of its base.
        adapters: Folders of its adapters, in the order of the tasks.
        journal: Of what was measured so far.

    Returns:
        The columns of :mod:`intruscope.studies.claims_merging`, with ``status``.

    Raises:
        IntruscopeError: a file is damaged, or a loss is not finite.
    """
    bench = load(work, inputs, adapters)
    random = {task: in_random_directions(forms, task, seed=work.seed) for task, forms in bench.forms.items()}
    if "parts" not in journal.records:
        journal.append("parts", {task: _part(bench, task, inputs) for task in work.tasks})
    parts: dict[str, Any] = journal.records["parts"]
    looked = {
        "": {task: examined(bench.base, forms) for task, forms in bench.forms.items()},
        "null_": {task: examined(bench.base, forms) for task, forms in random.items()},
    }
    if "sums" not in journal.records:
        journal.append("sums", {"sums": _sums(bench, parts, looked, random)})
    for size, method in itertools.product(work.sizes, ALL_METHODS):
        name = f"{method}/{size}"
        if name not in journal.records:
            journal.append(name, {"merges": _merges(bench, parts, looked, random, method, size)})
    return {
        "status": "ok",
        "reason": None,
        "parts": parts,
        "sums": journal.records["sums"]["sums"],
        "merges": [
            merge
            for size, method in itertools.product(work.sizes, ALL_METHODS)
            for merge in journal.records[f"{method}/{size}"]["merges"]
        ],
    }


def load(work: MergeSet, inputs: Inputs, adapters: Sequence[Path]) -> Bench:
    """Load a set's base, adapters, tasks and text.

    Raises:
        IntruscopeError: a file is damaged.
        IncompleteResult: an adapter does not change the matrices that the others change.
    """
    from intruscope.adapters.several import open_fine_tunes
    from intruscope.forgetting.models import load_pair
    from intruscope.forgetting.texts import read_texts
    from intruscope.forgetting.windows import cut
    from intruscope.linalg.dense import DenseSides
    from intruscope.sweep.live import limited
    from intruscope.weights.matrices import LowRankUpdate

    dtype: DType = "bfloat16" if work.score_bf16 else "float32"
    opened = open_fine_tunes(inputs.base, adapters)
    base: dict[str, Any] = {}
    forms: dict[str, Forms] = {task: {} for task in work.tasks}
    for name, members in opened.matrices().items():
        for task, member in zip(work.tasks, members, strict=True):
            if member is None:
                raise IncompleteResult(
                    f"the adapter of {task} does not change the matrix {name}, which another one changes",
                    remedy="train all adapters of a set by the same settings",
                )
            base[name] = member.base.load().double()
            update = member.update.load(base[name])
            if isinstance(update, LowRankUpdate):
                forms[task][name] = (update.left_OR.double(), update.right_RI.double())
    pairs = {
        task: load_pair(inputs.base, str(adapter), dtype=dtype, device="cpu")
        for task, adapter in zip(work.tasks, adapters, strict=True)
    }
    first = pairs[work.tasks[0]]
    sequences = cut(read_texts(inputs.text), first.language_model(), max_sequences=work.text_sequences)
    with first.as_base():
        before = _losses(first, sequences)
    tasks: dict[str, Task] = {
        task: limited(inputs.task(task, "eval"), 2 * work.half_examples)  # type: ignore[arg-type]
        for task in work.tasks
    }
    texts = {
        name: cut(task.corpus, first.language_model(), max_sequences=2 * work.half_examples)
        for name, task in tasks.items()
        if isinstance(task, TextTask)
    }
    return Bench(
        work=work,
        pairs=pairs,
        tasks=tasks,
        texts=texts,
        forms=forms,
        base=BaseMatrices(values=base, sides={name: DenseSides() for name in base}),
        sequences=sequences,
        before=before,
    )


def _losses(pair: LivePair, sequences: Sequences) -> SequenceLosses:
    from intruscope.forgetting.losses import choose_protocol, measure

    language = pair.language_model()
    protocol = choose_protocol(language.kind, "fast" if language.kind == "masked" else None)
    return measure(language, sequences, protocol=protocol, batch_tokens=_BATCH_TOKENS)


def _as_score(losses: SequenceLosses) -> TaskScore:
    from intruscope.forgetting.scores import TaskScore

    return TaskScore(metric="nats/token", right_N=None, nats_N=losses.nats, units_N=losses.tokens)


def _scored(pair: LivePair, task: Task, work: MergeSet, *, num_halves: int = 2) -> TaskScore:
    """A task's score in the present state; of a text, on so many halves of sequences."""
    from intruscope.forgetting.scores import score

    most = num_halves * work.half_examples
    return score(pair, task, batch_tokens=_BATCH_TOKENS, max_tokens=work.max_length, max_sequences=most)


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one task, in two halves: every other example each."""

    whole: TaskScore

    @property
    def chosen_on(self) -> float:
        """Mean over the half that strengths are chosen on."""
        return float(self._half(0).mean())

    @property
    def reported(self) -> NDArray[np.float64]:
        """Scores of the other half; their mean is its accuracy, or minus its loss in nats per token."""
        return self._half(1)

    def _half(self, which: int) -> NDArray[np.float64]:
        if self.whole.right_N is not None:
            return self.whole.right_N[which::2].astype(np.float64)
        nats_N, tokens_N = self.whole.nats_N[which::2], self.whole.units_N[which::2]
        return -nats_N / float(tokens_N.mean())


def _part(bench: Bench, task: str, inputs: Inputs) -> dict[str, Any]:
    """One adapter alone."""
    from intruscope.studies.measure import commonest, has_learned

    whole: Any = inputs.task(task, "eval")
    pair = bench.pairs[task]

    def measure_again() -> TaskScore:
        return _scored(pair, whole, bench.work, num_halves=_HALVES_TO_LEARN)

    with pair.as_tuned():
        every = measure_again()
    own = bench.scores(task, None)
    is_text = every.right_N is None
    floor = bench.scores(task, {}) if is_text else None
    look = examined(bench.base, bench.forms[task])
    return {
        **has_learned(pair, whole, every, measure_again),
        "score": float(own.reported.mean()),
        "chosen_on": own.chosen_on,
        "floor": 0.0 if floor is None else float(floor.reported.mean()),
        "chosen_floor": 0.0 if floor is None else floor.chosen_on,
        "majority": None if is_text else commonest(bench.tasks[task]),
        "forgetting": bench.forgetting(bench.forms[task]),
        "norm": look.norm / bench.base.norm,
        "intruders": look.num_intruders,
    }


Looked = dict[str, dict[str, "Examined"]]
"""Adapters (the empty string) and their updates in random directions (``null_``), by task."""


def _sums(
    bench: Bench, parts: Mapping[str, Any], looked: Looked, random: Mapping[str, Forms]
) -> list[dict[str, Any]]:
    """The sum of every two and every three adapters, beside random directions."""
    tasks = bench.work.tasks
    related = {
        pair: pair_figures(*(bench.forms[task] for task in pair)) for pair in itertools.combinations(tasks, 2)
    }
    found = []
    for chosen_tasks in (each for size in (2, 3) for each in itertools.combinations(tasks, size)):
        figures: dict[str, dict[str, float]] = {}
        for name, forms in (("", bench.forms), ("null_", random)):
            total = merged(SUM, [forms[task] for task in chosen_tasks], chosen_tasks, seed=bench.work.seed)[0]
            figures[name] = merge_figures(
                bench.base, examined(bench.base, total), [looked[name][task] for task in chosen_tasks]
            )
            if not name:
                forgetting = bench.forgetting(total)
        pairs = [related[pair] for pair in itertools.combinations(chosen_tasks, 2)]
        found.append(
            {
                "tasks": list(chosen_tasks),
                **{name: statistics.fmean(pair[name] for pair in pairs) for name in pairs[0]},
                **figures[""],
                "null_merged_only": figures["null_"]["merged_only"],
                "forgetting": forgetting,
                "forgetting_of_parts": sum(parts[task]["forgetting"] for task in chosen_tasks),
            }
        )
    return found


def _merges(
    bench: Bench,
    parts: Mapping[str, Any],
    looked: Looked,
    random: Mapping[str, Forms],
    method: str,
    size: int,
) -> list[dict[str, Any]]:
    """One method on the first adapters at every strength; EMR, which has none, at 1."""
    tasks = bench.work.tasks[:size]
    made = merged(method, [bench.forms[task] for task in tasks], tasks, seed=bench.work.seed)
    by_task = dict(zip(tasks, made if len(made) > 1 else made * size, strict=True))
    strengths = (1.0,) if method == EMR else tuple(sorted({*bench.work.strengths, 1.0 / size}))
    found: list[dict[str, Any]] = []
    for strength in strengths:
        scores = {task: bench.scores(task, by_task[task], strength) for task in tasks}
        found.append(
            {
                "rule": method,
                "size": size,
                "strength": strength,
                "chosen_on": {task: each.chosen_on for task, each in scores.items()},
                "score": {task: float(each.reported.mean()) for task, each in scores.items()},
                "scores": {task: each.reported.round(5).tolist() for task, each in scores.items()},
            }
        )
    if method == EMR:  # one model for each task, none of them the merge
        return found
    best = chosen({"merges": found, "parts": parts}, method, size)
    for merge in found:
        of_sum = method == SUM and merge["strength"] in (1.0 / size, 1.0)
        if merge is not best and not of_sum:
            continue
        strength = merge["strength"]
        own = looked["null_" if method == RANDOM else ""]
        look = examined(bench.base, made[0], strength)
        merge["weights"] = merge_figures(bench.base, look, [own[task] for task in tasks])
        merge["forgetting"] = bench.forgetting(made[0], strength)
        if of_sum:
            null = merged(SUM, [random[task] for task in tasks], tasks, seed=bench.work.seed)[0]
            of_null = examined(bench.base, null, strength)
            merge["weights"]["null_merged_only"] = merge_figures(
                bench.base, of_null, [looked["null_"][task] for task in tasks]
            )["merged_only"]
    return found
