"""A model as a run begins with it: the class that the data needs, in float32, nothing attached yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import set_seed

from intruscope.adapters.live_loading import tokenizer_folder
from intruscope.adapters.live_merge import head_class
from intruscope.adapters.live_models import build, config_of, language_class, read_tensors
from intruscope.adapters.live_tokenizers import choose_tokenizers
from intruscope.errors import MalformedInput, ShapeMismatch, UnsupportedFormat, printable
from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask, Task
from intruscope.train.data import label_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from intruscope.adapters.live_merge import TaskHead
    from intruscope.forgetting.texts import Corpus
    from intruscope.weights.source import ModelSource

DataKind = Literal["classification", "choices", "endings", "causal", "masked"]
"""What is learned: classes; which choice, by a score for each (encoders) or by the right ending's words
(causal models); or text."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model on which nothing is attached yet.

    Attributes:
        model: transformers model in float32, in evaluation mode.
        tokenizer: That pads.
        labels: Classes in their order; empty for a model that is no classifier.
        kind: Of the loss.
        drawn: Layers of the body that the base lacks, filled at random: whoever loads an adapter draws
            others, so they are trained whole and saved with it.
    """

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    kind: DataKind
    drawn: tuple[str, ...]


def load_for(
    source: ModelSource,
    data: Task | Corpus,
    *,
    seed: int,
    tokenizer: Any = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Loaded:
    """Load a model with the head that the data needs.

    Args:
        source: The base.
        data: A task, or text for a language model.
        seed: Of a new head.
        tokenizer: One, or the folder of one; the base's by default.
        tensors: Weights of the body that replace the base's, by name with or without the body's prefix (the
            state of a merged model, say); others among them are let be.

    Raises:
        UnsupportedFormat: the model's type has no such head.
        UsageError: no tokenizer.
        MalformedInput: files are damaged, or the tensors lack a part of the body.
        ShapeMismatch: the tensors are of another shape.
    """
    config = config_of(source)
    cls, kind = _class_for(source, config, data)
    labels = label_names(data) if isinstance(data, ClassificationTask) else ()
    if labels:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    words, _ = choose_tokenizers(tokenizer, tokenizer_folder(source), None)
    if words.pad_token is None:
        words.pad_token = words.eos_token
    if config.pad_token_id is None:
        config.pad_token_id = words.pad_token_id
    set_seed(seed)
    built, missing = build(cls, config, read_tensors(source), dtype=torch.float32, file=source.path)
    model: Any = built
    body = f"{model.base_model_prefix}."
    if tensors is not None:
        missing -= {body + name for name in _replace_body(model, tensors)}
    # An adapter names its base by this.
    model.name_or_path = source.name if source.revision is not None else str(source.on_disk.resolve())
    model.config._name_or_path = model.name_or_path
    drawn = dict.fromkeys(name.rpartition(".")[0] for name in sorted(missing) if name.startswith(body))
    return Loaded(model=model, tokenizer=words, labels=labels, kind=kind, drawn=tuple(drawn))


def _class_for(
    source: ModelSource, config: Any, data: Task | Corpus
) -> tuple[type[torch.nn.Module], DataKind]:
    if isinstance(data, ClassificationTask):
        return _with_head("classes", config, source), "classification"
    if not isinstance(data, ChoiceTask):
        return language_class(config, file=source.path)
    try:
        cls, kind = language_class(config, file=source.path)
    except UnsupportedFormat:
        kind = "masked"  # no language model at all: then a head of its own as well
    if kind == "causal":
        return cls, "endings"
    return _with_head("choices", config, source), "choices"


def _with_head(head: TaskHead, config: Any, source: ModelSource) -> type[torch.nn.Module]:
    found = head_class(head, config)
    if found is not None:
        return found
    what = "a classifier" if head == "classes" else "a head for multiple choice"
    raise UnsupportedFormat(
        f"transformers has no {what} for the model type {printable(config.model_type)}",
        remedy="train it on text with --text",
        file=source.path,
    )


def _replace_body(model: Any, tensors: Mapping[str, Tensor]) -> set[str]:
    """Put given weights into the body, and say which; a pooler may be absent, as many models have none."""
    prefix = f"{model.base_model_prefix}."
    given = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    own = model.base_model.state_dict()
    lost = sorted(name for name in own if name not in given and "pooler." not in name)
    if lost:
        raise MalformedInput(
            f"{len(lost)} tensors of the model's body are missing, the first is {printable(lost[0])}",
            remedy="pass the state of a complete model of this architecture",
        )
    replaced = {name: given[name] for name in own if name in given}
    try:
        model.base_model.load_state_dict(replaced, strict=False)
    except RuntimeError as error:
        raise ShapeMismatch(
            f"the tensors do not fit the model's body ({printable(error)})",
            remedy="pass the state of a model of this size",
        ) from error
    return set(replaced)
