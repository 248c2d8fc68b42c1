"""How often the report claims a difference: of contenders that do not differ, and of such that do.

    python tests/benchmarks/claims.py [--tries 5000]

Final metrics are drawn from normal distributions; a gap of 4 means that the contenders' means lie 4 standard
deviations between seeds apart. Where seeds match, the tests are paired, as for a sweep over the seed.
"""

import argparse
import random

from rich.console import Console
from rich.table import Table

from trainer.report.statistics import compare
from trainer.report.summary import LEVEL

GAPS = (0, 2, 4, 8, 16)


def claims(n: int, gap: float, shift: int, tries: int) -> float:
    """Share of the tries with a claim, for n seeds of each of two contenders, one's shifted against the other's."""
    draw = random.Random(f"{n} {gap} {shift}")
    claimed = 0
    for _ in range(tries):
        first = {seed: draw.gauss(gap, 1) for seed in range(n)}
        second = {seed + shift: draw.gauss(0, 1) for seed in range(n)}
        p = compare(first, second).p
        claimed += p is not None and p < LEVEL
    return claimed / tries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=5000)
    args = parser.parse_args()
    heads = ["test", "seeds", *(f"gap {gap}" for gap in GAPS), "no claim in 20 of 20 at gap 0"]
    table = Table(*heads, title=f"claims at p < {LEVEL}")
    for kind, shift in (("paired", 0), ("Welch", 100)):
        for n in (3, 5, 10):
            shares = [claims(n, gap, shift, args.tries) for gap in GAPS]
            quiet = (1 - shares[0]) ** 20
            table.add_row(kind, str(n), *(f"{100 * share:.1f}%" for share in shares), f"{100 * quiet:.0f}%")
    Console().print(table)


if __name__ == "__main__":
    main()
