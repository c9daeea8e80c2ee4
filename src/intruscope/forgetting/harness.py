"""lm-evaluation-harness on one loaded model: its tasks are read once and asked in every state of the weights.

The harness formats the prompts, runs the model and scores the answers. Here its scores are kept item by item,
so that two states can be compared in pairs. Only metrics that are means over items can be paired that way; a
corpus figure (BLEU, perplexity) is left out.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import random
import re
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.errors import MalformedInput, UnsupportedFormat, UsageError, nearest, printable
from intruscope.progress import OnProgress, Progress, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from intruscope.adapters.live import LanguageModel
    from intruscope.forgetting.settings import SkillSettings

_FEWSHOT_SEED = 1234
"""The harness's own default; every state draws the same examples."""
_BARS = ("lm_eval.models.huggingface", "lm_eval.api.task", "lm_eval.api.model")
_GROUP = re.compile(r"^group\s*:", re.MULTILINE)
_INSTALL = "install it with: pip install 'intruscope[eval]'"


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemScores:
    """One metric of one task, item by item, in one state of the model.

    Attributes:
        task: The harness's name of the task, or of a group whose tasks are pooled.
        metric: Such as ``acc``.
        filter: How answers were extracted before scoring; ``none`` for likelihoods.
        higher_is_better: As the task says; True where it does not say.
        values_N: The metric of each item.
        items: A hash of each item's prompt and target, by which two states are paired.
        num_fewshot: Number of examples in each prompt.
        version: Version of the task, if it has one.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool
    values_N: NDArray[np.float64]
    items: tuple[str, ...]
    num_fewshot: int
    version: str | None

    @property
    def key(self) -> tuple[str, str, str]:
        """What the scores are of: the same in every state."""
        return self.task, self.metric, self.filter


def require_harness() -> None:
    """Refuse before any work where the harness is missing.

    Raises:
        UsageError: it is.
    """
    if find_spec("lm_eval") is None:
        raise UsageError("--skills needs the package lm-eval, which is not installed", remedy=_INSTALL)


class Harness:
    """Tasks of lm-evaluation-harness, ready to be asked.

    Args:
        settings: Names of tasks, groups or tags, or paths of YAML files; and how they are asked.

    Raises:
        UsageError: the harness is not installed; a task that does not exist or is named twice.
        MalformedInput: a task that cannot be loaded (a broken file, a data set that cannot be reached).
        UnsupportedFormat: a task that runs generated code or needs images.
    """

    def __init__(self, settings: SkillSettings) -> None:
        require_harness()
        self._settings = settings
        with _quiet():
            self._loaded = _load(settings.skills)

    @property
    def fingerprint(self) -> str:
        """A hash of the tasks, their data and the harness, which changes wherever their questions may."""
        parts = [version("lm_eval")]
        for name, task in self._loaded["tasks"].items():
            data = getattr(task.eval_docs, "_fingerprint", "")
            parts += [name, data, json.dumps(task.dump_config(), default=repr, sort_keys=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def uses_chat_template(self, language: LanguageModel) -> bool:
        """Whether the prompts are put into the chat template of the model's tokenizer."""
        return self._settings.chat_template == "auto" and bool(
            getattr(language.tokenizer, "chat_template", None)
        )

    def scores(
        self, language: LanguageModel, *, on_progress: OnProgress = ignore_progress
    ) -> tuple[ItemScores, ...]:
        """Ask every task of the model in its present state.

        Args:
            language: A causal model.
            on_progress: Called for every answered request.

        Returns:
            For each task in the order given, each metric with each filter; then groups, their tasks pooled.

        Raises:
            UsageError: the model is not causal.
            MalformedInput: the harness failed on these items, or a score is not finite.
        """
        check_kind(language)
        counter = _Counter(on_progress)
        with _quiet(counter), _seeded():
            from lm_eval import evaluate
            from lm_eval.models.huggingface import HFLM

            wrapped = _counting(HFLM, counter)(
                pretrained=language.model,
                tokenizer=copy.deepcopy(language.tokenizer),  # it may get a padding token
                backend="causal",
                batch_size=self._settings.batch_size,
                max_length=language.max_context,
            )
            for task in self._loaded["tasks"].values():
                _set_shots(task, self._settings.num_fewshot)
            try:
                found = evaluate(
                    wrapped,
                    self._loaded,
                    limit=self._settings.max_items,
                    bootstrap_iters=0,
                    apply_chat_template=self.uses_chat_template(language),
                    fewshot_as_multiturn=True,
                )
            except (KeyError, TypeError, ValueError, IndexError, AssertionError) as error:
                # Its assertions say nothing, but the function that made one does.
                reason = str(error) or f"in {traceback.extract_tb(error.__traceback__)[-1].name}"
                raise MalformedInput(
                    f"lm-evaluation-harness failed on these tasks ({type(error).__name__}: "
                    f"{printable(reason)})",
                    remedy="check that no prompt or answer is empty or breaks off within a word, or run "
                    "lm_eval on the base alone to see which task is at fault",
                ) from error
        return tuple(_gathered(found))


def check_kind(language: LanguageModel) -> None:
    """Refuse a model that the harness cannot score.

    Raises:
        UsageError: it is a masked language model.
    """
    if language.kind != "causal":
        raise UsageError(
            "lm-evaluation-harness asks causal language models, and this is a masked one (an encoder)",
            remedy="leave --skills out and use --task, which scores encoders too",
        )


def _load(names: Sequence[str]) -> dict[str, Any]:
    """The harness's task and group objects, by name."""
    from lm_eval.tasks import TaskManager

    paths = {name: Path(name).expanduser() for name in names}
    # The harness's own index takes seconds to build, and a single local task needs nothing of it.
    alone = all(path.is_file() and not _GROUP.search(_text(path)) for path in paths.values())
    manager = TaskManager(include_defaults=not alone)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name, path in paths.items():
        if name not in manager.task_index and not path.is_file():
            raise _unknown(name, manager.all_tasks)
        try:
            found = manager.load(name)
        except Exception as error:  # a task's file, its code and its data set can raise anything
            raise MalformedInput(
                f"lm-evaluation-harness cannot load the task {printable(name)} ({type(error).__name__}: "
                f"{printable(error)})",
                remedy="check the task's file, and that its data set is there or can be downloaded",
            ) from error
        for task_name, task in found["tasks"].items():
            if task_name in loaded["tasks"]:
                raise UsageError(
                    f"the task {printable(task_name)} is asked for twice", remedy="name each task once"
                )
            _check_task(task_name, task)
        for part in loaded:
            loaded[part] |= found[part]
    return loaded


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _unknown(name: str, known: Sequence[str]) -> UsageError:
    if Path(name).suffix in (".yaml", ".yml"):
        return UsageError(
            f"there is no file {printable(name)}", remedy="give the path of the task's YAML file"
        )
    close = nearest(name, known, what="task")
    return UsageError(
        f"lm-evaluation-harness has no task {printable(name)}",
        remedy=close or "run lm_eval ls tasks to list its tasks, or give the path of a YAML file",
    )


def _check_task(name: str, task: Any) -> None:
    for attribute, why in (("UNSAFE_CODE", "runs code that the model wrote"), ("MULTIMODAL", "needs images")):
        if getattr(task, attribute, False):
            raise UnsupportedFormat(
                f"the task {printable(name)} {why}, which is not supported here",
                remedy="leave it out, and run it with lm_eval itself",
            )


def _set_shots(task: Any, num_fewshot: int | None) -> None:
    """The number of few-shot examples and their seed, as ``lm_eval.simple_evaluate`` sets them."""
    default = task.get_config("num_fewshot")
    if num_fewshot is not None and default != 0:  # a task that says 0 does not allow any
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def _gathered(found: Mapping[str, Any]) -> Iterator[ItemScores]:
    """Scores by task, metric and filter, from what the harness returns."""
    by_task: dict[str, list[ItemScores]] = {}
    for task, samples in found["samples"].items():
        by_task[task] = list(_of_task(task, samples, found))
        yield from by_task[task]
    for group in found.get("group_subtasks", {}):
        yield from _of_group(group, by_task, found)


def _of_task(
    task: str, samples: Sequence[Mapping[str, Any]], found: Mapping[str, Any]
) -> Iterator[ItemScores]:
    by_filter: dict[str, list[Mapping[str, Any]]] = {}
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        by_filter.setdefault(sample["filter"], []).append(sample)
    for name, items in by_filter.items():
        hashes = tuple(f"{item['prompt_hash']}{item['target_hash']}" for item in items)
        for metric in items[0]["metrics"]:
            values = [item[metric] for item in items]
            if not all(isinstance(value, (bool, int, float, np.number)) for value in values):
                continue
            scores = np.asarray(values, dtype=np.float64)
            if not np.isfinite(scores).all():
                raise MalformedInput(
                    f"the task {printable(task)} has {int((~np.isfinite(scores)).sum())} items whose "
                    f"{printable(metric)} is not finite",
                    remedy="look for non-finite weights with intruscope scan; with float16, try float32",
                )
            if not _is_mean(scores, found, task, metric, name):
                continue
            better = found["higher_is_better"].get(task, {}).get(metric)
            number = found["versions"].get(task)
            yield ItemScores(
                task=task,
                metric=metric,
                filter=name,
                higher_is_better=better is not False,
                values_N=scores,
                items=hashes,
                num_fewshot=int(found["n-shot"].get(task) or 0),
                version=None if number is None else str(number),
            )


def _of_group(
    group: str, by_task: Mapping[str, Sequence[ItemScores]], found: Mapping[str, Any]
) -> Iterator[ItemScores]:
    """The tasks of a group as one, where its figure is the mean over all their items (as MMLU's is)."""
    parts = [by_task[task] for task in _leaves(group, found["group_subtasks"]) if task in by_task]
    for first in parts[0] if parts else ():
        same = [scores for part in parts for scores in part if scores.key[1:] == first.key[1:]]
        values = np.concatenate([scores.values_N for scores in same])
        if len(same) < len(parts) or not _is_mean(values, found, group, first.metric, first.filter):
            continue
        yield ItemScores(
            task=group,
            metric=first.metric,
            filter=first.filter,
            higher_is_better=first.higher_is_better,
            values_N=values,
            items=tuple(item for scores in same for item in scores.items),
            num_fewshot=first.num_fewshot,
            version=first.version,
        )


def _leaves(group: str, children: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for child in children[group]:
        if child in children:
            yield from _leaves(child, children)
        else:
            yield child


def _is_mean(
    values_N: NDArray[np.float64], found: Mapping[str, Any], task: str, metric: str, name: str
) -> bool:
    """Whether the harness's figure is the mean of the items; pairing other figures would mean nothing."""
    figure = found["results"].get(task, {}).get(f"{metric},{name}")
    return isinstance(figure, (int, float)) and bool(
        np.isclose(figure, values_N.mean(), rtol=1e-9, atol=1e-12)
    )


def pooled_hash(items: Sequence[str]) -> str:
    """One hash of all items, so that figures of two runs are known to be of the same ones."""
    return hashlib.sha256("\n".join(items).encode()).hexdigest()


def check_paired(before: ItemScores, after: ItemScores) -> None:
    """Refuse to pair different items.

    Raises:
        MalformedInput: the harness asked the two states different questions.
    """
    if before.key != after.key or before.items != after.items:
        raise MalformedInput(
            f"the task {printable(before.task)} did not ask both models the same questions, so their answers "
            "cannot be paired",
            remedy="leave this task out: its prompts change from run to run",
        )


class _Counter:
    """Progress in answered requests; stands behind the harness's own bars.

    Args:
        on_progress: Called for every answer.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._event = Progress(stage="asking", done=0, total=0, unit="requests")

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[None]:
        """All requests of one kind. A long text counts once per window, so the total may be reached early."""
        self._event = Progress(stage=name, done=0, total=total, unit="requests")
        self._on_progress(self._event)
        yield
        self._on_progress(replace(self._event, done=total))

    def add(self, count: int) -> None:
        """Count answers."""
        self._event = replace(self._event, done=min(self._event.total, self._event.done + count))
        self._on_progress(self._event)


def _counting(model: type, counter: _Counter) -> type:
    """The harness's model class, which says when requests of a kind begin and end."""

    class Counting(model):  # type: ignore[misc]
        def loglikelihood(self, requests: Any, **options: Any) -> Any:
            with counter.stage("likelihoods", len(requests)):
                return super().loglikelihood(requests, **options)

        def loglikelihood_rolling(self, requests: Any, **options: Any) -> Any:
            with counter.stage("texts", len(requests)):
                return super().loglikelihood_rolling(requests, **options)

        def generate_until(self, requests: Any, **options: Any) -> Any:
            with counter.stage("answers", len(requests)):
                return super().generate_until(requests, **options)

    return Counting


def _silent_bar(counter: _Counter) -> type:
    """A stand-in for tqdm that draws nothing and counts what is updated."""

    class Bar:
        def __init__(self, iterable: Any = None, **_: Any) -> None:
            self._iterable = iterable

        def __iter__(self) -> Iterator[Any]:
            return iter(self._iterable)

        def update(self, count: int = 1) -> None:
            counter.add(count)

        def close(self) -> None:
            pass

    return Bar


@contextmanager
def _quiet(counter: _Counter | None = None) -> Iterator[None]:
    """Without the harness's log and bars, and without the bars of data sets."""
    import datasets

    from intruscope.adapters.live_models import quiet

    bar = _silent_bar(counter or _Counter(ignore_progress))
    logger = logging.getLogger("lm_eval")
    level, had_bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    modules: list[Any] = [import_module(name) for name in _BARS]
    bars = [module.tqdm for module in modules]
    try:
        for module in modules:
            module.tqdm = bar
        with quiet():
            yield
    finally:
        for module, before in zip(modules, bars, strict=True):
            module.tqdm = before
        logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()


@contextmanager
def _seeded() -> Iterator[None]:
    """Sampled answers are the same in every state; the caller's random state stays as it was."""
    import torch

    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - tasks use the old one
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(_FEWSHOT_SEED)  # noqa: NPY002 - as above
        torch.manual_seed(_FEWSHOT_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002 - as above
