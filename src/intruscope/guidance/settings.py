"""What ``guide`` generates, and how."""

from __future__ import annotations

from dataclasses import dataclass

from intruscope.forgetting.settings import DType, ForgetSettings
from intruscope.options import documented, option, shared
from intruscope.spectra.records import ScanSettings

GAMMAS = (0.0, 0.5, 1.0)


@documented
@dataclass(frozen=True, kw_only=True)
class GuideSettings:
    """What is generated; the keyword arguments of ``guide``."""

    gammas: tuple[float, ...] = option(
        GAMMAS,
        flag="gamma",
        help="Strengths of guidance, separated by commas: 0 is the base, 1 the tuned model; above 1 "
        "extrapolates.",
        minimum=0,
        comma=True,
        metavar="X,X,...",
    )
    max_tokens: int = option(64, help="Maximum number of new tokens per completion.", minimum=1)
    plausibility: float = option(
        0.0,
        help="For gamma above 1: drop tokens whose probability under the tuned model is below this fraction "
        "of the most probable token's (0.1, say). 0 keeps all.",
        minimum=0,
        maximum=1,
    )
    sample: bool = option(False, help="Sample, rather than take the most probable token.")
    temperature: float = option(1.0, help="Temperature of sampling.", above=0, needs=("--sample",))
    top_p: float = option(
        1.0,
        help="Sample from the most probable tokens whose probabilities sum to this.",
        above=0,
        maximum=1,
        needs=("--sample",),
    )
    seed: int = shared(ScanSettings, "seed", needs=("--sample",))
    plain: bool = option(False, help="Use prompts as they are, without the model's chat template.")
    tokenizer: str | None = shared(ForgetSettings, "tokenizer")
    device: str = shared(ForgetSettings, "device")
    dtype: DType = shared(ForgetSettings, "dtype")
