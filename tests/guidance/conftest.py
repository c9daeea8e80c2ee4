import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "forgetting"), str(HERE.parent / "cli")]


@pytest.fixture(scope="session")
def models():
    """Tiny models with tokenizers of their own, by name; each is made once."""
    import forgetting_models

    return forgetting_models.Made()
