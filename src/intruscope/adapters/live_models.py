"""Opened sources to transformers models: the class is chosen by the config, the numbers are read by us.

Nothing of a model's repository is ever run: classes come from transformers, and weights from
``weights.stored``, as a scan reads them.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from intruscope.errors import MalformedInput, ShapeMismatch, UnsupportedFormat, UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch import nn

    from intruscope.weights.source import ModelSource

LanguageKind = Literal["causal", "masked"]

NO_HEAD_REMEDY = (
    "give as the base the checkpoint that still has its language-model head (saved from a ...ForCausalLM or "
    "...ForMaskedLM class): losses on text cannot be taken without it"
)
_LAB_REMEDY = "install it with: pip install 'intruscope[lab]'"


def require(package: str) -> None:
    """Refuse to go on without an optional package.

    Raises:
        UsageError: it is not installed.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UsageError(f"the package {package} is not installed, expected it", remedy=_LAB_REMEDY)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars, reports and warnings of transformers and PEFT: what matters is checked here."""
    import torch
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        # New heads are filled at random before they are replaced; the caller's random state stays as it was.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def config_of(source: ModelSource) -> Any:
    """The transformers config of a model.

    Raises:
        MalformedInput: there is none beside the weights.
        UnsupportedFormat: transformers does not know the model type, or the weights are quantised.
        UsageError: transformers is not installed.
    """
    require("transformers")
    from transformers import AutoConfig

    folder = source.folder
    if not source.config:
        fact = "got no config.json beside the weights, expected one: it says which model they are for"
        raise MalformedInput(fact, remedy="copy the model's config.json there", file=folder)
    if source.unreadable is not None:
        raise UnsupportedFormat(
            f"got a model {source.unreadable}, expected float64, float32, float16 or bfloat16",
            remedy="give the unquantised model that it was made from",
            file=source.path,
        )
    try:
        with quiet():
            return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a foreign config provokes in there
        kind = printable(source.config.get("model_type"))
        fact = f"got a config that transformers does not take (model_type {kind}: {printable(error)})"
        remedy = "check config.json, or update transformers; models that bring their own code are not run"
        raise UnsupportedFormat(fact, remedy=remedy, file=folder / "config.json") from error


def language_class(config: Any, *, file: object) -> tuple[type[nn.Module], LanguageKind]:
    """The language-model class of a config, and whether it is causal or masked.

    Where a model type has both (BERT), ``architectures`` decides, then ``is_decoder``.

    Raises:
        UnsupportedFormat: an encoder-decoder, or a type without a language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedFormat(
            "got an encoder-decoder, expected a causal or a masked language model",
            remedy="give a model of one of these kinds",
            file=str(file),
        )
    found: dict[LanguageKind, type[nn.Module]] = {}
    autos: tuple[tuple[LanguageKind, Any], ...] = (
        ("causal", AutoModelForCausalLM),
        ("masked", AutoModelForMaskedLM),
    )
    for kind, auto in autos:
        cls = class_for(auto, config)
        if cls is not None:
            found[kind] = cls
    named = [kind for kind, cls in found.items() if cls.__name__ in (config.architectures or ())]
    if named:
        return found[named[0]], named[0]
    if not found:
        raise UnsupportedFormat(
            f"got the model type {printable(config.model_type)}, which has no language model in transformers",
            remedy=NO_HEAD_REMEDY,
            file=str(file),
        )
    chosen: LanguageKind = (
        "masked" if "masked" in found and not getattr(config, "is_decoder", False) else "causal"
    )
    chosen = chosen if chosen in found else next(iter(found))
    return found[chosen], chosen


def class_for(auto: Any, config: Any) -> type[nn.Module] | None:
    """The class that one of transformers' auto classes would choose; None when it has none."""
    try:
        found = auto._model_mapping[type(config)]
    except KeyError:
        return None
    cls: type[nn.Module] = found[0] if isinstance(found, tuple) else found
    return cls


def read_tensors(source: ModelSource) -> dict[str, torch.Tensor]:
    """All numbers of a model, by stored name, in their stored dtypes.

    Raises:
        MalformedInput: a file changed since it was opened.
    """
    return {name: tensor.read() for name, tensor in source.tensors.items() if tensor.decodable}


def build(
    cls: type[nn.Module],
    config: Any,
    tensors: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype,
    file: object,
) -> tuple[nn.Module, set[str]]:
    """Make a model and fill it.

    Returns:
        The model in evaluation mode, and the names of its parameters that the tensors do not hold (they are
        random).

    Raises:
        ShapeMismatch: a tensor has another shape than the config says.
        MalformedInput: weights of the body are missing.
    """
    import copy

    with quiet():
        try:
            model, info = cls.from_pretrained(  # type: ignore[attr-defined]
                None,
                config=copy.deepcopy(config),
                state_dict=dict(tensors),
                dtype=dtype,
                output_loading_info=True,
            )
        except RuntimeError as error:
            raise ShapeMismatch(
                f"got tensors that do not fit the config ({printable(error)}), expected its shapes",
                remedy="check that config.json and the weights belong together",
                file=str(file),
            ) from error
    missing = set(info["missing_keys"])
    body = f"{model.base_model_prefix}."
    bare = model.base_model is model
    lost = sorted(name for name in missing if (bare or name.startswith(body)) and "pooler." not in name)
    if lost:
        raise MalformedInput(
            f"got no {printable(lost[0])} ({len(lost)} tensors of the body are missing), expected all",
            remedy="check that the checkpoint is whole and of this architecture",
            file=str(file),
        )
    return model.eval(), missing


def max_context(model: nn.Module, tokenizer: Any) -> int | None:
    """The longest input in tokens, special ones included; None where nothing bounds it."""
    limits = [limit for limit in (max_positions(model),) if limit is not None]
    if isinstance(tokenizer.model_max_length, int) and 0 < tokenizer.model_max_length < 10**9:
        limits.append(tokenizer.model_max_length)
    return min(limits) if limits else None


def max_positions(model: nn.Module) -> int | None:
    """The longest input that a model has positions for; None where nothing bounds it."""
    import torch

    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    for name, module in model.named_modules():
        # RoBERTa counts positions from one past the padding's.
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            if module.padding_idx is not None:
                return min(positions, module.num_embeddings - module.padding_idx - 1)
            break
    return positions
