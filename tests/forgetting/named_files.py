"""The files of the named tasks, a few rows each, and the same rows as the hub holds them."""

from __future__ import annotations

import json

SENTENCES = ["it 's a charming \"journey", "bleak and desperate", "a work of art", "the worst of it"]
SST2 = [(sentence, number) for sentence, number in zip(SENTENCES, (1, 0, 1, 0), strict=True)]
MNLI = [
    ("Salt kept the town fed.", "The town ate.", 0),
    ("He ran.", "He won.", 1),
    ("She is here.", "She is away.", 2),
]
WINOGRANDE = [
    {"sentence": "Sarah beat Maria so _ won.", "option1": "Sarah", "option2": "Maria", "answer": "1"},
    {"sentence": "Sarah beat Maria so _ lost.", "option1": "Sarah", "option2": "Maria", "answer": "2"},
]
LABELS = {0: "entailment", 1: "neutral", 2: "contradiction"}


def claims(count=60):
    """FEVER, each claim twice: two people may have written the same."""
    kinds = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
    return [
        {"id": 2 * i + j, "claim": f"The moon is {i} miles away.", "label": kinds[i % 3]}
        for i in range(count)
        for j in (0, 1)
    ]


def stories(count=60):
    """Social IQa as the hub holds it: two questions about each story."""
    return [
        {
            "context": f"Robin met {i} friends. All were late.",
            "question": question,
            "answerA": "angry", "answerB": "glad", "answerC": f"tired {i}",
            "label": str(i % 3 + 1),
        }
        for i in range(count)
        for question in ("How would Robin feel?", "What will Robin do next?")
    ]  # fmt: skip


def instructions(rows):
    """Social IQa as files hold it, written down by hand."""
    for row in rows:
        yield {
            "instruction": "Please choose the correct answer to the question: "
            f"{row['context']} {row['question']}\n\nAnswer1: angry Answer2: glad "
            f"Answer3: {row['answerC']}\n\nAnswer format: answer1/answer2/answer3",
            "input": "",
            "output": f"the correct answer is answer{row['label']}",
            "answer": f"answer{row['label']}",
        }


def write_named(folder):
    """The folder that ``--data`` names."""
    for name in ("sst2", "mnli", "winogrande", "fever", "siqa", "boolq"):
        (folder / name).mkdir(parents=True)
    for file in ("train_full.tsv", "dev.tsv"):
        rows = "".join(f"{sentence}\t{number}\n" for sentence, number in SST2)
        (folder / "sst2" / file).write_text("sentence\tlabel\n" + rows)
    for file in ("train.json", "dev.json"):
        rows = {
            str(i): {"text_a": a, "text_b": b, "label": LABELS[label]} for i, (a, b, label) in enumerate(MNLI)
        }
        (folder / "mnli" / file).write_text(json.dumps(rows))
    for file in ("train_l.jsonl", "dev.jsonl"):
        (folder / "winogrande" / file).write_text("\n".join(map(json.dumps, WINOGRANDE)))
    (folder / "fever" / "paper_dev.jsonl").write_text("\n".join(map(json.dumps, claims())))
    (folder / "siqa" / "all_1954.json").write_text(json.dumps(list(instructions(stories()))))
    question = "Please answer the following question with true or false, question: is it so?"
    row = {"instruction": f"{question}\n\nAnswer format: true/false", "answer": "false"}
    for file in ("train.json", "test.json"):
        (folder / "boolq" / file).write_text(json.dumps([row]))
    return folder
