"""Files to named matrices, and whole files back to disk.

May live here: model names, hub ids, safetensors, shards, opt-in pickles, layouts of fused and transposed
tensors, pairing of checkpoints, the coverage ledger, atomic writing. Nothing here decomposes a matrix.
"""
