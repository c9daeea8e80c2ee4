"""The page on the library holds every exported name, with the first sentence of its docstring.

After a deliberate change: python tests/docs/test_docs_api.py rewrites the tables.
"""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import intruscope
from intruscope.spectra import totals
from intruscope.spectra.gates import METRICS
from intruscope.spectra.vectors import COLUMNS

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
_BLOCK = re.compile(r"(<!-- (names|fields|columns|metrics)(?:: ([\w.]+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def first_sentence(thing):
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.])\s", text + " ")[0].rstrip(":. ")
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", sentence).replace("``", "`").replace("|", "\\|")


def names(package):
    module = intruscope if package == "intruscope" else intruscope.linalg
    rows = ["| name | what it is |", "|---|---|"]
    for name in module.__all__:
        given = getattr(module, name)
        verb = getattr(given, name, given) if inspect.ismodule(given) else given
        call = f"{name}(...)" if callable(verb) and not inspect.isclass(verb) else name
        rows.append(f"| `{call}` | {first_sentence(verb)} |")
    return rows


def attributes(kind):
    """The fields of a record with what its docstring says of each."""
    text = inspect.getdoc(getattr(totals, kind)).split("Attributes:\n")[1]
    said = {}
    for part in re.split(r"\n(?=    \S)", text.rstrip()):
        given, _, meaning = " ".join(part.split()).partition(": ")
        for name in given.split(", "):
            said[name] = meaning.rstrip(".").replace("``", "`")
    rows = ["| field | what it is |", "|---|---|"]
    return rows + [f"| `{field.name}` | {said[field.name]} |" for field in fields(getattr(totals, kind))]


def page():
    made = {
        "names": names,
        "fields": attributes,
        "columns": lambda _: [", ".join(f"`{name}`" for name in COLUMNS) + "."],
        "metrics": lambda _: (
            ["| metric | what it is |", "|---|---|"]
            + [f"| `{name}` | {meaning} |" for name, (meaning, _) in METRICS.items()]
        ),
    }

    def filled(found):
        return found[1] + "\n".join(made[found[2]](found[3])) + "\n" + found[4]

    return _BLOCK.sub(filled, PAGE.read_text(encoding="utf-8"))


def test_the_tables_are_those_of_the_code():
    assert page() == PAGE.read_text(encoding="utf-8"), "run python tests/docs/test_docs_api.py"
    for name in (*intruscope.__all__, *intruscope.linalg.__all__):
        assert re.search(rf"\| `{name}(\(\.\.\.\))?` \| \w", page()), name


def test_its_code_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(code, names)
    assert names["found"].is_intruder().tolist()[0] is True


def test_every_report_offers_what_the_page_says():
    for report in (intruscope.ScanReport, intruscope.ForgettingReport, intruscope.SweepReport):
        for method in ("save", "load", "to_json", "from_json", "to_pandas", "to_arrow", "_repr_html_"):
            assert callable(getattr(report, method))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
