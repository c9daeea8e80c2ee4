"""Intruscope: see what a fine-tune did to a model's weights."""
