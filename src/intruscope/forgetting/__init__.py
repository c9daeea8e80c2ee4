"""How much a fine-tune forgot: losses on text and scores on tasks, paired and with intervals.

May live here: reading text and tasks, cutting text into contexts, losses, intervals, and the records of
them. Nothing here prints, writes files, or changes a model.
"""
