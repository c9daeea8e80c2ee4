"""Everything around the modules: two bases, other tensors, bad input, the command and what it writes."""

import csv
import json

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from verify_models import INLINE, UP, K, Merge, Q, build

from intruscope.cli.main import app
from intruscope.errors import IntruscopeError, MalformedInput, UsageError
from intruscope.verify import VerifyReport, verify
from intruscope.verify.causes import ScaleFacts, causes_of

pytestmark = [pytest.mark.usefixtures("inline"), pytest.mark.filterwarnings("ignore")]
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("built"))


@pytest.fixture
def merge(built):
    return Merge(built=built, base_dtype=F32, dtype=F32)


def run(*arguments):
    """Exit code of the command, or its error."""
    return app.main(["verify", *map(str, arguments)], standalone_mode=False)


def other_statuses(report):
    return {each.name: each.status for each in report.others if not each.expected}


def test_of_two_bases_the_report_names_the_one_that_fits(built, merge, tmp_path):
    """The true base is float32; the other was rounded to 4 bits in between, as a quantised one is."""
    coarse = {name: (tensor * 64).round() / 64 for name, tensor in merge.base.items()}
    base, (adapter,), merged = merge.write(tmp_path)
    (tmp_path / "coarse").mkdir()
    save_file(coarse, tmp_path / "coarse" / "model.safetensors")
    (tmp_path / "coarse" / "config.json").write_text((tmp_path / "base" / "config.json").read_text())
    other = str(tmp_path / "coarse")
    for first, second in ((base, other), (other, base)):
        report = verify(first, adapter, merged, or_base=second, options=INLINE)
        assert report.verdict == "applied"
        assert [fit.name for fit in report.bases] == [base, other]
        assert [fit.num_applied for fit in report.bases] == [6, 0]
        best, worse = (fit.relative_residual for fit in report.bases)
        assert best < 1e-5 < 1e-2 < worse
        (said,) = [f.message for f in report.findings if f.code == "base"]
        assert base in said
    both = verify(base, adapter, merged, or_base=base, options=INLINE)
    assert [f.code for f in both.findings if "base" in f.code] == ["both-bases", "other-base"]


def test_every_other_tensor_is_accounted_for(built, merge, tmp_path):
    merge.tensors["model.norm.weight"] = merge.tensors["model.norm.weight"] * 1.5
    merge.tensors["model.layers.1.input_layernorm.bias"] = torch.ones(16)
    del merge.tensors["model.layers.0.input_layernorm.weight"]
    merge.tensors["model.embed_tokens.weight"] = torch.cat(
        [merge.tensors["model.embed_tokens.weight"], torch.ones(8, 16)]
    )
    report = merge.verified(tmp_path)
    assert other_statuses(report) == {
        "model.norm.weight": "changed",
        "model.layers.1.input_layernorm.bias": "new",
        "model.layers.0.input_layernorm.weight": "dropped",
        "model.embed_tokens.weight": "resized",
    }
    (norm,) = report.unexplained
    assert norm.relative_change == pytest.approx(0.5)
    assert (report.verdict, report.has_failed, report.is_open) == ("applied", True, True)
    # 21 tensors: 6 adapted, 1 dropped, 1 changed; the resized one is equal in the words of both.
    assert report.num_equal == 13
    assert {"other-changes", "new-tensor", "dropped-tensor", "resized"} <= {f.code for f in report.findings}


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_cast_is_no_change_and_one_bit_is(built, dtype, tmp_path):
    merge = Merge(built=built, base_dtype=F32, dtype=dtype)
    for name in ("lm_head.weight", "model.layers.0.post_attention_layernorm.weight"):
        numbers = merge.tensors[name].view(torch.int16 if dtype == BF16 else torch.int32)
        numbers[(0,) * numbers.ndim] += 1 if dtype == F32 else 3
    assert other_statuses(merge.verified(tmp_path)) == {
        "lm_head": "changed",
        "model.layers.0.post_attention_layernorm.weight": "changed",
    }


def test_a_missing_matrix_fails_and_other_shapes_are_refused(built, merge, tmp_path):
    del merge.tensors[f"{Q}.weight"]
    (tmp_path / "one").mkdir()
    report = merge.verified(tmp_path / "one")
    assert {m.name: m.status for m in report.modules if m.status != "applied"} == {Q: "missing"}
    assert report.verdict == "partly"
    merge.tensors[f"{Q}.weight"] = torch.ones(20, 16)
    (tmp_path / "two").mkdir()
    with pytest.raises(MalformedInput, match=r"shape \[20, 16\], but \[16, 16\] in the base"):
        merge.verified(tmp_path / "two")


def edited_adapter(built, folder, edit):
    folder.mkdir()
    factors = load_file(built.adapters[0] / "adapter_model.safetensors")
    save_file({name: edit(name, t) for name, t in factors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text((built.adapters[0] / "adapter_config.json").read_text())
    return str(folder)


def test_adapters_that_are_zero_or_nan_are_open(built, merge, tmp_path):
    base, _, merged = merge.write(tmp_path)
    zero = edited_adapter(built, tmp_path / "zero", lambda n, t: t if ".lora_A" in n else torch.zeros_like(t))
    report = verify(base, zero, base, options=INLINE)
    assert (report.verdict, report.equals_base) == ("open", True)
    assert all("its update is zero" in module.reason for module in report.modules)
    assert "zero-adapter" in {finding.code for finding in report.findings}
    assert verify(base, zero, merged, options=INLINE).counts == {"other change": 6}
    nan = edited_adapter(
        built, tmp_path / "nan", lambda n, t: t.fill_(torch.nan) if f"{Q}.lora_A" in n else t
    )
    report = verify(base, nan, merged, options=INLINE)
    assert {m.name: m.reason for m in report.modules if m.status != "applied"} == {
        Q: "the adapter has 48 values that are NaN or infinite"
    }
    assert (report.verdict, report.has_failed, report.is_open) == ("open", False, True)


def test_what_cannot_be_verified_is_refused_in_words(built, merge, tmp_path):
    base, (adapter,), merged = merge.write(tmp_path)
    with pytest.raises(UsageError, match="is itself an adapter: nothing is merged in it"):
        verify(base, adapter, adapter)
    with pytest.raises(UsageError, match="2 weights for 1 adapters"):
        verify(base, adapter, merged, weights=[0.5, 0.5])
    with pytest.raises(UsageError, match="the weight 0 is not allowed"):
        verify(base, adapter, merged, weights=[0])
    with pytest.raises(UsageError, match="no adapter is given"):
        verify(base, [], merged)
    with pytest.raises(UsageError, match="run intruscope verify BASE ADAPTER MERGED"):
        app.main(["scan", f"{base}+{adapter}", merged], standalone_mode=False)
    with pytest.raises(UsageError, match="MERGED is missing"):
        run(base, adapter)
    for given in ("=0.5", f"{adapter}=half", f"{adapter}=0", f"{adapter}=nan"):
        with pytest.raises(UsageError, match="not of the form NAME=WEIGHT"):
            run(base, merged, "--adapter", given)
    with pytest.raises(IntruscopeError, match="inside|input"):
        run(base, adapter, merged, "--json", f"{merged}/report.json")


def test_the_command_writes_the_report_and_tells_by_its_exit_code(built, merge, tmp_path, capsys):
    base, (adapter,), merged = merge.write(tmp_path)
    files = [tmp_path / f"report.{kind}" for kind in ("json", "csv", "parquet")]
    options = [part for file in files for part in (f"--{file.suffix[1:]}", file)]
    assert run(base, adapter, merged, *options) == 0
    assert "The adapter is applied in all 6 modules." in " ".join(capsys.readouterr().out.split())
    record = json.loads(files[0].read_text())
    assert (record["schema"], record["verdict"]) == ("intruscope.verify/1", "applied")
    for module in record["modules"]:
        assert module["status"] == "applied"
        assert module["strength"] == pytest.approx(1, abs=1e-6)
        assert module["residual"] <= module["rounding"] < 1e-4
    assert {module["name"] for module in record["modules"]} >= {Q, K, UP}
    report = VerifyReport.load(files[0])
    assert report.to_json() == record
    with files[1].open() as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == [m.name for m in report.modules]
    assert pq.read_table(files[2]).to_pylist()[0]["status"] == "applied"
    assert "applied" in report._repr_html_()
    assert run(base, adapter, base, "-q") == 1
    # As --adapter with a weight: half of it is not all of it, and all of it is.
    assert run(base, merged, "--adapter", f"{adapter}=1", "-q") == 0
    assert run(base, merged, "--adapter", f"{adapter}=0.5", "-q") == 1
    zero = edited_adapter(built, tmp_path / "zero", lambda n, t: t if ".lora_A" in n else torch.zeros_like(t))
    with pytest.raises(IntruscopeError) as caught:
        run(base, zero, base, "-q")
    assert caught.value.exit_code == 5


def test_the_terminal_puts_first_what_needs_attention(merge, tmp_path, capsys):
    merge.apply(0.5, Q)
    merge.tensors["model.norm.weight"] += 1
    base, (adapter,), merged = merge.write(tmp_path)
    assert run(base, adapter, merged) == 1
    shown = capsys.readouterr().out
    text = " ".join(shown.split())
    assert "The adapter is not applied as it should be: 1 wrong scale, 5 applied." in text
    assert "1 other tensor differs from the base." in text
    assert shown.index("wrong scale") < shown.index("self_attn.k_proj")
    assert "half of the update was applied (1 module)" in text


def test_a_full_checkpoint_stands_for_its_difference(built, merge, tmp_path):
    """Task arithmetic: base + 0.5 (one - base) + 0.25 (other - base), norms included."""
    tuned = {}
    for number in (1, 2):
        generator = torch.Generator().manual_seed(number)
        tuned[number] = {
            n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in merge.base.items()
        }
    merge.tensors = {
        name: (
            t.double() + 0.5 * (tuned[1][name].double() - t) + 0.25 * (tuned[2][name].double() - t)
        ).float()
        for name, t in merge.base.items()
    }
    base, _, merged = merge.write(tmp_path)
    report = verify(base, [tuned[1], tuned[2]], merged, weights=[0.5, 0.25], options=INLINE)
    assert report.verdict == "applied"
    assert len(report.modules) == 21
    assert (
        verify(base, [tuned[1], tuned[2]], merged, weights=[0.25, 0.5], options=INLINE).verdict != "applied"
    )


@pytest.mark.parametrize(
    ("strength", "facts", "said"),
    [
        (2.0, (8, 2.0, False, 1.0), "applied twice"),
        (0.5, (8, 2.0, False, 1.0), "half of the update was applied, or alpha was ignored"),
        (1 / 3, (8, 3.0, False, 1.0), "alpha was ignored"),
        (8**0.5, (8, 2.0, False, 1.0), "rsLoRA was assumed"),
        (8**-0.5, (8, 2.0, True, 1.0), "rsLoRA was ignored"),
        (8.0, (8, 2.0, False, 1.0), "without dividing by the rank"),
        (1 / 0.7, (8, 3.0, False, 0.7), "the weight 0.7 was ignored"),
        (1.25, (8, 2.0, False, 1.0), "as if lora_alpha were 20 instead of 16"),
        (-1.0, (8, 3.0, False, 1.0), "subtracted"),
    ],
)
def test_a_strength_suggests_its_cause(strength, facts, said):
    names = ("rank", "scaling", "is_rslora", "weight")
    cause = causes_of(strength, 1e-6, [ScaleFacts(**dict(zip(names, facts, strict=True)))])
    assert all(part in cause for part in said.split(", or "))
