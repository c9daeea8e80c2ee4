"""A live model on a task, example by example, so that two states of it can be compared in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from intruscope.errors import MalformedInput, ResourceExhausted
from intruscope.forgetting.losses import DEFAULT_BATCH_TOKENS, choose_protocol, measure
from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask, Task
from intruscope.forgetting.windows import Sequences, Unit, Window, cut, special_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray

    from intruscope.adapters.live import LanguageModel, LivePair, TaskModel

    Progress = Callable[[int, int], None]


def _silent(_done: int, _all: int) -> None:
    """No progress shown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskScore:
    """Outcomes of one state on one task.

    Attributes:
        metric: ``accuracy``, or ``nats/token`` for held-out text.
        right_N: Which examples were answered right; None for held-out text.
        nats_N: Minus log-probability of the right answer (classification, choice), or of a sequence's tokens.
        units_N: 1 per example; tokens per sequence for held-out text.
        num_truncated: Examples longer than the model's longest input, cut to it.
    """

    metric: Literal["accuracy", "nats/token"]
    right_N: NDArray[np.bool_] | None
    nats_N: NDArray[np.float64]
    units_N: NDArray[np.int64]
    num_truncated: int = 0

    @property
    def value(self) -> float:
        """The accuracy, or the loss in nats per token."""
        if self.right_N is not None:
            return float(self.right_N.mean())
        return float(self.nats_N.sum() / self.units_N.sum())


def score(
    pair: LivePair,
    task: Task,
    *,
    unit: Unit | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    max_tokens: int | None = None,
    on_progress: Progress = _silent,
) -> TaskScore:
    """Score the state that a live pair is in.

    Args:
        pair: The model; its classifier is asked for a classification, the head for choices for these where it
            has one, and its language model otherwise.
        task: From ``load_task``.
        unit: Of held-out text; see :func:`intruscope.forgetting.windows.cut`.
        batch_tokens: Positions per batch, padding included.
        max_tokens: Cut what a head is given to so many tokens (as in training, say); by default to the
            model's longest input.
        on_progress: Called with what is done and all there is.

    Raises:
        IntruscopeError: the model has no head for this task, or labels are none of its own.
        MalformedInput: a NaN.
    """
    if isinstance(task, ClassificationTask):
        return _classify(pair.task_model(), task, batch_tokens, max_tokens, on_progress)
    if isinstance(task, ChoiceTask):
        model = pair.choice_model()
        if model is not None:
            return _choose_by_head(model, task, batch_tokens, max_tokens, on_progress)
        return choose(pair.language_model(), task, batch_tokens=batch_tokens, on_progress=on_progress)
    language = pair.language_model()
    sequences = cut(task.corpus, language, unit=unit)
    protocol = choose_protocol(language.kind, None)
    losses = measure(
        language, sequences, protocol=protocol, batch_tokens=batch_tokens, on_progress=on_progress
    )
    return TaskScore(metric="nats/token", right_N=None, nats_N=losses.nats, units_N=losses.tokens)


def _classify(
    model: TaskModel,
    task: ClassificationTask,
    batch_tokens: int,
    max_tokens: int | None,
    on_progress: Progress,
) -> TaskScore:
    import torch

    targets = np.asarray(task.numbers(model.labels), dtype=np.int64)
    encoded, num_truncated = _encoded(model, task.texts, max_tokens)
    logits = _head_outputs(model, encoded, task.name, batch_tokens, on_progress)
    nats = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets), reduction="none")
    return TaskScore(
        metric="accuracy",
        right_N=(logits.argmax(-1).numpy() == targets),
        nats_N=nats.double().numpy(),
        units_N=np.ones(len(targets), dtype=np.int64),
        num_truncated=num_truncated,
    )


def _choose_by_head(
    model: TaskModel, task: ChoiceTask, batch_tokens: int, max_tokens: int | None, on_progress: Progress
) -> TaskScore:
    """Each ending beside its prompt is given a score of its own; the highest is the answer."""
    texts = [pair for choice in task.choices for pair in zip(choice.prompts, choice.endings, strict=True)]
    encoded, num_truncated = _encoded(model, texts, max_tokens)
    scores = _head_outputs(model, encoded, task.name, batch_tokens, on_progress)[:, 0].double().numpy()
    return _chosen(task, scores, num_truncated)


def needs_head(pair: LivePair, task: Task) -> bool:
    """Whether a task is answered by a head that the base has not: then the base cannot be scored.

    Raises:
        IntruscopeError: weights of the head are nowhere.
    """
    if isinstance(task, ChoiceTask):
        return pair.choice_model() is not None
    return isinstance(task, ClassificationTask)


def check_task(pair: LivePair, task: Task) -> None:
    """Refuse a task that the pair cannot be scored on, before anything else is done.

    Raises:
        IntruscopeError: it has no head for the task, or labels are none of its own.
    """
    if isinstance(task, ClassificationTask):
        task.numbers(pair.task_model().labels)
    elif not needs_head(pair, task):
        pair.language_model()


def encode_pair(
    tokenizer: Any, first: str, second: str | None, limit: int | None
) -> tuple[dict[str, list[int]], bool]:
    """One text or two as ids, cut to a limit; and whether they had to be cut."""
    encoded = dict(tokenizer(first, second, verbose=False))
    if limit is None or len(encoded["input_ids"]) <= limit:
        return encoded, False
    return dict(tokenizer(first, second, truncation=True, max_length=limit)), True


def _encoded(
    model: TaskModel, texts: Sequence[tuple[str, str | None]], max_tokens: int | None
) -> tuple[list[dict[str, list[int]]], int]:
    limits = [limit for limit in (max_tokens, model.max_context) if limit is not None]
    limit = min(limits) if limits else None
    pairs = [encode_pair(model.tokenizer, first, second, limit) for first, second in texts]
    return [encoded for encoded, _ in pairs], sum(was_cut for _, was_cut in pairs)


def _head_outputs(
    model: TaskModel,
    encoded: list[dict[str, list[int]]],
    name: str,
    batch_tokens: int,
    on_progress: Progress,
) -> torch.Tensor:
    """What the head says of each input: (N, classes), or (N, 1) for choices; float32, in their order."""
    import torch

    head: Any = model.model
    found: list[torch.Tensor] = [torch.empty(0)] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]), reverse=True)
    done = 0
    while done < len(order):
        longest = len(encoded[order[done]]["input_ids"])
        chosen = order[done : done + max(1, batch_tokens // longest)]
        batch = _padded([encoded[i] for i in chosen], head.config.pad_token_id, head.device)
        if (
            not model.labels
        ):  # it takes (examples, choices, tokens); here each choice is an example of its own
            batch = {key: value.unsqueeze(1) for key, value in batch.items()}
        try:
            with torch.inference_mode():
                logits = head(**batch).logits.float().cpu()
        except (torch.OutOfMemoryError, MemoryError) as error:
            fact = f"got no memory for {len(chosen)} examples of {longest} tokens, expected room"
            remedy = "lower --batch-tokens, or take another --device"
            raise ResourceExhausted(fact, remedy=remedy) from error
        if not bool(torch.isfinite(logits).all()):
            raise MalformedInput(
                "got NaN or infinity from the classifier, expected finite logits",
                remedy="look for non-finite weights with intruscope scan; of float16, try --dtype float32",
                file=name,
            )
        for index, row in zip(chosen, logits, strict=True):
            found[index] = row
        done += len(chosen)
        on_progress(done, len(order))
    return torch.stack(found)


def _padded(
    encoded: list[dict[str, list[int]]], padding: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """A batch padded on the right with the id by which a causal classifier finds where a text ends."""
    import torch

    longest = max(len(one["input_ids"]) for one in encoded)
    batch = {}
    for key in encoded[0]:
        filler = padding if key == "input_ids" else 0
        rows = [one[key] + [filler] * (longest - len(one[key])) for one in encoded]
        batch[key] = torch.tensor(rows, device=device)
    return batch


def choose(
    language: LanguageModel,
    task: ChoiceTask,
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_progress: Progress = _silent,
) -> TaskScore:
    """Score multiple choice by the likelihood of whole endings.

    Args:
        language: The model.
        task: What is asked.
        batch_tokens: Positions per batch, padding included.
        on_progress: Called with the scored tokens done and of all.

    Raises:
        MalformedInput: an ending without a token, or a loss that is not finite.
        ResourceExhausted: no room for a batch.
    """
    windows: list[Window] = []
    num_truncated = 0
    for choice in task.choices:
        for prompt, ending in zip(choice.prompts, choice.endings, strict=True):
            window, truncated = ending_window(language, prompt, ending, len(windows), task.name)
            windows.append(window)
            num_truncated += truncated
    sequences = Sequences(
        windows=tuple(windows),
        bytes_N=np.ones(len(windows), dtype=np.int64),
        unit="line",
        context=max(len(window.ids) for window in windows),
        stride=None,
        num_left_out=0,
    )
    protocol = choose_protocol(language.kind, None)
    losses = measure(
        language, sequences, protocol=protocol, batch_tokens=batch_tokens, on_progress=on_progress
    )
    return _chosen(task, -losses.nats, num_truncated)


def _chosen(task: ChoiceTask, scores: NDArray[np.float64], num_truncated: int) -> TaskScore:
    """The outcome of scores of all choices, one example's after the other's."""
    right, nats = [], []
    first = 0
    for choice in task.choices:
        own = scores[first : first + len(choice.endings)]
        first += len(choice.endings)
        right.append(int(own.argmax()) == choice.answer)
        # Of the right answer among the choices: they are all that the model may say.
        nats.append(float(np.logaddexp.reduce(own) - own[choice.answer]))
    return TaskScore(
        metric="accuracy",
        right_N=np.array(right),
        nats_N=np.array(nats),
        units_N=np.ones(len(right), dtype=np.int64),
        num_truncated=num_truncated,
    )


def ending_window(
    language: LanguageModel, prompt: str, ending: str, index: int, name: str
) -> tuple[Window, bool]:
    """Prompt and ending as one input whose ending is scored; a long prompt loses its beginning.

    Args:
        language: Whose tokens are meant.
        prompt: What stands before.
        ending: What is scored.
        index: Of the window among all.
        name: Of the task, for messages.

    Returns:
        The window, and whether the prompt was cut.

    Raises:
        MalformedInput: no token is left to score, or none before it.
    """
    tokenizer = language.tokenizer
    before, after = special_ids(tokenizer)
    after = [] if language.kind == "causal" else after
    whole = list(tokenizer(prompt + ending, add_special_tokens=False)["input_ids"])
    if getattr(tokenizer, "is_fast", False):
        offsets = tokenizer(prompt + ending, add_special_tokens=False, return_offsets_mapping=True)
        num_prompt = sum(end <= len(prompt) for _, end in offsets["offset_mapping"])
    else:
        num_prompt = min(len(whole), len(tokenizer(prompt, add_special_tokens=False)["input_ids"]))
    limit = language.max_context
    room = len(whole) if limit is None else limit - len(before) - len(after)
    dropped = max(0, len(whole) - room)
    whole, num_prompt = whole[dropped:], num_prompt - dropped
    first = len(before) + num_prompt
    if num_prompt < 0 or num_prompt >= len(whole) or (language.kind == "causal" and first == 0):
        raise MalformedInput(
            "got a choice without a token to score or without a prompt, expected both within one context",
            remedy="check the examples",
            file=name,
        )
    ids = np.asarray([*before, *whole, *after], dtype=np.int64)
    scored = np.arange(first, len(before) + len(whole))
    return Window(ids=ids, scored=scored, sequence=index), dropped > 0
