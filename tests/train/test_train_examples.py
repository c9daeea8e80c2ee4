"""The examples run, and leave what their last line says."""

import importlib.util
from pathlib import Path

import pytest
from tune_models import write_llama, write_text

from intruscope.train.look_file import read_looks

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["watch_trainer.py", "watch_sft.py"])
def test_an_example_watches_its_run(name, commands, tmp_path, monkeypatch):
    if name == "watch_sft.py" and importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed")
    base, text = write_llama(tmp_path / "base"), write_text(tmp_path / "text.txt")
    arguments = [base, text, tmp_path / "run", "--steps", "4", "--every", "2"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = commands.run(*arguments, script=EXAMPLES / name)
    assert done.is_well, done.stderr[-3000:]
    folder = tmp_path / "run" / "intruders"
    assert str(folder) in done.stdout
    header, looks = read_looks(folder / "looks.jsonl")
    assert [look.step for look in looks] == [0, 2, 4]
    assert len(header["matrices"]) == 7
    assert (folder / "intruders.svg").exists() == any(look.intruders for look in looks)
    assert "intruders/count" in done.stdout + done.stderr
