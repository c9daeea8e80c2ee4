"""Claim: `verify` judges every planted merge of the tests right, and a peer, deltalint, does not.

The cases are those of ``tests/verify/test_verify_planted.py``: merges that are right or wrong in one known
way. deltalint (Apache-2.0) takes one adapter, so cases with several are left out for it. What it says is
*right* if its exit code is 0 for a right merge and 1 for a wrong one, *undecided* if it is 2 (cannot read)
or 3 (inconclusive), and *wrong* otherwise. It looks at the matrices that the adapter should have changed.
Cases in which only another tensor changed are outside its purpose, and are counted apart.

Install it beside the project to run this: ``pip install deltalint``.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import tempfile
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import transformers

from benchmarks.common import publish

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "verify"))

from test_verify_planted import CASES, exit_code
from verify_models import INLINE, Merge, build

from intruscope.verify import verify


def main() -> None:
    from deltalint.cli import main as deltalint

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    counts: dict[str, Counter[str]] = {"intruscope": Counter(), "deltalint": Counter()}
    differs: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        builds = functools.cache(lambda *what: _built(root / f"built{hash(what)}", what))
        for number, (name, (what, base_dtype, dtype, plant, verdict, _, code)) in enumerate(CASES.items()):
            merge = Merge(built=builds(*what), base_dtype=base_dtype, dtype=dtype)
            plant(merge)
            (root / str(number)).mkdir()
            base, adapters, merged = merge.write(root / str(number))
            report = verify(base, adapters, merged, weights=merge.weights, options=INLINE)
            right = (report.verdict, exit_code(report)) == (verdict, code)
            counts["intruscope"]["right" if right else "wrong"] += 1
            if len(adapters) > 1:
                counts["deltalint"]["several adapters"] += 1
                continue
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                found = deltalint(["check", "--base", base, "--adapter", adapters[0], "--merged", merged])
            judged = _judged(int(found or 0), verdict, code)
            counts["deltalint"][judged] += 1
            if judged != "right":
                differs[name] = f"{judged}: exit code {found} where ours is {code} ({verdict})"
    publish(
        "verify_peer",
        {
            "cases": len(CASES),
            **{tool: dict(sorted(count.items())) for tool, count in counts.items()},
            "deltalint_version": version("deltalint"),
            "deltalint_differs": differs,
        },
    )


def _built(folder: Path, what: tuple[object, ...]) -> object:
    folder.mkdir()
    return build(what[0], folder, *what[1:])


def _judged(found: int, verdict: str, code: int) -> str:
    """What an exit code of deltalint is worth where ours is known to be right."""
    if found in (2, 3):
        return "right" if verdict == "open" and found == 3 else "undecided"
    if code == 1 and verdict == "applied":
        return "another tensor changed"
    expected = 0 if verdict == "applied" else 1
    return "right" if found == expected else "wrong"


if __name__ == "__main__":
    main()
