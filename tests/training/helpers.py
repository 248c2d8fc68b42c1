"""The parts of a run and its trainer, without a command line."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from trainer.checkpoint.manager import CheckpointManager
from trainer.config.compose import compose, hydra_session, resolve
from trainer.monitor import MonitorOptions, Monitors
from trainer.signals import StopSignal
from trainer.training.build import build
from trainer.training.loop import Trainer
from trainer.training.parts import RunParts
from trainer.training.run import describe

ARGS = Namespace(config_path=None, config_dir=None, config_name=None, overrides=[])
MLP = ["model=mlp", "data.batch_size=32", "data.crop_padding=0", "schedule=constant"]


def parts_of(*overrides: str) -> RunParts:
    with hydra_session(ARGS) as session:
        return build(resolve(compose(session, ARGS, list(overrides))))


def trainer_of(folder: Path, *overrides: str) -> Trainer:
    """A trainer without sinks, whose checkpoints go to the folder."""
    parts = parts_of(*overrides)
    return Trainer(
        parts,
        monitors=Monitors(describe(parts, folder, 0), MonitorOptions(sinks=[])),
        checkpoints=CheckpointManager(folder, parts.ranks, parts.config.checkpoint),
        stop=StopSignal(),
    )


def parameters(parts: RunParts) -> list[torch.Tensor]:
    return [p.detach().clone() for p in parts.model.parameters()]


def poison(parts: RunParts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all coming batches not a number."""
    next_batch = parts.state.loader.next_batch
    monkeypatch.setattr(
        parts.state.loader, "next_batch", lambda: [(x * float("nan"), y) for x, y in next_batch()]
    )
