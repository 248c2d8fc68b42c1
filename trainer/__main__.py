"""``python -m trainer``: see `trainer.cli.train`."""

import sys

from trainer.cli.help import quick_help
from trainer.streams import open_missing_streams, print_if_read

if __name__ == "__main__":
    open_missing_streams()
    if text := quick_help(sys.argv[1:]):
        print_if_read(text)
    else:
        from trainer.cli.train import main  # takes seconds: it imports torch

        sys.exit(main())
