"""What ranks exchange: plain values and paths, as text that executes nothing."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from trainer.distributed.ranks import RankInfo, Ranks, from_json, to_json
from trainer.errors import UserError


@pytest.mark.parametrize(
    "value",
    [None, 3, 0.1, "é\n", [1, [True]], {"a": {"b": [None]}}, Path("/a b"), [Path("x"), {"y": Path(".")}]],
)
def test_values_come_back(value: object) -> None:
    assert from_json(to_json(value).encode()) == value


def test_numbers_that_are_not_finite_come_back() -> None:
    assert math.isnan(from_json(to_json(math.nan).encode()))
    assert from_json(to_json(-math.inf).encode()) == -math.inf


def test_other_values_are_refused() -> None:
    with pytest.raises(TypeError, match="not set"):
        to_json({1, 2})


class Bomb:
    """Executes code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemError('executed')",)


def test_pickles_in_the_store_are_not_executed() -> None:
    store = HashStore()
    ranks = Ranks(RankInfo(0, 2), store)
    store.set("exchange/1/1", pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="MASTER_PORT"):
        ranks.all_gather_object("mine")
