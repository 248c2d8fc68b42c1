"""``python -m trainer``: see `trainer.cli.train`."""

import sys

from trainer.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
