import sys
from pathlib import Path

import pytest

for folder in ("sweep", "forgetting"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


@pytest.fixture(scope="session")
def causal(tmp_path_factory):
    """Folders with ``base`` and ``tuned``, by the kind of fine-tune."""
    from fitting_pairs import write_causal

    found = {}
    for kind in ("lora", "full"):
        found[kind] = tmp_path_factory.mktemp(kind)
        write_causal(found[kind], kind=kind)
    return found


@pytest.fixture(scope="session")
def masked(tmp_path_factory):
    """A folder with ``base``, ``adapter`` (intruders), ``text.txt`` and ``task.tsv``."""
    from sweep_models import write_adapter, write_base, write_task, write_text

    folder = tmp_path_factory.mktemp("masked")
    write_adapter(folder / "adapter", write_base(folder / "base"), size=0.9)
    write_text(folder / "text.txt", num_lines=60)
    write_task(folder / "task.tsv", num_rows=60)
    return folder
