"""Attribution along the path of weights: against a brute-force line integral, and what must hold exactly."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import transformers
from attribution_pairs import KINDS, write_pairs
from forgetting_models import TEXT
from peft import PeftModel
from torch.nn.functional import cross_entropy

from intruscope.adapters.live_tokenizers import open_tokenizer
from intruscope.attribution.where import forget_where
from intruscope.errors import UsageError
from intruscope.forgetting.records import ForgettingReport
from intruscope.weights.output import json_text

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attribution")
    return folder, write_pairs(folder)


@pytest.fixture(scope="module")
def attributed(pairs):
    """The report of each kind, made once."""
    folder, found = pairs
    made = {}

    def report(kind):
        if kind not in made:
            base, tuned, task = found[kind]
            options = {"text": folder / "text.txt", "unit": "line", "num_resamples": 100, "protocol": None}
            if kind in ("classifier", "masked-lora"):
                options["protocol"] = "fast"
            made[kind] = forget_where(base, tuned, tasks=[task], dtype="float64", **options)
        return made[kind]

    return report


@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_to_what_was_measured(kind, attributed):
    report = attributed(kind)
    where = report.where
    for total in (where.total, where.gain_total):
        assert abs(total.measured) > 1e-4
        assert total.attributed == pytest.approx(total.measured, rel=0.01)
    if kind not in ("classifier", "masked-lora"):
        assert where.total.measured == pytest.approx(report.forgetting.estimate, rel=1e-6)
    for parts in (where.spans, (*where.matrices, *where.tensors)):
        for field in ("forgetting_share", "gain_share", "norm_share"):
            assert sum(getattr(part, field) for part in parts) == pytest.approx(1.0, abs=1e-9)
    for matrix in where.matrices:
        inside = sum(each.norm_share for each in matrix.directions)
        assert inside == pytest.approx(matrix.norm_share, abs=1e-9)
        for field in ("forgetting_share", "gain_share"):
            total = sum(getattr(each, field) for each in matrix.directions)
            assert total == pytest.approx(getattr(matrix, field), abs=1e-7)
    intruders = [v for m in where.matrices for v in m.vectors if v.verdict == "intruder"]
    others = [v for m in where.matrices for v in m.vectors if v.verdict != "intruder"]
    for span, own in zip(where.spans, (intruders, others), strict=False):
        for field in ("forgetting_share", "gain_share", "norm_share"):
            assert sum(getattr(each, field) for each in own) == pytest.approx(getattr(span, field), abs=1e-9)


def path_gradients(base, tuned, loss, num_points):
    """∫⟨∇L, ΔW⟩ of each parameter by the trapezoid rule, with a model of our own."""
    model = type(base)(base.config).double().eval()
    ends = [dict(each.double().named_parameters()) for each in (base, tuned)]
    found = dict.fromkeys(ends[0], 0.0)
    for point in range(num_points + 1):
        weight = (0.5 if point in (0, num_points) else 1.0) / num_points
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.lerp(ends[0][name], ends[1][name], point / num_points))
        model.zero_grad()
        loss(model).backward()
        for name, parameter in model.named_parameters():
            found[name] += weight * float((parameter.grad * (ends[1][name] - ends[0][name])).sum())
    return found


def test_every_part_is_that_of_a_brute_force_line_integral(pairs, attributed):
    base, tuned, _ = pairs[1]["full"]
    where = attributed("full").where
    tokenizer = open_tokenizer(base)
    lines = [tokenizer(line, return_tensors="pt")["input_ids"] for line in TEXT.splitlines()]
    num_tokens = sum(ids.shape[1] - 1 for ids in lines)

    def loss(model):
        return sum(model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1) for ids in lines) / num_tokens

    load = transformers.GPT2LMHeadModel.from_pretrained
    expected = path_gradients(load(base), load(tuned), loss, 48)
    total = where.total.attributed
    named = {f"{matrix.name}.weight": matrix.forgetting_share * total for matrix in where.matrices}
    named |= {tensor.name: tensor.forgetting_share * total for tensor in where.tensors}
    fused = {}
    for name, nats in named.items():
        stem = name.removeprefix("transformer.").partition("[")[0].removesuffix(".weight")
        stem += ".weight" if name.endswith(".weight") else ""
        fused[stem] = fused.get(stem, 0.0) + nats
    expected = {name.removeprefix("transformer."): nats for name, nats in expected.items()}
    assert fused.keys() == expected.keys()
    largest = max(map(abs, expected.values()))
    for name, nats in expected.items():
        assert fused[name] == pytest.approx(nats, abs=2e-3 * largest), name


def saved_with(folder, base, changes):
    """A fine-tune of GPT-2 that differs from its base in these tensors only."""
    model = transformers.GPT2LMHeadModel.from_pretrained(base)
    with torch.no_grad():
        for name, change in changes.items():
            model.get_parameter(name).add_(change)
    model.save_pretrained(folder)
    return folder


def test_an_update_in_one_matrix_gets_everything_and_others_nothing(pairs, tmp_path):
    folder, found = pairs
    base = found["full"][0]
    # The keys of a fused tensor (in, 3 x out) alone: the queries and values in it stay as they were.
    change = torch.zeros(24, 72)
    change[:, 24:48] = 0.4 * torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    tuned = saved_with(tmp_path / "one", base, {"transformer.h.1.attn.c_attn.weight": change})
    where = forget_where(base, tuned, text=folder / "text.txt", unit="line", num_resamples=100).where
    shares = {matrix.name: matrix for matrix in where.matrices}
    (own,) = [name for name in shares if "h.1.attn.c_attn" in name and "[k]" in name]
    assert shares.pop(own).forgetting_share == pytest.approx(1.0, abs=1e-6)
    assert {share.forgetting_share for share in shares.values()} == {0.0}
    assert {share.norm_share for share in shares.values()} == {0.0}
    assert where.gain_total is None
    assert where.tensors == ()
    assert where.total.attributed == pytest.approx(where.total.measured, rel=0.01)


def test_the_way_back_has_the_same_parts_with_the_other_sign(pairs, attributed):
    folder, found = pairs
    base, tuned, task = found["full"]
    there = attributed("full").where
    options = {"text": folder / "text.txt", "unit": "line", "num_resamples": 100, "tokenizer": base}
    back = forget_where(tuned, base, tasks=[task], dtype="float64", **options).where
    assert back.total.measured == pytest.approx(-there.total.measured, rel=1e-9)
    assert back.total.attributed == pytest.approx(-there.total.attributed, rel=1e-6)
    assert back.gain_total.attributed == pytest.approx(-there.gain_total.attributed, rel=1e-6)
    for first, second in zip(there.matrices, back.matrices, strict=True):
        assert second.forgetting_share == pytest.approx(first.forgetting_share, abs=1e-6)


def test_two_equal_models_have_no_shares(pairs):
    folder, found = pairs
    base = found["full"][0]
    where = forget_where(base, base, text=folder / "text.txt", unit="line", num_resamples=100).where
    assert (where.total.measured, where.total.attributed) == (0.0, 0.0)
    assert {matrix.forgetting_share for matrix in where.matrices} == {None}
    assert [finding.code for finding in where.findings] == ["where-no-forgetting"]
    assert "NaN" not in json_text(where.to_json())


def test_the_report_is_saved_and_tabulated(attributed, tmp_path):
    report = attributed("lora")
    path = report.save(tmp_path / "report.json")
    assert ForgettingReport.load(path) == report
    where = json.loads(path.read_text())["where"]
    assert where["total"].keys() >= {"measured", "attributed"}
    assert all(matrix.keys() >= {"name", "forgetting_share", "gain_share"} for matrix in where["matrices"])
    table = report.where.to_arrow().to_pylist()
    spans = [row for row in table if row["part"] == "span"]
    assert math.fsum(row["forgetting_share"] for row in spans) == pytest.approx(1.0)
    assert all(row["forgetting_low"] <= row["forgetting_share"] <= row["forgetting_high"] for row in spans)
    assert {row["part"] for row in table} == {"span", "matrix", "direction", "vector", "tensor"}


def test_without_a_text_there_is_nothing_to_attribute(pairs):
    base, tuned, _ = pairs[1]["lora"]
    with pytest.raises(UsageError, match="--where needs a text"):
        forget_where(base, tuned, skills=["hellaswag"])


def intruder_parts(base_state, tuned_state, epsilon):
    """Y Yᵀ ΔW of every weight of GPT-2, (in, out), and how many vectors Y has: intruders of the top ten."""
    found, num = {}, 0
    for name in base_state:
        if not name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")):
            continue
        parts = []
        count = 3 if "c_attn" in name else 1
        chunks = (state[name].chunk(count, 1) for state in (base_state, tuned_state))
        for before, after in zip(*chunks, strict=True):
            known = torch.linalg.svd(before.T, full_matrices=False).U
            top = torch.linalg.svd(after.T, full_matrices=False).U[:, :10]
            intruders = top[:, (known.T @ top).abs().max(0).values < epsilon]
            parts.append((intruders @ (intruders.T @ (after - before).T)).T)
            num += intruders.shape[1]
        found[name] = torch.cat(parts, 1)
    return found, num


def test_the_intruders_part_is_the_derivative_along_their_projection(pairs, attributed):
    base_path, tuned_path, _ = pairs[1]["lora"]
    report = attributed("lora").where
    base = transformers.GPT2LMHeadModel.from_pretrained(base_path).double().eval()
    adapted = transformers.GPT2LMHeadModel.from_pretrained(base_path)
    merged = PeftModel.from_pretrained(adapted, tuned_path).merge_and_unload().double().eval()
    before, after = dict(base.named_parameters()), dict(merged.named_parameters())
    parts, num_intruders = intruder_parts(before, after, report.epsilon)
    assert num_intruders == sum(v.verdict == "intruder" for m in report.matrices for v in m.vectors) > 3
    tokenizer = open_tokenizer(base_path)
    lines = [tokenizer(line, return_tensors="pt")["input_ids"] for line in TEXT.splitlines()]
    num_tokens = sum(ids.shape[1] - 1 for ids in lines)
    model, step, expected = copy.deepcopy(base), 1e-4, 0.0
    places, weights = np.polynomial.legendre.leggauss(8)
    with torch.no_grad():
        for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
            for sign in (1.0, -1.0):
                for name, parameter in model.named_parameters():
                    parameter.copy_(torch.lerp(before[name], after[name], place))
                    if name in parts:
                        parameter.add_(sign * step * parts[name])
                # The library's own loss is computed in float32, too coarse for a difference.
                logits = [(model(input_ids=ids).logits[0, :-1], ids[0, 1:]) for ids in lines]
                nats = sum(float(cross_entropy(*each, reduction="sum")) for each in logits)
                expected += weight * sign * nats / num_tokens / (2 * step)
    found = report.spans[0].forgetting_share * report.total.attributed
    assert found == pytest.approx(expected, rel=5e-3)
    energy = sum(float(part.square().sum()) for part in parts.values())
    total = sum(float((after[name] - before[name]).square().sum()) for name in before)
    assert report.spans[0].norm_share == pytest.approx(energy / total, rel=1e-6)
