"""Second half of the methods benchmark: merges runs into the published file and makes the docs tables."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.methods.registry import registered
from intruscope.weights.output import write_json_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Run = dict[str, Any]
PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
BEGIN, END = "<!-- measured: made by python -m benchmarks.methods --publish -->\n", "<!-- end -->\n"
NUM_SEEDS = 3
TITLES = {"sst2": "SST-2", "mnli": "MNLI"}
YARDSTICK = "lora"
"""Times are relative to this method, because runs were made on several kinds of machines."""


def key_of(method: str, task: str, seed: int, rate: float) -> str:
    """The key of a run."""
    return f"{method}/{task}/{seed}/{rate:.3g}"


def known_runs(results: Path, work: Path) -> dict[str, Run]:
    """All runs, published ones first; if a run is in both places, the record with more figures."""
    published = json.loads(results.read_text(encoding="utf-8"))["runs"] if results.exists() else {}
    found: dict[str, Run] = dict(published)
    for path in sorted(work.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        key = key_of(run["method"], run["task"], run["seed"], run["rate"])
        if len(run) >= len(found.get(key, {})):
            found[key] = run
    return found


def publish(work: Path, results: Path) -> None:
    """Merge the runs into the published file and rewrite the tables of the docs."""
    runs = known_runs(results, work)
    record = {
        "command": "python -m benchmarks.methods, see its docstring",
        "runs": dict(sorted(runs.items())),
    }
    write_json_file(record, results)
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + tables(runs.values()) + END + rest.split(END, 1)[1], encoding="utf-8")
    print(tables(runs.values()))


def tables(runs: Iterable[Run]) -> str:
    """One table per task: means over the seeds, with the minimum and maximum in brackets."""
    chosen = [run for run in runs if run["is_chosen"]]
    parts = []
    for task, title in TITLES.items():
        by_method: dict[str, list[Run]] = {}
        for run in chosen:
            if run["task"] == task:
                by_method.setdefault(run["method"], []).append(run)
        _check(task, by_method)
        order = [method.name for method in registered() if method.name in by_method]
        usual = _usual_seconds(by_method.get(YARDSTICK, []))
        rows = [_row(name, by_method[name], usual) for name in order]
        if rows:
            parts.append(
                "\n".join([f"**{title}**", "", _line(HEADINGS), "|---" * len(HEADINGS) + "|", *rows])
            )
    return "\n" + "".join(f"{part}\n\n" for part in parts)


def _check(task: str, by_method: dict[str, list[Run]]) -> None:
    """Check that the runs of a table have the same budget and rates, and that no seed counts twice.

    Raises:
        ValueError: They do not, or a seed occurs twice.
    """
    budgets = {json.dumps(run["budget"], sort_keys=True) for runs in by_method.values() for run in runs}
    if len(budgets) > 1:
        raise ValueError(f"the runs of {task} have {len(budgets)} different budgets; remove the older runs")
    for name, runs in by_method.items():
        if len({run["seed"] for run in runs}) < len(runs) or len({run["rate"] for run in runs}) > 1:
            raise ValueError(
                f"the runs of {name} on {task} repeat a seed or differ in rate; remove the older runs"
            )


HEADINGS = (
    "method", "rate", "accuracy, %", "intruders", "effective rank", "size of update, %", "forgetting",
    "time", "trained",
)  # fmt: skip


def _usual_seconds(runs: Iterable[Run]) -> dict[str, float]:
    """Mean seconds of the reference method on each kind of machine."""
    found: dict[str, list[float]] = {}
    for run in _with_figures(runs):
        found.setdefault(_machine(run), []).append(run["seconds"])
    return {machine: statistics.mean(seconds) for machine, seconds in found.items()}


def _with_figures(runs: Iterable[Run]) -> list[Run]:
    return [run for run in runs if run["outcome"] != "diverged"]


def _machine(run: Run) -> str:
    return json.dumps(run["environment"], sort_keys=True)


def _row(name: str, runs: list[Run], usual: dict[str, float]) -> str:
    good = _with_figures(runs)

    def over(places: int, value: Callable[[Run], float | None]) -> str:
        return _spread([v for run in good if (v := value(run)) is not None], places)

    return _line(
        (
            f"[`{name}`](methods/{name}.md)",
            f"{runs[0]['rate']:.2g}",
            over(1, lambda run: 100 * run["accuracy"]) + _remarks(runs),
            over(0, lambda run: run.get("intruders")),
            over(1, lambda run: run.get("effective_rank")),
            over(2, lambda run: _percent(run.get("relative_update_norm"))),
            over(3, lambda run: run["forgetting"]["estimate"]),
            _mean_time([run["seconds"] / usual[_machine(run)] for run in good if _machine(run) in usual]),
            f"{good[0]['num_trained'] / 1000:,.0f} k" if good else "",
        )
    )


def _mean_time(times: list[float]) -> str:
    return f"{statistics.mean(times):.1f}" if times else "—"


def _remarks(runs: list[Run]) -> str:
    """How many seeds are missing, at chance or diverged."""
    counts = Counter(run["outcome"] for run in runs)
    said = [f"{counts[outcome]} {outcome}" for outcome in ("at chance", "diverged") if counts[outcome]]
    if len(runs) < NUM_SEEDS:
        said.append(f"{len(runs)} of {NUM_SEEDS} seeds")
    return f"; {', '.join(said)}" if said else ""


def _spread(values: list[float], places: int) -> str:
    if not values:
        return "—"
    mean, least, most = (
        f"{value:.{places}f}".replace("-", "−")
        for value in (statistics.mean(values), min(values), max(values))
    )
    return mean if least == most else f"{mean} ({least} to {most})"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
