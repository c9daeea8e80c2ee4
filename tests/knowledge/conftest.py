import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Planted models on disk with their facts; no test may change them."""
    from knowledge_models import KINDS, fact, names, save, write_facts

    folder = save(tmp_path_factory.mktemp("planted"))
    facts = [
        fact(name, trained=kind == "new" and place < 12)
        for kind in KINDS
        for place, name in enumerate(names(kind))
    ]
    write_facts(folder / "facts.jsonl", facts)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield folder
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
