"""``intruscope compare`` from outside: what it writes, how it refuses, and its exit codes."""

import csv
import json
import math

import pyarrow.parquet as pq
import pytest
from compare_models import break_tensor, make_dora, random_factors, updates_of, write_lora
from safetensors.torch import load_file

from cli_support import assert_message, fingerprint, invoke, write_model  # isort: skip
from sweep_models import write_adapter, write_base, write_text  # isort: skip

import intruscope
from intruscope.engine.settings import RunOptions
from intruscope.forgetting.settings import ForgetSettings

pytestmark = pytest.mark.usefixtures("inline")


def test_everything_is_written_and_no_input_is(files, tmp_path):
    before = fingerprint(files)
    outputs = {name: tmp_path / f"report.{name}" for name in ("json", "html", "csv", "parquet")}
    outputs["plots"] = tmp_path / "plots"
    given = [part for name, path in outputs.items() for part in (f"--{name}", path)]
    done = invoke("compare", *(files / name for name in ("base", "a", "b", "c")), *given)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    text = " ".join(done.stdout.split())
    assert "The sum of the 3 updates has" in text
    assert "a and c probably started from the same A" in text
    assert "sum at the norm of one part" in text
    assert fingerprint(files) == before
    data = json.loads(outputs["json"].read_text())
    assert data["schema"] == "intruscope.compare/1"
    with outputs["csv"].open() as stream:
        assert len(list(csv.DictReader(stream))) == 6
    assert pq.read_table(outputs["parquet"]).num_rows == 6
    assert "<!doctype html>" in outputs["html"].read_text()
    names = {"pairs", "cosine-maps", "inflation", "intruders"}
    assert {path.name for path in outputs["plots"].iterdir()} == {
        f"{n}.{s}" for n in names for s in ("png", "svg")
    }
    drawn = (outputs["plots"] / "pairs.svg").read_text()
    assert "a · c" in drawn and "row spaces (inputs), random" in drawn
    quiet = invoke("compare", files / "a", files / "b", "--json", "-")
    assert json.loads(quiet.stdout)["pairs"][0]["a"] == "a"


def refused(done, code, *says):
    assert done.stdout == ""
    assert_message(done, code, *says)


def test_bad_input_gets_one_clear_message(files, tmp_path):
    write_lora(tmp_path / "wide", random_factors(0, shape=(48, 44)))
    write_lora(tmp_path / "foreign", random_factors(0), base="another")
    out = ("--json", tmp_path / "out.json")
    a, b, base, full = (files / name for name in ("a", "b", "base", "full"))
    wide, foreign = tmp_path / "wide", tmp_path / "foreign"
    refused(invoke("compare", base, a, *out), 2, "taken as the base, which leaves one", "BASE A B")
    refused(invoke("compare", a, *out), 2, "only one adapter", "inspect")
    refused(invoke("compare", base, *out), 2, "leaves no fine-tune")
    refused(invoke("compare", a, full, *out), 2, "full checkpoint", "name the base first")
    refused(invoke("compare", a, wide, *out), 4, "[48, 40]", "[48, 44]")
    refused(invoke("compare", base, a, wide, *out), 4)
    refused(invoke("compare", a, foreign, *out), 2, "different bases", "--same-base")
    refused(invoke("compare", a, b, "--text", tmp_path / "t", *out), 2, "needs the base")
    refused(invoke("compare", a, b, "--json", a / "new.json"), 7)
    refused(invoke("compare", a, b, "--null", 0, *out), 2, "--null")
    assert not (tmp_path / "out.json").exists()
    done = invoke("compare", a, foreign, "--same-base", "-q")
    assert (done.returncode, done.stdout) == (0, "")


def test_what_cannot_be_compared_is_said_and_fails(files, tmp_path):
    write_lora(tmp_path / "broken", random_factors(6))
    break_tensor(tmp_path / "broken", 0, math.inf)
    done = invoke("compare", files / "a", tmp_path / "broken", "--json", tmp_path / "out.json")
    assert done.returncode == 5
    assert "some weights could not be compared" in done.stderr
    assert "non-finite" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["complete"] is False


def test_a_dora_is_compared_with_its_base_and_said_to_need_it(files, tmp_path):
    base = load_file(files / "base" / "model.safetensors")
    updates = make_dora(write_lora(tmp_path / "dora", random_factors(9)), base)
    done = invoke("compare", files / "a", tmp_path / "dora")
    assert done.returncode == 5
    assert "needs-base" in done.stdout
    report = tmp_path / "out.json"
    done = invoke("compare", files / "base", files / "a", tmp_path / "dora", "-q", "--json", report)
    assert done.returncode == 0, done.stderr
    (pair,) = json.loads(report.read_text())["pairs"]
    others = updates_of(files / "a")
    for each in pair["modules"]:
        one, two = others[each["name"]], updates[each["name"]]
        cosine = float((one * two).sum() / (one.norm() * two.norm()))
        assert each["cosine"] == pytest.approx(cosine, abs=1e-5)


def test_adapters_without_a_common_matrix_are_compared_with_a_warning(files, tmp_path):
    write_lora(tmp_path / "elsewhere", {5: random_factors(1)[0]})
    done = invoke("compare", files / "a", tmp_path / "elsewhere")
    assert done.returncode == 0
    assert "no-common-matrix" in done.stdout


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A tiny language model, adapters of it (``same`` has the seed of ``a`` and another B), and a text."""
    folder = tmp_path_factory.mktemp("language")
    base = write_base(folder / "base")
    write_adapter(folder / "a", base, size=0.5)
    write_adapter(folder / "b", base, size=0.3, seed=2)
    write_adapter(folder / "same", base, size=0.3, seed_b=7)
    write_text(folder / "text.txt")
    return folder


def merged_files(language, folder, weight):
    """The base plus ``weight`` times both updates, as a checkpoint, from the files alone."""
    base = load_file(language / "base" / "model.safetensors")
    updates = {}
    for name in ("a", "b"):
        tensors = load_file(language / name / "adapter_model.safetensors")
        for key, right in tensors.items():
            if key.endswith("lora_A.weight"):
                left = tensors[key.replace("lora_A", "lora_B")]
                target = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
                updates[target] = updates.get(target, 0) + 2.0 * left.double() @ right.double()
    assert set(updates) <= set(base)
    merged = {key: (value.double() + weight * updates.get(key, 0)).float() for key, value in base.items()}
    write_model(folder, merged)
    (folder / "config.json").write_text((language / "base" / "config.json").read_text())
    return folder


@pytest.mark.filterwarnings("ignore")
def test_peft_starts_from_one_a_with_one_seed_and_that_is_noticed(language):
    models = [str(language / name) for name in ("a", "b", "same")]
    report = intruscope.compare(*models, options=RunOptions(workers=0))
    said = [finding.message for finding in report.findings if finding.code == "shared-start"]
    assert len(said) == 1
    assert said[0].startswith("a and same probably started from the same A")
    overlaps = {(pair.a, pair.b): pair.right_overlap for pair in report.pairs}
    assert overlaps["a", "same"] == pytest.approx(1.0)
    assert max(overlaps["a", "b"], overlaps["b", "same"]) < 0.15


@pytest.mark.filterwarnings("ignore")
def test_the_merge_is_measured_like_the_model_that_it_is(language, tmp_path):
    base, text = str(language / "base"), str(language / "text.txt")
    report = intruscope.compare(
        base,
        str(language / "a"),
        str(language / "b"),
        text=text,
        measuring=ForgetSettings(num_resamples=100),
        options=RunOptions(workers=0),
    )
    found = {model.name: model for model in report.merge.forgetting.models}
    assert list(found) == ["a", "b", "merge", "sum"]
    models = {"a": language / "a", "b": language / "b"}
    for name, weight in (("merge", 0.5), ("sum", 1.0)):
        models[name] = merged_files(language, tmp_path / name, weight)
    seen = []
    for name, folder in models.items():
        alone = intruscope.forget(base, str(folder), text=text, num_resamples=100)
        assert found[name].forgetting.estimate == pytest.approx(alone.forgetting.estimate, abs=2e-6)
        assert (found[name].forgetting.low, found[name].forgetting.high) == pytest.approx(
            (alone.forgetting.low, alone.forgetting.high), abs=1e-5
        )
        seen.append(alone.forgetting.estimate)
        if name != "merge":
            difference = found["merge"].loss.estimate - found[name].loss.estimate
            assert found[name].merge_difference.estimate == pytest.approx(difference, abs=1e-12)
    assert len({round(each, 4) for each in seen}) == 4  # four different models
    assert found["merge"].merge_difference is None


@pytest.mark.filterwarnings("ignore")
def test_models_in_memory_are_measured_as_their_files_are(language, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import BertForMaskedLM

    base = str(language / "base")
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
        models.append(get_peft_model(BertForMaskedLM.from_pretrained(base), config))
        models[-1].save_pretrained(tmp_path / str(seed))
    options = {
        "text": str(language / "text.txt"),
        "measuring": ForgetSettings(tokenizer=base, protocol="fast", num_resamples=100),
        "options": RunOptions(workers=0),
    }
    stored = intruscope.compare(base, *(str(tmp_path / str(seed)) for seed in (1, 2)), **options)
    before = [parameter.clone() for model in models for parameter in model.parameters()]
    held = intruscope.compare(BertForMaskedLM.from_pretrained(base), *models, **options)
    assert all(map(torch.equal, before, (p for model in models for p in model.parameters())))
    assert held.pairs[0].modules == stored.pairs[0].modules
    assert held.merge.preflight == stored.merge.preflight
    for one, two in zip(held.merge.forgetting.models, stored.merge.forgetting.models, strict=True):
        assert one.forgetting.estimate == pytest.approx(two.forgetting.estimate, abs=1e-6)
        assert one.forgetting.estimate != 0.0
