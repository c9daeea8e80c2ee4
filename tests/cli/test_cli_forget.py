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
from forgetting_models import TEXT
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
    done = invoke(
        "forget", folder / "masked" / "base", folder / "masked" / "classifier", "--text", folder / "text.txt",
        "--protocol", "fast", "--task", tmp_path / "t.csv", "--task-fields", "words,kind",
        "--labels", "good,bad",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in ("pseudo-loss", "pseudo-perplexity", "minus the exact one's", "masked-pseudo-loss-fast/1"):
        assert part in done.stdout, part


def test_help_says_what_a_sequence_is_by_default():
    done = invoke("forget", "--help")
    assert done.returncode == 0
    assert "line for masked models, running for causal ones" in " ".join(done.stdout.split())


TEXTS = [
    (b"", 4, "without any text", []),
    (b"Call me.", 4, "tokens, expected at least one context of 64", []),
    ("naïve".encode("latin-1"), 4, "expected UTF-8", []),
    (b"Call me.", 4, "at least 2", ["--unit", "line"]),
    (b"{}", 2, "a stride of 64, expected from 1 to 63", ["--stride", "64"]),
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
        assert_message(invoke("forget", *pair), 2, "Missing option '--text'", "see intruscope forget --help")

    def test_a_text_that_is_not_there(self, pair):
        self.refused(2, "no such file", models=pair, text="nowhere.txt")

    def test_a_protocol_of_the_other_kind(self, folder, pair):
        options = ["--protocol", "fast"]
        self.refused(2, "protocol fast for a causal", models=pair, text=folder / "text.txt", options=options)

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
        self.refused(
            4, "tokenizers that disagree", models=(pair[0], tmp_path / "tuned"), text=folder / "text.txt"
        )

    def test_another_vocabulary(self, folder, pair, tmp_path):
        import transformers

        model = transformers.GPT2LMHeadModel.from_pretrained(pair[1])
        model.resize_token_embeddings(model.config.vocab_size + 1)
        model.save_pretrained(tmp_path / "tuned")
        models = (pair[0], tmp_path / "tuned")
        self.refused(4, "words, expected", "resize_token_embeddings", models=models, text=folder / "text.txt")

    def test_nan(self, folder, pair, tmp_path):
        shutil.copytree(pair[1], tmp_path / "tuned")
        tensors = load_file(tmp_path / "tuned" / "model.safetensors")
        tensors["transformer.h.0.mlp.c_fc.bias"][2] = torch.nan
        save_file(tensors, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
        self.refused(
            4, "loss nan in sequence", models=(pair[0], tmp_path / "tuned"), text=folder / "text.txt"
        )

    def test_an_adapter_with_nan(self, folder, tmp_path):
        shutil.copytree(folder / "causal" / "lora", tmp_path / "lora")
        tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
        key = next(key for key in tensors if "lora_B" in key)
        tensors[key][0, 0] = torch.nan
        save_file(tensors, tmp_path / "lora" / "adapter_model.safetensors")
        models = (folder / "causal" / "base", tmp_path / "lora")
        self.refused(4, "PEFT cannot load and merge", models=models, text=folder / "text.txt")

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
        self.refused(2, "classifies no sequences", models=pair, text=folder / "text.txt", options=options)

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
