"""Changes single bytes of a checkpoint, and says what comes of each: skipped, refused or told, never loaded.

python tests/abuse/damage.py --changes 2000
"""

import argparse
import collections
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.abuse.runs import checkpoints, go
from tests.training.helpers import parts_of
from trainer.checkpoint.restore import restore
from trainer.errors import UserError

BUILD = ["model.widths=[4]", "data.batch_size=64", "optimizer=sgd"]


def changes(checkpoint: Path, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Makes the changes, each undone before the next: where it was, and what restoring the checkpoint came to."""
    chance = random.Random(seed)
    parts = parts_of(*BUILD)
    files = sorted(file for file in checkpoint.iterdir() if file.is_file())
    for number in range(count):
        file = files[number % len(files)]
        original = file.read_bytes()
        place, value = chance.randrange(len(original)), chance.randrange(1, 256)
        file.write_bytes(original[:place] + bytes([original[place] ^ value]) + original[place + 1 :])
        where = f"{file.name}, byte {place} changed by {value}"
        try:
            restored = restore([checkpoint], parts.state, same_run=False)
            # white space and the like in the manifest, which means the same
            yield where, f"LOADED {restored.checkpoint.name}"
        except UserError as error:
            yield where, "skipped" if "is damaged" in str(error) else f"refused: {error}"
        except Exception as error:
            yield where, f"TRACEBACK {type(error).__name__}: {error}"
        file.write_bytes(original)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--changes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        assert go(Path(root) / "run") == 0
        found = list(changes(checkpoints(Path(root) / "run")[0], args.changes, args.seed))
    bad = [f"{where}: {what}" for where, what in found if what.split()[0] in ("LOADED", "TRACEBACK")]
    print("\n".join(bad))
    print(collections.Counter(what.split()[0].rstrip(":") for _, what in found))
    sys.exit(bool(bad))
