import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "sweep"), str(TESTS / "forgetting"), str(TESTS / "report"), str(TESTS / "cli")]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Folder with a masked ``base``, the ``adapter`` of a classifier, ``text.txt`` and ``task.tsv``."""
    from sweep_models import write_adapter, write_base, write_task, write_text

    folder = tmp_path_factory.mktemp("diagnose")
    write_adapter(folder / "adapter", write_base(folder / "base"), size=0.9)
    write_text(folder / "text.txt")
    write_task(folder / "task.tsv")
    return folder
