"""``intruscope methods``: the list that other programs read, and what is said of a wrong name."""

import json

import pytest
from cli_support import assert_message, invoke

NAMES = [
    "full", "lora", "rslora", "lora_plus", "lora_fa", "dora", "pissa", "mica", "olora", "eva", "adalora",
    "delora", "vera", "randlora", "loha", "lokr", "oft", "boft", "miss", "osf",
    "b_only", "sora", "prilora", "melora", "multilora", "chain", "rac", "lora_experts", "oplora", "lora_null",
    "corda", "milora", "clora", "construct",
]  # fmt: skip


def test_the_list_has_every_method_with_its_paper_and_options(tmp_path):
    done = invoke("methods", "--json", tmp_path / "methods.json")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    listing = json.loads((tmp_path / "methods.json").read_text())
    assert listing["schema"] == "intruscope.methods/1"
    methods = {method["name"]: method for method in listing["methods"]}
    assert list(methods) == NAMES
    for method in methods.values():
        assert method["paper"]
        assert method["source"] in ("peft", "intruscope")
        for parameter in method["parameters"]:
            assert parameter["source"]
            assert parameter["meaning"].endswith(".")
    assert not methods["lora_experts"]["mergeable"]
    assert methods["oft"]["mergeable"]
    rank = next(p for p in methods["lora"]["parameters"] if p["name"] == "rank")
    assert (rank["kind"], rank["default"], rank["least"]) == ("int", 8, 1)
    assert json.loads(invoke("methods", "--json", "-").stdout) == listing
    assert [m["name"] for m in json.loads(invoke("methods", "sora", "--json", "-").stdout)["methods"]] == [
        "sora"
    ]


def test_the_table_and_one_method_in_full():
    table = invoke("methods").stdout
    assert all(f" {name} " in table for name in NAMES)
    shown = invoke("methods", "oft").stdout
    assert "block_size" in shown
    assert "arXiv 2306.07280" in shown


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("lorra", "lora or"), ("ada-lora", "adalora"), ("SORA", "sora"), ("xyzzy", "intruscope methods")],
)
def test_a_wrong_name_is_answered_with_the_nearest(wrong, meant):
    done = invoke("methods", wrong)
    assert_message(done, 2, "usage", wrong, "known methods are full, lora", meant)
