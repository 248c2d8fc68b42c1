"""A few of the random programs of `fuzz`."""

import pytest

from tests.optim.adafisher.fuzz import MODELS, run


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(6))
def test_random_programs(seed: int) -> None:
    run(MODELS[seed % len(MODELS)], seed)
