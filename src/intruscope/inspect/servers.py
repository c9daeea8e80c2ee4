"""What a server that loads adapters at run time does with one, from its config and keys.

Checked against vLLM's ``lora/peft_helper.py``, ``lora/lora_model.py`` and ``config/lora.py`` of 2026: its
PEFTHelper reads ``r``, ``lora_alpha``, ``target_modules``, ``bias``, ``modules_to_save``, ``use_rslora`` and
``use_dora``, and drops every other field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intruscope.adapters.alone import AloneAdapter

DEFAULT_MAX_RANK = 16
"""vLLM's ``--max-lora-rank`` where it is not given."""
_PEFT_FILES = frozenset({"adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt"})


def server_findings(alone: AloneAdapter) -> list[Finding]:
    """What vLLM would reject and what it would ignore.

    Args:
        alone: The adapter.

    Returns:
        One finding for all reasons to reject it (``vllm-rejects``), and one for what would silently compute
        something else (``vllm-ignores``).
    """
    rejected, ignored = list(_rejected(alone)), list(_ignored(alone))
    findings = []
    if ignored:
        message = f"vLLM ignores {'; '.join(ignored)}"
        findings.append(Finding(code="vllm-ignores", severity="warning", message=message))
    if rejected:
        message = f"vLLM does not load this adapter as it is: {'; '.join(rejected)}"
        findings.append(Finding(code="vllm-rejects", severity="info", message=message))
    return findings


def _rejected(alone: AloneAdapter) -> Iterator[str]:
    source = alone.source
    config = source.config
    if config is None or source.kind.name != "LORA":
        yield f"it loads PEFT's LoRA, and this is {source.kind.title}"
        return
    if source.path is not None and source.path.name not in _PEFT_FILES:
        yield f"its file must be called adapter_model.safetensors, not {source.path.name}"
    for name in ("r", "lora_alpha", "target_modules"):
        if config.raw.get(name) is None:
            yield f"the config does not say {name}"
    # vLLM compares the config's r alone.
    if config.rank > DEFAULT_MAX_RANK:
        yield f"the rank is {config.rank}, above its default limit (pass --max-lora-rank {config.rank})"
    if config.modules_to_save:
        yield "modules_to_save is set"
    if config.options["use_dora"]:
        yield "it has no DoRA"
    if config.raw.get("bias", "none") != "none":
        yield f"bias is {config.raw.get('bias')!r}"
    if any(".lora_" in key and key.endswith(".bias") for key in alone.skipped):
        yield "its factors have biases (lora_bias)"
    if config.token_indices:
        yield "tokens were trained by index (trainable_token_indices)"


def _ignored(alone: AloneAdapter) -> Iterator[str]:
    config = alone.source.config
    if config is None or alone.source.kind.name != "LORA":
        return
    plain = config.alpha / (config.rank**0.5 if config.options["use_rslora"] else config.rank)
    off = {name: scale.scaling for name, scale in alone.scales.items() if scale.scaling != plain}
    if off:
        name, scaling = next(iter(off.items()))
        yield (
            f"rank_pattern and alpha_pattern, and scales every module by {plain:.4g}; {len(off)} of "
            f"{len(alone.scales)} modules were trained with another scale ({name}: {scaling:.4g})"
        )
