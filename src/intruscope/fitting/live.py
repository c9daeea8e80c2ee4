"""Fits of a loaded pair: what a sweep and a repair call."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from intruscope.fitting.directions import alignments_of, direction_test, directions_of
from intruscope.fitting.fit import Fit, FitData, fit, fit_from_plain
from intruscope.fitting.parts import parts_of
from intruscope.progress import OnProgress, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from intruscope.adapters.live import LivePair
    from intruscope.fitting.parts import Part
    from intruscope.fitting.records import DirectionTest
    from intruscope.fitting.settings import FitSettings
    from intruscope.repair.survey import Survey


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveFitter:
    """Fits fixes to data, one loaded pair for all of them.

    Attributes:
        survey: Of the pair, with the spectra of updates where ``fitted`` needs them.
        pair: The loaded pair.
        data: Its items.
        data_digest: Hash of the data.
        settings: How it is fitted.
        seed: Random seed of the batches.
    """

    survey: Survey
    pair: LivePair
    data: FitData
    data_digest: str
    settings: FitSettings
    seed: int

    @cached_property
    def digest(self) -> str:
        """Hash of the data and settings: what a kept fit must agree with."""
        known = [self.data_digest, asdict(self.settings), self.seed]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def num_steps(self) -> int:
        """Steps of each fit."""
        return self.settings.fit_steps

    def check(self, fixes: Iterable[str]) -> None:
        """Refuse a fix that this pair cannot have, before any work is done.

        Raises:
            UnsupportedFormat: replay of anything but a plain LoRA, or a matrix in no linear layer.
        """
        for fix in fixes:
            for part in self._parts(fix):
                self.pair.layers_with(part.layer)

    def fit(self, fix: str, weight: float, *, on_progress: OnProgress = ignore_progress) -> Fit:
        """Fit a fix. Errors as for :func:`intruscope.fitting.fit.fit`.

        Args:
            fix: Name in :data:`intruscope.fitting.table.FITS`.
            weight: Of the loss on text.
            on_progress: Called before the first step and after each.
        """
        return fit(
            self.pair,
            self._parts(fix),
            self.data,
            fix=fix,
            weight=weight,
            settings=self.settings,
            seed=self.seed,
            on_progress=on_progress,
        )

    def restored(self, fix: str, weight: float, record: dict[str, Any]) -> Fit:
        """The fit of a journal's record."""
        return fit_from_plain(record, fix=fix, weight=weight, parts=self._parts(fix))

    def directions(self, fits: Iterable[Fit]) -> tuple[DirectionTest, ...]:
        """What each fit of one factor per direction says about intruders.

        Args:
            fits: Any fits of this pair; those of other fixes are left out.
        """
        chosen = [each for each in fits if each.fix == "fitted"]
        if not chosen:
            return ()
        parts = self._parts("fitted")
        alignments = alignments_of(parts, self.pair)
        return tuple(
            direction_test(
                directions_of(each, parts, self.survey, alignments), weight=each.weight, seed=self.seed
            )
            for each in chosen
        )

    def _parts(self, fix: str) -> tuple[Part, ...]:
        if fix not in self._known:
            self._known[fix] = parts_of(fix, self.survey, self.pair)
        return self._known[fix]

    @cached_property
    def _known(self) -> dict[str, tuple[Part, ...]]:
        return {}
