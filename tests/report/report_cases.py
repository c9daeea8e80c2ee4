"""Made-up scans, from a seed, that look like what real ones say."""

from __future__ import annotations

import math
import random

from intruscope.spectra.records import (
    EPSILON_GRID,
    Estimate,
    GridCount,
    Match,
    MatrixReport,
    NullCount,
    ScanReport,
    ScanSettings,
    SideReport,
    SimilarityMap,
    UpdateReport,
)
from intruscope.weights.matrices import CoverageEntry, Finding

KINDS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def side(rng: random.Random, *, intruders: int, k: int, epsilon: float, name="left", map_size=0, null=False):
    """A side whose first vectors are aligned and some later ones are not."""
    places = set(rng.sample(range(k), min(intruders, k)))
    lower, upper, verdicts = [], [], []
    for index in range(k):
        truth = rng.uniform(0.1, 0.45) if index in places else 1 - 0.4 * rng.random() ** 3
        width = rng.choice([1e-6, 1e-6, 0.02])
        low, high = max(0.0, truth - width), min(1.0, truth + width)
        lower.append(low)
        upper.append(high)
        verdicts.append("intruder" if high < epsilon else "aligned" if low >= epsilon else "borderline")
    cuts = sorted({c for c in (1, 2, 5, 10) if c < k} | {k})
    grid = tuple(
        GridCount(
            epsilon=e,
            k=c,
            num_intruders=sum(u < e for u in upper[:c]),
            num_undecided=sum(l < e <= u for l, u in zip(lower[:c], upper[:c], strict=True)),
        )
        for e in EPSILON_GRID
        for c in cuts
    )
    count = verdicts.count("intruder")
    trials = tuple(rng.choice([0, 0, 1]) for _ in range(20))
    return SideReport(
        side=name,
        alignment_lower=tuple(lower),
        alignment_upper=tuple(upper),
        verdicts=tuple(verdicts),
        certificates=tuple(rng.choice(["proved", "probabilistic"]) for _ in range(k)),
        alignment_certificates=("proved",) * k,
        outside_column_space=tuple(rng.random() for _ in range(k)) if rng.random() < 0.5 else None,
        matches=tuple(
            Match(base_index=i, base_singular_value=9.0 / (i + 1), relative_change=rng.uniform(-0.1, 0.2))
            if low**2 > 0.5
            else None
            for i, low in enumerate(lower)
        ),
        num_intruders=count,
        alignment_failure_probability=2e-7,
        grid=grid,
        tuned_energy_fraction=0.004 * count,
        update_energy_fraction=min(1.0, 0.08 * count),
        null=NullCount(trials=20, mean=sum(trials) / 20, low=0.0, high=1.0, counts=trials) if null else None,
        similarity=_map(rng, map_size, places) if map_size else None,
    )


def _map(rng, size, places):
    rows = [[0] * size for _ in range(size)]
    column = 0
    for tuned in range(size):
        for base in range(size):
            distance = abs(base - column)
            near = 0.0 if tuned in places else math.exp(-(distance**2) / (0.5 + 0.02 * base))
            rows[base][tuned] = round(255 * min(1.0, near * 0.95 + 0.08 * rng.random()))
        column += tuned not in places
    return SimilarityMap(num_base=size, num_tuned=size, levels=tuple(x for row in rows for x in row))


def matrix(rng, name, kind, layer, *, intruders, settings, scope="paper", map_size=0, null=False):
    """One matrix with a result."""
    k = 10 if settings.k == "all" else settings.k
    sides = ("left", "right") if settings.side == "both" else (settings.side,)
    rows, columns = {"gate": (688, 256), "up": (688, 256), "down": (256, 688)}.get(kind, (256, 256))
    rank = 20 + 40 * rng.random()
    norm = rng.uniform(0.4, 2.5)
    return MatrixReport(
        name=name,
        shape=(rows, columns),
        kind=kind,
        layer=layer,
        scope=scope,
        status="done",
        singular_values=tuple(9.0 / (i + 1) ** 0.5 for i in range(k)),
        residual_ratio=0.31,
        top_k_failure_probability=1e-6,
        sides=tuple(
            side(
                rng,
                intruders=intruders + place,  # the sides differ, so that a mix-up shows
                k=k,
                epsilon=settings.epsilon,
                name=each,
                map_size=map_size,
                null=null,
            )
            for place, each in enumerate(sides)
        ),
        update=UpdateReport(
            frobenius_norm=norm,
            spectral_norm=norm / 2,
            relative_frobenius_norm=norm / 12,
            relative_spectral_norm=norm / 18,
            stable_rank=4.0,
            effective_rank=Estimate(value=rank, low=rank * 0.9, high=rank * 1.08, method="sketch"),
            rank_bound=256,
            top_energy_fraction=0.02 * norm,
            top_energy_chance=0.001,
        ),
        base_frobenius_norm=12.0,
        base_spectral_norm=9.0,
        seconds=0.2,
    )


def refused(name="model.layers.0.bad", layer=0):
    """A matrix that a finding forbids."""
    finding = Finding(code="non-finite", severity="error", message="3 values are not finite", matrix=name)
    return MatrixReport(
        name=name,
        shape=(256, 256),
        kind="q",
        layer=layer,
        scope="paper",
        status="refused",
        singular_values=(),
        residual_ratio=None,
        top_k_failure_probability=None,
        sides=(),
        update=None,
        base_frobenius_norm=None,
        base_spectral_norm=None,
        findings=(finding,),
    )


def scan(
    seed=0,
    *,
    layers=4,
    rate=1.2,
    kinds=KINDS,
    k=10,
    side="left",
    epsilon=0.5,
    maps=0,
    null=False,
    extra=(),
    findings=(),
    coverage=(),
    complete=True,
    base="demo/base",
    tuned="demo/tuned",
) -> ScanReport:
    """A whole scan of ``layers`` blocks with about ``rate`` intruders per matrix."""
    rng = random.Random(seed)
    settings = ScanSettings(
        k=k, side=side, epsilon=epsilon, maps=maps, null_trials=20 if null else 0, seed=seed
    )
    matrices = []
    for layer in range(layers):
        for kind, path in kinds.items():
            intruders = min(10, int(rng.expovariate(1 / rate))) if rate else 0
            name = f"model.layers.{layer}.{path}"
            matrices.append(
                matrix(
                    rng,
                    name,
                    kind,
                    layer,
                    intruders=intruders,
                    settings=settings,
                    map_size=maps,
                    null=null,
                )
            )
    ledger = [
        CoverageEntry(
            tensor=f"{m.name}.weight",
            origin="base",
            status="compared",
            reason="a linear layer",
            matrices=(m.name,),
        )
        for m in matrices
    ] + [
        CoverageEntry(
            tensor=f"model.layers.{layer}.input_layernorm.weight",
            origin="base",
            status="skipped",
            reason="a vector: no singular vectors to compare",
        )
        for layer in range(layers)
    ]
    return ScanReport(
        base=base,
        tuned=tuned,
        settings=settings,
        matrices=(*matrices, *extra),
        coverage=(*ledger, *coverage),
        findings=tuple(findings),
        complete=complete,
        environment={
            "python": "3.11.9",
            "torch": "2.13.0",
            "intruscope": "0.1.0",
            "platform": "Linux x86_64",
        },
    )
