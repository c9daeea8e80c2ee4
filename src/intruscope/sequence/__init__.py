"""Task after task on one model: what is learned, what earlier tasks lose, and what the weights accumulate.

Trains through ``train``, counts intruders through ``spectra``; has no training loop of its own, and prints
nothing.
"""
