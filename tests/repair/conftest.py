import pytest
from repair_models import bases, factors, write_adapter, write_checkpoint

from intruscope.engine.settings import RunOptions
from intruscope.repair.survey import survey

INLINE = RunOptions(workers=0)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder with ``base``, ``adapter`` and ``merged`` (the same update as a full checkpoint)."""
    folder = tmp_path_factory.mktemp("repair")
    base, adapter = bases(), factors()
    write_checkpoint(folder / "base", base)
    write_adapter(folder / "adapter", adapter)
    from repair_models import SHAPES, truth

    merged = dict(base)
    for name in SHAPES:
        before, update = truth(name, base, adapter)
        merged[f"{name}.weight"] = (before + update).float()
    merged["model.embed_tokens.weight"] = base["model.embed_tokens.weight"] * 1.5
    merged["model.norm.weight"] = base["model.norm.weight"] * 0.9
    write_checkpoint(folder / "merged", merged)
    return folder


@pytest.fixture(scope="session")
def found(models):
    return survey(str(models / "base"), str(models / "adapter"), options=INLINE)


@pytest.fixture(scope="session")
def found_full(models):
    return survey(str(models / "base"), str(models / "merged"), options=INLINE, update_spectra=True)
