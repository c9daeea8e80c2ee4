"""Question: what does each fine-tuning method do to one model, with a small budget and one learning rate?

Every method that trains runs on a masked MiniLM (6 layers, 36 matrices), on SST-2 and MNLI, with three seeds.
Measured are held-out accuracy, certified intruders, rank and size of the update, forgetting on text that the
base never saw (fast masks, the same for every run), and seconds of training. Training is
``intruscope.train.tune``; measuring is ``intruscope.scan`` and ``intruscope.forgetting``.

These rules were set before the first run:

- One budget for all (``BUDGETS``), one thread, float32 (so that runs from machines with and without bfloat16
  instructions can share one table), batches grouped by length (a third of the work on SST-2), the defaults of
  the methods and, if a method has an alpha and a rank, the paper's alpha = 2 * rank.
- One learning rate per method for all seeds: among the candidates in :mod:`benchmarks.methods_rates`, the one
  with the lowest training loss (mean over the last quarter of the steps) on SST-2, seed 0. On MNLI it is 0.7
  of that (LOG.md, 2026-11-26: lora at 2e-3 and 1.4e-3). Runs at the other candidates are kept and marked as
  not chosen. This compares methods at one sensible rate, not each at its best.
- A run whose accuracy cannot be distinguished from always answering the most frequent label (one-sided z of
  1.96) is ``at chance``. A run whose loss or weights become NaN or infinite has ``diverged``. Both stay in
  the table.

Runs are saved one by one in the work folder. Runs that exist there or in the published file are skipped, so
any number of sessions can add to one table. Seeds come first, then tasks, then methods:

    python -m benchmarks.methods --work WORK --base MODEL --tasks TASKS --text FILE --publish
    python -m benchmarks.methods ... --only 'lora/*/*' '*/mnli/1'      # METHOD/TASK/SEED
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.common import RESULTS, environment
from benchmarks.methods_rates import CANDIDATES
from benchmarks.methods_table import key_of, known_runs, publish
from intruscope.errors import IncompleteResult, IntruscopeError
from intruscope.forgetting.intervals import paired_difference
from intruscope.forgetting.tasks import ClassificationTask, load_task
from intruscope.forgetting.texts import read_texts
from intruscope.methods.registry import find, registered
from intruscope.records.plain import plain
from intruscope.spectra.scan import scan
from intruscope.sweep.live import limited
from intruscope.train.loading import load_for
from intruscope.train.probe import ForgettingProbe
from intruscope.train.settings import TuneSettings
from intruscope.train.tune import tune
from intruscope.weights.output import write_json_file
from intruscope.weights.source import open_model

if TYPE_CHECKING:
    from intruscope.forgetting.losses import SequenceLosses
    from intruscope.progress import Progress

SEEDS = (0, 1, 2)
NUM_SEQUENCES = 120
SEARCHED = ("sst2", 0)
"""Task and seed on which the learning rate of a method is chosen."""
CHANCE_Z = 1.96


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The budget of every method for a task.

    Attributes:
        files: Training and held-out file.
        examples: Number of training examples, used once; drawn from the seed.
        batch: Examples per step.
        rate_times: Learning rate relative to that of SST-2.
        scored: Maximum number of held-out examples, the same for every run.
        max_length: Maximum length in tokens.
    """

    files: tuple[str, str]
    examples: int
    batch: int
    rate_times: float
    scored: int = 1500
    max_length: int = 48


BUDGETS = {
    "sst2": Budget(files=("train_full.tsv", "dev.tsv"), examples=3200, batch=32, rate_times=1.0),
    "mnli": Budget(files=("train.json", "dev.json"), examples=3200, batch=16, rate_times=0.7),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: everything that identifies it and can change its figures."""

    method: str
    task: str
    seed: int
    rate: float
    budget: Budget
    num_sequences: int = NUM_SEQUENCES


@dataclass(frozen=True, kw_only=True)
class Place:
    """Folders of the inputs and the runs of a benchmark."""

    base: Path
    tasks: Path
    text: Path
    work: Path
    keep: Path | None = None

    def task(self, name: str, budget: Budget, *, held_out: bool) -> ClassificationTask:
        """The training or the held-out split of a task."""
        task = load_task(self.tasks / name / budget.files[held_out])
        assert isinstance(task, ClassificationTask)
        return limited(task, budget.scored) if held_out else task


class Measuring:
    """Measures a trained model against a base whose losses are computed once."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._base_losses: SequenceLosses | None = None

    def __call__(self, case: Case, folder: Path) -> dict[str, Any]:
        """Figures of a saved run."""
        method = find(case.method)
        held_out = self._place.task(case.task, case.budget, held_out=True)
        loaded = load_for(open_model(str(self._place.base)), held_out, seed=case.seed)
        attached = method.load(loaded.model, folder / "model")
        figures = {"forgetting": self._forgetting(case, attached.model, loaded.tokenizer)}
        if "no_static_update" in method.departures:
            return figures
        return {**self._spectra(attached.merged()), **figures}

    def _spectra(self, merged: torch.nn.Module) -> dict[str, Any]:
        report = scan(self._place.base, merged)
        matrices = [matrix for matrix in report.matrices if matrix.scope == "paper"]
        verdicts = Counter(v for matrix in matrices for v in matrix.sides[0].verdicts)
        updates = [matrix.update for matrix in matrices if matrix.update is not None]
        ranks = [u.effective_rank.value for u in updates if u.effective_rank is not None]
        norms = [(u.frobenius_norm, u.relative_frobenius_norm) for u in updates]
        base_square = sum((norm / relative) ** 2 for norm, relative in norms if relative)
        norm = math.hypot(*(norm for norm, _ in norms))
        return {
            "matrices": len(matrices),
            "intruders": verdicts["intruder"],
            "undecided": verdicts["borderline"] + verdicts["degenerate"],
            "hosts": sum("intruder" in matrix.sides[0].verdicts for matrix in matrices),
            "effective_rank": sum(ranks) / len(ranks) if ranks else None,
            "update_norm": norm,
            "relative_update_norm": norm / math.sqrt(base_square) if base_square else None,
        }

    def _forgetting(self, case: Case, model: torch.nn.Module, tokenizer: Any) -> dict[str, float]:
        def losses(of: torch.nn.Module) -> SequenceLosses:
            text, base = [self._place.text], self._place.base
            return ForgettingProbe(of, tokenizer, text, base, max_sequences=case.num_sequences).losses()

        if self._base_losses is None:
            base = load_for(open_model(str(self._place.base)), read_texts([self._place.text]), seed=0)
            self._base_losses = losses(base.model)
        before, after = self._base_losses, losses(model)
        return plain(paired_difference(before.nats, after.nats, before.tokens))


class Steps:
    """The processor time of the steps, from the progress of a run: excludes loading and evaluation."""

    def __init__(self) -> None:
        self._marks: list[tuple[int, float]] = []

    def __call__(self, event: Progress) -> None:
        """Called after each step."""
        self._marks.append((event.done, time.process_time()))

    @property
    def seconds(self) -> float | None:
        """Seconds for all steps; the first one, a warm-up, counts as the mean of the others."""
        if len(self._marks) < 2:
            return None
        (first, start), (last, end) = self._marks[0], self._marks[-1]
        return (end - start) * last / (last - first)


def train(case: Case, place: Place, folder: Path) -> dict[str, Any]:
    """Train one case and return the figures known at once."""
    shutil.rmtree(folder, ignore_errors=True)
    data = place.task(case.task, case.budget, held_out=False)
    held_out = place.task(case.task, case.budget, held_out=True)
    steps = Steps()
    settings = TuneSettings(
        method=case.method, rate=case.rate, examples=case.budget.examples, epochs=1, batch=case.budget.batch,
        max_length=case.budget.max_length, group_by_length=True, seed=case.seed, watch_every=0,
        save_every=10**6,
    )  # fmt: skip
    most = max(Counter(held_out.labels).values()) / len(held_out.labels)
    record: dict[str, Any] = {"chance": most, "num_scored": len(held_out.labels)}
    keep = read_texts([place.keep]) if find(case.method).needs_kept and place.keep is not None else None
    try:
        report = tune(
            str(place.base), out=folder, settings=settings, data=data, held_out=held_out, keep_text=keep,
            on_progress=steps,
        )  # fmt: skip
    except IncompleteResult as error:
        return {**record, "outcome": "diverged", "reason": error.fact}
    accuracy = report.accuracy[-1]
    above = accuracy - most > CHANCE_Z * math.sqrt(most * (1 - most) / len(held_out.labels))
    return {
        **record,
        "outcome": "trained" if above else "at chance",
        "accuracy": accuracy,
        "loss": _last_quarter(folder),
        "steps": report.steps,
        "seconds": steps.seconds,
        "num_trained": report.num_trained,
        "options": report.plan["options"],
    }


def _last_quarter(folder: Path) -> float:
    """The mean training loss over the last quarter of the steps."""
    log = json.loads((folder / "run.json").read_text(encoding="utf-8"))["log"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    return statistics.mean(losses[-max(1, len(losses) // 4) :])


class Runs:
    """The runs that exist, published or in the work folder, and those still to be made."""

    def __init__(self, place: Place, results: Path) -> None:
        self._place = place
        self._measuring = Measuring(place)
        self._known = known_runs(results, place.work)

    def make(self, method: str, task: str, seed: int) -> None:
        """Make the missing runs of one table entry, including the choice of the learning rate."""
        searched = [self._case(method, *SEARCHED, rate) for rate in CANDIDATES[method].rates]
        for each in searched:
            if self._found(each) is None:
                self._keep(each, train(each, self._place, self._folder(each)))
        best = min(searched, key=lambda each: (self._found(each) or {}).get("loss", math.inf))
        case = self._case(method, task, seed, best.rate * BUDGETS[task].rate_times)
        record = self._found(case)
        if record is None or (not record["is_chosen"] and not (self._folder(case) / "model").exists()):
            record = train(case, self._place, self._folder(case))
        if not record.get("is_chosen"):
            figures = self._measuring(case, self._folder(case)) if record["outcome"] != "diverged" else {}
            self._keep(case, {**record, **figures, "is_chosen": True})
        for each in (case, *searched):
            shutil.rmtree(self._folder(each), ignore_errors=True)

    def _found(self, case: Case) -> dict[str, Any] | None:
        """The run of a case, if one was made with these settings."""
        run, wanted = self._known.get(self._key(case), {}), plain(case)
        return run if {name: run.get(name) for name in wanted} == wanted else None

    def _case(self, method: str, task: str, seed: int, rate: float) -> Case:
        return Case(method=method, task=task, seed=seed, rate=rate, budget=BUDGETS[task])

    def _key(self, case: Case) -> str:
        return key_of(case.method, case.task, case.seed, case.rate)

    def _folder(self, case: Case) -> Path:
        return self._place.work / self._key(case).replace("/", "-")

    def _keep(self, case: Case, record: dict[str, Any]) -> None:
        record = {"is_chosen": False, **plain(case), **record, "environment": environment()}
        self._known[self._key(case)] = record
        write_json_file(record, self._folder(case).with_name(self._folder(case).name + ".json"))
        shown = ("outcome", "accuracy", "loss", "intruders", "seconds")
        print(self._key(case), *(f"{name}={record.get(name)}" for name in shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS / "methods.json")
    parser.add_argument("--base", type=Path, help="the masked MiniLM")
    parser.add_argument("--tasks", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--keep-text", type=Path, help="for methods that start from text; not the same text")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="METHOD/TASK/SEED",
        help="patterns METHOD/TASK/SEED; let several processes share the work",
    )  # fmt: skip
    parser.add_argument("--publish", action="store_true", help="merge the runs into the published file")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    if options.base is not None:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        place = Place(
            base=options.base,
            tasks=options.tasks,
            text=options.text,
            work=options.work,
            keep=options.keep_text,
        )
        runs = Runs(place, options.results)
        methods = [method.name for method in registered() if "no_training" not in method.departures]
        cells = [(method, task, seed) for seed in SEEDS for task in BUDGETS for method in methods]
        for method, task, seed in cells:
            if any(fnmatchcase(f"{method}/{task}/{seed}", pattern) for pattern in options.only):
                try:
                    runs.make(method, task, seed)
                except IntruscopeError as error:  # continue with the other cases
                    failed.append(f"{method}/{task}/{seed}: {error}")
                    print(failed[-1], file=sys.stderr, flush=True)
    if options.publish:
        publish(options.work, options.results)
    if failed:
        sys.exit("\n".join(["these were not made:", *failed]))


if __name__ == "__main__":
    main()
