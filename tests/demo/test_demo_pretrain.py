"""Is the larger twin grown as its recipe says, beside the texts that a study reads?"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from intruscope.demo import pretrain
from intruscope.demo.pretrain import LARGE, Architecture, Recipe
from intruscope.demo.texts import Text
from intruscope.demo.unpack import unpack
from intruscope.errors import OutputConflict

SHAPE = Architecture(vocabulary=300, num_layers=1, width=16, feed_forward=24, num_heads=2, max_positions=32)
SMALL = Recipe(architecture=SHAPE, num_steps=30, batch=4, context=16, learning_rate=1e-2)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    def texts(*, held_out):
        name = "held" if held_out else "trained"
        return (Text(name=name, content=f"def {name}(x):\n    return x\n" * 40),)

    monkeypatch.setattr(pretrain, "library_texts", texts)
    monkeypatch.setattr(pretrain, "LARGE", SMALL)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_the_larger_twin_lies_where_the_shipped_one_would(tmp_path):
    (tmp_path / "shipped").mkdir()
    (tmp_path / "grown").mkdir()
    steps = []
    unpack(tmp_path / "shipped")
    unpack(tmp_path / "grown", "grown", on_progress=steps.append)
    assert [(step.done, step.total) for step in steps if step.done] == [(step, 30) for step in range(1, 31)]
    for name in ("train.jsonl", "held_out.jsonl", "text.jsonl"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "shipped" / name).read_bytes()
    config = json.loads((tmp_path / "grown" / "model" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (16, 1, 300)
    card = (tmp_path / "grown" / "model" / "README.md").read_text()
    assert card.startswith("# The larger twin") and "pretrain --large --out" in card and "30 steps" in card


def test_a_recipe_and_its_seed_give_the_same_weights_and_learn(tmp_path):
    losses = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        found = pretrain.pretrain(
            tmp_path / name,
            replace(SMALL, seed=seed),
            on_step=lambda _, loss, name=name: losses.setdefault(name, []).append(loss),
        )
        assert found["device"] == "cpu" and found["held_out_loss"] < losses[name][0]
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(a[key].equal(b[key]) for key in a) and not all(a[key].equal(c[key]) for key in a)
    assert losses["a"][-1] < 0.5 * losses["a"][0]
    with pytest.raises(OutputConflict, match="not empty"):
        pretrain.pretrain(tmp_path / "a", SMALL)


def test_the_larger_twin_is_twice_as_wide_and_five_times_as_large():
    shape, usual = LARGE.architecture, Recipe().architecture
    assert shape.width == 2 * usual.width and shape.vocabulary == usual.vocabulary
    model = pretrain.new_model(shape, seed=0)
    assert (
        sum(each.numel() for each in model.parameters())
        == 4096 * 512 + 6 * (4 * 512**2 + 3 * 512 * 1376 + 2 * 512) + 512
    )
