"""Adapters as updates of named matrices.

May live here: adapter folders and their configs, the arithmetic of each kind of adapter, and pairing an
adapter with its base. Nothing here decomposes a matrix.
"""
