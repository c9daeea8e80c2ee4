"""What a training step costs by each method, on the user's own model and machine: time, memory, tokens.

Times steps that are thrown away; trains nothing to keep, and prints nothing.
"""
