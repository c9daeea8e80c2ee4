"""A full fine-tune as a low-rank adapter: ranks chosen per matrix, the error stated, written as PEFT does.

Reads files and solves; runs no model, and prints nothing.
"""
