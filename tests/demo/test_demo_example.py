"""Is what the example's users save read right: the names, the scope, every tensor accounted for?"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from intruscope.spectra.scan import plan

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_minilm.py"
PARTS = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "o",
    "intermediate.dense": "up",
    "output.dense": "down",
}
BODY = {f"encoder.layer.{i}.{part}": (kind, i) for i in range(6) for part, kind in PARTS.items()}
STEPS, BATCH = 3, 4

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_minilm", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, spec.name, module)  # its dataclass looks itself up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def base(real_data):
    return real_data / "models" / "minilm"


@pytest.fixture(scope="module")
def saved(example, base, real_data, tmp_path_factory):
    """Folder of each run, trained for a few steps."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    examples = example.read_tsv(real_data / "tasks" / "sst2" / "train_full.tsv")[: STEPS * BATCH]
    folders = {}
    for name in ("full", "r8", "dora", "rslora"):
        run = example.RUNS[name]
        model = example.build(base, run, seed=0)
        losses = example.train(model, examples, tokenizer, learning_rate=run.learning_rate, batch=BATCH)
        assert len(losses) == STEPS
        folders[name] = tmp_path_factory.mktemp("runs") / name
        model.save_pretrained(folders[name])
    return folders


def stored_names(folder: Path) -> set[str]:
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        return set(opened.keys())


def test_it_reads_sentences_and_labels(example, tmp_path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("sentence\tlabel\na \"quoted film\t1\nun 'even\t0\n")
    assert example.read_tsv(path) == [('a "quoted film', None, 1), ("un 'even", None, 0)]


def test_it_reads_pairs_and_numbers_their_labels(example, tmp_path) -> None:
    rows = {
        "0": {"text_a": "A", "text_b": "B", "label": "neutral"},
        "1": {"text_a": "C", "text_b": "D", "label": "entailment"},
    }
    for name in ("train.json", "dev.json"):
        (tmp_path / name).write_text(json.dumps(rows))
    expected = [("A", "B", 1), ("C", "D", 0)]
    assert example.read_task(tmp_path) == (expected, expected)


def test_a_shuffle_keeps_every_example_and_puts_like_lengths_together(example) -> None:
    examples = [example.Example("x" * (i % 40), None, i) for i in range(256)]
    shuffled = example.shuffled_by_length(examples, random.Random(0), 8)
    assert sorted(shuffled) == sorted(examples) and shuffled != examples
    spans = [
        max(lengths) - min(lengths)
        for lengths in ([len(each.text) for each in shuffled[i : i + 8]] for i in range(0, 256, 8))
    ]
    assert max(spans) <= 2  # of 40


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # PEFT asks transformers for it
def test_a_pooler_that_the_base_lacks_is_saved(example, real_data, tmp_path) -> None:
    """It is drawn at random: a reader that draws another gets another classifier."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = real_data / "models" / "minilm-mlm"
    batch = AutoTokenizer.from_pretrained(base)(["a fine film"], return_tensors="pt")
    model = example.build(base, example.RUNS["r8"], seed=0).eval()
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    fresh = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)
    again = PeftModel.from_pretrained(fresh, tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("name", ["full", "r8", "dora", "rslora"])
def test_the_plan_names_the_body_and_accounts_for_every_tensor(saved, base, name) -> None:
    found = plan(str(base), str(saved[name]))
    paper = {pair.name: (pair.kind, pair.layer) for pair in found.pairs if pair.scope == "paper"}
    assert paper == BODY
    assert found.complete
    tuned_side = "tuned" if name == "full" else "adapter"
    for origin, folder in (("base", base), (tuned_side, saved[name])):
        entries = [entry.tensor for entry in found.coverage if entry.origin == origin]
        assert sorted(entries) == sorted(stored_names(folder))
    head = [entry for entry in found.coverage if "classifier" in entry.tensor]
    assert len(head) == 2 and all(entry.status == "skipped" and entry.reason for entry in head)
    skipped = [entry for entry in found.coverage if "pooler.dense.weight" in entry.tensor]
    assert skipped, "the pooler is in the ledger"


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # PEFT asks transformers for it
@pytest.mark.parametrize("name", ["r8", "dora", "rslora"])
def test_the_update_is_the_one_that_peft_merges(example, saved, base, name) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, saved[name]).merge_and_unload()
    pairs = {pair.name: pair for pair in plan(str(base), str(saved[name])).pairs}
    for module in ("encoder.layer.2.attention.self.query", "encoder.layer.5.output.dense"):
        before = pairs[module].base.load()
        update = pairs[module].update.load(before)
        after = update.tuned_OI if hasattr(update, "tuned_OI") else before + update.left_OR @ update.right_RI
        expected = merged.bert.get_submodule(module).weight
        change = (expected - before).norm()
        assert change > 0
        assert (after - expected).norm() < 1e-3 * change


def test_the_full_fine_tune_moved_the_body_and_not_the_embedding(saved, base) -> None:
    pairs = {pair.name: pair for pair in plan(str(base), str(saved["full"])).pairs}

    def is_equal(name: str) -> bool:
        before = pairs[name].base.load()
        return torch.equal(pairs[name].update.load(before).tuned_OI, before)

    assert is_equal("embeddings.word_embeddings")  # frozen by the example
    assert not any(is_equal(name) for name in BODY)
