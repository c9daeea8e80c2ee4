"""One contract for every method on every kind of model: what differs is declared, and no name is in here."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import methods_models as tiny
import pytest
import torch
from peft import PeftModel
from torch import nn

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.opening import open_pair
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import IntruscopeError, UnsupportedFormat, UsageError
from intruscope.methods import registered
from intruscope.methods.attached import switched_off
from intruscope.methods.contract import Attached, Setting
from intruscope.methods.targets import targets_of
from intruscope.weights.matrices import DenseUpdate
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore")

EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7}
METHODS = registered()
TAKEN = [(method, model) for method in METHODS for model in tiny.KINDS if tiny.KINDS[model] in method.layers]
REFUSED = [(m, model) for m in METHODS for model in tiny.KINDS if tiny.KINDS[model] not in m.layers]


def _names(cases):
    return [f"{method.name}-{model}" for method, model in cases]


def _setting(**changes):
    return Setting(total_steps=tiny.STEPS, batches=tiny.batches(), kept=tiny.batches(2), **changes)


def _attach(method, model, **changes):
    if "no_training" in method.departures:
        changes["tuned"] = tiny.tuned(model)
    return method.attach(model, _setting(**changes), method.options())


def _weights(model):
    """Every linear weight: (out, in), float32, copied."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            weight = module.weight.detach().float().clone()
            found[name] = weight if isinstance(module, nn.Linear) else weight.T
    return found


def _inner(model):
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _updates(attached):
    return {name: attached.update(name) for name in attached.names}


@pytest.fixture(scope="module", params=TAKEN, ids=_names(TAKEN))
def case(request):
    """A method on a model, before and after a few real steps."""
    method, model = request.param
    base = tiny.fresh(model)
    before = _weights(base)
    logits = tiny.logits(base)
    random = torch.get_rng_state()
    attached = _attach(method, base)
    assert torch.equal(torch.get_rng_state(), random), "attaching draws from the caller's random numbers"
    seen = SimpleNamespace(
        method=method, model=model, attached=attached, before=before, base_logits=logits,
        dtype=next(tiny.fresh(model).parameters()).dtype, static="no_static_update" not in method.departures,
        trained="no_training" not in method.departures,
    )  # fmt: skip
    seen.start_logits = tiny.logits(attached.model)
    seen.start_updates = _updates(attached) if seen.static else {}
    seen.frozen = {n: p.detach().clone() for n, p in attached.model.named_parameters() if not p.requires_grad}
    seen.moving = {n: p.detach().clone() for n, p in attached.trainable()}
    seen.numbers = {name: _trainable_numbers(attached, name) for name in attached.names}
    seen.losses = tiny.train(attached) if seen.trained else []
    seen.updates = _updates(attached) if seen.static else {}
    return seen


@pytest.fixture(scope="module")
def saved(case, tmp_path_factory):
    """What the trained method saves."""
    folder = tmp_path_factory.mktemp("method") / "saved"
    case.attached.save(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The models as files."""
    folder = tmp_path_factory.mktemp("bases")
    for model in tiny.KINDS:
        tiny.fresh(model).save_pretrained(folder / model)
    return {model: folder / model for model in tiny.KINDS}


def _trainable_numbers(attached, name):
    """Numbers trained in one matrix's module; its bias apart."""
    module = _inner(attached.model).get_submodule(name)
    base = getattr(module, "base_layer", module)
    return sum(p.numel() for p in module.parameters() if p.requires_grad and p is not base.bias)


def _needs_update(case):
    if not case.static:
        pytest.skip("the method has no static update")


def _needs_training(case):
    if not case.trained:
        pytest.skip("the method does not train")


def test_what_comes_back_is_attached(case):
    assert isinstance(case.attached, Attached)
    assert case.attached.names
    assert set(case.attached.names) <= set(case.before)
    assert [name for name, _ in case.attached.trainable()] == list(case.moving)


def test_training_starts_at_the_base(case):
    if "nonzero_at_start" in case.method.departures:
        assert any(update.norm() > 0 for update in case.start_updates.values())
        return
    eps = EPS[case.dtype if "moves_base" in case.method.departures else torch.float32]
    for name, update in case.start_updates.items():
        assert update.shape == case.before[name].shape
        assert update.dtype == torch.float32
        assert update.norm() <= 4 * eps * case.before[name].norm(), name
    scale = case.base_logits.abs().max()
    assert (case.start_logits - case.base_logits).abs().max() <= 30 * EPS[case.dtype] * scale


def test_training_changes_every_matrix_and_learns(case):
    _needs_training(case)
    for name, parameter in case.attached.trainable():
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, case.moving[name]), name
    for name, update in case.updates.items():
        assert update.norm() > 1e-4 * case.before[name].norm(), name
    assert case.losses[-1] < case.losses[0]


def test_what_is_frozen_stays_bit_for_bit(case):
    if "trains_base" in case.method.departures:
        assert not case.frozen
        return
    now = dict(case.attached.model.named_parameters())
    for name, value in case.frozen.items():
        assert torch.equal(now[name], value), name
    if "moves_base" in case.method.departures:
        return
    inner = _inner(case.attached.model)
    for name in case.attached.names:
        module = inner.get_submodule(name)
        base = getattr(module, "base_layer", module)
        weight = base.weight if isinstance(base, nn.Linear) else base.weight.T
        assert torch.equal(weight.float(), case.before[name]), name


def test_a_trained_adapter_that_is_switched_off_leaves_the_base(case):
    """And it is trained as before when it is on again."""
    if not isinstance(case.attached.model, PeftModel) or "moves_base" in case.method.departures:
        pytest.skip("there is no adapter on an unchanged base")
    model = case.attached.model
    on = tiny.logits(model)
    with switched_off(model):
        off = tiny.logits(model)
    assert torch.equal(off, case.base_logits) and not torch.equal(on, off)
    assert torch.equal(tiny.logits(model), on)
    assert [name for name, _ in case.attached.trainable()] == list(case.moving)


def test_the_merged_model_computes_the_same(case):
    _needs_update(case)
    merged = case.attached.merged()
    assert not [m for m in merged.modules() if hasattr(m, "base_layer")]
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    got, expected = tiny.logits(merged), tiny.logits(copy.deepcopy(case.attached.model).float())
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (got - case.base_logits).abs().max() > 1e-3 * case.base_logits.abs().max()
    weights = _weights(merged)
    for name, update in case.updates.items():
        whole = case.before[name] + update
        assert (weights[name] - whole).norm() <= 1e-5 * whole.norm(), name


def test_the_update_is_what_the_layer_adds(case):
    """The second way: the layer is run over the identity, without any merging."""
    _needs_update(case)
    inner = _inner(copy.deepcopy(case.attached.model).float().eval())
    for name, update in case.updates.items():
        layer, (num_out, num_in) = inner.get_submodule(name), update.shape
        with torch.no_grad():
            eye, zero = torch.eye(num_in)[None], torch.zeros(1, 1, num_in)
            response = (layer(eye) - layer(zero))[0].T
        assert response.shape == (num_out, num_in)
        twin = response.double() - case.before[name].double()
        scale = case.before[name].norm() + update.norm()
        assert (update - twin).norm() <= 1e-5 * scale, name
        assert (update - twin).norm() <= 0.05 * update.norm(), name


def test_numbers_are_counted_as_declared(case):
    options = case.method.options()
    for name, found in case.numbers.items():
        declared = case.method.num_trainable(*case.before[name].shape, options)
        if "uneven_ranks" not in case.method.departures:
            assert found == declared, name
    if "uneven_ranks" in case.method.departures:
        ranks = {name: _rank_with(case, name, found) for name, found in case.numbers.items()}
        everywhere = len(targets_of(tiny.fresh(case.model), Setting(), case.method))
        assert abs(sum(ranks.values()) / everywhere - options["rank"]) <= 0.5, ranks


def _rank_with(case, name, numbers):
    """The rank at which the declared count is the one that is found."""
    shape, options = case.before[name].shape, case.method.options()
    fitting = [
        r for r in range(1, 129) if case.method.num_trainable(*shape, {**options, "rank": r}) == numbers
    ]
    assert len(fitting) == 1, (name, numbers)
    return fitting[0]


def test_no_update_has_more_rank_than_declared(case):
    _needs_update(case)
    options = case.method.options()
    for name, update in case.updates.items():
        values = torch.linalg.svdvals(update.double())
        # A difference of float32 weights carries their rounding.
        noise = 16 * EPS[case.dtype if "moves_base" in case.method.departures else torch.float32]
        rank = int((values > noise * case.before[name].norm()).sum())
        assert 1 <= rank <= case.method.max_rank(*update.shape, options), name


def test_evaluation_measures_the_models_loss_alone(case):
    batch = tiny.batches(1)[0]
    model = case.attached.model.eval()
    with torch.no_grad():
        outputs = model(**batch)
    scores, words = outputs.logits[:, :-1].float(), batch["labels"][:, 1:]
    expected = nn.functional.cross_entropy(scores.reshape(-1, tiny.WORDS), words.reshape(-1))
    assert abs(float(outputs.loss) - float(expected)) <= 1e-5 + EPS[case.dtype]


def test_what_is_saved_is_what_is_loaded(case, saved):
    loaded = case.method.load(tiny.fresh(case.model), saved)
    eps = EPS[case.dtype if "moves_base" in case.method.departures else torch.float32]
    assert set(loaded.names) == set(case.attached.names)
    assert {name for name, _ in loaded.trainable()} == {name for name, _ in case.attached.trainable()}
    for name, update in case.updates.items():
        scale = case.before[name].norm() + update.norm()
        assert (loaded.update(name) - update).norm() <= 8 * eps * scale, name
    scale = case.base_logits.abs().max()
    difference = tiny.logits(loaded.model) - tiny.logits(case.attached.model)
    assert difference.abs().max() <= 100 * EPS[case.dtype] * scale
    with pytest.raises(FileExistsError, match="output folder is not empty"):
        case.attached.save(saved)


def test_plain_lora_is_read_by_peft_and_by_the_scan(case, saved, bases):
    if not case.method.plain_lora:
        pytest.skip("the method saves something else")
    eps = EPS[case.dtype if "moves_base" in case.method.departures else torch.float32]
    by_peft = PeftModel.from_pretrained(tiny.fresh(case.model), str(saved)).float()
    merged = _weights(by_peft.merge_and_unload(safe_merge=True))
    pairing = pair_adapter(open_model(bases[case.model]), open_adapter(saved))
    assert pairing.complete, pairing.findings
    for name, update in case.updates.items():
        scale = case.before[name].norm() + update.norm()
        assert (merged[name] - case.before[name] - update).norm() <= 8 * eps * scale, name
        parts = [pair for pair in pairing.pairs if pair.name == name or pair.name.startswith(f"{name}[")]
        assert parts, name
        read = torch.cat([_read(pair) for pair in parts])
        assert (read - update).norm() <= 8 * eps * scale, name


def test_what_is_saved_is_read_by_the_scan(case, saved, bases):
    """Whatever a method saves opens complete on its base; only one without a static update is refused."""
    if case.method.plain_lora:
        pytest.skip("see above")
    if not case.static:
        with pytest.raises(IntruscopeError):
            open_pair(bases[case.model], saved)
        return
    pairing = open_pair(bases[case.model], saved).pairing
    assert pairing.complete, pairing.findings
    eps = EPS[case.dtype]
    for name, update in case.updates.items():
        scale = case.before[name].norm() + update.norm()
        parts = [pair for pair in pairing.pairs if pair.name == name or pair.name.startswith(f"{name}[")]
        assert parts, name
        read = torch.cat([_read(pair) for pair in parts])
        # Twice as much as above: OSF's start is a float32 decomposition here and a float64 one in the scan.
        assert (read - update).norm() <= 16 * eps * scale, name


def _read(pair):
    update = pair.update.load(pair.base.load())
    if isinstance(update, DenseUpdate):
        return update.tuned_OI.float() - pair.base.load().float()
    return (update.left_OR.double() @ update.right_RI.double()).float()


def test_the_same_seed_starts_the_same(case):
    if case.model != "linear":
        pytest.skip("it does not depend on the kind of layer")
    again = _attach(case.method, tiny.fresh(case.model))
    for name, parameter in again.trainable():
        assert torch.equal(parameter, case.moving[name]), name


@pytest.mark.parametrize(("method", "model"), REFUSED, ids=_names(REFUSED))
def test_layers_that_it_cannot_change_are_refused_by_name(method, model):
    with pytest.raises(UnsupportedFormat, match=r"cannot change a layer of kind conv1d, only linear"):
        _attach(method, tiny.fresh(model))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_bad_requests_are_refused_before_the_model_is_touched(method):
    base = tiny.fresh("tied")
    modules = [type(module) for module in base.modules()]
    with pytest.raises(UsageError, match="did you mean q_proj or"):
        _attach(method, base, targets=("q_prj",))
    with pytest.raises(UnsupportedFormat, match="shares its weight with"):
        _attach(method, base, targets=("q_proj", "lm_head"))
    with pytest.raises(UnsupportedFormat, match="cannot change a layer of kind Embedding"):
        _attach(method, tiny.fresh("linear"), targets=("embed_tokens",))
    with pytest.raises(UsageError, match="both a target and to be trained in full"):
        _attach(method, base, targets=("q_proj",), train_whole=("self_attn.q_proj",))
    assert [type(module) for module in base.modules()] == modules
