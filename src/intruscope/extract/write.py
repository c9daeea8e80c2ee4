"""The files of an extracted adapter: factors, what is saved whole, config, card, and the manifest last.

The plain form is one rank for all modules and a scaling of one, since servers such as vLLM read only ``r``,
``lora_alpha`` and ``use_rslora`` and drop patterns without a word.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.adapters.export import WEIGHTS_NAME, config_bytes, rank_patterns
from intruscope.adapters.folder import CONFIG_NAME, open_adapter
from intruscope.adapters.keys import PEFT_PREFIX
from intruscope.errors import MalformedInput, UsageError
from intruscope.extract.card import card
from intruscope.extract.naming import HEADS_OF_TASK, target_modules
from intruscope.extract.records import SCHEMA
from intruscope.repair.target import Target
from intruscope.weights.output import check_output, check_room, json_text, whole_folder
from intruscope.weights.written import write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from intruscope.extract.modules import Module
    from intruscope.extract.plan import ExtractPlan
    from intruscope.weights.stored import StoredTensor

MANIFEST_NAME = "intruscope_extract.json"
_CARD = "README.md"
_BEYOND_THE_FACTORS = 1 << 20


def write_extracted(plan: ExtractPlan, out: Path | str, *, on_progress: Callable[[int, int], None]) -> Path:
    """See :meth:`intruscope.extract.plan.ExtractPlan.apply`."""
    if plan.is_empty:
        raise UsageError(
            "got a plan without a matrix that changed, expected one to write",
            remedy="see plan.findings; choose other matrices with which",
        )
    out = Path(out)
    check_output(out, _inputs(plan))
    tensors = adapter_tensors(plan)
    total = _BEYOND_THE_FACTORS + sum(_num_bytes(tensor) for tensor in tensors.values())
    check_room(out, total)
    with whole_folder(out) as folder:
        target = Target(folder, total=total, on_progress=on_progress)
        target.write(WEIGHTS_NAME, lambda file: write_safetensors(file, tensors, {"format": "pt"}))
        target.write(CONFIG_NAME, lambda file: file.write(config_bytes(adapter_config(plan))))
        target.write(_CARD, lambda file: file.write(card(plan, MANIFEST_NAME)))
        _check_written(folder, tensors)
        record = {**plan_record(plan), "files": dict(sorted(target.written.items()))}
        (folder / MANIFEST_NAME).write_bytes(json_text(record).encode("ascii"))
    return out


def plan_record(plan: ExtractPlan) -> dict[str, Any]:
    """The plan as plain data: the manifest's content without its files."""
    return {
        "schema": SCHEMA,
        "intruscope": version("intruscope"),
        "base": plan.pairing.base,
        "tuned": plan.pairing.tuned,
        "choice": asdict(plan.choice),
        "which": plan.which,
        "rank": plan.stored_rank,
        "compact": plan.compact,
        "dtype": plan.dtype,
        "save_rest": plan.save_rest,
        "nothing_to_extract": plan.is_empty,
        "totals": asdict(plan.totals),
        "curve": [asdict(point) for point in plan.curve],
        "best_curve": [asdict(point) for point in plan.best],
        "allocation": None if plan.allocation is None else {
            "num_parameters": plan.allocation.num_parameters,
            "gap": plan.allocation.gap,
        },
        "matrices": [asdict(matrix) for matrix in plan.matrices],
        "rest": [asdict(rest) for rest in plan.rest],
        "findings": [asdict(finding) for finding in plan.findings],
    }  # fmt: skip


def adapter_tensors(plan: ExtractPlan) -> dict[str, StoredTensor | torch.Tensor]:
    """Key to tensor, as PEFT stores them."""
    tensors: dict[str, StoredTensor | torch.Tensor] = {}
    for module in plan.modules:
        up_OR, down_RI = plan.factors[module.name]
        rank = plan.stored_rank or up_OR.shape[1]
        tensors.update(_module_tensors(module, _filled(up_OR, rank, 1), _filled(down_RI, rank, 0)))
    return {**tensors, **plan.saved.tensors}


def _module_tensors(module: Module, up_OR: torch.Tensor, down_RI: torch.Tensor) -> dict[str, torch.Tensor]:
    place = PEFT_PREFIX + module.module
    if module.kind == "embedding":
        return {f"{place}.lora_embedding_A": down_RI, f"{place}.lora_embedding_B": up_OR}
    if module.kind == "conv":
        down_RI = down_RI.reshape(len(down_RI), *module.kernel)
        up_OR = up_OR.reshape(*up_OR.shape, *([1] * (len(module.kernel) - 1)))
    return {f"{place}.lora_A.weight": down_RI, f"{place}.lora_B.weight": up_OR}


def _filled(factor: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    """The factor with directions of zeros up to a rank."""
    import torch

    missing = list(factor.shape)
    missing[axis] = rank - factor.shape[axis]
    return torch.cat([factor, factor.new_zeros(missing)], dim=axis).contiguous()


def adapter_config(plan: ExtractPlan) -> dict[str, Any]:
    """The config: scaling one for every module."""
    ranks = {module.module: plan.factors[module.name][0].shape[1] for module in plan.modules}
    common = plan.stored_rank
    patterns: tuple[dict[str, int], dict[str, float]] = ({}, {})
    if common is None:
        common = Counter(ranks.values()).most_common(1)[0][0]
        patterns = rank_patterns({n: rank for n, rank in ranks.items() if rank != common}, rslora=False)
    saved = list(plan.saved.modules)
    task = plan.names.task
    if task in HEADS_OF_TASK and not any(name.endswith(HEADS_OF_TASK[task]) for name in saved):
        task = None  # PEFT's class of that task would look for a head that is not here
    revision = plan.base.revision
    name = plan.base.name
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": name.partition("@")[0] if revision else name,
        "revision": revision,
        "r": common,
        "lora_alpha": common,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": patterns[0],
        "alpha_pattern": patterns[1],
        "target_modules": target_modules(set(ranks), _others(plan)),
        "modules_to_save": saved or None,
        "bias": "all" if plan.saved.biases else "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": any(module.kind == "conv1d" for module in plan.modules),
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _others(plan: ExtractPlan) -> set[str]:
    """All modules without factors, as far as they are known."""
    wrapped = {module.module for module in plan.modules}
    if plan.names.modules:
        return set(plan.names.modules) - wrapped
    stored = {name.rpartition(".")[0] for name in plan.base.tensors}
    return (stored | set(plan.others)) - wrapped - {module.name for module in plan.modules}


def _inputs(plan: ExtractPlan) -> list[Path]:
    names = (plan.base.name, plan.tuned.name)
    files = [Path(str(record["path"])) for record in plan.pairing.inputs]
    return [*(Path(name) for name in names if Path(name).is_dir()), *files]


def _num_bytes(tensor: StoredTensor | torch.Tensor) -> int:
    import torch

    return tensor.numel() * tensor.element_size() if isinstance(tensor, torch.Tensor) else tensor.num_bytes


def _check_written(folder: Path, tensors: Mapping[str, StoredTensor | torch.Tensor]) -> None:
    """Read the adapter back: it must be one, and hold what was written.

    Raises:
        MalformedInput: it does not, which a failing disk can cause.
    """
    written = {tensor.name: tuple(tensor.shape) for tensor in open_adapter(folder).tensors.values()}
    if written != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise MalformedInput(
            "got back other tensors than were written, expected the same",
            remedy="check the disk and run again",
            file=WEIGHTS_NAME,
        )
