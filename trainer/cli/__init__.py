"""The command line of ``python -m trainer``, and what all commands share. Imports no torch by itself."""
