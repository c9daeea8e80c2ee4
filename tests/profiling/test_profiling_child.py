"""What the process of a setting trains, in this process: exactly what it says, and nothing on disk."""

import pytest
import torch
from cli_support import fingerprint
from profiling_models import write_bert, write_classifier, write_gpt2

from intruscope.methods.registry import find
from intruscope.profiling import child
from intruscope.profiling.candidates import Candidate, candidates
from intruscope.profiling.heads import head_of, skeleton
from intruscope.profiling.records import (
    Build,
    Built,
    Failed,
    Phases,
    ProfileSettings,
    Shape,
    Visit,
    Warm,
    Warmed,
)
from intruscope.weights.source import open_model

SMALL, LARGE = Shape(2, 5), Shape(3, 9)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {
        "bert": write_bert(folder / "bert"),
        "gpt2": write_gpt2(folder / "gpt2"),
        "classifier": write_classifier(folder / "classifier"),
    }


def requests(base, head="auto", **options):
    """One Build per candidate."""
    from intruscope.adapters.live_models import config_of

    settings = ProfileSettings(batches=(2,), lengths=(5,), head=head, device="cpu", **options)
    config = config_of(open_model(str(base)))
    cls, found = head_of(config, head, file=base)
    return {
        candidate.name: Build(
            base=base,
            allow_pickle=False,
            head=found,
            candidate=candidate,
            shapes=(SMALL, LARGE),
            settings=settings,
        )
        for candidate in candidates(skeleton(cls, config), settings)
    }


def built(request):
    found = child.answer(request)
    assert isinstance(found, Built), found
    return found, child._READY["it"]._model


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def stepped(num_steps=2):
    """Names of what a few steps change."""
    model = child._READY["it"]._model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert isinstance(child.answer(Warm(shape=SMALL, num_steps=num_steps)), Warmed)
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("base", ["bert", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "melora", "lora_fa", "vera", "b_only"])
@pytest.mark.parametrize("targets", ["all-linear", "attention", "query-value"])
def test_methods_train_the_numbers_that_they_declare(bases, base, method, targets):
    request = requests(bases[base], methods=(method,), ranks=(4,), targets=(targets,))[
        f"{method}-r4-{targets}"
    ]
    found, model = built(request)
    shapes = {
        name: tuple(module.weight.shape) for name, module in model.get_base_model().named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "weight")
    }  # fmt: skip
    if base == "gpt2":
        shapes = {name: (out, into) for name, (into, out) in shapes.items()}
    assert len(shapes) == found.num_matrices > 0
    declared = sum(find(method).num_trainable(*shape, request.candidate.options) for shape in shapes.values())
    assert found.num_trained == declared


def test_full_trains_everything_but_the_embeddings_unless_they_are_asked_for(bases):
    found, model = built(requests(bases["bert"], methods=("full",))["full"])
    frozen = {name for name, _ in model.named_parameters()} - trained(model)
    assert frozen == {
        f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }
    assert found.num_trained == sum(p.numel() for n, p in model.named_parameters() if n not in frozen)
    found, model = built(requests(bases["bert"], methods=("full",), train_embeddings=True)["full"])
    assert found.num_trained == sum(p.numel() for p in model.parameters())
    assert stepped() == trained(model)


@pytest.mark.parametrize(
    ("base", "prefix", "matrices"), [("bert", "bert.encoder.layer", 6), ("gpt2", "transformer.h", 4)]
)
def test_last_blocks_are_trained_whole_and_nothing_else(bases, base, prefix, matrices):
    found, model = built(requests(bases[base], methods=("full",), last_layers=(2,))["last-2"])
    inside = {n for n, _ in model.named_parameters() if n.startswith((f"{prefix}.1.", f"{prefix}.2."))}
    assert trained(model) == inside and len(inside) > 20
    assert found.num_matrices == 2 * matrices
    assert found.num_trained == sum(p.numel() for n, p in model.named_parameters() if n in inside)
    changed = stepped()
    # Not a key's bias: all that it adds is the same for every key, so it has no gradient.
    assert {n for n in inside if ".key.bias" not in n} <= changed <= inside


def test_a_new_head_is_trained_by_every_setting(bases):
    for base, head in (("bert", "classifier"), ("classifier", "auto")):
        asked = requests(bases[base], head=head, methods=("lora",), ranks=(2,), last_layers=(1,))
        assert {request.head for request in asked.values()} == {"classifier"}
        for request in asked.values():
            _, model = built(request)
            assert any("classifier" in name for name in trained(model)), request.candidate.name
            assert isinstance(child.answer(Visit(shape=LARGE, num_lead=0, num_steps=1)), Phases)


def test_steps_are_training_steps(bases):
    """The loss falls on what is always the same batch, which needs forward, backward and step in order."""
    built(requests(bases["gpt2"], methods=("full",))["full"])
    ready = child._READY["it"]
    assert ready._model.training and not ready._model.config.use_cache
    batch = next(ready._batches[SMALL])
    for group in ready._steps._optimizer.param_groups:
        group["lr"] = 3e-2
    losses = []
    for _ in range(20):
        ready._steps.forward(batch)
        losses.append(ready._steps.loss)
        ready._steps.backward()
        assert any(p.grad is not None for p in ready._model.parameters())
        ready._steps.update()
        assert all(p.grad is None for p in ready._model.parameters())
    assert losses[-1] < losses[0] - 0.5


def test_a_method_with_a_schedule_is_in_the_middle_of_its_run(bases):
    """AdaLoRA prunes there, in every step; before and after it would do nothing."""
    built(requests(bases["bert"], methods=("adalora",), targets=("query-value",))["adalora-r8-query-value"])
    ready = child._READY["it"]
    child.answer(Warm(shape=SMALL, num_steps=3))
    ranks = [p for n, p in ready._model.named_parameters() if ".lora_E." in n]
    zeros = sum(int((p == 0).sum()) for p in ranks)
    assert 0 < zeros < sum(p.numel() for p in ranks)


def test_precision_and_checkpointing_are_switched_on(bases):
    seen = {}

    def note(module, _inputs, output):
        seen["dtype"] = output.dtype
        seen["calls"] = seen.get("calls", 0) + 1

    for options, dtype, calls in (
        ({}, torch.float32, 1),
        ({"bf16": True}, torch.bfloat16, 1),
        ({"gradient_checkpointing": True}, torch.float32, 2),
    ):
        seen.clear()
        _, model = built(
            requests(bases["bert"], methods=("lora",), ranks=(2,), **options)["lora-r2-all-linear"]
        )
        model.get_submodule("base_model.model.bert.encoder.layer.0.intermediate.dense").register_forward_hook(
            note
        )
        child.answer(Visit(shape=SMALL, num_lead=0, num_steps=1))
        assert seen == {"dtype": dtype, "calls": calls}
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_visits_take_the_steps_that_were_asked_for_and_no_copy_of_the_weights_stays(bases, monkeypatch):
    built(requests(bases["bert"], methods=("full",))["full"])
    taken = []
    times = iter(range(10_000))

    def timed(steps, batch, clock):
        taken.append(batch["input_ids"].shape)
        return Phases(*([float(next(times))] * 3))

    monkeypatch.setattr(child, "timed_step", timed)
    found = child.answer(Visit(shape=LARGE, num_lead=1, num_steps=3))
    assert taken == [tuple(LARGE)] * 4
    assert found == Phases(2.0, 2.0, 2.0)  # of steps 1, 2 and 3: the lead is not counted


def test_what_goes_wrong_with_one_setting_is_an_answer(bases, monkeypatch):
    asked = requests(bases["bert"], methods=("melora",))["melora-r8-all-linear"]
    uneven = Candidate(
        name="x", label="x", method="melora", options={**asked.candidate.options, "num_blocks": 5}
    )
    refused = child.answer(
        Build(
            base=asked.base,
            allow_pickle=False,
            head="masked",
            candidate=uneven,
            shapes=(SMALL,),
            settings=asked.settings,
        )
    )
    assert isinstance(refused, Failed) and "num_blocks = 5 does not divide" in refused.reason
    built(asked)
    for error, words in (
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 512 bytes."),
            "512 bytes",
        ),
        (MemoryError(), "no memory"),
        (ValueError("odd"), "ValueError: odd"),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(child, "timed_step", fail)
        found = child.answer(Warm(shape=SMALL, num_steps=1))
        assert isinstance(found, Failed) and words in found.reason


def test_a_loss_that_is_no_number_is_a_failure(bases):
    _, model = built(requests(bases["bert"], methods=("full",))["full"])
    with torch.no_grad():
        model.get_submodule("bert.encoder.layer.0.intermediate.dense").weight.fill_(float("nan"))
    found = child.answer(Warm(shape=SMALL, num_steps=1))
    assert isinstance(found, Failed) and "no number" in found.reason


def test_nothing_of_the_base_is_written(bases):
    before = fingerprint(bases["bert"])
    for request in requests(bases["bert"], methods=("lora",), ranks=(2,), last_layers=(1,)).values():
        built(request)
        child.answer(Warm(shape=SMALL, num_steps=1))
    assert fingerprint(bases["bert"]) == before
