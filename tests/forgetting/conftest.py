import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def models():
    """Tiny models with tokenizers of their own, by name; each is made once."""
    import forgetting_models

    return forgetting_models.Made()
