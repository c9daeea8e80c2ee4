"""From opened sources to transformers models: the config selects the class, Intruscope reads the weights.

No code from a model's repository is ever run: classes come from transformers, and weights from
``weights.stored``, as in a scan.
"""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intruscope.errors import (
    IntruscopeError,
    MalformedInput,
    ShapeMismatch,
    UnsupportedFormat,
    UsageError,
    allocation_failure,
    printable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from torch import nn

    from intruscope.weights.source import ModelSource

LanguageKind = Literal["causal", "masked"]

NO_HEAD_REMEDY = (
    "use as the base the checkpoint with its language-model head (saved from a ...ForCausalLM or "
    "...ForMaskedLM class): losses on text cannot be computed without it"
)
_MEMORY_REMEDY = "use a smaller model or --dtype bfloat16, or a machine with more memory"
_LAB_REMEDY = "install it with: pip install 'intruscope[lab]'"


def require(package: str) -> None:
    """Check that an optional package is installed.

    Raises:
        UsageError: it is not installed.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UsageError(f"the package {package} is not installed", remedy=_LAB_REMEDY)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars, reports and warnings of transformers and PEFT; what matters is checked."""
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
    """The transformers config of a model, without what would make transformers run code that it names.

    Raises:
        MalformedInput: there is no config.json beside the weights.
        UnsupportedFormat: transformers does not know the model type, or the weights are quantised.
        UsageError: transformers is not installed.
    """
    require("transformers")
    from transformers import AutoConfig

    folder = source.folder
    if not source.config:
        fact = "there is no config.json beside the weights, so the model's class is unknown"
        raise MalformedInput(fact, remedy="copy the model's config.json there", file=folder)
    if source.unreadable is not None:
        raise UnsupportedFormat(
            f"the model is {source.unreadable}; only float64, float32, float16 and bfloat16 weights can run",
            remedy="use the unquantised model that it was made from",
            file=source.path,
        )
    _check_counts(source.config, len(source.tensors), folder / "config.json")
    try:
        with quiet(), offline():
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a foreign config provokes in there
        raise _not_taken(error, source.config, folder) from error
    return without_kernels(config)


def _places(config: Mapping[str, Any], values: Sequence[object]) -> Iterator[str]:
    """The fields of a config, parts included, that hold one of the values."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _places(value, values)
        elif isinstance(value, str) and value in values:
            yield name


_COUNT = re.compile(r"(?:.*_)?(?:layers?|blocks|depths?|experts)")
_SPARE = 1000


def _check_counts(config: Mapping[str, Any], num_tensors: int, file: Path) -> None:
    """Refuse a config of far more blocks than there are weights, before transformers makes them one by one.

    Raises:
        MalformedInput: it is such a config.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            _check_counts(value, num_tensors, file)
        elif _COUNT.fullmatch(name):
            counts = [
                each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)
            ]
            if max(counts, default=0) <= num_tensors + _SPARE:
                continue
            raise MalformedInput(
                f"{name} is {max(counts):,}, but the checkpoint has only {num_tensors:,} tensors",
                remedy="check that config.json and the weights belong together",
                file=file,
            )


def without_kernels(config: Any) -> Any:
    """The same config, with transformers' own choice of attention and experts, in all its parts.

    A config may name an implementation that transformers would fetch from the hub and run (a kernel).
    """
    config._attn_implementation = None  # their setters reach the parts
    config._experts_implementation = None
    return config


@contextmanager
def offline() -> Iterator[None]:
    """Without the hub: nothing that a config names (a pretrained backbone, say) is fetched."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _not_taken(error: Exception, config: Mapping[str, Any], folder: Any) -> IntruscopeError:
    """Why transformers makes no model of a config."""
    exhausted = allocation_failure(error, remedy=_MEMORY_REMEDY)
    if exhausted is not None:
        return exhausted
    kind = printable(config.get("model_type"))
    reason = f"{type(error).__name__}: {printable(error)}"
    if isinstance(error, KeyError):  # of one of transformers' own tables
        reason = next(
            (f"unknown {place} {printable(error)}" for place in _places(config, error.args)), reason
        )
    return UnsupportedFormat(
        f"transformers cannot use this config (model_type {kind}; {reason})",
        remedy="check it, or update transformers; models that need code of their own are not run",
        file=folder / "config.json",
    )


def language_class(config: Any, *, file: object) -> tuple[type[nn.Module], LanguageKind]:
    """The language-model class of a config, and whether it is causal or masked.

    Where a model type has both (BERT), ``architectures`` decides, then ``is_decoder``.

    Raises:
        UnsupportedFormat: an encoder-decoder, or a type without a language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedFormat(
            "the model is an encoder-decoder, not a causal or masked language model",
            remedy="use a model of one of these kinds",
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
            f"transformers has no language model for the model type {printable(config.model_type)}",
            remedy=NO_HEAD_REMEDY,
            file=str(file),
        )
    chosen: LanguageKind = (
        "masked" if "masked" in found and not getattr(config, "is_decoder", False) else "causal"
    )
    chosen = chosen if chosen in found else next(iter(found))
    return found[chosen], chosen


def class_for(auto: Any, config: Any) -> type[nn.Module] | None:
    """The class that one of transformers' auto classes selects; None if it has none."""
    try:
        found = auto._model_mapping[type(config)]
    except KeyError:
        return None
    cls: type[nn.Module] = found[0] if isinstance(found, tuple) else found
    return cls


def read_tensors(source: ModelSource) -> dict[str, torch.Tensor]:
    """All weights of a model, by stored name, in their stored dtypes.

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
    """Create a model and load tensors into it.

    Returns:
        The model in evaluation mode, and the names of its parameters that are not among the tensors (they are
        random).

    Raises:
        ShapeMismatch: a tensor has another shape than the config says.
        MalformedInput: weights of the body are missing, or there are more blocks than the config says.
        UnsupportedFormat: transformers cannot make a model of this config.
        ResourceExhausted: there is not enough memory.
    """
    import copy

    path = Path(str(file))
    folder = path if path.is_dir() else path.parent
    with quiet(), offline():
        try:
            model, info = cls.from_pretrained(  # type: ignore[attr-defined]
                None,
                config=without_kernels(copy.deepcopy(config)),
                state_dict=dict(tensors),
                dtype=dtype,
                output_loading_info=True,
            )
        except Exception as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise _not_taken(error, config.to_dict(), folder) from error
            raise ShapeMismatch(
                "the tensors have other shapes than config.json says",
                remedy="check that config.json and the weights belong together",
                file=str(file),
            ) from error
    missing = set(info["missing_keys"])
    body = f"{model.base_model_prefix}."
    bare = model.base_model is model
    lost = sorted(name for name in missing if (bare or name.startswith(body)) and "pooler." not in name)
    if lost:
        raise MalformedInput(
            f"{len(lost):,} tensors of the body are missing, such as {printable(lost[0])}",
            remedy="check that the checkpoint is complete and of this architecture",
            file=str(file),
        )
    blocks = {_NUMBER.sub("N", name) for name in model.state_dict() if _NUMBER.search(name)}
    numbered = sorted(name for name in info["unexpected_keys"] if _NUMBER.search(name))
    extra = [name for name in numbered if not blocks or _NUMBER.sub("N", name) in blocks]
    if extra:
        raise MalformedInput(
            f"config.json has too few blocks: {len(extra):,} tensors belong to none, such as "
            f"{printable(extra[0])}",
            remedy="check that config.json and the weights belong together",
            file=str(file),
        )
    return model.eval(), missing


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def max_context(model: nn.Module, tokenizer: Any) -> int | None:
    """Maximum input length in tokens, special tokens included; None if nothing limits it."""
    limits = [limit for limit in (max_positions(model),) if limit is not None]
    if isinstance(tokenizer.model_max_length, int) and 0 < tokenizer.model_max_length < 10**9:
        limits.append(tokenizer.model_max_length)
    return min(limits) if limits else None


def max_positions(model: nn.Module) -> int | None:
    """Maximum input length that a model has positions for; None if nothing limits it."""
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
