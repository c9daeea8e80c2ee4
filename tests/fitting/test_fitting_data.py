"""Three disjoint parts of the data: nothing is fitted on what is reported."""

import json

import pytest
from fitting_pairs import write_words

from intruscope.errors import UsageError
from intruscope.fitting.data import parts_of_data, text_of_task
from intruscope.forgetting.tasks import load_task
from intruscope.forgetting.texts import read_texts


def rows(path, texts):
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return read_texts([path])


def texts_of(corpus):
    return [document.text for document in corpus.documents]


@pytest.fixture
def task(masked):
    return load_task(masked / "task.tsv")


def test_a_third_is_set_aside_by_document_and_equal_ones_stay_together(task, tmp_path):
    texts = [f"row {i % 20} of the text" for i in range(60)]  # each of them three times
    parts = parts_of_data(task, rows(tmp_path / "rows.jsonl", texts))
    fitted, measured = texts_of(parts.fit_text), texts_of(parts.text)
    assert sorted(fitted + measured) == sorted(texts)
    assert not set(fitted) & set(measured)
    assert len(set(fitted)) == 6
    examples = {*parts.fit_task.texts} | {*parts.task.texts}
    assert not {*parts.fit_task.texts} & {*parts.task.texts}
    assert examples == {*task.texts}
    assert len(parts.fit_task.labels) + len(parts.task.labels) == 60
    hashes = {parts.fit_text.sha256, parts.text.sha256, parts.fit_task.sha256, parts.task.sha256}
    assert len(hashes) == 4


def test_the_seed_decides_which_third(task, tmp_path):
    text = rows(tmp_path / "rows.jsonl", [f"row {i}" for i in range(30)])
    first, same, other = (parts_of_data(task, text, seed=seed) for seed in (0, 0, 1))
    assert first == same
    assert texts_of(first.fit_text) != texts_of(other.fit_text)
    assert first.digest != other.digest


def test_one_running_text_is_cut_at_a_line(task, tmp_path):
    path = write_words(tmp_path / "text.txt", num_lines=30, seed=0)
    parts = parts_of_data(task, read_texts([path]))
    (first,), (second,) = texts_of(parts.fit_text), texts_of(parts.text)
    assert first + second == path.read_text()
    assert first.endswith("\n")
    assert 0.3 < len(first) / len(path.read_text()) < 0.5


def test_a_leak_is_refused(task, masked, tmp_path):
    """Other data to fit on that holds one measured example, or a piece of the measured text."""
    text = read_texts([masked / "text.txt"])
    lines = (masked / "task.tsv").read_text().splitlines()
    other = tmp_path / "other.tsv"
    fresh = [f"w1 w2 w{i} w4 w5 w6 w7\t0" for i in range(20)]
    other.write_text("\n".join([lines[0], *fresh]))
    clean = load_task(other)
    apart = write_words(tmp_path / "apart.txt", num_lines=40, seed=9)
    assert parts_of_data(task, text, fit_task=clean, fit_text=read_texts([apart])).task == task
    other.write_text("\n".join([lines[0], *fresh, lines[7]]))
    with pytest.raises(UsageError, match="1 of the 60 examples"):
        parts_of_data(task, text, fit_task=load_task(other))
    flipped = lines[7][:-1] + str(1 - int(lines[7][-1]))  # the other label: the same example all the same
    other.write_text("\n".join([lines[0], *fresh, flipped]))
    with pytest.raises(UsageError, match="nothing may be fitted on"):
        parts_of_data(task, text, fit_task=load_task(other))
    leaking = tmp_path / "leaking.txt"
    measured = (masked / "text.txt").read_text().splitlines()
    leaking.write_text(apart.read_text() + "\n".join(measured[10:20]))
    with pytest.raises(UsageError, match="--fit-text"):
        parts_of_data(task, text, fit_text=read_texts([leaking]))


def test_too_little_data_is_refused(task, tmp_path):
    with pytest.raises(UsageError, match="too short"):
        parts_of_data(task, rows(tmp_path / "one.jsonl", ["ab"]))
    few = tmp_path / "few.tsv"
    few.write_text("sentence\tlabel\n" + "\n".join(f"w{i}\t0" for i in range(5)))
    with pytest.raises(UsageError, match="5 examples"):
        parts_of_data(load_task(few), read_texts([write_words(tmp_path / "t.txt", num_lines=9, seed=0)]))


def test_the_text_of_a_task_leaves_out_its_answers(task):
    assert texts_of(text_of_task(task)) == [first for first, _ in task.texts]
