"""Adapters on their own, without their base: spectra, ranks, scaling, and what looks wrong."""
