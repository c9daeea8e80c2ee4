"""Fixes that are fitted to data: factors on the directions of an update, and a short replay of its training.

Every fit ends as edits of matrices, the same records that an intervention gives, so that a sweep measures
them and a repair writes them without knowing where they came from.
"""
