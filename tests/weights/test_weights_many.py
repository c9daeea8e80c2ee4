"""Planning a model of very many tensors is linear in them, and loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

_SHARDS, _EACH = 250, 100
_PLAN = """
import sys, time
from intruscope.weights.source import open_model
from intruscope.weights.pairing import pair_checkpoints
base = open_model(sys.argv[1])
pairing = pair_checkpoints(base, base)
heavy = {"torch", "numpy", "safetensors", "huggingface_hub", "transformers"} & set(sys.modules)
print(len(base.tensors), len(pairing.pairs), len(heavy), time.process_time())
"""


def test_many_tensors_in_many_shards(tmp_path, raw_safetensors):
    weight_map = {}
    for shard in range(_SHARDS):
        file = f"model-{shard:05d}-of-{_SHARDS:05d}.safetensors"
        header = {
            f"model.layers.{shard}.mlp.experts.{i}.up_proj.weight": {
                "dtype": "BF16",
                "shape": [2, 2],
                "data_offsets": [8 * i, 8 * i + 8],
            }
            for i in range(_EACH)
        }
        raw_safetensors(tmp_path / file, header, bytes(8 * _EACH))
        weight_map.update(dict.fromkeys(header, file))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    answer = subprocess.run(
        [sys.executable, "-c", _PLAN, str(tmp_path)], check=True, capture_output=True, text=True
    ).stdout.split()
    assert [int(n) for n in answer[:3]] == [_SHARDS * _EACH, _SHARDS * _EACH, 0]
    # About 1.5 s of processor time. One pass over the index for each shard took 10 s more.
    assert float(answer[3]) < 8
