"""The two passes over the modules, in resumable workers: decompose updates, then check the factors."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from intruscope.engine.tasks import Outcome, Task
from intruscope.errors import MalformedInput, ResourceExhausted
from intruscope.extract.allocate import allocate
from intruscope.extract.choose import spectrum_of
from intruscope.spectra.scan import executor_for, memory_for, run_planned
from intruscope.weights.written import tensor_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    import torch

    from intruscope.engine.settings import RunOptions
    from intruscope.extract.decompose import Directions, Wanted
    from intruscope.extract.records import RankChoice
    from intruscope.progress import OnProgress
    from intruscope.spectra.records import ScanSettings
    from intruscope.weights.matrices import Pairing
    from intruscope.writing.modules import TargetModule

_DECOMPOSE = "intruscope.extract.decompose:decompose_module"
_CHECK = "intruscope.extract.decompose:check_module"
_LEAST_WANTED = 8
_BYTES_PER_FACTOR = 40


class Runner:
    """Runs a function over the modules of one plan.

    Args:
        pairing: The paired matrices.
        settings: Seed, k, epsilon and threads of the scan.
        options: How to run: workers, memory, journal.
        on_progress: Called before the first matrix of each stage, and whenever one is started or finished.
        on_notice: Called with messages that the user should see at once.
    """

    def __init__(
        self,
        pairing: Pairing,
        settings: ScanSettings,
        options: RunOptions,
        *,
        on_progress: OnProgress,
        on_notice: Callable[[str], None],
    ) -> None:
        self._pairing, self._settings, self._options = pairing, settings, options
        self._on_progress, self._on_notice = on_progress, on_notice

    def directions(
        self, modules: Sequence[TargetModule], others: Sequence[TargetModule], choice: RankChoice
    ) -> tuple[dict[str, Directions], dict[str, float]]:
        """The leading directions of all modules that changed, and ‖ΔW‖_F of all.

        Args:
            modules: Modules that may get factors.
            others: Modules of which only the norm is needed.
            choice: How ranks are chosen.

        Returns:
            By name.

        Raises:
            MalformedInput: NaN or infinite values, or a file that changed.
            ResourceExhausted: a deadline or too little memory.
        """
        from intruscope.extract.decompose import Wanted, directions_from_plain

        wanted = {module.name: Wanted() for module in others}
        rank = int(choice.value)
        if choice.kind == "parameters":
            rank = max(_LEAST_WANTED, 4 * rank // max(1, sum(module.direction_size for module in modules)))
        fraction = choice.left_fraction
        asked = Wanted(left_fraction=fraction) if fraction is not None else Wanted(rank=rank)
        records = self._decomposed([*modules, *others], {**{m.name: asked for m in modules}, **wanted})
        norms = {name: math.sqrt(record["square"]) for name, record in records.items()}
        while True:
            found = {
                module.name: directions_from_plain(record)
                for module in modules
                if (record := records[module.name])["found"] is not None
            }
            if choice.kind != "parameters":
                return found, norms
            changed = [module for module in modules if module.name in found]
            spectra = [spectrum_of(module, found[module.name]) for module in changed]
            spent = allocate(spectra, int(choice.value))
            more = [changed[index] for index in spent.open]
            # The other modules need the directions that were taken, not just their values.
            more += [
                module
                for module, taken in zip(changed, spent.ranks, strict=True)
                if taken > found[module.name].found.left_MK.shape[1] and module not in more
            ]
            if not more:
                return found, norms
            rank = 2 * max(rank, *spent.ranks)
            records.update(self._decomposed(more, {module.name: Wanted(rank=rank) for module in more}))

    def checked(
        self,
        modules: Sequence[TargetModule],
        factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    ) -> dict[str, dict[str, Any]]:
        """Measured errors and intruders of the factors as they are written, by name.

        Raises:
            MalformedInput, ResourceExhausted: as :meth:`directions`.
        """
        digest = hashlib.sha256()
        tasks = []
        for module in modules:
            up, down = factors[module.name]
            digest.update(tensor_bytes(up) + tensor_bytes(down))
            tasks.append(self._task(module, (module, up, down, self._settings), up.shape[1]))
        name = digest.hexdigest()[:16]
        return self._run("checking", tasks, modules, _CHECK, f"extract check {name}", f"check-{name}")

    def _decomposed(
        self, modules: Sequence[TargetModule], wanted: Mapping[str, Wanted]
    ) -> dict[str, dict[str, Any]]:
        tasks = [
            self._task(module, (module, wanted[module.name], self._settings), wanted[module.name].rank)
            for module in modules
        ]
        what = [(module.name, wanted[module.name]) for module in modules]
        digest = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
        found = self._run(
            "decomposing", tasks, modules, _DECOMPOSE, f"extract {digest}", f"directions-{digest}"
        )
        for name, record in found.items():
            if record["finding"] is not None and record["finding"]["severity"] == "error":
                raise MalformedInput(
                    f"the matrix cannot be decomposed: {record['finding']['message']}",
                    remedy="check how the model was trained and saved",
                    file=self._pairing.tuned,
                    tensor=name,
                )
            record.setdefault("square", 0.0)
            record.setdefault("found", None)
        return found

    def _task(self, module: TargetModule, payload: tuple[Any, ...], rank: int) -> Task:
        rows, columns = module.shape
        return Task(
            key=module.name,
            payload=payload,
            estimated_bytes=memory_for(module.whole, self._settings)
            + _BYTES_PER_FACTOR * rank * module.direction_size,
            weight=float(rows) * float(columns),
        )

    def _run(
        self,
        stage: str,
        tasks: Sequence[Task],
        modules: Sequence[TargetModule],
        function: str,
        purpose: str,
        folder: str,
    ) -> dict[str, dict[str, Any]]:
        options = self._options.within(folder)  # a journal holds one pass
        executor = executor_for(function, self._settings, options)
        executor.start()
        outcomes = run_planned(
            self._pairing,
            tasks,
            self._settings,
            options,
            executor=executor,
            on_progress=self._on_progress,
            on_notice=self._on_notice,
            stage=stage,
            purpose=purpose,
        )
        return {
            module.name: self._record(module, outcome)
            for module, outcome in zip(modules, outcomes, strict=True)
        }

    def _record(self, module: TargetModule, outcome: Outcome) -> dict[str, Any]:
        if outcome.record is not None:
            return outcome.record
        raise ResourceExhausted(
            f"the matrix was not finished ({outcome.reason or outcome.status})",
            remedy="run the same command again with fewer --workers or more --memory",
            file=self._pairing.tuned,
            tensor=module.name,
        )
