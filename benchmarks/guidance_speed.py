"""Claim: generating with adapter guidance costs at most 10% more than generating with both models.

A Llama with random weights and a LoRA of rank 8 on every linear layer, float32. One turn generates the same
number of tokens four times: with the base, with the tuned model, with guidance, and with a processor that
switches the adapter off for each token (``disable_adapter``) in place of a second module. The order is drawn
at random in each turn. The figure of a turn is the time of guidance over the sum of the two plain times, in
processor time and in wall time; the result is the median over the turns with its distribution-free 95%
interval.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor
from transformers.utils import logging

from benchmarks.common import publish
from benchmarks.step_time import median_interval
from intruscope.guidance import AdapterGuidance

SHAPES = {
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 704, "vocab_size": 4096},
    "medium": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "vocab_size": 16000},
}
PROMPT = 64


class Switching(LogitsProcessor):
    """Guidance that runs the base by switching the adapter off, with a cache of its own."""

    def __init__(self, model: Any, gamma: float) -> None:
        self._model, self._gamma, self._cache, self._num_seen = model, gamma, None, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the mixture."""
        with self._model.disable_adapter(), torch.no_grad():
            found = self._model(
                input_ids=input_ids[:, self._num_seen :],
                attention_mask=torch.ones_like(input_ids),
                cache=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache, self._num_seen = found.cache, input_ids.shape[1]
        return torch.lerp(found.logits[:, -1].log_softmax(-1), scores.log_softmax(-1), self._gamma)


def models(shape: dict[str, int]) -> tuple[Any, Any]:
    """The base, and a PeftModel of the same base."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512)
    base, host = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config)
    host.load_state_dict(base.state_dict())
    adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return base, get_peft_model(host, adapter).eval()


def measure(name: str, batch: int, tokens: int, turns: int) -> dict[str, object]:
    """Time all four in random order, turn by turn."""
    base, tuned = models(SHAPES[name])
    ids = torch.randint(3, 4000, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)

    def run(model: Any, *processors: Any) -> torch.Tensor:
        return model.generate(
            ids, attention_mask=mask, do_sample=False, min_length=0, max_new_tokens=tokens, pad_token_id=0,
            eos_token_id=None, logits_processor=list(processors),
        )  # fmt: skip

    ways = {
        "base": lambda: run(base),
        "tuned": lambda: run(tuned),
        "guided": lambda: run(tuned, AdapterGuidance(tuned, 0.5)),
        "switching": lambda: run(tuned, Switching(tuned, 0.5)),
    }
    assert torch.equal(ways["guided"](), ways["switching"]())
    generator = random.Random(0)
    times: list[dict[str, tuple[float, float]]] = []
    for _ in range(turns):
        spent = {}
        for way in generator.sample(list(ways), len(ways)):
            before = time.process_time(), time.perf_counter()
            ways[way]()
            spent[way] = time.process_time() - before[0], time.perf_counter() - before[1]
        times.append(spent)

    def ratio(way: str, clock: int) -> dict[str, float]:
        return median_interval(
            [each[way][clock] / (each["base"][clock] + each["tuned"][clock]) for each in times]
        )

    return {
        "model": name,
        "num_parameters": sum(parameter.numel() for parameter in base.parameters()),
        "batch": batch,
        "prompt_tokens": PROMPT,
        "new_tokens": tokens,
        "turns": turns,
        **{
            f"{way}_over_both_{name}": ratio(way, clock)
            for way in ("guided", "switching")
            for clock, name in enumerate(("processor", "wall"))
        },
        "processor_seconds": {way: statistics.median(each[way][0] for each in times) for way in ways},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["small", "medium"], choices=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    rows = [
        measure(name, batch, options.tokens, options.turns)
        for name in options.models
        for batch in options.batches
    ]
    publish("guidance_speed", {"threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
