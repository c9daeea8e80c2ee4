"""Shared by all tests: the one oracle is importable, and nothing is written to the user's cache."""

import functools
import gc
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

# Before torch loads its OpenMP runtime, here and in the commands that tests start: threads that spin while
# they wait slow each other down tenfold where several processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads always spin
sys.path.insert(0, str(Path(__file__).parent / "linalg"))


def pytest_collection_modifyitems(items):
    """Files with slow tests first, then those with many: workers take whole files and should end together."""
    files = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: (item.path not in slow, -files[item.path]))


def pytest_configure():
    """PEFT fills in a page of text whenever it saves an adapter: its template is compiled once for all."""
    import jinja2

    jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)


def pytest_collection_finish():
    """Imported modules are no garbage: the collection at each Trainer's start would go through them."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("INTRUSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def inline(monkeypatch):
    """Matrices are computed in this process, for tests that do not ask about the workers."""
    _compute_inline(monkeypatch)


@pytest.fixture(scope="module")
def inline_module():
    """The same for the fixtures of a module."""
    with pytest.MonkeyPatch.context() as patch:
        _compute_inline(patch)
        yield


def _compute_inline(patch):
    from intruscope.engine.executors import InlineExecutor

    for place in ("spectra.scan", "repair.survey", "extract.measure", "verify.run", "compare.run"):
        patch.setattr(
            f"intruscope.{place}.executor_for", lambda function, settings, options: InlineExecutor(function)
        )


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    """Starts commands in forks of one process that has the libraries."""
    from commands import Commands

    with Commands(tmp_path_factory.mktemp("commands")) as commands:
        yield commands


@pytest.fixture(scope="session")
def real_data():
    """The real models, adapters and texts beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data is not here (../shared/data)")
    return folder
