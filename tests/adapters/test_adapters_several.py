"""Several fine-tunes of one base: opened once, lined up by matrix, refused where they do not fit."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft_models import llama

from intruscope.adapters.several import open_fine_tunes, unique_labels
from intruscope.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A base and three adapters of it: two targets each, one of them shared by all."""
    folder = tmp_path_factory.mktemp("several")
    torch.manual_seed(0)
    llama().save_pretrained(folder / "base")
    for name, targets, asked in (
        ("a", ["q_proj", "v_proj"], "base"),
        ("b", ["q_proj", "up_proj"], "somewhere/base@v1"),
        ("c", ["q_proj"], "another"),
    ):
        model = get_peft_model(llama(), LoraConfig(r=2, target_modules=targets))
        model.save_pretrained(folder / name)
        config = folder / name / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": asked}))
    return folder


def test_matrices_line_up_in_the_order_of_the_base(saved):
    found = open_fine_tunes(saved / "base", [saved / "b", saved / "a"])
    assert found.labels == ("b", "a")
    assert found.members[0].base is found.members[1].base
    rows = found.matrices()
    present = {name: tuple(pair is not None for pair in pairs) for name, pairs in rows.items()}
    assert present == {
        f"model.layers.{layer}.{part}": which
        for layer in (0, 1)
        for part, which in (
            ("mlp.up_proj", (True, False)),
            ("self_attn.q_proj", (True, True)),
            ("self_attn.v_proj", (False, True)),
        )
    }
    # The order is that of the base's tensors, and each pair is for the matrix that it is filed under.
    stored = [name for name in found.base.tensors if name.removesuffix(".weight") in rows]
    assert [f"{name}.weight" for name in rows] == stored
    assert all(pair.name == name for name, pairs in rows.items() for pair in pairs if pair is not None)


def test_adapters_that_name_different_bases_are_refused_unless_trusted(saved):
    folders = [saved / "a", saved / "c"]
    with pytest.raises(UsageError, match=r"different bases \(a: base, c: another\).*--same-base"):
        open_fine_tunes(saved / "base", folders)
    assert len(open_fine_tunes(saved / "base", folders, same_base=True).members) == 2


def test_one_fine_tune_is_too_few(saved):
    with pytest.raises(UsageError, match="1 fine-tune is given, and at least 2"):
        open_fine_tunes(saved / "base", [saved / "a"])


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["x/a", "y/b/"], ("a", "b")),
        (["x/a", "y/a", "b"], ("x/a", "y/a", "b")),
        (["x/a", "x/a", "y/a"], ("a#1", "a#2", "y/a")),
        (["a", "a"], ("a#1", "a#2")),
    ],
)
def test_labels_are_short_and_unique(names, labels):
    assert unique_labels(names) == labels
