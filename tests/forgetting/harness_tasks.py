"""Small tasks of lm-evaluation-harness, each a YAML file with its data beside it."""

import json

import yaml

ENDINGS = ["waited.", "said nothing.", "are alike", "was cold"]
PROMPTS = ["She", "All happy families", "The naïve café owner", "It was a bright day and", "Call me"]


def write_task(folder, name, **more):
    """A task of multiple choice over two endings, twenty items; returns the path of its YAML file."""
    rows = [
        {"prompt": prompt, "choices": [ENDINGS[(i + j) % 4] for j in range(2)], "answer": (i + k) % 2}
        for i, prompt in enumerate(PROMPTS)
        for k in range(4)
    ]
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"train": str(data), "test": str(data)},
            "cache_dir": str(folder / "c"),
        },
        "training_split": "train",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 2.0},
        **more,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in task.items() if value is not None}))
    return path


def write_generation(folder, name):
    """A task whose answers are generated and compared with the target; some targets are what models say."""
    return write_task(
        folder,
        name,
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[answer]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 3, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
