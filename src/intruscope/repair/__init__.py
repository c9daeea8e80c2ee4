"""Turning intruder dimensions down: plan, check, apply, and the controls that a repair is shown beside.

Knows files through weights and adapters and verdicts through spectra; runs no model, prints nothing.
"""
