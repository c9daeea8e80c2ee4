"""A chain that is killed, wherever, and run again ends bit for bit as one that was left alone."""

import json
from pathlib import Path

import pytest
import torch
from chain_killed import run, tasks
from safetensors.torch import load_file
from sequence_models import settings, write_base

from intruscope.errors import OutputConflict
from intruscope.sequence.chain import chain

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def without_seconds(file):
    found = json.loads(file.read_text())
    for stage in found["stages"]:
        assert stage.pop("train_seconds") >= 0.0
    return found


@pytest.mark.slow
def test_a_chain_killed_at_every_kind_of_moment_ends_as_if_it_had_not_been(commands, tmp_path):
    write_base(tmp_path / "base")
    (tmp_path / "text.txt").write_text("\n".join(text for text, _ in tasks()[0].train.texts) + "\n")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(tmp_path, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    script, file = Path(__file__).with_name("chain_killed.py"), tmp_path / "places"
    done = commands.run(tmp_path, tmp_path / "killed", file, script=script)
    assert done.is_well, done.stderr[-2000:]
    places = file.read_text().splitlines()
    assert len(places) > 10, places
    for kind in ("scored/", "checkpoint-", "encoder.layer"):  # scoring, training, scanning
        assert any(kind in place for place in places), (kind, places)
    whole, killed = (without_seconds(tmp_path / name / "chain.json") for name in ("whole", "killed"))
    assert whole == killed
    first, second = (
        load_file(tmp_path / name / whole["model"] / "model.safetensors") for name in ("whole", "killed")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    left = [path.name for path in (tmp_path / "killed").rglob("*.tmp")]
    assert not left
    names = [sorted(str(p.relative_to(tmp_path / each)) for p in (tmp_path / each).rglob("*"))
             for each in ("whole", "killed")]  # fmt: skip
    assert names[0] == names[1]


def test_another_chain_in_the_folder_of_an_interrupted_one_is_refused(tmp_path, monkeypatch):
    base = str(write_base(tmp_path / "base"))

    class Stopped(Exception):
        pass

    def stop(*_, **__):
        raise Stopped

    monkeypatch.setattr("intruscope.sequence.chain.tune", stop)
    with pytest.raises(Stopped):
        chain(base, tasks=tasks(), out=tmp_path / "out", settings=settings())
    assert (tmp_path / "out" / "journal" / "records.jsonl").exists()
    with pytest.raises(OutputConflict, match="rate"):
        chain(base, tasks=tasks(), out=tmp_path / "out", settings=settings(rate=1e-4))
    with pytest.raises(OutputConflict, match="tasks"):
        chain(base, tasks=tasks()[::-1], out=tmp_path / "out", settings=settings())
