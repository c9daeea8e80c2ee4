"""Whole folders or none: what stands in the way of writing, and inputs that stay untouched."""

import os
import shutil

import pytest
from repair_models import digests, plan_of

from intruscope.errors import MalformedInput, OutputConflict, ResourceExhausted, UsageError
from intruscope.repair.plan import repair


@pytest.mark.parametrize("strength", [float("nan"), -0.5, float("inf")])
def test_a_strength_without_meaning_is_refused_before_anything_is_read(strength):
    with pytest.raises(UsageError, match="at least 0"):
        repair("nowhere/at-all", strength=strength)


@pytest.mark.parametrize("rank", [0, -3, True, "most"])
def test_a_rank_without_meaning_is_refused(models, rank):
    with pytest.raises(UsageError, match="must be exact, same or a positive number"):
        plan_of(models, rank=rank)
    with pytest.raises(UsageError, match="leave out one of the two"):
        plan_of(models, rank="same", compact=True)


def test_outputs_in_inputs_and_over_others_are_refused(models, tmp_path):
    plan = plan_of(models)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = digests(models)
    places = [models / "adapter", models / "base" / "out", tmp_path / "full", tmp_path / "file"]
    for place in [*places, tmp_path / "missing" / "out"]:
        with pytest.raises(OutputConflict):
            plan.apply(place)
        with pytest.raises(OutputConflict):
            plan_of(models, out=place)
    assert digests(models) == before
    assert (tmp_path / "full" / "x").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert plan.apply(tmp_path / "empty") == tmp_path / "empty"


@pytest.mark.parametrize(
    ("error", "kind"), [(28, ResourceExhausted), (13, OutputConflict), (122, ResourceExhausted)]
)
def test_a_disk_that_refuses_leaves_nothing_and_the_inputs_whole(models, tmp_path, monkeypatch, error, kind):
    from intruscope.weights.written import HashedFile

    write, written = HashedFile.write, []

    def full(self, data):
        written.append(len(data))
        if sum(written) > 5000:
            raise OSError(error, os.strerror(error))
        write(self, data)

    monkeypatch.setattr(HashedFile, "write", full)
    before = digests(models)
    with pytest.raises(kind):
        plan_of(models).apply(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert digests(models) == before


def test_too_little_room_is_said_before_writing(models, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ResourceExhausted, match="are free"):
        plan_of(models).apply(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_changes_after_the_plan_is_noticed(models, tmp_path):
    for name in ("base", "adapter", "merged"):
        shutil.copytree(models / name, tmp_path / name)
    for tuned, file in (("adapter", "adapter_model.safetensors"), ("merged", "model.safetensors")):
        plan = plan_of(tmp_path, tuned)
        data = bytearray((tmp_path / tuned / file).read_bytes())
        data[-1] ^= 1
        (tmp_path / tuned / file).write_bytes(data)
        with pytest.raises(MalformedInput, match="changed"):
            plan.apply(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_of_two_repairs_to_one_place_one_wins(models, tmp_path):
    plan = plan_of(models)
    out = tmp_path / "out"

    def another(_):
        if not out.exists():
            out.mkdir()
            (out / "theirs").write_text("first")

    with pytest.raises(OutputConflict, match="another run"):
        plan.apply(out, on_progress=another)
    assert [entry.name for entry in out.iterdir()] == ["theirs"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_repair_that_is_stopped_leaves_nothing(models, tmp_path):
    class Stopped(BaseException):
        pass

    def stop(event):
        assert 0 < event.done <= event.total
        assert [entry.name.startswith(".out.") for entry in tmp_path.iterdir()] == [True]
        raise Stopped

    with pytest.raises(Stopped):
        plan_of(models, "merged").apply(tmp_path / "out", on_progress=stop)
    assert list(tmp_path.iterdir()) == []
