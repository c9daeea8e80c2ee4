"""A set of adapters and all their merges, measured: what :mod:`intruscope.studies.claims_merging` decides on.

Every merge is a set of matrices put into a loaded model, one model for each task with the head that its own
adapter was trained with. No merged model is written.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from intruscope.errors import IncompleteResult
from intruscope.forgetting.tasks import ChoiceTask, TextTask
from intruscope.forgetting.windows import Sequences
from intruscope.linalg.forms import dense_of
from intruscope.studies.claims_merging import EMR, LINEAR, RANDOM, SUM, UNTUNED, chosen
from intruscope.studies.merging_rules import METHODS, in_random_directions, merged
from intruscope.studies.merging_weights import BaseMatrices, examined, merge_figures, pair_figures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from intruscope.adapters.live import LivePair
    from intruscope.engine.journal import Journal
    from intruscope.forgetting.losses import SequenceLosses
    from intruscope.forgetting.scores import TaskScore
    from intruscope.forgetting.settings import DType
    from intruscope.forgetting.tasks import Task
    from intruscope.studies.grid import MergeSet
    from intruscope.studies.inputs import Inputs
    from intruscope.studies.merging_rules import Forms
    from intruscope.studies.merging_weights import Examined

ALL_METHODS = (*METHODS, EMR, LINEAR, RANDOM)
_BATCH_TOKENS = 4096
_SEQUENCES_TO_LEARN = 80
"""Sequences of a text on which it is decided whether it was learned; of a task, all examples."""
_MAX_IN_TRIPLES = 5
"""Sums of every three are taken of the first adapters only: seven adapters have 35."""
Side = Literal["choosing", "reported"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """A set, loaded.

    Attributes:
        work: The set.
        pairs: By task, the base and its adapter as one live model.
        held_out: By task and side, held-out examples; of text, sequences that were cut once.
        forms: By task, the adapter's update of each matrix.
        base: The matrices that all adapters change.
        sequences: Of the text of forgetting.
        before: Losses of the base on them.
    """

    work: MergeSet
    pairs: Mapping[str, LivePair]
    held_out: Mapping[tuple[str, Side], Task | Sequences]
    forms: Mapping[str, Forms]
    base: BaseMatrices
    sequences: Sequences
    before: SequenceLosses

    def scores(
        self, task: str, side: Side, forms: Forms | None, strength: float = 1.0
    ) -> NDArray[np.float64]:
        """Each example's score with an update: right or wrong, or minus its loss over the mean of tokens.

        Args:
            task: Whose examples.
            side: Which of them.
            forms: The update; None for the task's own adapter, empty for the base.
            strength: What the update is multiplied by.

        Returns:
            Scores whose mean is the accuracy, or minus the loss in nats per token.
        """
        pair = self.pairs[task]
        if forms is None:
            state = pair.as_tuned()
        elif not forms:
            state = pair.as_base()
        else:
            state = pair.with_update({name: strength * dense_of(form) for name, form in forms.items()})
        with state:
            held_out = self.held_out[task, side]
            if isinstance(held_out, Sequences):
                return text_scores(_losses(pair, held_out))
            right_N = _scored(pair, held_out, self.work, task).right_N
            assert right_N is not None
            return right_N.astype(np.float64)

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

    def once(name: str, how: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in journal.records:
            journal.append(name, how())
        return journal.records[name]

    parts = {task: once(f"part/{task}", partial(_part, bench, task, inputs)) for task in work.tasks}
    looked = {
        "": {task: examined(bench.base, forms) for task, forms in bench.forms.items()},
        "null_": {task: examined(bench.base, forms) for task, forms in random.items()},
    }
    sums = [
        once(f"sums/{'+'.join(chosen_tasks)}", partial(_sum, bench, parts, looked, random, chosen_tasks))
        for chosen_tasks in summed(work.tasks)
    ]
    merges = [
        once(f"{method}/{size}", partial(_merges, bench, parts, looked, random, method, size))["merges"]
        for size, method in itertools.product(work.sizes, ALL_METHODS)
    ]
    return {
        "status": "ok",
        "reason": None,
        "parts": parts,
        "sums": sums,
        "merges": [merge for each in merges for merge in each],
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
    held_out = {
        (task, side): part
        for task in work.tasks
        for side, part in _sides(inputs.task(task, "eval"), first, work).items()
    }
    return Bench(
        work=work,
        pairs=pairs,
        held_out=held_out,
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


def _sides(task: Any, pair: LivePair, work: MergeSet) -> dict[Side, Task | Sequences]:
    """The held-out examples that strengths are chosen on, and those that are reported."""
    from intruscope.forgetting.windows import cut
    from intruscope.sweep.live import limited, picked

    if isinstance(task, TextTask):
        sequences = cut(task.corpus, pair.language_model(), max_sequences=work.held_out)
        places = sides(sequences.num_sequences, work.choosing_every)
        return {side: sequences.only(own) for side, own in places.items()}
    few: Any = limited(task, work.held_out)
    num = len(few.choices) if isinstance(few, ChoiceTask) else len(few.labels)
    return {side: picked(few, own) for side, own in sides(num, work.choosing_every).items()}


def sides(num_examples: int, choosing_every: int) -> dict[Side, list[int]]:
    """The places of the examples on each side: one in so many is for choosing."""
    places = range(num_examples)
    return {
        "choosing": [i for i in places if i % choosing_every == 0],
        "reported": [i for i in places if i % choosing_every],
    }


def text_scores(losses: SequenceLosses) -> NDArray[np.float64]:
    """Minus the loss of each sequence, scaled so that the mean is minus the loss in nats per token."""
    scores: NDArray[np.float64] = -losses.nats / float(losses.tokens.mean())
    return scores


def _scored(pair: LivePair, held_out: Task, work: MergeSet, task: str) -> TaskScore:
    """The score of examples of a task in the present state."""
    from intruscope.forgetting.scores import score

    longest = work.max_lengths[work.tasks.index(task)]
    return score(
        pair, held_out, batch_tokens=_BATCH_TOKENS, max_tokens=longest, max_sequences=_SEQUENCES_TO_LEARN
    )


def _part(bench: Bench, task: str, inputs: Inputs) -> dict[str, Any]:
    """One adapter alone."""
    from intruscope.studies.measure import commonest, has_learned

    whole: Any = inputs.task(task, "eval")
    pair = bench.pairs[task]

    def measure_again() -> TaskScore:
        return _scored(pair, whole, bench.work, task)

    with pair.as_tuned():
        every = measure_again()
    reported = bench.held_out[task, "reported"]
    is_text = isinstance(reported, Sequences)

    def mean(side: Side, forms: Forms | None) -> float:
        return float(bench.scores(task, side, forms).mean())

    look = examined(bench.base, bench.forms[task])
    return {
        **has_learned(pair, whole, every, measure_again),
        "score": mean("reported", None),
        "chosen_on": mean("choosing", None),
        "floor": mean("reported", {}) if is_text else 0.0,
        "chosen_floor": mean("choosing", {}) if is_text else 0.0,
        "majority": None if isinstance(reported, Sequences) else commonest(reported),
        "forgetting": bench.forgetting(bench.forms[task]),
        "norm": look.norm / bench.base.norm,
        "intruders": look.num_intruders,
    }


Looked = dict[str, dict[str, "Examined"]]
"""Adapters (the empty string) and their updates in random directions (``null_``), by task."""


def summed(tasks: Sequence[str]) -> list[tuple[str, ...]]:
    """The tasks of each sum: every two, and every three of the first five."""
    return [*itertools.combinations(tasks, 2), *itertools.combinations(tasks[:_MAX_IN_TRIPLES], 3)]


def _sum(
    bench: Bench,
    parts: Mapping[str, Any],
    looked: Looked,
    random: Mapping[str, Forms],
    tasks: Sequence[str],
) -> dict[str, Any]:
    """The sum of some adapters at full strength; of two also in random directions."""

    def looked_at(forms: Mapping[str, Forms], name: str) -> tuple[Forms, dict[str, float]]:
        total = merged(SUM, [forms[task] for task in tasks], tasks, seed=bench.work.seed)[0]
        own = [looked[name][task] for task in tasks]
        return total, merge_figures(bench.base, examined(bench.base, total), own)

    total, figures = looked_at(bench.forms, "")
    pairs = [
        pair_figures(bench.forms[first], bench.forms[second])
        for first, second in itertools.combinations(tasks, 2)
    ]
    found = {
        "tasks": list(tasks),
        **{name: statistics.fmean(pair[name] for pair in pairs) for name in pairs[0]},
        **figures,
        "forgetting": bench.forgetting(total),
        "forgetting_of_parts": sum(parts[task]["forgetting"] for task in tasks),
    }
    if len(tasks) == 2:
        found["null_merged_only"] = looked_at(random, "null_")[1]["merged_only"]
    return found


def _strengths(work: MergeSet, method: str, size: int) -> tuple[float, ...]:
    """The strengths at which a method is scored; few in random directions, where they hardly matter."""
    if method == EMR:
        return (1.0,)
    given = [each for each in work.strengths if method != RANDOM or each in (UNTUNED, 1.0)]
    return tuple(sorted({*given, 1.0 / size}))


def _merges(
    bench: Bench,
    parts: Mapping[str, Any],
    looked: Looked,
    random: Mapping[str, Forms],
    method: str,
    size: int,
) -> dict[str, Any]:
    """One method on the first adapters at every strength; EMR, which has none, at 1."""
    tasks = bench.work.tasks[:size]
    made = merged(method, [bench.forms[task] for task in tasks], tasks, seed=bench.work.seed)
    dense: list[Forms] = [{name: dense_of(form).float() for name, form in forms.items()} for forms in made]
    by_task = dict(zip(tasks, dense if len(dense) > 1 else dense * size, strict=True))
    found: list[dict[str, Any]] = []
    for strength in _strengths(bench.work, method, size):
        on = {task: float(bench.scores(task, "choosing", by_task[task], strength).mean()) for task in tasks}
        found.append({"rule": method, "size": size, "strength": strength, "chosen_on": on})
    best = chosen({"merges": found, "parts": parts}, method, size)
    for merge in found:
        if merge is best or merge["strength"] in (1.0 / size, UNTUNED):
            scores = {
                task: bench.scores(task, "reported", by_task[task], merge["strength"]) for task in tasks
            }
            merge["score"] = {task: float(each.mean()) for task, each in scores.items()}
            merge["scores"] = {task: each.round(5).tolist() for task, each in scores.items()}
    if method == EMR:  # one model for each task, none of them the merge
        return {"merges": found}
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
    return {"merges": found}
