"""A live model on a task, example by example, so that two of its states can be compared in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from intruscope.errors import MalformedInput, ResourceExhausted
from intruscope.forgetting.losses import choose_protocol, measure
from intruscope.forgetting.settings import DEFAULT_BATCH_TOKENS, Unit
from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask, Task
from intruscope.forgetting.windows import Sequences, Window, cut, special_ids
from intruscope.progress import OnProgress, Progress, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from intruscope.adapters.live import LanguageModel, LivePair, TaskModel
    from intruscope.forgetting.guided import Guided


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskScore:
    """Outcomes of one state on one task.

    Attributes:
        metric: ``accuracy``, or ``nats/token`` for held-out text.
        right_N: Which examples were answered right; None for held-out text.
        nats_N: Negative log-probability of the right answer (classification, multiple choice), or of a
            sequence's tokens.
        units_N: 1 for each example; the number of scored tokens for each sequence of held-out text.
        num_truncated: Number of examples truncated to the model's longest input.
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
    max_sequences: int | None = None,
    guided: Guided | None = None,
    on_progress: OnProgress = ignore_progress,
) -> TaskScore:
    """Score a live pair in its present state, or that state and the base together.

    Args:
        pair: The model. A classification is scored by its classifier, multiple choice by its head for that
            where it has one, and everything else by its language model.
        task: From ``load_task``.
        unit: What a sequence of held-out text is; see :func:`intruscope.forgetting.windows.cut`.
        batch_tokens: Maximum number of positions per batch, including padding.
        max_tokens: Truncate the inputs of a head to this many tokens (as in training, say); by default to the
            model's longest input.
        max_sequences: Maximum number of sequences of held-out text, sampled evenly.
        guided: The same pair, for the mixture: of a head's logits, or of the language model's tokens. A head
            that only the tuned model has runs on both bodies.
        on_progress: Called after each batch, in examples or tokens.

    Raises:
        IntruscopeError: the model has no head for this task, or does not know its labels.
        MalformedInput: a NaN.
    """
    if isinstance(task, ClassificationTask):
        return _classify(pair.task_model(), task, batch_tokens, max_tokens, guided, on_progress)
    if isinstance(task, ChoiceTask):
        model = pair.choice_model()
        if model is not None:
            return _choose_by_head(model, task, batch_tokens, max_tokens, guided, on_progress)
        return choose(
            pair.language_model(), task, batch_tokens=batch_tokens, guided=guided, on_progress=on_progress
        )
    language = pair.language_model()
    sequences = cut(task.corpus, language, unit=unit, max_sequences=max_sequences)
    protocol = choose_protocol(language.kind, None)
    losses = measure(
        language,
        sequences,
        protocol=protocol,
        batch_tokens=batch_tokens,
        guided=guided,
        on_progress=on_progress,
    )
    return TaskScore(metric="nats/token", right_N=None, nats_N=losses.nats, units_N=losses.tokens)


def _classify(
    model: TaskModel,
    task: ClassificationTask,
    batch_tokens: int,
    max_tokens: int | None,
    guided: Guided | None,
    on_progress: OnProgress,
) -> TaskScore:
    import torch

    targets = np.asarray(task.numbers(model.labels), dtype=np.int64)
    encoded, num_truncated = encoded_texts(model, task.texts, max_tokens)
    logits = _head_outputs(model, encoded, task.name, batch_tokens, guided, on_progress)
    nats = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets), reduction="none")
    return TaskScore(
        metric="accuracy",
        right_N=(logits.argmax(-1).numpy() == targets),
        nats_N=nats.double().numpy(),
        units_N=np.ones(len(targets), dtype=np.int64),
        num_truncated=num_truncated,
    )


def _choose_by_head(
    model: TaskModel,
    task: ChoiceTask,
    batch_tokens: int,
    max_tokens: int | None,
    guided: Guided | None,
    on_progress: OnProgress,
) -> TaskScore:
    """The head scores each ending with its prompt; the highest is the answer."""
    texts = [pair for choice in task.choices for pair in zip(choice.prompts, choice.endings, strict=True)]
    encoded, num_truncated = encoded_texts(model, texts, max_tokens)
    outputs = _head_outputs(model, encoded, task.name, batch_tokens, guided, on_progress)
    scores = outputs[:, 0].double().numpy()
    return _chosen(task, scores, num_truncated)


def needs_head(pair: LivePair, task: Task) -> bool:
    """Whether a task is answered by a head that the base lacks: then the base cannot be scored.

    Raises:
        IntruscopeError: weights of the head are missing.
    """
    if isinstance(task, ChoiceTask):
        return pair.choice_model() is not None
    return isinstance(task, ClassificationTask)


def check_task(pair: LivePair, task: Task) -> None:
    """Refuse a task that the pair cannot be scored on, before any work is done.

    Raises:
        IntruscopeError: the pair has no head for the task, or does not know its labels.
    """
    check_head(pair, task)
    check_labels(pair, task)


def check_head(pair: LivePair, task: Task) -> None:
    """Refuse a task that the pair has no head for.

    Raises:
        IntruscopeError: there is no such head, or weights of it are missing.
    """
    if isinstance(task, ClassificationTask):
        pair.task_model()
    elif not needs_head(pair, task):
        pair.language_model()


def check_labels(pair: LivePair, task: Task) -> None:
    """Refuse a classification with labels that the model does not know.

    Raises:
        MalformedInput: a label that is not one of the model's.
    """
    if isinstance(task, ClassificationTask):
        task.numbers(pair.task_model().labels)


def encode_pair(
    tokenizer: Any, first: str, second: str | None, limit: int | None
) -> tuple[dict[str, list[int]], bool]:
    """Encode one text or two, truncated to a limit; and say whether they had to be truncated."""
    encoded = dict(tokenizer(first, second, verbose=False))
    if limit is None or len(encoded["input_ids"]) <= limit:
        return encoded, False
    return dict(tokenizer(first, second, truncation=True, max_length=limit)), True


def encoded_texts(
    model: TaskModel, texts: Sequence[tuple[str, str | None]], max_tokens: int | None
) -> tuple[list[dict[str, list[int]]], int]:
    """Encode the inputs of a head.

    Args:
        model: The head's model and tokenizer.
        texts: One text or two for each input.
        max_tokens: Truncate to this many tokens, or to the model's longest input.

    Returns:
        The encoded inputs, and how many of them were truncated.
    """
    limits = [limit for limit in (max_tokens, model.max_context) if limit is not None]
    limit = min(limits) if limits else None
    pairs = [encode_pair(model.tokenizer, first, second, limit) for first, second in texts]
    return [encoded for encoded, _ in pairs], sum(was_cut for _, was_cut in pairs)


def _head_outputs(
    model: TaskModel,
    encoded: list[dict[str, list[int]]],
    name: str,
    batch_tokens: int,
    guided: Guided | None,
    on_progress: OnProgress,
) -> torch.Tensor:
    """The head's logits for each input, in order: (N, classes), or (N, 1) for multiple choice; float32."""
    import torch

    head: Any = model.model
    found: list[torch.Tensor] = [torch.empty(0)] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]), reverse=True)
    done = 0
    while done < len(order):
        longest = len(encoded[order[done]]["input_ids"])
        chosen = order[done : done + max(1, batch_tokens // longest)]
        batch = padded_batch([encoded[i] for i in chosen], head.config.pad_token_id, head.device)
        if not model.labels:  # takes (examples, choices, tokens); here each choice is its own example
            batch = {key: value.unsqueeze(1) for key, value in batch.items()}
        try:
            with torch.inference_mode():
                logits = _logits(head, batch, guided).float().cpu()
        except (torch.OutOfMemoryError, MemoryError) as error:
            fact = f"not enough memory for {len(chosen)} examples of {longest} tokens"
            remedy = "lower --batch-tokens, or choose another --device"
            raise ResourceExhausted(fact, remedy=remedy) from error
        if not bool(torch.isfinite(logits).all()):
            raise MalformedInput(
                "the head returned NaN or infinity",
                remedy="look for non-finite weights with intruscope scan; with float16, try --dtype float32",
                file=name,
            )
        for index, row in zip(chosen, logits, strict=True):
            found[index] = row
        done += len(chosen)
        on_progress(Progress(stage="scoring", done=done, total=len(order), unit="examples"))
    return torch.stack(found)


def _logits(head: Any, batch: dict[str, torch.Tensor], guided: Guided | None) -> torch.Tensor:
    def run() -> torch.Tensor:
        logits: torch.Tensor = head(**batch).logits
        return logits

    return run() if guided is None else guided.logits(run)


def padded_batch(
    encoded: list[dict[str, list[int]]], padding: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """A batch padded on the right, with the id by which a causal classifier finds the end of a text.

    Args:
        encoded: What a tokenizer gives for each text.
        padding: The id of the padding token.
        device: Where the batch will be.
    """
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
    guided: Guided | None = None,
    on_progress: OnProgress = ignore_progress,
) -> TaskScore:
    """Score multiple choice by the likelihood of whole endings.

    Args:
        language: The model.
        task: The examples.
        batch_tokens: Maximum number of positions per batch, including padding.
        guided: The pair that the model is of, for the mixture of its present state and the base.
        on_progress: Called after each batch, in tokens.

    Raises:
        MalformedInput: an ending without a token, or a loss that is not finite.
        ResourceExhausted: a batch does not fit on the device.
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
        language,
        sequences,
        protocol=protocol,
        batch_tokens=batch_tokens,
        guided=guided,
        on_progress=on_progress,
    )
    return _chosen(task, -losses.nats, num_truncated)


def _chosen(task: ChoiceTask, scores: NDArray[np.float64], num_truncated: int) -> TaskScore:
    """The outcome, from the scores of all choices, example after example."""
    right, nats = [], []
    first = 0
    for choice in task.choices:
        own = scores[first : first + len(choice.endings)]
        first += len(choice.endings)
        right.append(int(own.argmax()) == choice.answer)
        # Normalised over the choices: they are all that the model may answer.
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
        language: The model whose tokenizer is used.
        prompt: The text before the ending.
        ending: The text to score.
        index: Index of the window.
        name: The task's name, for messages.

    Returns:
        The window, and whether the prompt was truncated.

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
            "an example has an empty choice or prompt, or a choice longer than the model's longest input",
            remedy="correct the examples",
            file=name,
        )
    ids = np.asarray([*before, *whole, *after], dtype=np.int64)
    scored = np.arange(first, len(before) + len(whole))
    return Window(ids=ids, scored=scored, sequence=index), dropped > 0
