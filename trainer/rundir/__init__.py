"""The directory that a run leaves behind: its status, frozen config and provenance. Imports no torch."""
