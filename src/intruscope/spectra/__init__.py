"""The notions of the paper, and the scan that applies them to every pair.

Alignment and intruders, similarity maps, effective rank, energy shares, the null model. Reads weights
and adapters, computes over linalg, runs through engine; prints nothing.
"""
