"""The settings of a piece of work as ``tune`` takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.train.settings import TuneSettings

if TYPE_CHECKING:
    from intruscope.studies.grid import Chain, MergeSet, Run

_SAVE_EVERY = 100


def tune_settings(work: Run | Chain, *, look_every: int = 0) -> TuneSettings:
    """What is trained, and how.

    Args:
        work: A run, or a chain, each task of which is trained so.
        look_every: Steps between looks, at which held-out data are scored too; 0 for none.
    """
    return TuneSettings(
        method=work.method,
        options=dict(work.options),
        rate=work.rate,
        examples=work.examples,
        epochs=work.epochs,
        batch=work.batch,
        max_length=work.max_length,
        bf16=work.bf16,
        group_by_length=work.group_by_length,
        seed=work.seed,
        watch_every=look_every,
        eval_every=look_every or None,
        save_every=_SAVE_EVERY,
    )


def part_settings(work: MergeSet, place: int) -> TuneSettings:
    """How one adapter of a set is trained.

    Args:
        work: The set.
        place: Of the adapter's task in it.
    """
    return TuneSettings(
        method=work.method,
        options=dict(work.options),
        rate=work.rate,
        steps=work.steps[place],
        batch=work.batch,
        max_length=work.max_lengths[place],
        bf16=work.bf16,
        seed=work.part_seeds[place],
        watch_every=0,
        save_every=_SAVE_EVERY,
    )
