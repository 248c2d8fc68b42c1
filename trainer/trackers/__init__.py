"""Experiment trackers, to which a run's numbers go while it trains or afterwards, from its files. Imports no torch."""

from trainer.trackers.base import TRACKERS, TrackedRun, Tracker, open_tracker, tracked

__all__ = ["TRACKERS", "TrackedRun", "Tracker", "open_tracker", "tracked"]
