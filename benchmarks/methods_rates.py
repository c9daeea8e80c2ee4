"""The learning rates that are tried for each method, with reasons.

Rates in papers are for long runs on large models. With a budget of a hundred steps, most of them hardly move
the model. Each method is therefore tried at two or three rates, a factor of three to five apart, around a
rate that is known to work here or derived from one that is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Candidate learning rates of one method.

    Attributes:
        rates: In ascending order.
        source: Where they come from.
    """

    rates: tuple[float, ...]
    source: str


_PILOTS = "LOG.md, 2026-11-26 (rank 8: 2e-3 on SST-2), and a quarter of that"
_AS_LORA = "as lora: the same factors and scale"
_LORA = (5e-4, 2e-3)
_OWN = "examples/train_minilm.py"
_UNKNOWN = "no known rate: three around that of lora"
_THREE = (5e-4, 2e-3, 8e-3)

CANDIDATES: dict[str, Candidates] = {
    "full": Candidates(rates=(1e-4, 3e-4), source=f"{_OWN} (1e-4), and three times that"),
    "lora": Candidates(rates=_LORA, source=_PILOTS),
    "rslora": Candidates(
        rates=(1.8e-4, 7e-4), source=f"{_OWN} (7e-4): lora's divided by the ratio of scales"
    ),
    "lora_plus": Candidates(
        rates=(1.25e-4, 5e-4),
        source="rate of A: a quarter of lora's, so the mean of A and B is close to it",
    ),
    "lora_fa": Candidates(rates=_LORA, source=_AS_LORA),
    "dora": Candidates(rates=_LORA, source=f"{_OWN} (2e-3), and a quarter of that"),
    "pissa": Candidates(
        rates=(1e-4, 4e-4), source="large initial factors make larger updates: between full and lora"
    ),
    "mica": Candidates(rates=_LORA, source=_AS_LORA),
    "olora": Candidates(
        rates=(1e-4, 4e-4), source="large initial factors make larger updates: between full and lora"
    ),
    "eva": Candidates(rates=_LORA, source=_AS_LORA),
    "delora": Candidates(rates=(1e-3, 4e-3), source="PEFT's documentation (from 1e-3), and four times that"),
    "adalora": Candidates(rates=_THREE, source=f"{_UNKNOWN}; its initial factors are smaller"),
    "vera": Candidates(
        rates=(2e-3, 8e-3, 3.2e-2), source="only vectors are trained, with higher rates than lora"
    ),
    "randlora": Candidates(rates=_THREE, source=_UNKNOWN),
    "loha": Candidates(rates=_THREE, source=_UNKNOWN),
    "lokr": Candidates(rates=_THREE, source=_UNKNOWN),
    "oft": Candidates(rates=_THREE, source=_UNKNOWN),
    "boft": Candidates(rates=_THREE, source=_UNKNOWN),
    "miss": Candidates(
        rates=(1e-4, 5e-4, 2e-3), source="parameters are added to weights directly: full to lora"
    ),
    "osf": Candidates(rates=(1e-4, 3e-4), source="as full: trains the weights of the model"),
    "b_only": Candidates(rates=_LORA, source=_AS_LORA),
    "sora": Candidates(rates=(8e-4, 3.2e-3), source="arXiv 2311.11696 (8e-4), and four times that"),
    "prilora": Candidates(rates=_LORA, source=_AS_LORA),
    "melora": Candidates(rates=_LORA, source=_AS_LORA),
    "multilora": Candidates(rates=_LORA, source=_AS_LORA),
    "chain": Candidates(rates=_LORA, source=_AS_LORA),
    "rac": Candidates(rates=_LORA, source=_AS_LORA),
    "lora_experts": Candidates(rates=_THREE, source=f"{_UNKNOWN}; its gradients are preconditioned"),
    "oplora": Candidates(rates=_LORA, source=_AS_LORA),
    "lora_null": Candidates(rates=_LORA, source=_AS_LORA),
    "corda": Candidates(rates=_LORA, source=_AS_LORA),
    "milora": Candidates(rates=_LORA, source=_AS_LORA),
    "clora": Candidates(rates=_LORA, source=_AS_LORA),
}
