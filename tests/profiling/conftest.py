import os
import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Processes of settings must find profiling_workers."""
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", HERE + (os.pathsep + inherited if inherited else ""))
