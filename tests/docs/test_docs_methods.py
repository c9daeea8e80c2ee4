"""The pages of the methods are what their descriptions say; run as a script, this writes them."""

from pathlib import Path

import pytest

from intruscope.methods import registered
from intruscope.report.methods import method_page, methods_index

DOCS = Path(__file__).parents[2] / "docs"
MARK = "<!-- the table is made by tests/docs/test_docs_methods.py -->\n\n"


@pytest.mark.parametrize("method", registered(), ids=lambda method: method.name)
def test_each_page_is_made_from_the_docstring(method):
    """After a change: python tests/docs/test_docs_methods.py writes the pages again."""
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


def test_what_the_page_says_of_conv1d_is_what_is_declared():
    page = " ".join((DOCS / "methods.md").read_text(encoding="utf-8").split())
    refused = [method.title for method in registered() if "conv1d" not in method.layers]
    assert f"refused by name: {', '.join(refused[:-1])} and {refused[-1]}." in page


if __name__ == "__main__":
    folder = DOCS / "methods"
    folder.mkdir(exist_ok=True)
    for made in registered():
        (folder / f"{made.name}.md").write_text(method_page(made), encoding="utf-8")
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    (DOCS / "methods.md").write_text(
        text.split(MARK)[0] + MARK + methods_index(registered()), encoding="utf-8"
    )
