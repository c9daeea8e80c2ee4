"""What the watch sees is what a scan of the saved state finds, and the training does not feel it."""

import json

import pytest
import torch
from train_models import gpt2, llama, trainer, with_lora
from transformers import TrainerCallback

import intruscope
from intruscope.errors import OutputConflict, UsageError
from intruscope.train import IntruderWatch
from intruscope.train.look_file import read_looks

# PEFT still asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
KINDS = {
    "full": (llama, lambda model: model, {"learning_rate": 3e-3}),
    "lora": (llama, with_lora, {"gradient_accumulation_steps": 2}),
    "dora": (llama, lambda model: with_lora(model, use_dora=True), {}),
    "conv1d": (gpt2, lambda model: with_lora(model, targets=["c_attn", "c_fc"], fan_in_fan_out=True), {}),
}


def prepared(kind, folder):
    build, attach, options = KINDS[kind]
    model = build()
    base = folder / "base"
    model.save_pretrained(base)
    return attach(model), base, options


def scanned(base, tuned, k=10):
    settings = intruscope.ScanSettings(k=k)
    report = intruscope.scan(
        str(base), str(tuned), settings=settings, options=intruscope.RunOptions(workers=0)
    )
    return {matrix.name: matrix for matrix in report.matrices if matrix.scope == "paper"}


def assert_equals_scan(look, found):
    """Verdict for verdict; values to a part in ten thousand; bounds that hold for the same truth."""
    assert {matrix.name for matrix in look.matrices} <= set(found)
    for matrix in look.matrices:
        side = found[matrix.name].sides[0]
        assert tuple(v.verdict for v in matrix.vectors) == side.verdicts, matrix.name
        values = [v.singular_value for v in matrix.vectors]
        assert values == pytest.approx(found[matrix.name].singular_values, rel=1e-4)
        for vector, low, high in zip(matrix.vectors, side.alignment_lower, side.alignment_upper, strict=True):
            assert vector.alignment_lower <= high + 1e-6 and low <= vector.alignment_upper + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_look_equals_a_scan_of_the_checkpoint(kind, tmp_path):
    model, base, options = prepared(kind, tmp_path)
    run = trainer(model, tmp_path / "run", **options)
    watch = IntruderWatch(run, every=4)
    run.add_callback(watch)
    run.train()
    assert [look.step for look in watch.looks] == [0, 4, 8, 12]
    assert not watch.looks[0].intruders
    for look in watch.looks[1:]:
        assert_equals_scan(look, scanned(base, tmp_path / "run" / f"checkpoint-{look.step}"))
    assert sum(m.how == "warm" for look in watch.looks for m in look.matrices) > len(watch.looks)
    if kind != "full":
        assert watch.looks[-1].intruders
    _, written = read_looks(tmp_path / "run" / "intruders" / "looks.jsonl")
    assert written == watch.looks
    picture = tmp_path / "run" / "intruders" / "intruders.png"
    assert picture.exists() == any(look.intruders for look in watch.looks)
    assert not picture.exists() or picture.stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_training_ends_in_the_same_weights_with_and_without_a_watch(kind, tmp_path):
    ends = []
    for watched in (False, True):
        folder = tmp_path / str(watched)
        model, _, options = prepared(kind, folder)
        run = trainer(model, folder / "run", save_strategy="no", **options)
        if watched:
            run.add_callback(IntruderWatch(run, every=3, pictures=False))
        run.train()
        ends.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert [path.name for path in (tmp_path / "True" / "run" / "intruders").iterdir()] == ["looks.jsonl"]


class Reporter(TrainerCallback):
    """Stands where report_to puts its integrations: before the callbacks of the user."""

    def __init__(self):
        self.logged = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logged.append((state.global_step, dict(logs)))


def test_figures_reach_the_reporters_and_the_log_of_the_trainer_is_kept(tmp_path):
    model, _, _ = prepared("lora", tmp_path)
    reporter = Reporter()
    run = trainer(model, tmp_path / "run", callbacks=[reporter], save_strategy="no")
    watch = IntruderWatch(run, every=5)
    run.add_callback(watch)
    run.train()
    seen = {step: logs for step, logs in reporter.logged if "intruders/count" in logs}
    assert list(seen) == [0, 5, 10, 12]
    assert seen[12]["intruders/count"] == len(watch.looks[-1].intruders) > 0
    assert sum(logs["intruders/born"] for logs in seen.values()) >= seen[12]["intruders/count"]
    assert [step for step, logs in reporter.logged if "loss" in logs] == [5, 10]
    assert sum("intruders/count" in entry for entry in run.state.log_history) == 4


def test_tracks_follow_a_vector_that_turns(tmp_path):
    model, _, _ = prepared("lora", tmp_path)
    run = trainer(model, tmp_path / "run", save_strategy="no")
    watch = IntruderWatch(run, every=1)
    run.add_callback(watch)
    run.train()
    for place in range(len(watch.looks[0].matrices)):
        before = {}
        for look in watch.looks:
            vectors = look.matrices[place].vectors
            assert len({v.track for v in vectors}) == len(vectors)
            for vector in vectors:
                known = before.get(vector.track)
                assert (vector.turned is None) == (known is None)
                if known is not None:
                    assert 0.0 <= vector.turned <= 45.0
                born = vector.verdict == "intruder" and (known is None or known.verdict != "intruder")
                assert vector.born == (born and look.step > 0)
            before = {v.track: v for v in vectors}


def test_a_killed_run_goes_on_where_its_checkpoint_is(tmp_path):
    whole = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        model, base, _ = prepared("lora", folder)
        run = trainer(model, folder / "run", max_steps=12 if name == "whole" else 8)
        run.add_callback(IntruderWatch(run, every=4))
        run.train()
        whole[name] = read_looks(folder / "run" / "intruders" / "looks.jsonl")[1]
    path = tmp_path / "killed" / "run" / "intruders" / "looks.jsonl"
    with path.open("ab") as stream:
        stream.write(b'{"step":8,"cut":')
    model, base, _ = prepared("lora", tmp_path / "killed")
    run = trainer(model, tmp_path / "killed" / "run")
    watch = IntruderWatch(every=4)
    run.add_callback(watch)
    run.train(resume_from_checkpoint=str(tmp_path / "killed" / "run" / "checkpoint-4"))
    looks = read_looks(path)[1]
    assert [look.step for look in looks] == [0, 4, 8, 12]
    assert_equals_scan(looks[-1], scanned(base, tmp_path / "killed" / "run" / "checkpoint-12"))
    tracks = [[v.track for v in m.vectors] for look in looks for m in look.matrices]
    assert tracks == [[v.track for v in m.vectors] for look in whole["whole"] for m in look.matrices]


def test_a_full_run_that_resumes_needs_to_have_seen_its_base(tmp_path):
    model, base, options = prepared("full", tmp_path)
    run = trainer(model, tmp_path / "run", max_steps=4, **options)
    run.train()
    checkpoint = str(tmp_path / "run" / "checkpoint-4")
    late = trainer(llama(), tmp_path / "late", **options)
    late.add_callback(IntruderWatch(every=4))
    with pytest.raises(UsageError, match="base="):
        late.train(resume_from_checkpoint=checkpoint)
    for name, given in (("named", {"base": base}), ("seen", {})):
        run = trainer(llama(), tmp_path / name, **options)
        watch = IntruderWatch(run, every=4, **given)
        run.add_callback(watch)
        run.train(resume_from_checkpoint=checkpoint)
        assert [look.step for look in watch.looks] == [4, 8, 12]
        assert_equals_scan(watch.looks[-1], scanned(base, tmp_path / name / "checkpoint-12"))


def test_it_stops_where_it_is_told_to(tmp_path):
    model, _, _ = prepared("lora", tmp_path)
    run = trainer(model, tmp_path / "run", max_steps=200, save_strategy="no")
    run.add_callback(IntruderWatch(run, every=2, stop_at_intruders=3))
    run.train()
    assert run.state.global_step < 200


def test_what_cannot_be_watched_is_refused_before_the_first_step(tmp_path):
    model = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lm_head" in name)
    run = trainer(model, tmp_path / "run")
    run.add_callback(IntruderWatch())
    with pytest.raises(UsageError, match="no linear layer"):
        run.train()
    assert run.state.global_step == 0
    for wrong in ({"every": 0}, {"k": 0}, {"epsilon": 1.5}, {"stop_at_forgetting": 0.1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            IntruderWatch(**wrong)


def test_the_looks_of_another_run_are_not_written_over(tmp_path):
    file = tmp_path / "run" / "intruders" / "looks.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"schema": "intruscope.watch/1"}) + "\n")
    before = file.read_bytes()
    run = trainer(with_lora(llama()), tmp_path / "run")
    run.add_callback(IntruderWatch(run))
    with pytest.raises(OutputConflict):
        run.train()
    assert file.read_bytes() == before


class MergesAtFour(TrainerCallback):
    """What a chain of adapters does between its links."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 4:
            for module in model.modules():
                if hasattr(module, "lora_B"):
                    with torch.no_grad():
                        module.get_base_layer().weight.data += module.get_delta_weight("default")
                        module.lora_B["default"].weight.zero_()


def test_a_chain_is_seen_against_the_first_base_which_must_be_named(tmp_path):
    for named in (False, True):
        model, base, _ = prepared("lora", tmp_path / str(named))
        run = trainer(model, tmp_path / str(named) / "run", max_steps=8, callbacks=[MergesAtFour()])
        watch = IntruderWatch(run, every=4, base=base if named else None)
        run.add_callback(watch)
        if not named:
            with pytest.raises(UsageError, match="base="):
                run.train()
            continue
        run.train()
        merged = tmp_path / "merged"
        model.merge_and_unload().save_pretrained(merged)
        assert_equals_scan(watch.looks[-1], scanned(base, merged))
