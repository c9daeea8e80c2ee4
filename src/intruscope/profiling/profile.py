"""Measure what a training step costs by each method, on one model and one machine."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from intruscope.adapters.live_models import config_of, max_positions
from intruscope.engine.environment import CORE, environment
from intruscope.errors import IncompleteResult, ResourceExhausted, UsageError
from intruscope.forgetting.models import choose_device
from intruscope.profiling.candidates import candidates
from intruscope.profiling.crew import WORKER, Crew
from intruscope.profiling.heads import head_of, skeleton
from intruscope.profiling.memory import free_memory
from intruscope.profiling.records import (
    FULL,
    NULL,
    Build,
    Built,
    Failed,
    Memory,
    Phases,
    ProfileCell,
    ProfileReport,
    Visit,
    Warm,
    Warmed,
)
from intruscope.profiling.results import results_of
from intruscope.profiling.rounds import OutOfTime, Rounds, run_rounds
from intruscope.profiling.statistics import half_width, level_of_each, ratio_interval, rounds_needed
from intruscope.profiling.verdicts import recommend
from intruscope.progress import OnProgress, Progress, ignore_progress
from intruscope.weights.source import open_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from intruscope.profiling.records import Candidate, HeadKind, ProfileSettings
    from intruscope.profiling.rounds import Samples
    from intruscope.weights.source import ModelSource

WARM_STEPS = 3
"""The first allocates gradients and moments, and lets the libraries choose their kernels."""
LEAST_ROUNDS = 10
"""Whatever the intervals say before."""
_VISIT_SECONDS, _MOST_STEPS = 0.2, 20
"""A visit takes as many steps as fill this time, so that a clock's tick and a woken thread do not count."""
_LEAD_BELOW = 1.0
"""Steps that take less than these seconds are led in by one that does not count: another process had the
caches before."""
_RUNTIME_BYTES = 400 << 20


def profile(
    base: str,
    *,
    settings: ProfileSettings,
    allow_pickle: bool = False,
    on_progress: OnProgress = ignore_progress,
    function: str = WORKER,
    clock: Callable[[], float] = time.monotonic,
) -> ProfileReport:
    """Measure the steps of full fine-tuning and of other methods on random tokens; nothing is kept of them.

    Args:
        base: A path or ``org/name@revision``; only read.
        settings: What is measured.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        on_progress: Called for every setting that is started, then with the seconds that have passed.
        function: What the process of each setting serves.
        clock: In seconds.

    Raises:
        UsageError: an unknown method or option, no target, more blocks or positions than the model has, or
            too little time for one round.
        MalformedInput: the base is damaged.
        UnsupportedFormat: the model or a layer is of a kind that cannot be trained so.
        ResourceExhausted: no memory for any setting.
        IncompleteResult: every setting failed.
    """
    started = clock()
    threads = settings.threads or torch.get_num_threads()
    settings = replace(settings, device=choose_device(settings.device), threads=threads)
    source = open_model(base, allow_pickle=allow_pickle)
    config = config_of(source)
    cls, head = head_of(config, settings.head, file=source.on_disk)
    model = skeleton(cls, config)
    _check_model(model, settings)
    chosen = candidates(model, settings)
    num_parameters = sum(p.numel() for p in model.parameters())
    deadline = started + settings.seconds
    with Crew([c.name for c in chosen], function=function, clock=clock, deadline=deadline) as crew:
        run = _Run(crew, chosen, settings, clock=clock, started=started, on_progress=on_progress)
        try:
            run.start(source, head, num_parameters, allow_pickle=allow_pickle)
        except OutOfTime:
            raise run.too_little_time() from None
        run.measure()
    return run.report(source, head, num_parameters)


def _check_model(model: nn.Module, settings: ProfileSettings) -> None:
    longest, limit = max(settings.lengths), max_positions(model)
    if limit is not None and longest > limit:
        raise UsageError(
            f"--length {longest} is longer than the model's {limit} positions",
            remedy=f"use --length {limit} or less",
        )
    if settings.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
        raise UsageError(
            f"{type(model).__name__} does not support --gradient-checkpointing",
            remedy="leave it out",
        )


class _Run:
    """One profile, from waiting processes to its report."""

    def __init__(
        self,
        crew: Crew,
        chosen: Sequence[Candidate],
        settings: ProfileSettings,
        *,
        clock: Callable[[], float],
        started: float,
        on_progress: OnProgress,
    ) -> None:
        self._crew = crew
        self._chosen = chosen
        self._settings = settings
        self._clock = clock
        self._started = started
        self._on_progress = on_progress
        self._built: dict[str, Built] = {}
        self._warmed: dict[ProfileCell, Warmed] = {}
        self._failures: dict[str, str] = {}
        self._rounds = Rounds(samples={})
        self._reference = FULL
        self._level = 0.0

    def start(self, source: ModelSource, head: HeadKind, num_parameters: int, *, allow_pickle: bool) -> None:
        """Make every setting ready, one after another, and measure its memory."""
        self._crew.wait_until_ready()
        beyond = 0
        for number, candidate in enumerate(self._chosen):
            self._report_started(number)
            name = candidate.name
            if name == NULL and FULL in self._failures:
                self._fail(name, "full fine-tuning failed")
                continue
            least = _least_bytes(candidate, num_parameters)
            free = free_memory() if self._settings.device == "cpu" else None
            if free is not None and least + beyond > free:
                need = (least + beyond) / 2**30
                fact = f"not started: about {need:.1f} GiB are needed, {free / 2**30:.1f} GiB are free"
                self._fail(name, f"{fact}; name fewer settings, or a smaller batch")
                continue
            request = Build(
                base=source.on_disk,
                allow_pickle=allow_pickle,
                head=head,
                candidate=candidate,
                shapes=self._settings.shapes,
                settings=self._settings,
            )
            if not self._prepared(name, request):
                continue
            peak = max(self._warmed[ProfileCell(name, shape)].peak_bytes for shape in self._settings.shapes)
            beyond = max(beyond, peak - least)
        self._report_started(len(self._chosen))
        self._choose_reference()

    def _prepared(self, name: str, request: Build) -> bool:
        built = self._crew.ask(name, request)
        if isinstance(built, Failed):
            return self._fail(name, built.reason)
        self._built[name] = built
        for shape in self._settings.shapes:
            warmed = self._crew.ask(name, Warm(shape=shape, num_steps=WARM_STEPS))
            if isinstance(warmed, Failed):
                return self._fail(name, f"{warmed.reason}, at {shape.batch} x {shape.length} tokens")
            self._warmed[ProfileCell(name, shape)] = warmed
        return True

    def _fail(self, name: str, reason: str) -> bool:
        self._failures[name] = reason
        self._crew.dismiss(name)
        return False

    def _choose_reference(self) -> None:
        alive = [c.name for c in self._chosen if c.name not in self._failures]
        if not alive:
            reason = self._failures[FULL]
            kind = ResourceExhausted if "memory" in reason or "GiB" in reason else IncompleteResult
            raise kind(
                f"no setting could be measured (full fine-tuning: {reason})",
                remedy="lower --batch or --length, or choose other methods",
            )
        self._reference = FULL if FULL in alive else alive[0]
        self._level = level_of_each(len(alive) - 1)

    def measure(self) -> None:
        """Rounds, until they suffice or the time is up.

        Raises:
            UsageError: not even one was finished.
        """
        cells = [cell for cell in self._warmed if cell.setting not in self._failures]
        first = 1.2 * sum(self._visit_seconds(cell) for cell in cells)
        self._rounds = run_rounds(
            cells,
            self._visit,
            clock=self._clock,
            deadline=self._started + self._settings.seconds,
            least=max(LEAST_ROUNDS, rounds_needed(self._level)),
            first_seconds=first,
            is_precise=self._is_precise,
            needed={self._reference},
            seed=self._settings.seed,
            on_round=lambda _: self._report_time(),
        )
        if self._rounds.num_rounds == 0 and self._rounds.stopped == "time":
            raise self.too_little_time(first)
        self._report_passed(self._settings.seconds)  # also when it was precise enough before

    def _visit(self, cell: ProfileCell) -> Phases | None:
        found = self._crew.ask(cell.setting, self._request(cell))
        self._report_time()
        if isinstance(found, Failed):
            self._fail(cell.setting, found.reason)
            return None
        assert isinstance(found, Phases)
        return found

    def _request(self, cell: ProfileCell) -> Visit:
        step = self._warmed[cell].step_seconds
        num_steps = max(1, min(_MOST_STEPS, math.ceil(_VISIT_SECONDS / step)))
        return Visit(shape=cell.shape, num_lead=int(step < _LEAD_BELOW), num_steps=num_steps)

    def _visit_seconds(self, cell: ProfileCell) -> float:
        request = self._request(cell)
        return (request.num_lead + request.num_steps) * self._warmed[cell].step_seconds

    def _is_precise(self, samples: Samples) -> bool:
        for cell, taken in samples.items():
            if cell.setting == self._reference:
                continue
            beside = samples[ProfileCell(self._reference, cell.shape)]
            ratio = ratio_interval([p.step for p in taken], [p.step for p in beside], level=self._level)
            if half_width(ratio) > self._settings.precision:
                return False
        return True

    def _report_time(self) -> None:
        self._report_passed(min(self._clock() - self._started, self._settings.seconds))

    def _report_passed(self, seconds: float) -> None:
        total = round(self._settings.seconds)
        self._on_progress(Progress(stage="measuring", done=round(seconds), total=total, unit="seconds"))

    def _report_started(self, num_started: int) -> None:
        num = len(self._chosen)
        self._on_progress(Progress(stage="starting", done=num_started, total=num, unit="settings"))

    def too_little_time(self, first: float | None = None) -> UsageError:
        """What it would take; known once every setting has taken its first steps."""
        given = f"--seconds {self._settings.seconds:g}"
        passed = self._clock() - self._started
        if first is None:
            ready = f"{len(self._built)} of {len(self._chosen)} settings were ready after {passed:.0f} s"
            enough = _rounded(3 * passed * len(self._chosen) / max(1, len(self._built)))
            return UsageError(
                f"{given} is too short for one round: {ready}",
                remedy=f"use --seconds {enough} or more, or compare fewer settings",
            )
        rounds = max(LEAST_ROUNDS, rounds_needed(self._level))
        start = min(passed, self._settings.seconds)
        return UsageError(
            f"{given} is too short for one round: starting took {start:.0f} s, and a round takes about "
            f"{first:.3g} s",
            remedy=f"use --seconds {_rounded(start + rounds * first)} or more, enough for the {rounds} "
            "rounds that "
            "intervals need; or lower --batch, or compare fewer settings",
        )

    def report(self, source: ModelSource, head: HeadKind, num_parameters: int) -> ProfileReport:
        """Everything that was measured, and what follows."""
        memory = {
            cell: Memory(
                runtime_bytes=self._built[cell.setting].runtime_bytes,
                loaded_bytes=self._built[cell.setting].loaded_bytes,
                peak_bytes=warmed.peak_bytes,
                tensor_bytes=warmed.tensor_bytes,
            )
            for cell, warmed in self._warmed.items()
        }
        results = results_of(
            self._chosen,
            self._rounds.samples,
            built=self._built,
            memory=memory,
            failures=self._failures,
            reference=self._reference,
            level=self._level,
        )
        return ProfileReport(
            base=source.name,
            revision=source.revision,
            head=head,
            num_parameters=num_parameters,
            settings=self._settings,
            reference=self._reference,
            level=self._level,
            num_rounds=self._rounds.num_rounds,
            stopped=self._rounds.stopped,
            seconds=self._clock() - self._started,
            results=results,
            recommendations=tuple(
                recommend(results, shape, reference=self._reference, level=self._level)
                for shape in self._settings.shapes
            ),
            environment=_environment(self._settings),
        )


def _least_bytes(candidate: Candidate, num_parameters: int) -> int:
    """What a setting takes at least: while it is loaded, or with gradients and moments; no activations."""
    per_number = 16 if candidate.method == FULL else 8
    return per_number * num_parameters + _RUNTIME_BYTES


def _rounded(seconds: float) -> int:
    return 10 * math.ceil(seconds / 10)


def _environment(settings: ProfileSettings) -> dict[str, Any]:
    """Where it was measured: versions, and what of the machine matters."""
    on_cuda = settings.device.startswith("cuda")
    known = Path("/proc/cpuinfo")
    flags = known.read_text().split() if known.exists() else []
    return {
        **environment((*CORE, "transformers", "peft")),
        "device": torch.cuda.get_device_name(settings.device) if on_cuda else settings.device,
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "avx512": "avx512f" in flags,
        "bf16_instructions": "avx512_bf16" in flags or "amx_bf16" in flags,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
