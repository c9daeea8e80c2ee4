"""What a comparison is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from intruscope.options import check_options, documented, option, shared
from intruscope.spectra.records import ScanSettings


@documented
@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Everything that can change a figure of a comparison.

    Raises:
        UsageError: a number is out of range.
    """

    k: int = option(
        10,
        help="Number of leading singular vectors of each matrix to examine for intruders.",
        minimum=1,
        maximum=10**9,
    )
    epsilon: float = shared(ScanSettings, "epsilon")
    weight: float | None = option(
        None,
        help="Weight of every fine-tune in the merge whose intruders are counted (default: 1 divided by "
        "their number).",
        above=0,
        maximum=1e6,
    )
    directions: int | None = option(
        None,
        help="Compare the angles of at most this many leading directions of each update (default: all of a "
        "low-rank update, 32 of a full one).",
        minimum=1,
        maximum=10**6,
    )
    null_trials: int = option(
        4,
        flag="null",
        help="Number of random draws of each matrix for the controls of the sum.",
        minimum=1,
        maximum=10**4,
    )
    seed: int = shared(ScanSettings, "seed")
    threads: int = shared(ScanSettings, "threads")

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def scanning(self) -> ScanSettings:
        """What of it a scan is asked for as well."""
        return ScanSettings(k=self.k, epsilon=self.epsilon, seed=self.seed, threads=self.threads)
