"""The notebooks in examples/ run from top to bottom, offline, and show what they say they do."""

import ast
import json
import os
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def executed(name, folder, monkeypatch):
    """Run a notebook's cells one after another.

    Returns:
        Its names, and what its cells show as their last value.
    """
    import matplotlib as mpl

    monkeypatch.chdir(folder)
    mpl.use("Agg")
    names, shown = {}, []
    for cell in json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "notebooks are committed without outputs"
            body = ast.parse("".join(cell["source"]).removesuffix(";")).body
            last = body.pop() if isinstance(body[-1], ast.Expr) else None
            exec(compile(ast.Module(body, []), name, "exec"), names)
            if last is not None:
                shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))
    return names, shown


def test_the_researchers_notebook(tmp_path, monkeypatch):
    names, _ = executed("researcher.ipynb", tmp_path, monkeypatch)
    assert names["counts"]["along the base"] == 0
    assert names["counts"]["random"] >= 2
    assert min(names["trials"]) <= names["counts"]["random"] <= max(names["trials"])
    totals = names["report"].totals
    assert len(names["frame"]) == totals.num_vectors == 160
    assert names["by_kind"]["sum"].sum() == totals.num_intruders > 0
    # The LoRA's directions are random, so chance is the truth.
    assert totals.chance.low - 3 <= totals.num_intruders <= totals.chance.high + 3


@pytest.mark.filterwarnings("ignore")
def test_the_practitioners_notebook(tmp_path, monkeypatch):
    names, shown = executed("practitioner.ipynb", tmp_path, monkeypatch)
    report, forgetting = names["report"], names["forgetting"]
    assert report in shown
    assert forgetting in shown
    assert report.totals.num_intruders > 0
    assert "by chance" in report._repr_html_()
    assert forgetting.forgetting.low > 0
    assert names["after"].forgetting.estimate < forgetting.forgetting.estimate
    assert os.listdir(tmp_path / "repaired")
