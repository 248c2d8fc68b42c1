"""``python -m trainer.report``: the results of a set of runs in tables, plots and sentences.

Imports no torch, so that it starts at once.
"""
