"""Questions in SQL: tables hold what the records hold, nothing can be changed, the page's examples run."""

import json
import re
import time
from pathlib import Path

import pytest
from pretended_runs import pretend
from simulated_runs import CANDIDATES

from intruscope.cli.main import app
from intruscope.errors import IntruscopeError, ResourceExhausted, UsageError
from intruscope.studies import pool
from intruscope.studies.folder import study_records
from intruscope.studies.judge import judge
from intruscope.studies.recipes import places
from intruscope.studies.scales import MINI
from intruscope.studies.tables import COLUMNS, study_tables

pytest.importorskip("duckdb")
from intruscope.report.study_query import MAX_ROWS, answer_table
from intruscope.studies.query import Answer, query, query_json

PAGE = (Path(__file__).parents[2] / "docs" / "study-runs.md").read_text(encoding="utf-8")
RECIPES = ("counts", "interventions", "sequence")


def figures(work):
    rank = dict(work.options).get("rank", 0)
    count = {1: 9, 8: 30, 16: 20, 64: 5}.get(rank, 0) + (work.seed if rank else 0)
    found = {
        "count": count, "counts": {"0.5": count, "0.9": 3 * count}, "counts_by_k": {"1": 0, "10": count},
        "null_count": 1.5, "forgetting": 0.01 * count, "update_norm": 2.0 + rank, "accuracy": 0.75,
        **CANDIDATES,
    }  # fmt: skip
    if getattr(work, "look_every", 0):
        found["looks"] = [{"step": 0, "count": 0, "forgetting": 0.0, "held_out_loss": None}]
    if getattr(work, "interventions", False):
        cell = {"forgetting_share": -0.25, "accuracy_change": -0.004, "change_norm": 1.0}
        found["interventions"] = {"intruders": {"0.7": cell, "0.9": cell}, "uniform": {"0.7": cell}}
    return found


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("query") / "study"
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch).figures = staticmethod(figures)
        pool.run_study(MINI, folder, recipes=RECIPES, seeds=[0, 1])
    return folder


@pytest.fixture(scope="module")
def records(out):
    return study_records(out)[1]


def ask(sql, records):
    return query(sql, "mini", records)


def here(capsys, *arguments):
    app(["study", "query", *map(str, arguments)], standalone_mode=False)
    return capsys.readouterr().out


# --- the tables ------------------------------------------------------------------------------------------


def test_the_tables_hold_what_the_records_hold(records):
    (number,) = ask("SELECT count(*) FROM runs", records).rows[0]
    assert number == len(records)
    key, record = next((k, r) for k, r in records.items() if "interventions" in r)
    columns = "task, method, rank, alpha, rate, seed, count, forgetting, code_sha256, taken_from"
    (row,) = ask(f"SELECT {columns} FROM runs WHERE key = '{key}'", records).rows
    settings = record["settings"]
    wanted = [*(settings[name] for name in ("task", "method")), settings["options"]["rank"],
              settings["options"]["alpha"], settings["rate"], settings["seed"], record["count"],
              record["forgetting"], record["origin"]["code_sha256"], None]  # fmt: skip
    assert row == wanted
    counts = ask(f"SELECT epsilon, k, count FROM counts WHERE key = '{key}' ORDER BY ALL", records).rows
    assert counts == [[0.5, 1, 0], [0.5, 10, record["count"]], [0.9, 10, 3 * record["count"]]]
    cells = ask(f"SELECT control, strength FROM interventions WHERE key = '{key}' ORDER BY ALL", records).rows
    assert cells == [["intruders", 0.7], ["intruders", 0.9], ["uniform", 0.7]]


def test_arms_and_verdicts_are_those_of_the_study(records):
    arms = ask("SELECT recipe, arm, key FROM arms JOIN runs USING (key)", records).rows
    planned = {(p.recipe, p.arm, p.work.key) for p in places(MINI) if p.work.key in records}
    assert {tuple(row) for row in arms} == planned
    verdicts = dict(ask("SELECT claim, verdict FROM verdicts", records).rows)
    judged = judge("mini", records)
    assert verdicts == {each.claim.id: each.verdict and each.verdict.outcome for each in judged}
    assert "holds" in verdicts.values()
    (statement,) = ask("SELECT * FROM statements WHERE claim = 'C1' LIMIT 1", records).rows
    assert len(statement) == len(COLUMNS["statements"])
    chains = ask("SELECT DISTINCT task FROM runs WHERE kind = 'chain'", records).rows
    assert chains == [["qqp-sst2-fever"]]


def test_tables_are_there_before_anything_was_run():
    tables = study_tables("mini", {})
    assert set(tables) == set(COLUMNS)
    assert ask("SELECT count(*) FROM looks", {}).rows == [[0]]
    assert ask("SELECT DISTINCT verdict FROM verdicts", {}).rows == [[None]]


@pytest.mark.parametrize("name", COLUMNS)
def test_the_page_names_every_table(name):
    assert f"| `{name}` | " in PAGE


# --- the examples of the page ----------------------------------------------------------------------------

EXAMPLES = re.findall(r"```sql\n(.*?)```", PAGE, re.S)


def test_the_page_has_three_examples():
    assert len(EXAMPLES) == 3


def test_by_arm(records):
    answer = ask(EXAMPLES[0], records)
    assert list(answer.columns)[:3] == ["task", "method", "rank"]
    found = {(row[0], row[1], row[2]): row for row in answer.rows}
    assert found["sst2", "lora", 8][3:6] == [2, 30.5, 1.5]  # two seeds
    assert found["sst2", "lora", 8][7] == 0.75


def test_correlations(records):
    answer = ask(EXAMPLES[1], records)
    assert {row[1] for row in answer.rows} == {"mnli", "qqp", "sst2", "reference"}
    assert [row[2] for row in answer.rows] == pytest.approx([1.0] * len(answer.rows))
    assert all(-1 < row[3] < 1 for row in answer.rows)


def test_interventions_by_strength(records):
    answer = ask(EXAMPLES[2], records)
    assert answer.columns == ["control", "0.3", "0.5", "0.7", "0.9", "1.5"]
    assert answer.rows == [
        ["intruders", None, None, -0.25, -0.25, None],
        ["uniform", None, None, -0.25, None, None],
    ]


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT ranks FROM runs", 'Referenced column "ranks" not found'),
        ("SELECT * FROM run", "Table with name run does not exist"),
        ("selekt 1", "syntax error"),
        ("", "the statements none"),
        ("SELECT 1; SELECT 2", "the statements SELECT and SELECT"),
        ("DROP TABLE runs", "the statements DROP"),
        ("UPDATE runs SET count = 0", "the statements UPDATE"),
        ("SET threads = 64", "the statements SET"),
        ("COPY runs TO 'FOLDER/stolen.csv'", "the statements COPY"),
        ("SELECT * FROM read_text('FOLDER/own.txt')", "Cannot access file"),
        ("SELECT * FROM 'FOLDER/own.csv'", "Cannot access file"),
        ("SELECT * FROM records", "Table with name records does not exist"),
        ("SELECT 1 / 'a'", "Conversion Error"),
        ("INSERT INTO looks (key) VALUES ('a') RETURNING *", "the statements INSERT"),
        ("WITH n AS (DELETE FROM runs RETURNING *) SELECT * FROM n", "read-only"),
        ("EXPLAIN ANALYZE DELETE FROM runs", "read-only"),
        ("COMMIT", "the statements TRANSACTION"),
    ],
)
def test_a_bad_query_is_told_in_one_line(tmp_path, out, sql, told):
    (tmp_path / "own.txt").write_text("mine")
    (tmp_path / "own.csv").write_text("a\n1\n")
    with pytest.raises(IntruscopeError) as error:
        app(
            ["study", "query", sql.replace("FOLDER", str(tmp_path)), "--out", str(out)], standalone_mode=False
        )
    assert error.value.exit_code == 2
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert "the tables are runs, counts" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.csv", "own.txt"]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM runs a, runs b, runs c, runs d, runs e, runs f, runs g, runs h",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        "SELECT sum(len(range(30000000))) FROM range(1000000)",  # one call takes long, and is not interrupted
    ],
)
def test_a_query_without_end_is_ended(records, sql):
    started = time.monotonic()
    with pytest.raises(ResourceExhausted, match=r"longer than 0\.5 s; select fewer rows|GiB of memory"):
        query(sql, "mini", records, seconds=0.5)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT list(repeat('a', 1000) || range) FROM range(10000000)", "more than 1 GiB of memory"),
        ("SELECT * FROM range(100000000)", "more than 1,000,000 rows; add a LIMIT"),
    ],
)
def test_a_query_beyond_all_memory_is_ended(records, sql, told):
    with pytest.raises(ResourceExhausted, match=told):
        ask(sql, records)


def test_without_a_study_the_question_has_nobody_to_ask(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="the folder does not hold a study"):
        app(["study", "query", "SELECT 1", "--out", str(tmp_path)], standalone_mode=False)
    with pytest.raises(UsageError, match="--scale and --out exclude each other"):
        app(["study", "query", "SELECT 1", "--scale", "midi", "--out", str(tmp_path)], standalone_mode=False)
    with pytest.raises(UsageError, match="no results at the scale smoke ship with this version"):
        app(["study", "query", "SELECT 1", "--scale", "smoke"], standalone_mode=False)
    monkeypatch.setattr("intruscope.studies.judge.committed", lambda **_: None)
    with pytest.raises(UsageError, match="no results ship with this version"):
        app(["study", "query", "SELECT 1"], standalone_mode=False)


def test_the_results_of_either_scale_are_asked_by_name(capsys):
    for scale, base in (("mini", "minilm-mlm"), ("midi", "wide")):
        told = here(capsys, "SELECT base, count(*) AS runs FROM runs GROUP BY ALL", "--scale", scale)
        assert base in told
    assert "wide" in here(capsys, "SELECT DISTINCT base FROM runs", "--scale", "midi")
    assert "wide" not in here(capsys, "SELECT DISTINCT base FROM runs")


# --- what is shown ---------------------------------------------------------------------------------------


def test_the_answer_as_a_table_and_as_json(out, capsys, tmp_path):
    sql = "SELECT method, avg(count) AS mean FROM runs WHERE method = 'full' GROUP BY ALL"
    shown = here(capsys, sql, "--out", out)
    assert re.search(r"method +mean", shown)
    assert re.search(r"full +0", shown)
    said = json.loads(here(capsys, sql, "--out", out, "--json", "-"))
    assert said == {
        "schema": "intruscope.study.query/1",
        "query": sql,
        "columns": ["method", "mean"],
        "rows": [["full", 0.0]],
    }
    here(capsys, sql, "--out", out, "--json", tmp_path / "answer.json")
    assert json.loads((tmp_path / "answer.json").read_bytes()) == said


def test_values_of_every_kind_become_plain_data(records):
    answer = ask(
        "SELECT 'nan'::DOUBLE, 1.5::DECIMAL(4, 1), DATE '2026-01-02', [1.5, 'inf'::DOUBLE], {'a': 1}, NULL, "
        "true, sum(seed), uuid() IS NULL FROM runs",
        records,
    )
    assert answer.rows[0][:7] == [None, 1.5, "2026-01-02", [1.5, None], {"a": 1}, None, True]
    assert isinstance(answer.rows[0][7], int)
    json.dumps(query_json("", answer), allow_nan=False)


def test_foreign_names_and_very_many_rows_do_not_break_the_screen(capsys):
    from rich.console import Console

    rows = [["[red]\x1b[31m", number] for number in range(MAX_ROWS + 5)]
    Console(width=80).print(answer_table(Answer(columns=["[b]", "n"], rows=rows)))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[red]\\x1b[31m" in shown
    assert "and 5 more rows" in shown
    assert str(MAX_ROWS) not in shown.replace("and 5 more rows", "")
