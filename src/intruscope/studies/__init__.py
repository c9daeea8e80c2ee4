"""The paper's studies as recipes: what is claimed, what would decide it, the runs, and the verdicts.

A verdict is a function of figures, written before the figures were made and tested on simulated ones that go
each way. Nothing here prints.
"""
