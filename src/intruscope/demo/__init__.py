"""The demonstration: a shipped small model, its recipe, and two live fine-tunes of it, scanned."""
