import signal

import pytest
from cli_support import fingerprint, matrices, run, write_model

SETTINGS = ["--side", "both", "--null", "2", "--maps", "4"]


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """A shell's background job starts with SIGINT ignored, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Three layers; each gets one planted direction."""
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "base", matrices(3)), write_model(folder / "tuned", matrices(3, change=1.0))


@pytest.fixture(scope="session")
def scanned(models, tmp_path_factory):
    """One whole scan with its outputs; ``again`` are arguments that resume it and compute nothing."""

    class Scanned:
        folder = tmp_path_factory.mktemp("scanned")
        json = folder / "a.json"
        again = ("scan", *models, *SETTINGS, "--workers", "1", "--work", folder / "work")
        inputs = fingerprint(models[0].parent)
        done = run(*again, "--json", json, "--csv", folder / "a.csv", "--parquet", folder / "a.parquet")

    return Scanned
