"""The verb: what it prints and writes, and one line for everything that is wrong with texts and models."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_support import COMMAND, assert_message, fingerprint, invoke
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "forgetting"))
from forgetting_models import TEXT, byte_tokenizer
from forgetting_models import _llama as llama_model
from forgetting_pairs import causal_pair, masked_pair

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs of both kinds, a text, and no test may change them."""
    folder = tmp_path_factory.mktemp("forget")
    for name, make in (("causal", causal_pair), ("masked", masked_pair)):
        (folder / name).mkdir()
        make(folder / name)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    before = fingerprint(folder)
    yield folder
    assert fingerprint(folder) == before


@pytest.fixture
def pair(folder):
    return folder / "causal" / "base", folder / "causal" / "full"


def test_where_writes_a_page_pictures_and_tables(folder, pair, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([{"prompt": "She", "choices": ["a", "b"], "answer": 0}] * 3))
    outputs = {name: tmp_path / f"where.{name}" for name in ("json", "html", "parquet")}
    done = invoke(
        "forget", *pair, "--text", folder / "text.txt", "--unit", "line", "--task", tmp_path / "t.json",
        "--where", "--resamples", "100", "--plots", tmp_path / "plots",
        *(part for name, path in outputs.items() for part in (f"--{name}", path)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    where = json.loads(outputs["json"].read_text())["where"]
    assert where["total"]["attributed"] == pytest.approx(where["total"]["measured"], rel=0.01)
    shares = [part["forgetting_share"] for part in (*where["matrices"], *where["tensors"])]
    assert sum(shares) == pytest.approx(1.0)
    shown = " ".join(done.stdout.split())
    for part in ("other top vectors", "rest of the matrices", "the parts add up to", "squared norm"):
        assert part in shown, part
    assert "where-map.png" in {path.name for path in (tmp_path / "plots").iterdir()}
    assert outputs["parquet"].stat().st_size > 0
    assert "Where did it forget?" in outputs["html"].read_text()


def test_where_takes_one_fine_tune_and_a_text(folder, pair, tmp_path):
    base, tuned = pair
    text = ("--text", folder / "text.txt")
    for arguments, said in (
        ((base, tuned, tuned, *text, "--where"), "--where takes one fine-tune at a time"),
        ((base, tuned, *text, "--html", tmp_path / "page.html"), "--html shows where a model forgot"),
        ((base, tuned, "--skills", "some_task", "--where"), "--where needs a text"),
    ):
        done = invoke("forget", *arguments)
        assert done.returncode == 2
        assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "page.html").exists()


def test_the_table_and_the_sentence(folder, pair, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([{"prompt": "She", "choices": ["a", "b"], "answer": 0}] * 3))
    out = tmp_path / "forget.json"
    done = invoke(
        "forget", *pair, "--text", folder / "text.txt", "--context", "32", "--task", tmp_path / "t.json",
        "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text())
    assert done.stdout.startswith("The fine-tune forgot: the loss on this text went from")
    shown = " ".join(done.stdout.split())
    for part in ("perplexity", "nats/byte", "t.json", "accuracy", "running", "stride 16"):
        assert part in shown, part
    assert data["text_sha256"][:16] in shown
    assert f"{data['num_tokens']:,} tokens in {data['num_sequences']} sequences" in shown
    rows = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert {"base", "tuned"} <= rows
    assert done.stderr == ""


def test_json_alone_on_standard_output(folder, pair):
    done = invoke(
        "forget", folder / "causal" / "lora", "--text", folder / "text.txt", "--context", "32", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["schema"] == "intruscope.forget/1"
    assert data["base"]["name"] == str(folder / "causal" / "base")


def test_fast_masks_and_a_classification(folder, tmp_path):
    (tmp_path / "t.csv").write_text("words,kind\nshe waited,bad\nall happy families,good\n")
    (tmp_path / "text.txt").write_text(TEXT * 3, encoding="utf-8")
    done = invoke(
        "forget", folder / "masked" / "base", folder / "masked" / "classifier",
        "--text", tmp_path / "text.txt",
        "--protocol", "fast", "--task", tmp_path / "t.csv", "--task-fields", "words,kind",
        "--labels", "good,bad",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in ("pseudo-loss", "pseudo-perplexity", "minus the exact one's", "masked-pseudo-loss-fast/1"):
        assert part in done.stdout, part


def test_gates_fail_with_code_1_after_everything_is_written(folder, pair, tmp_path):
    text = ["--text", folder / "text.txt", "--context", "32", "--json", tmp_path / "forget.json"]
    done = invoke("forget", *pair, *text, "--fail-on", "forgetting > 0.0001, forgetting_low > 100")
    assert done.returncode == 1
    assert done.stderr.startswith("gate forgetting > 0.0001 tripped: the value is 0.")
    assert done.stderr.count("tripped") == 1
    gates = json.loads((tmp_path / "forget.json").read_text())["gates"]
    assert [(gate["gate"], gate["tripped"]) for gate in gates] == [
        ("forgetting > 0.0001", True), ("forgetting_low > 100", False),
    ]  # fmt: skip
    assert invoke("forget", *pair, *text, "--fail-on", "forgetting > 100").returncode == 0
    refused = invoke("forget", *pair, *text, "--fail-on", "skills_lost > 0")
    assert_message(refused, 2, "cannot be checked without --skills")


def test_several_fine_tunes_in_one_table(folder, tmp_path):
    causal = folder / "causal"
    out = tmp_path / "fleet.json"
    done = invoke(
        "forget", causal / "base", causal / "lora", causal / "full", "--text", folder / "text.txt",
        "--context", "32", "--json", out, "--fail-on", "forgetting > 0.0001",
    )  # fmt: skip
    assert done.returncode == 1
    data = json.loads(out.read_text())
    assert (data["schema"], data["labels"]) == ("intruscope.forget-fleet/1", ["lora", "full"])
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    table = {row[0]: row[1:] for row in rows if row[0] in ("base", "lora", "full")}
    for label, report in zip(data["labels"], data["reports"], strict=True):
        assert table[label][0] == f"{report['tuned']['loss']:.4f}"
        assert table[label][1] == f"{report['forgetting']['estimate']:+.3f}"
    assert done.stderr.count("tripped for ") == 2


def test_skills_beside_the_loss(folder, pair, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'eval')")
    from harness_tasks import write_task

    task = write_task(tmp_path, "endings", metric_list=[{"metric": "acc"}])
    done = invoke(
        "forget", *pair, "--text", folder / "text.txt", "--context", "32", "--skills", task, "--shots", "1",
        "--max-items", "12", "--json", tmp_path / "f.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (skill,) = json.loads((tmp_path / "f.json").read_text())["skills"]["figures"]
    shown = " ".join(done.stdout.split())
    for part in ("endings (acc)", f"{skill['tuned']['estimate']:.3f}", " 12 ", "1 examples in the prompt"):
        assert part in shown, part
    assert shown.startswith("The fine-tune forgot")
    assert "Skills:" in shown


def test_help_says_what_a_sequence_is_by_default():
    done = invoke("forget", "--help")
    assert done.returncode == 0
    assert "line for masked models, running for causal ones" in " ".join(done.stdout.split())


TEXTS = [
    (b"", 4, "without any text", []),
    (b"Call me.", 4, "tokens, but at least one context of 64 is needed", []),
    ("naïve".encode("latin-1"), 4, "not UTF-8", []),
    (b"Call me.", 4, "at least 2", ["--unit", "line"]),
    (b"{}", 2, "--stride is 64, but it must be between 1 and 63", ["--stride", "64"]),
]


@pytest.mark.parametrize(("data", "code", "says", "options"), TEXTS)
def test_text_that_will_not_do(data, code, says, options, pair, tmp_path):
    (tmp_path / "text.txt").write_bytes(data)
    done = invoke("forget", *pair, "--text", tmp_path / "text.txt", *options)
    assert_message(done, code, says)


class TestRefused:
    def refused(self, code, *parts, models, text, options=()):
        done = invoke("forget", *models, "--text", text, *options)
        assert_message(done, code, *parts)
        assert done.stdout == ""

    def test_no_text(self, pair):
        assert_message(invoke("forget", *pair), 2, "nothing to measure forgetting on", "--text", "--skills")

    def test_a_text_that_is_not_there(self, pair):
        self.refused(2, "no such file", models=pair, text="nowhere.txt")

    def test_a_protocol_of_the_other_kind(self, folder, pair):
        options = ["--protocol", "fast"]
        self.refused(
            2, "protocol fast does not fit a causal", models=pair, text=folder / "text.txt", options=options
        )

    def test_too_few_resamples(self, folder, pair):
        self.refused(2, "--resamples", models=pair, text=folder / "text.txt", options=["--resamples", "3"])

    def test_no_head_anywhere(self, folder):
        models = folder / "masked" / "headless", folder / "masked" / "classifier"
        self.refused(
            4, "without a language-model head", "ForMaskedLM", models=models, text=folder / "text.txt"
        )

    def test_a_tokenizer_that_does_not_fit(self, folder, pair):
        options = ["--tokenizer", folder / "causal" / "base"]
        models = folder / "masked" / "base", folder / "masked" / "classifier"
        self.refused(4, "without a mask token", models=models, text=folder / "text.txt", options=options)

    def test_tokenizers_that_disagree(self, folder, pair, tmp_path):
        shutil.copytree(pair[1], tmp_path / "tuned")
        for file in (folder / "masked" / "base").glob("tokenizer*"):
            shutil.copy(file, tmp_path / "tuned")
        self.refused(4, "tokenizers disagree", models=(pair[0], tmp_path / "tuned"), text=folder / "text.txt")

    def test_another_vocabulary(self, folder, pair, tmp_path):
        import transformers

        model = transformers.GPT2LMHeadModel.from_pretrained(pair[1])
        model.resize_token_embeddings(model.config.vocab_size + 1)
        model.save_pretrained(tmp_path / "tuned")
        models = (pair[0], tmp_path / "tuned")
        self.refused(
            4, "words and the base one of", "resize_token_embeddings", models=models, text=folder / "text.txt"
        )

    def test_nan(self, folder, pair, tmp_path):
        shutil.copytree(pair[1], tmp_path / "tuned")
        tensors = load_file(tmp_path / "tuned" / "model.safetensors")
        tensors["transformer.h.0.mlp.c_fc.bias"][2] = torch.nan
        save_file(tensors, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
        self.refused(
            4, "is nan", "intruscope scan", models=(pair[0], tmp_path / "tuned"), text=folder / "text.txt"
        )

    def test_an_adapter_with_nan(self, folder, tmp_path):
        shutil.copytree(folder / "causal" / "lora", tmp_path / "lora")
        tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
        key = next(key for key in tensors if "lora_B" in key)
        tensors[key][0, 0] = torch.nan
        save_file(tensors, tmp_path / "lora" / "adapter_model.safetensors")
        models = (folder / "causal" / "base", tmp_path / "lora")
        self.refused(4, "PEFT cannot load and merge", models=models, text=folder / "text.txt")

    def test_a_head_that_is_missing_costs_only_the_task(self, folder, tmp_path):
        shutil.copytree(folder / "masked" / "classifier", tmp_path / "adapter")
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        save_file({k: v for k, v in load_file(file).items() if "classifier" not in k}, file)
        (tmp_path / "t.csv").write_text("text,label\nshe waited,1\n")
        done = invoke(
            "forget", folder / "masked" / "base", tmp_path / "adapter", "--text", folder / "text.txt",
            "--task", tmp_path / "t.csv", "--json", tmp_path / "out.json",
        )  # fmt: skip
        assert done.returncode == 5, done.stderr
        assert "1 of 1 tasks could not be scored" in done.stderr
        assert "pseudo-loss on this text went from" in done.stdout
        assert "error[task-not-scored]" in done.stdout
        data = json.loads((tmp_path / "out.json").read_text())
        assert [finding["code"] for finding in data["findings"]] == ["task-not-scored"]
        assert data["forgetting"]["low"] < data["forgetting"]["estimate"] < data["forgetting"]["high"]

    def test_labels_outside_the_models(self, folder, tmp_path):
        (tmp_path / "t.csv").write_text("text,label\nshe waited,7\n")
        models = folder / "masked" / "base", folder / "masked" / "classifier"
        options = ["--task", tmp_path / "t.csv"]
        self.refused(
            4, "label '7'", "--labels A,B,C", models=models, text=folder / "text.txt", options=options
        )

    def test_a_classification_of_what_is_no_classifier(self, folder, pair, tmp_path):
        (tmp_path / "t.csv").write_text("text,label\nshe waited,1\n")
        options = ["--task", tmp_path / "t.csv"]
        self.refused(2, "no classification head", models=pair, text=folder / "text.txt", options=options)

    def test_a_device_that_is_not_here(self, folder, pair):
        self.refused(
            2, "--device is nowhere", models=pair, text=folder / "text.txt", options=["--device", "nowhere"]
        )

    @pytest.mark.parametrize("place", ["causal/base/out.json", "text.txt", "causal"])
    def test_an_output_over_an_input(self, place, folder, pair):
        options = ["--json", folder / place]
        self.refused(7, str(folder / place), models=pair, text=folder / "text.txt", options=options)

    def test_one_output_named_like_a_text(self, folder, pair, tmp_path):
        shutil.copy(folder / "text.txt", tmp_path / "text.txt")
        self.refused(
            7, "text.txt", models=pair, text=tmp_path / "text.txt", options=["--json", tmp_path / "text.txt"]
        )


def test_a_full_disk_leaves_what_was_there(folder, pair, tmp_path):
    """On a file system of one page, which the earlier result takes."""
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("unshare and mount are not allowed here")
    script = """
    folder=$1; shift
    mount -t tmpfs -o size=4k tmpfs "$folder"
    echo earlier > "$folder/out.json"
    "$@"; echo "code $?"
    echo "kept $(cat "$folder/out.json") $(ls -A "$folder" | tr '\\n' ' ')"
    """
    options = ["--text", folder / "text.txt", "--context", "16", "--json", tmp_path / "out.json"]
    command = [tmp_path, *COMMAND, "forget", *pair, *options]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["code 6", "kept earlier out.json "], done.stderr
    assert re.fullmatch(r"error\[resources\] .*No space left.*; free some space.*\n", done.stderr)


def variant(base, folder, **config):
    """A base with other fields in its config."""
    twin = shutil.copytree(base, folder / "base")
    (twin / "config.json").write_text(json.dumps(json.loads((twin / "config.json").read_text()) | config))
    return twin


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "kernels-community/flash-attn"},
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"attn_implementation": {"": "kernels-community/flash-attn"}},
        {"attn_implementation": "flash_attention_2"},
        {"experts_implementation": "kernels-community/megablocks"},
        {"auto_map": {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_a_config_names_is_neither_fetched_nor_run(folder, pair, tmp_path, monkeypatch, config):
    def refuse(*arguments, **_):
        raise AssertionError(f"asked for {arguments}")

    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", refuse)
    monkeypatch.setattr("transformers.integrations.hub_kernels.get_kernel", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    base = variant(pair[0], tmp_path, **config)
    for name in ("configuration_evil.py", "modeling_evil.py"):
        (base / name).write_text("raise SystemExit(99)")
    arguments = ["--text", folder / "text.txt", "--context", "32", "-q", "--json", "-"]
    done = [invoke("forget", each, pair[1], *arguments) for each in (pair[0], base)]
    assert [each.returncode for each in done] == [0, 0], done[1].stderr
    plain, named = (json.loads(each.stdout) for each in done)
    assert [side["loss"] for side in (named["base"], named["tuned"])] == [
        side["loss"] for side in (plain["base"], plain["tuned"])
    ]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = byte_tokenizer(begins=True)
    tokenizer.save_pretrained(folder)
    llama_model(len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1.0}}, ["unknown rope_type 'spiral'"]),
        ({"hidden_act": "spiral"}, ["unknown hidden_act 'spiral'"]),
        ({"num_attention_heads": 0}, ["ZeroDivisionError"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers is 1,000,000,000", "only 21 tensors"]),
        ({"num_hidden_layers": 1}, ["too few blocks", "model.layers.1.", "belong together"]),
        ({"num_hidden_layers": -5}, ["too few blocks", "model.layers.0."]),
        ({"text_config": {"decoder_layers": 10**9}}, ["decoder_layers is 1,000,000,000"]),
        ({"depths": [2, 10**9]}, ["depths is 1,000,000,000"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_config_that_makes_no_model(llama, tmp_path, config, parts):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    base = variant(llama, tmp_path, **config)
    done = invoke("forget", base, llama, "--text", tmp_path / "text.txt", "-q")
    assert_message(done, 4, *parts)


def test_a_label_of_thousands_of_digits(folder, pair, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": ' + "1" * 5000 + "}\n")
    done = invoke("forget", *pair, "--text", folder / "text.txt", "--task", tmp_path / "t.jsonl")
    assert_message(done, 4, "t.jsonl", "line 1 is not valid JSON", "a number of thousands of digits")
