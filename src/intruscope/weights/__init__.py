"""Files to named matrices: model names, hub ids, safetensors, shards, opt-in pickles, layouts, pairing, the coverage ledger, atomic writing. Nothing here decomposes a matrix."""
