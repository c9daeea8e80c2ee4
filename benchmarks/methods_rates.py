"""The learning rates that are tried for each method, and why these.

Papers' rates are for long runs on large models; at a budget of a hundred steps most of them leave the model
where it was. So each method is tried at two or three rates, a factor of three to five apart, around one that
is known to work here or is reasoned from one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Rates of one method.

    Attributes:
        rates: To choose among, rising.
        source: Where they are from.
    """

    rates: tuple[float, ...]
    source: str


_PILOTS = "LOG.md, 2026-11-26 (rank 8: 2e-3 on SST-2), and a quarter of it"
_AS_LORA = "as lora: the same factors and scale"
_LORA = (5e-4, 2e-3)
_OWN = "examples/train_minilm.py"
_UNKNOWN = "no rate is known here: three around lora's"
_THREE = (5e-4, 2e-3, 8e-3)

CANDIDATES: dict[str, Candidates] = {
    "full": Candidates(rates=(1e-4, 3e-4), source=f"{_OWN} (1e-4), and three times that"),
    "lora": Candidates(rates=_LORA, source=_PILOTS),
    "rslora": Candidates(rates=(1.8e-4, 7e-4), source=f"{_OWN} (7e-4): lora's over the ratio of the scales"),
    "lora_plus": Candidates(
        rates=(1.25e-4, 5e-4), source="of A; a quarter of lora's, so that the mean of A and B is like it"
    ),
    "lora_fa": Candidates(rates=_LORA, source=_AS_LORA),
    "dora": Candidates(rates=_LORA, source=f"{_OWN} (2e-3), and a quarter of it"),
    "pissa": Candidates(
        rates=(1e-4, 4e-4), source="factors that start large make larger updates: between full's and lora's"
    ),
    "mica": Candidates(rates=_LORA, source=_AS_LORA),
    "olora": Candidates(
        rates=(1e-4, 4e-4), source="factors that start large make larger updates: between full's and lora's"
    ),
    "eva": Candidates(rates=_LORA, source=_AS_LORA),
    "adalora": Candidates(rates=_THREE, source=f"{_UNKNOWN}; its start is smaller"),
    "vera": Candidates(rates=(2e-3, 8e-3, 3.2e-2), source="vectors alone are trained, at rates above lora's"),
    "randlora": Candidates(rates=_THREE, source=_UNKNOWN),
    "loha": Candidates(rates=_THREE, source=_UNKNOWN),
    "lokr": Candidates(rates=_THREE, source=_UNKNOWN),
    "oft": Candidates(rates=_THREE, source=_UNKNOWN),
    "boft": Candidates(rates=_THREE, source=_UNKNOWN),
    "miss": Candidates(rates=(1e-4, 5e-4, 2e-3), source="each number is a weight's: from full's to lora's"),
    "osf": Candidates(rates=(1e-4, 3e-4), source="as full: the model's own weights move"),
    "b_only": Candidates(rates=_LORA, source=_AS_LORA),
    "sora": Candidates(rates=(8e-4, 3.2e-3), source="arXiv 2311.11696 (8e-4), and four times that"),
    "prilora": Candidates(rates=_LORA, source=_AS_LORA),
    "melora": Candidates(rates=_LORA, source=_AS_LORA),
    "multilora": Candidates(rates=_LORA, source=_AS_LORA),
    "chain": Candidates(rates=_LORA, source=_AS_LORA),
    "rac": Candidates(rates=_LORA, source=_AS_LORA),
    "lora_experts": Candidates(rates=_THREE, source=f"{_UNKNOWN}; its gradients are preconditioned"),
}
