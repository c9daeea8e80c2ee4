"""Strengths and controls over one loaded pair: what a repair buys and costs, and what a mere shrink does."""
