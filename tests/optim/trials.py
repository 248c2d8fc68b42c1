"""What an optimizer is tried at for the table of docs/abilities.md, each on a small convnet.

A trial compares a run with one from which it must not differ; the functions in `TRIALS` say with which.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.distributed.runs import config_of, gathered, parts_from, steps
from tests.training.kill_and_resume import differences
from trainer.checkpoint import storage
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.restore import restore
from trainer.config.schema import Config
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks
from trainer.distributed.strategies import STRATEGIES
from trainer.errors import UserError, one_line
from trainer.training.parts import RunParts
from trainer.training.step import TrainStep

RUN = "model=uneven data.batch_size=32 data.crop_padding=0 schedule=constant device=cpu"
STEPS = 6
"""Of each run: three times as many as lie between two refreshes of a curvature below."""
FACTORS = "optimizer.factor_interval=2 optimizer.inverse_interval=2"
OPTIMIZERS = {  # what is written behind optimizer=, and options that have something happen in so few steps
    "adafisher": "optimizer.update_interval=2",
    "adafisher_calibrated": "optimizer.update_interval=2",
    "adafisher_paper": "optimizer.update_interval=2",
    "adafisher_released": "optimizer.update_interval=2",
    "adafisherw": "optimizer.update_interval=2",
    "adafisherw_calibrated": "optimizer.update_interval=2",
    "adafisherw_paper": "optimizer.update_interval=2",
    "adafisherw_released": "optimizer.update_interval=2",
    "sgd": "",
    "adam": "",
    "adamw": "",
    "nadam": "",
    "adafactor": "",
    "lbfgs": "optimizer.max_iter=4",
    "muon": "",
    "schedulefree_adamw": "",
    "schedulefree_sgd": "",
    "sam_adamw": "",
    "sam_sgd": "",
    "kfac": FACTORS,
    "kfac optimizer.ekfac=true": FACTORS,
    "foof": FACTORS,
    "eva": "optimizer.factor_interval=2",
    "shampoo": "optimizer.interval=2",
    "adahessian": "",
    # a longer side of a weight may have eigenvalues of 0, whose eigenvectors are rounding
    "pytorch_optimizer optimizer.algorithm=soap": "+optimizer.options.max_precondition_dim=4",
    **{
        f"pytorch_optimizer optimizer.algorithm={algorithm}": ""
        for algorithm in ("lion", "adopt", "ademamix", "lamb", "prodigy", "sophiah")
    },
}


class Failed(Exception):
    """A trial ended with something else than it should."""


class Run(NamedTuple):
    """Where a run began and ended: its parameters by name, whole on each rank."""

    begin: dict[str, Tensor]
    end: dict[str, Tensor]


def weights(parts: RunParts) -> dict[str, Tensor]:
    """The parameters that are trained."""
    found: dict[str, Tensor] = gathered(
        {name: p for name, p in parts.model.named_parameters() if p.requires_grad}
    )
    return found


def ended(config: Config, ranks: Ranks = SINGLE_PROCESS, dtype: torch.dtype = torch.float64) -> Run:
    """A whole run."""
    parts = parts_from(config, ranks, dtype)
    begin = weights(parts)
    return Run(begin, weights(steps(parts, STEPS)))


@dataclass(eq=False)
class Case:
    """A row of the table."""

    config: Config

    @cached_property
    def plain(self) -> Run:
        """The run in one process, in float64, to which others are compared."""
        return ended(self.config)


def case_of(optimizer: str) -> Case:
    """The row of an optimizer."""
    return Case(config_of(*f"{RUN} optimizer={optimizer} {OPTIMIZERS[optimizer]}".split()))


ROUNDING = 1e-3
"""Of the way, what rounding in float64 may make of a difference: eigenvectors and roots of matrices enlarge it."""


def expect_same_end(one: Run, other: Run, tolerance: float) -> None:
    """Another run ends where the one does, but for a share of the way that all parameters together have gone.

    Raises:
        Failed: it does not.
    """
    off = distance(one.end, other.end) / distance(one.begin, one.end)
    if not off <= tolerance:
        raise Failed(f"it ends {off:.2g} of its way off")


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Euclidean, over all parameters."""
    return sum((value - other[name]).square().sum().item() for name, value in one.items()) ** 0.5


# Trials -----------------------------------------------------------------------------------------------------------


def under(strategy: str) -> Callable[[Case, Ranks], None]:
    """Two ranks end where one does, and go on from a checkpoint to the bit."""

    def attempt(case: Case, ranks: Ranks) -> None:
        spread = replace(case.config, parallel=STRATEGIES.check({"name": strategy}))
        expect_same_end(case.plain, ended(spread, ranks), ROUNDING)
        resume(Case(spread), ranks)

    return attempt


def fp16(case: Case, ranks: Ranks = SINGLE_PROCESS) -> None:
    """With a loss scale, the run ends where it does without, but for a quarter of the way."""
    lowered = replace(case.config, precision=replace(case.config.precision, name="fp16"))
    expect_same_end(*(ended(one, dtype=torch.float32) for one in (case.config, lowered)), tolerance=0.25)


def compiled(case: Case, ranks: Ranks = SINGLE_PROCESS) -> None:
    """A compiled model ends where the plain one does."""
    torch._dynamo.reset()
    one = replace(case.config, loop=replace(case.config.loop, compile=True))
    expect_same_end(case.plain, ended(one), ROUNDING)


def accumulation(case: Case, ranks: Ranks = SINGLE_PROCESS) -> None:
    """Two micro-batches a step end where whole batches do."""
    one = replace(case.config, loop=replace(case.config.loop, accumulate=2))
    expect_same_end(case.plain, ended(one), ROUNDING)


def resume(case: Case, ranks: Ranks = SINGLE_PROCESS) -> None:
    """A run that goes on from a checkpoint has the weights and the optimizer's state of one that was not stopped."""
    with tempfile.TemporaryDirectory() as own:
        folder = Path(ranks.all_gather_object(own)[0])
        whole = steps(parts_from(case.config, ranks, torch.float32), STEPS // 2)
        checkpoints = CheckpointManager(folder, ranks, case.config.checkpoint)
        checkpoints.save(whole.state, monitors={})
        checkpoints.wait()
        steps(whole, STEPS // 2)
        resumed = parts_from(case.config, ranks, torch.float32)
        restore(storage.list_checkpoints(folder), resumed.state, same_run=True, ranks=ranks)
        if resumed.strategy.settles_buckets:
            TrainStep(resumed).settle_ddp_buckets()
        steps(resumed, STEPS // 2)  # in which ranks wait for each other, who may still be reading
    if differ := differences(*(gathered(parts.state.tensors()) for parts in (resumed, whole))):
        raise Failed(f"{differ[0]} differs")


def no_decay(case: Case, ranks: Ranks = SINGLE_PROCESS) -> None:
    """The first step that a large weight decay changes is another for all matrices, and for no norm or bias by a bit.

    It need not be the first one: some algorithms only gather gradients in that.
    """
    runs = []
    for decay in (0.0, 0.5):
        options = {"decay_norms_and_biases": False, "weight_decay": decay}
        config = replace(case.config, optimizer={**case.config.optimizer, **options})
        runs.append(parts_from(config))
    decayed: set[str] = set()
    while not decayed and runs[0].counters.step < STEPS:
        ends = []
        for run in runs:
            torch.manual_seed(run.counters.step)  # of algorithms that draw random numbers
            ends.append(weights(steps(run, 1)))
        without, with_decay = ends
        decayed = {name for name, value in without.items() if not torch.equal(value, with_decay[name])}
    matrices = {name for name, value in without.items() if value.ndim >= 2}
    if decayed != matrices:
        raise Failed(f"weight decay is wrong of {', '.join(sorted(decayed ^ matrices))}")


TRIALS: dict[str, Callable[..., None]] = {
    "DDP": under("ddp"),
    "FSDP2": under("fsdp"),
    "fp16": fp16,
    "compile": compiled,
    "accumulation": accumulation,
    "exact resume": resume,
    "no decay of norms, biases": no_decay,
}
ON_RANKS = ("DDP", "FSDP2")


def attempt(case: Case, column: str, ranks: Ranks = SINGLE_PROCESS) -> str:
    """``yes``, ``refused: `` and the line that says why, or ``no: `` and what happened."""
    try:
        TRIALS[column](case, ranks)
    except UserError as refusal:
        return f"refused: {refusal}"
    except Exception as error:
        return f"no: {type(error).__name__}: {one_line(error)}"
    return "yes"
