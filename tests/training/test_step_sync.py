"""The all-reduce of a step on one rank; tests/distributed tests it on several."""

import math
import signal
from dataclasses import replace

import pytest
import torch

from trainer.distributed.ranks import SINGLE_PROCESS
from trainer.training.step_sync import Requests, StepResults, sync_step

OWN = StepResults(
    losses=torch.tensor([0.5, 0.25]),
    totals=torch.tensor([12.0, 3.0, 32.0]),
    squared_norm=torch.tensor(6.25),
    seconds=0.125,
    requests=Requests(),
)


def test_one_rank_gets_back_what_it_gave() -> None:
    sync = sync_step(SINGLE_PROCESS, OWN, [])
    assert sync.totals.tolist() == [12.0, 3.0, 32.0]
    assert (sync.grad_norm, sync.seconds, sync.finite) == (2.5, 0.125, True)
    assert sync.requests == Requests()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("save", [False, True])
def test_requests(number: signal.Signals, save: bool) -> None:
    requests = Requests(save=save, stop=number)
    assert sync_step(SINGLE_PROCESS, replace(OWN, requests=requests), []).requests == requests


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite(bad: float) -> None:
    loss = sync_step(SINGLE_PROCESS, replace(OWN, losses=torch.tensor([0.5, bad])), [])
    assert (loss.losses_finite, loss.finite) == (False, False)
    norm = sync_step(SINGLE_PROCESS, replace(OWN, squared_norm=torch.tensor(bad)), [])
    assert (norm.losses_finite, norm.finite) == (True, False)


def test_buffers_of_one_rank_stay() -> None:
    buffer = torch.tensor([1.0, 1 / 3])
    before = buffer.clone()
    sync_step(SINGLE_PROCESS, OWN, [buffer])
    assert torch.equal(buffer, before)
