"""How much a fine-tune forgot: losses on text and scores on tasks, paired and with intervals.

This folder reads text and tasks, cuts text into contexts, and computes losses, intervals and their records.
Nothing here prints, writes files, or changes a model.
"""
