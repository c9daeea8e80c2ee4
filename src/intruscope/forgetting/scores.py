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
    from collections.abc import Callable

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
        pair: The model; its classifier is asked for a classification, its language model otherwise.
        task: From ``load_task``.
        unit: Of held-out text; see :func:`intruscope.forgetting.windows.cut`.
        batch_tokens: Positions per batch, padding included.
        max_tokens: Cut examples of a classification to so many tokens (as in training, say); by default to
            the model's longest input.
        on_progress: Called with what is done and all there is.

    Raises:
        IntruscopeError: the model has no head for this task, or labels are none of its own.
        MalformedInput: a NaN.
    """
    if isinstance(task, ClassificationTask):
        return _classify(pair.task_model(), task, batch_tokens, max_tokens, on_progress)
    language = pair.language_model()
    if isinstance(task, ChoiceTask):
        return _choose(language, task, batch_tokens, on_progress)
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
    limits = [limit for limit in (max_tokens, model.max_context) if limit is not None]
    limit = min(limits) if limits else None
    classifier: Any = model.model
    encoded = [dict(model.tokenizer(first, second, verbose=False)) for first, second in task.texts]
    num_truncated = 0
    for index, (first, second) in enumerate(task.texts):
        if limit is not None and len(encoded[index]["input_ids"]) > limit:
            encoded[index] = dict(model.tokenizer(first, second, truncation=True, max_length=limit))
            num_truncated += 1
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]), reverse=True)
    nats = np.zeros(len(order))
    right = np.zeros(len(order), dtype=bool)
    done = 0
    while done < len(order):
        longest = len(encoded[order[done]]["input_ids"])
        chosen = order[done : done + max(1, batch_tokens // longest)]
        batch = _padded([encoded[i] for i in chosen], classifier.config.pad_token_id, classifier.device)
        wanted = torch.from_numpy(targets[chosen])
        try:
            with torch.inference_mode():
                logits = classifier(**batch).logits.float().cpu()
        except (torch.OutOfMemoryError, MemoryError) as error:
            fact = f"got no memory for {len(chosen)} examples of {longest} tokens, expected room"
            remedy = "lower --batch-tokens, or take another --device"
            raise ResourceExhausted(fact, remedy=remedy) from error
        if not bool(torch.isfinite(logits).all()):
            raise MalformedInput(
                "got NaN or infinity from the classifier, expected finite logits",
                remedy="look for non-finite weights with intruscope scan; of float16, try --dtype float32",
                file=task.name,
            )
        nats[chosen] = torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double().numpy()
        right[chosen] = (logits.argmax(-1) == wanted).numpy()
        done += len(chosen)
        on_progress(done, len(order))
    return TaskScore(
        metric="accuracy",
        right_N=right,
        nats_N=nats,
        units_N=np.ones(len(order), dtype=np.int64),
        num_truncated=num_truncated,
    )


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


def _choose(language: LanguageModel, task: ChoiceTask, batch_tokens: int, on_progress: Progress) -> TaskScore:
    windows: list[Window] = []
    first_of = []
    num_truncated = 0
    for choice in task.choices:
        first_of.append(len(windows))
        for prompt, ending in zip(choice.prompts, choice.endings, strict=True):
            window, truncated = _ending_window(language, prompt, ending, len(windows), task.name)
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
    right, nats = [], []
    for choice, first in zip(task.choices, first_of, strict=True):
        own = losses.nats[first : first + len(choice.endings)]
        right.append(int(own.argmin()) == choice.answer)
        # Of the right answer among the choices: they are all that the model may say.
        nats.append(float(np.logaddexp.reduce(-own) + own[choice.answer]))
    return TaskScore(
        metric="accuracy",
        right_N=np.array(right),
        nats_N=np.array(nats),
        units_N=np.ones(len(right), dtype=np.int64),
        num_truncated=num_truncated,
    )


def _ending_window(
    language: LanguageModel, prompt: str, ending: str, index: int, name: str
) -> tuple[Window, bool]:
    """Prompt and ending as one input whose ending is scored; a long prompt loses its beginning."""
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
