"""``python -m trainer.report``: what a set of runs shows, in tables, plots and words.

Nothing here imports torch, so that the report starts at once.
"""
