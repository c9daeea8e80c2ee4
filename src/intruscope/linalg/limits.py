"""Sizes that choose the algorithm; apart from it, so that a plan can know them without torch."""

DENSE_LIMIT = 1024
"""Up to this smaller side two dense float64 decompositions cost no more than the Krylov path.

Measured on one thread: 0.5 against 1.7 s at 768 x 768, 1.2 against 1.6 s at 1024 x 1024, 8.9 against 1.3 s
at 2048 x 2048.
"""
