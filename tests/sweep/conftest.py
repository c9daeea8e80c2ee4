import pytest
from sweep_models import write_adapter, write_base, write_task, write_text


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Folder with ``base``, ``adapter`` (intruders), ``mild`` (none), ``text.txt`` and ``task.tsv``."""
    folder = tmp_path_factory.mktemp("sweep")
    base = write_base(folder / "base")
    write_adapter(folder / "adapter", base, size=0.9)
    write_adapter(folder / "mild", base, size=0.001)
    write_text(folder / "text.txt")
    write_task(folder / "task.tsv")
    return folder
