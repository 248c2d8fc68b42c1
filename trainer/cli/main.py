"""What ``python -m trainer`` and ``adafisher-train`` call: help and lists of options, or training. Imports no torch."""

import sys

from trainer.cli.help import quick_help
from trainer.streams import open_missing_streams, print_if_read


def main() -> int:
    """Runs the command line of this process; returns the exit code."""
    open_missing_streams()
    argv = sys.argv[1:]
    if text := quick_help(argv):
        print_if_read(text)
        return 0
    # what follows imports torch, which takes seconds
    if argv[:1] == ["options"]:
        from trainer.cli.list_options import main as list_options

        return list_options(argv[1:])
    from trainer.cli.train import main as train

    return train(argv)
