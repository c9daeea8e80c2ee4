"""Tasks by their short names: how their labels are called and ordered, and which side a row falls on."""

import dataclasses
import hashlib

import pyarrow
import pyarrow.parquet
import pytest
from named_files import LABELS, MNLI, SENTENCES, SST2, WINOGRANDE, claims, stories, write_named

from intruscope.errors import IntruscopeError
from intruscope.forgetting import named_tasks
from intruscope.forgetting.named_tasks import NAMES, find_task, named_task


@pytest.fixture
def folder(tmp_path):
    return write_named(tmp_path / "tasks")


def hub_rows(name):
    """What the hub's copies of the same examples hold: other columns, classes as numbers."""
    return {
        "sst2": [{"sentence": s, "label": n, "idx": i} for i, (s, n) in enumerate(SST2)],
        "mnli": [{"premise": a, "hypothesis": b, "label": n} for a, b, n in MNLI],
        "winogrande": WINOGRANDE,
        # One row for each piece of evidence.
        "fever": [{**row, "evidence_id": e} for row in claims() for e in (7, 8)],
        "siqa": stories(),
        "boolq": [{"question": "is it so", "answer": False, "passage": "It is not."}],
    }[name]


HUB = {
    "sst2": ("hf:nyu-mll/glue:sst2:train", "hf:nyu-mll/glue:sst2:validation"),
    "mnli": ("hf:nyu-mll/glue:mnli:train", "hf:nyu-mll/glue:mnli:validation_matched"),
    "winogrande": (
        "hf:allenai/winogrande:winogrande_l:train",
        "hf:allenai/winogrande:winogrande_l:validation",
    ),
    "fever": (
        "hf:fever/fever@refs/convert/parquet:v1.0:train",
        "hf:fever/fever@refs/convert/parquet:v1.0:paper_dev",
    ),
    "siqa": (
        "hf:allenai/social_i_qa@refs/convert/parquet:train",
        "hf:allenai/social_i_qa@refs/convert/parquet:validation",
    ),
    "boolq": ("hf:google/boolq:train", "hf:google/boolq:validation"),
}


@pytest.mark.parametrize("name", HUB)
@pytest.mark.parametrize("split", ["train", "eval"])
def test_the_hubs_copy_is_the_files_copy(name, split, folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "intruscope.forgetting.named_tasks.read_hub_table", lambda n: (asked.append(n), hub_rows(name))[1]
    )
    from_hub = named_task(name, split=split, folder=None)
    assert asked == [HUB[name][split == "eval"]]
    if name in ("fever", "siqa"):  # the files are one, and are split; the hub has both sides
        from_files = [named_task(name, split=side, folder=folder) for side in ("train", "eval")]
        examples = (lambda t: list(zip(t.texts, t.labels, strict=True))) if name == "fever" else (
            lambda t: list(t.choices)
        )  # fmt: skip
        both = [*examples(from_files[0]), *examples(from_files[1])]
        assert sorted(map(repr, both)) == sorted(map(repr, examples(from_hub)))
    else:
        assert from_hub.sha256 == named_task(name, split=split, folder=folder).sha256


def test_through_the_datasets_package(tmp_path, monkeypatch):
    """It loads folders by the same call as names of the hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "glue"
    here.mkdir()
    for split, rows in (("train", SST2), ("validation", SST2[:1])):
        records = [{"sentence": sentence, "label": number} for sentence, number in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), here / f"{split}.parquet")
    stand_in = dataclasses.replace(named_tasks._TASKS["sst2"], hub=(f"{here}:train", f"{here}:validation"))
    monkeypatch.setitem(named_tasks._TASKS, "sst2", stand_in)
    assert named_task("sst2", split="train", folder=None).labels == ("positive", "negative") * 2
    assert named_task("sst2", split="eval", folder=None).texts == ((SENTENCES[0], None),)


def test_labels_have_their_names_in_the_hubs_order(folder):
    task = named_task("sst2", split="train", folder=folder)
    assert task.texts[0] == (SENTENCES[0], None)
    assert task.labels == ("positive", "negative", "positive", "negative")
    assert task.classes == ("negative", "positive")
    mnli = named_task("mnli", split="eval", folder=folder)
    assert mnli.labels == tuple(LABELS.values())
    assert mnli.classes == ("entailment", "neutral", "contradiction")


def test_a_models_own_names_win_over_the_order_of_the_task(folder):
    """MNLI's classes are published in every order."""
    task = named_task("mnli", split="eval", folder=folder)
    assert task.numbers(("LABEL_0", "LABEL_1", "LABEL_2")) == (0, 1, 2)
    assert task.numbers(("CONTRADICTION", "NEUTRAL", "ENTAILMENT")) == (2, 1, 0)
    told = named_task("mnli", split="eval", folder=folder, labels=["contradiction", "entailment", "neutral"])
    assert told.numbers(("LABEL_0", "LABEL_1", "LABEL_2")) == (1, 2, 0)
    with pytest.raises(IntruscopeError, match=r"label 'entailment'.*LABEL_1"):
        task.numbers(("LABEL_0", "LABEL_1"))


def test_a_file_that_holds_both_sides_is_split_by_what_an_example_is_about(folder):
    train, held_out = (named_task("fever", split=side, folder=folder) for side in ("train", "eval"))
    sides = {text for text, _ in train.texts}, {text for text, _ in held_out.texts}
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 60
    by_hand = {
        row["claim"]
        for row in claims()
        if int(hashlib.sha256(row["claim"].encode()).hexdigest(), 16) % 10 == 0
    }
    assert sides[1] == by_hand and len(by_hand) > 1
    assert len(train.texts) + len(held_out.texts) == 120
    questions = [
        {choice.prompts[0].split("question: ")[1].split(" All")[0] for choice in named_task(
            "siqa", split=side, folder=folder).choices}
        for side in ("train", "eval")
    ]  # fmt: skip
    assert not questions[0] & questions[1] and len(questions[0] | questions[1]) == 60
    assert questions[1]


def test_a_file_of_that_name_is_the_file(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_task("sst2", folder=folder).labels[0] == "positive"
    (tmp_path / "sst2").mkdir()  # the folder of the task, when the user stands above it
    assert find_task("sst2", folder=folder).labels[0] == "positive"
    (tmp_path / "sst2").rmdir()
    (tmp_path / "sst2").write_text("just text\n\nof two lines\n")
    assert find_task("sst2", folder=folder).corpus.documents[0].text.startswith("just text")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sst-2", "did you mean the task sst2?"),
        ("MNLI", "did you mean the task mnli?"),
        ("winograd", "did you mean the task winogrande?"),
        ("xyzzy", "check the name"),
        ("dev.tsv", "check the path"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, said):
    with pytest.raises(IntruscopeError) as caught:
        find_task(name)
    assert said in caught.value.remedy and caught.value.exit_code == 2


def test_what_a_named_task_cannot_be(folder):
    with pytest.raises(IntruscopeError, match="task sst2 already has its own"):
        find_task("sst2", folder=folder, text_fields=["sentence"], label_field="label")
    with pytest.raises(IntruscopeError, match="should hold the task cola"):
        named_task("cola", split="train", folder=folder)
    (folder / "sst2" / "dev.tsv").write_text("sentence\tlabel\nfine\t2\n")
    with pytest.raises(
        IntruscopeError, match="example 1 has the label '2'; the classes are negative, positive"
    ):
        named_task("sst2", split="eval", folder=folder)
    (folder / "fever" / "paper_dev.jsonl").write_text('{"label": "SUPPORTS"}\n')
    with pytest.raises(IntruscopeError, match="without 'claim'"):
        named_task("fever", split="eval", folder=folder)


@pytest.mark.real
def test_the_real_files(real_data):
    sizes = {
        "sst2": (67349, 872), "mnli": (8999, 1000), "qqp": (8999, 1000), "mrpc": (3300, 367),
        "rte": (2240, 249), "cola": (7695, 856), "winogrande": (10234, 1267), "siqa": (1754, 200),
        "fever": (8996, 1003), "boolq": (9427, 3270),
    }  # fmt: skip
    assert set(sizes) == set(NAMES)
    for name, counts in sizes.items():
        tasks = [named_task(name, split=side, folder=real_data / "tasks") for side in ("train", "eval")]
        assert tuple(len(getattr(t, "labels", getattr(t, "choices", ()))) for t in tasks) == counts
        if hasattr(tasks[0], "labels"):
            assert set(tasks[0].labels) == set(tasks[1].labels) == set(tasks[0].classes)
