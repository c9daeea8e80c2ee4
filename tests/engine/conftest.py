import os
import signal
import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Workers must find engine_functions; so must the inline executor in this process."""
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", HERE + (os.pathsep + inherited if inherited else ""))
    monkeypatch.setattr(sys, "path", [HERE, *sys.path])


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """A shell's background job starts with SIGINT ignored, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
