"""The pages of the methods match their docstrings; run as a script, this file rewrites them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from intruscope.methods import registered
from intruscope.report.methods import method_page, methods_index

DOCS = Path(__file__).parents[2] / "docs"
MARK = "<!-- the table is made by tests/docs/test_docs_methods.py -->\n\n"


@pytest.mark.parametrize("method", registered(), ids=lambda method: method.name)
def test_each_page_is_made_from_the_docstring(method):
    """After a change, run python tests/docs/test_docs_methods.py to rewrite the pages."""
    page = (DOCS / "methods" / f"{method.name}.md").read_text(encoding="utf-8")
    assert page == method_page(method)
    for parameter in method.parameters:
        assert f"| `{parameter.name}` |" in page


def test_there_is_a_page_for_every_method_and_no_other():
    assert {path.stem for path in (DOCS / "methods").iterdir()} == {method.name for method in registered()}


def test_the_table_lists_every_method():
    before, table = (DOCS / "methods.md").read_text(encoding="utf-8").split(MARK)
    assert table == methods_index(registered())
    assert "Which method should I use?" in before


def test_the_page_names_the_methods_that_refuse_conv1d():
    page = " ".join((DOCS / "methods.md").read_text(encoding="utf-8").split())
    refused = [method.title for method in registered() if "conv1d" not in method.layers]
    assert f"refused by name: {', '.join(refused[:-1])} and {refused[-1]}." in page


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(DOCS.parent))
    try:
        from benchmarks import methods, methods_rates, methods_table
    finally:
        sys.path.remove(str(DOCS.parent))
    return SimpleNamespace(runs=methods, rates=methods_rates, table=methods_table)


def test_the_measured_table_is_the_published_one(benchmark):
    results = DOCS.parent / "benchmarks" / "results" / "methods.json"
    runs = json.loads(results.read_text(encoding="utf-8"))["runs"] if results.exists() else {}
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    begin, end = benchmark.table.BEGIN, benchmark.table.END
    assert page.split(begin)[1].split(end)[0] == benchmark.table.tables(runs.values())


def test_the_page_states_the_budget_that_was_used(benchmark):
    page = " ".join((DOCS / "methods.md").read_text(encoding="utf-8").split())
    for title, task in (("SST-2", "sst2"), ("MNLI", "mnli")):
        budget = benchmark.runs.BUDGETS[task]
        assert f"trained once over {budget.examples:,} examples" in page
        steps = budget.examples // budget.batch
        assert f"{title} in {steps} " in page and f" of {budget.batch}, " in page
        assert f"up to {budget.max_length} tokens" in page
    assert f"(on MNLI {benchmark.runs.BUDGETS['mnli'].rate_times:g} of it)" in page
    assert f"on {benchmark.runs.NUM_SEQUENCES} sequences" in page
    assert f"({benchmark.runs.CHANCE_Z} standard errors)" in page
    assert len(benchmark.runs.SEEDS) == benchmark.table.NUM_SEEDS == 3 and "Three seeds" in page
    trained = {method.name for method in registered() if "no_training" not in method.departures}
    assert set(benchmark.rates.CANDIDATES) == trained


def run_of(method, seed, **figures):
    """A run as the benchmark stores it."""
    usual = {
        "method": method, "task": "sst2", "seed": seed, "rate": 1e-3, "budget": {"examples": 8},
        "is_chosen": True, "outcome": "trained", "accuracy": 0.8, "intruders": 3, "effective_rank": 5.0,
        "relative_update_norm": 0.02, "forgetting": {"estimate": 0.1}, "seconds": 40.0, "num_trained": 1000,
        "environment": {"avx512": False},
    }  # fmt: skip
    return usual | figures


def test_the_table_has_means_ranges_and_failed_runs(benchmark):
    diverged = dict.fromkeys(("accuracy", "forgetting", "seconds", "num_trained"))
    runs = [
        run_of("lora", 0),
        run_of("lora", 1, accuracy=0.5, outcome="at chance", intruders=6, forgetting={"estimate": -0.2}),
        run_of("lora", 2, outcome="diverged", **diverged),
        run_of("lora", 0, rate=9.0, is_chosen=False, accuracy=0.99),
        run_of("full", 1),
    ]
    *_, full, lora = benchmark.table.tables(runs).strip().splitlines()
    assert full.startswith(
        "| [`full`](methods/full.md) | 0.001 | 80.0; 1 of 3 seeds | 3 | 5.0 | 2.00 | 0.100 |"
    )
    cells = [cell.strip() for cell in lora.strip("|").split("|")]
    assert cells[2] == "65.0 (50.0 to 80.0); 1 at chance, 1 diverged"
    assert cells[3] == "4 (3 to 6)" and cells[6] == "−0.050 (−0.200 to 0.100)"
    for wrong in (run_of("lora", 0, rate=2e-3), run_of("lora", 4, budget={"examples": 9})):
        with pytest.raises(ValueError, match="remove the older runs"):
            benchmark.table.tables([*runs, wrong])


def test_times_are_relative_to_lora_on_the_same_kind_of_machine(benchmark):
    fast, unknown = {"environment": {"avx512": True}}, {"environment": {"cores": 64}}
    runs = [
        run_of("lora", 0),
        run_of("lora", 1, seconds=60.0),
        run_of("lora", 2, seconds=10.0, **fast),
        run_of("full", 0, seconds=100.0),
        run_of("full", 1, seconds=40.0, **fast),
        run_of("full", 2, seconds=1.0, **unknown),
        run_of("rslora", 0, seconds=1.0, **unknown),
    ]
    times = [line.split("|")[-3].strip() for line in benchmark.table.tables(runs).strip().splitlines()[4:]]
    assert times == ["3.0", "1.0", "—"]


def test_finished_runs_are_not_made_again_and_one_rate_is_chosen(benchmark, tmp_path, monkeypatch):
    made = []

    def train(case, _place, folder):
        made.append((case.task, case.seed, case.rate))
        (folder / "model").mkdir(parents=True)
        if case.rate == 2e-3 and case.seed == 1:
            return {"outcome": "diverged"}
        return {"outcome": "trained", "loss": 1.0 - 10.0 * case.rate, "accuracy": 0.8}

    monkeypatch.setattr(benchmark.runs, "train", train)
    monkeypatch.setattr(benchmark.runs.Measuring, "__call__", lambda *_: {"forgetting": {"estimate": 0.1}})
    place = benchmark.runs.Place(base=tmp_path, tasks=tmp_path, text=tmp_path, work=tmp_path)
    results = tmp_path / "published" / "methods.json"
    runs = benchmark.runs.Runs(place, results)
    low, high = benchmark.rates.CANDIDATES["lora"].rates
    runs.make("lora", "mnli", 0)
    assert made == [("sst2", 0, low), ("sst2", 0, high), ("mnli", 0, pytest.approx(0.7 * high))]
    runs.make("lora", "sst2", 1)
    known = benchmark.table.known_runs(results, tmp_path)
    assert [run["outcome"] for run in known.values() if run["seed"] == 1] == ["diverged"]
    for task, seed in (("mnli", 0), ("sst2", 1)):
        benchmark.runs.Runs(place, results).make("lora", task, seed)
    assert len(made) == 4
    benchmark.runs.Runs(place, results).make("lora", "sst2", 0)  # chosen, but its model is gone: made again
    assert made[4:] == [("sst2", 0, high)]
    assert {run["rate"] for run in known.values() if run["is_chosen"]} == {0.7 * high, high}


if __name__ == "__main__":
    folder = DOCS / "methods"
    folder.mkdir(exist_ok=True)
    for made in registered():
        (folder / f"{made.name}.md").write_text(method_page(made), encoding="utf-8")
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    (DOCS / "methods.md").write_text(
        text.split(MARK)[0] + MARK + methods_index(registered()), encoding="utf-8"
    )
