"""``python -m trainer``: see `trainer.cli.train`."""

import sys

from trainer.cli.help import quick_help

if __name__ == "__main__":
    if text := quick_help(sys.argv[1:]):
        print(text)
    else:
        from trainer.cli.train import main  # takes seconds: it imports torch

        sys.exit(main())
