"""Our own methods whose update is a product of two thin matrices: attaching, saving as LoRA, loading.

What is saved is an ordinary PEFT LoRA, and beside it, in a folder of its own, the state from which training
can go on. The options lie there too: PEFT's config has no place for them.

Shape suffixes: O out, I in, R rank.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from intruscope.errors import MalformedInput, printable
from intruscope.methods.attached import ADAPTER, PeftAttached, attach_peft
from intruscope.methods.lora import lora_config
from intruscope.weights.strict_json import read_json_object

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from intruscope.methods.contract import Method, Options, Setting

STATE = "training_state"
"""Folder inside a saved adapter: what is needed to train on, in PEFT's layout with our tensors in it."""
OPTIONS_NAME = "method.json"


class FactoredAttached(PeftAttached):
    """A model whose layers are :class:`~intruscope.methods.factored_layers.FactoredLinear`.

    Args:
        model: PeftModel.
        method_name: Which method it is.
        options: All of its options.
        seed: Of what is drawn during training.
    """

    def __init__(self, model: Any, *, method_name: str, options: Options, seed: int = 0, **rest: Any) -> None:
        super().__init__(model, **rest)
        self.method_name = method_name
        self.options = options
        self.seed = seed

    def plain_factors(self, name: str) -> tuple[Tensor, Tensor]:
        """An ordinary LoRA of one matrix: A (R, I) and B (O, R), float32, for a scaling of one."""
        layer = self._layer(name)
        down_RI, up_OR = layer.dense_factors(ADAPTER)
        return down_RI.detach().contiguous(), (layer.scaling[ADAPTER] * up_OR).detach().contiguous()

    def _write(self, folder: Path) -> None:
        """An ordinary PEFT LoRA, and beside it what :attr:`Method.load` needs to train on."""
        self._write_plain(folder)
        self._write_state(folder)

    def _write_state(self, folder: Path) -> None:
        self.model.save_pretrained(str(folder / STATE))
        write_options(folder / STATE, self.method_name, self.options, self.seed)

    def _write_plain(self, folder: Path) -> None:
        from safetensors.torch import save_file

        tensors: dict[str, torch.Tensor] = self._saved_whole()
        ranks: dict[str, int] = {}
        for name in self.names:
            down_RI, up_OR = self.plain_factors(name)
            ranks[name] = down_RI.shape[0]
            tensors[f"base_model.model.{name}.lora_A.weight"] = down_RI
            tensors[f"base_model.model.{name}.lora_B.weight"] = up_OR
        save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
        rank = max(ranks.values())
        # PEFT takes the first pattern that matches, and a pattern also matches the end of a name.
        others = {name: ranks[name] for name in sorted(ranks, key=len, reverse=True) if ranks[name] != rank}
        config = copy.copy(self.model.peft_config[ADAPTER])
        config.r = config.lora_alpha = rank
        config.rank_pattern, config.alpha_pattern = others, dict(others)
        config.fan_in_fan_out = any(self._layer(name).fan_in_fan_out for name in self.names)
        config.lora_dropout, config.inference_mode = 0.0, True
        config.save_pretrained(str(folder))

    def _saved_whole(self) -> dict[str, Tensor]:
        """Modules that are trained whole, as PEFT saves them."""
        from peft.utils import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.model, adapter_name=ADAPTER)
        ours = tuple(f"base_model.model.{name}." for name in self.names)
        return {key: value.contiguous() for key, value in state.items() if not key.startswith(ours)}


def attach_factored(
    model: nn.Module,
    setting: Setting,
    options: Options,
    *,
    method: Method,
    prepare: Callable[[Any, Options], Any],
    kind: type[FactoredAttached] = FactoredAttached,
) -> FactoredAttached:
    """Put a method on a model; the model is changed in place.

    Args:
        model: A transformers model.
        setting: Targets, modules trained whole, seed.
        options: All of the method's.
        method: Its description.
        prepare: Registers the method's layers in PEFT's config.
        kind: Class of what is returned.

    Raises:
        UsageError: no target matches, or the options do not fit it.
        UnsupportedFormat: a target's layer is of another kind.
    """
    attached = attach_peft(
        model,
        setting,
        lambda **given: prepare(lora_config({"dropout": 0.0, **options}, **given), options),
        method=method,
        kind=kind,
        method_name=method.name,
        options=options,
        seed=setting.seed,
    )
    assert isinstance(attached, FactoredAttached)
    return attached


def load_factored(
    model: nn.Module,
    folder: Path,
    *,
    method: Method,
    prepare: Callable[[Any, Options], Any],
    kind: type[FactoredAttached] = FactoredAttached,
) -> FactoredAttached:
    """Put what :meth:`FactoredAttached.save` wrote on its base, in the state that it was saved in, trainable.

    Args:
        model: The base.
        folder: What was saved.
        method: Its description.
        prepare: As of :func:`attach_factored`.
        kind: Class of what is returned.

    Raises:
        MalformedInput: it is none, is another method's, or does not fit.
    """
    from peft import PeftConfig, PeftModel

    from intruscope.adapters.live_models import quiet

    options, seed = read_options(folder / STATE, method)
    try:
        with quiet():
            config = prepare(PeftConfig.from_pretrained(str(folder / STATE)), options)
            peft_model = PeftModel.from_pretrained(
                model, str(folder / STATE), ADAPTER, is_trainable=True, config=config
            )
    except Exception as error:  # whatever a foreign folder provokes in there
        raise MalformedInput(
            f"the saved training state could not be loaded ({printable(error)})",
            remedy="check that it is complete and was trained on this base",
            file=folder,
        ) from error
    return kind(peft_model, method_name=method.name, options=options, seed=seed)


def count_from_start(config: Any, options: Options) -> Any:  # noqa: ARG001  # as of all methods
    """For ``prepare``: layers whose factors count from where they start."""
    from intruscope.methods.offset_layers import use_offsets

    return use_offsets(config)


def write_options(folder: Path, method_name: str, options: Options, seed: int) -> None:
    """Note beside an adapter by which method, with which options and seed, it is trained."""
    record = {"method": method_name, "options": options, "seed": seed}
    (folder / OPTIONS_NAME).write_text(json.dumps(record, indent=2), encoding="utf-8")


def read_options(folder: Path, method: Method) -> tuple[Options, int]:
    """Options and seed that :func:`write_options` noted.

    Raises:
        MalformedInput: there are none, they are another method's, or not ones that it has.
    """
    path = folder / OPTIONS_NAME
    if not path.is_file():
        raise MalformedInput(
            f"the folder has no {OPTIONS_NAME}, so it was not saved by {method.title}",
            remedy="to use the adapter without training it further, load it with PEFT",
            file=folder,
        )
    record = read_json_object(path)
    if record.get("method") != method.name:
        raise MalformedInput(
            f"the folder was saved by {printable(record.get('method'))}, not by {method.name}",
            remedy="load it with the method that saved it",
            file=path,
        )
    options, seed = record.get("options"), record.get("seed")
    if not isinstance(options, dict) or not isinstance(seed, int):
        fact = "the options or the seed are missing"
        raise MalformedInput(fact, remedy="save the adapter again", file=path)
    return method.options(options), seed
