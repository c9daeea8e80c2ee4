import pytest
from extract_models import Pair


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Pairs by name, each made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Pair(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get
