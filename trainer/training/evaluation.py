"""The metrics of a model on the evaluation splits."""

import math
from contextlib import closing

import torch

from trainer.data import eval_batches
from trainer.optim.protocols import evaluation_weights
from trainer.signals import Preempted, StopSignal
from trainer.training.parts import RunParts
from trainer.training.step_sync import received_by_any


def evaluate(parts: RunParts, suffix: str = "", stop: StopSignal | None = None) -> dict[str, float]:
    """Evaluates the model, in eval mode, on every split; all ranks call it, and each gets the same.

    Args:
        parts: the model with the weights that it has, and its splits.
        suffix: follows the split's name in those of the metrics.
        stop: read before each batch.

    Returns:
        ``SPLIT/loss`` and the objective's other metrics, over all samples, as it evaluates. All of a split are
        nan if its loss is: of outputs that are not numbers an accuracy would say nothing.

    Raises:
        Preempted: a rank has received a signal.
    """
    parts.model.eval()
    ranks, objective = parts.ranks, parts.objective.for_evaluation()
    metrics: dict[str, float] = {}
    for name, split in parts.data.evals.items():
        batches = eval_batches(split, parts.config.loader, ranks.rank, ranks.world_size)
        totals = []
        with parts.strategy.inference(), closing(batches):
            for batch in batches:
                if stop and (received := received_by_any(ranks, stop.received)):
                    raise Preempted(received, parts.counters.step)
                with parts.precision.autocast():
                    totals.append(objective.loss(parts.model, batch)[1])
        summed = ranks.sum(torch.stack(totals).cpu().double().sum(0))
        of_split = objective.metrics(summed)
        if math.isnan(of_split["loss"]):
            of_split = dict.fromkeys(of_split, math.nan)
        metrics |= {f"{name}{suffix}/{key}": value for key, value in of_split.items()}
    return metrics


def evaluate_with_average(parts: RunParts, stop: StopSignal | None = None) -> dict[str, float]:
    """As `evaluate`; where the run averages its weights, those of the average too, as ``SPLIT_ema/...``."""
    with evaluation_weights(parts.optimizer):
        metrics = evaluate(parts, stop=stop)
    if parts.state.ema is not None:
        with parts.state.ema.applied():
            metrics |= evaluate(parts, "_ema", stop)
    return metrics
