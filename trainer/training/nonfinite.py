"""Steps whose loss or gradient is not finite: how many are skipped, and in which layer it began."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.data import Batch
from trainer.distributed.dtensor import local_tensor
from trainer.errors import UserError
from trainer.training.parts import RunParts
from trainer.training.step_sync import StepSync


class TrainingFailed(UserError):
    """Too many steps in a row had losses or gradients that are not finite."""


def count_skipped_step(parts: RunParts, batches: list[Batch], sync: StepSync) -> str | None:
    """Counts a step that was skipped because it was not finite. Every rank calls it, with its gradients in place.

    Returns:
        A warning; None for an overflow under a loss scale, which the next, smaller scale will mend.

    Raises:
        TrainingFailed: it is the ``loop.max_bad_steps``-th in a row; the message names the layer where it began.
    """
    scaler, counters = parts.precision.scaler, parts.counters
    if scaler.is_enabled() and scaler.get_scale() > 1 and sync.losses_finite:
        return None
    counters.skipped_steps += 1
    counters.skipped_in_a_row += 1
    step, loss = counters.step + 1, parts.objective.metrics(sync.totals)["loss"]
    if counters.skipped_in_a_row < parts.config.loop.max_bad_steps:
        return f"step {step} skipped: non-finite loss or gradient (loss {loss:g})"
    where = first_non_finite(parts, batches)
    raise TrainingFailed(
        f"{counters.skipped_in_a_row} steps in a row were not finite, the last at step {step}: "
        f"loss {loss:g}, first in {where}; lower optimizer.lr, set loop.clip_norm, or look at the data"
    )


def first_non_finite(parts: RunParts, batches: list[Batch]) -> str:
    """Names the first layer whose output or gradient is not finite, by running the batch again on all ranks."""
    model, ranks = parts.model, parts.ranks
    found: list[str] = []
    with (
        watching_outputs(model, found),
        parts.strategy.inference(),
        torch.compiler.set_stance("force_eager"),
    ):
        for batch in batches:
            if batch[0].is_floating_point() and not batch[0].isfinite().all():
                found.insert(0, "")  # and on: a sharded model needs all ranks in its forward pass
            with parts.precision.autocast():
                parts.objective.loss(model, batch)
    places = [place[0] if place else None for place in ranks.all_gather_object(found[:1])]
    # the first one in the model: a batch norm passes it on to the ranks that it shares statistics with
    for first in ["", *(name for name, _ in model.named_modules() if name)]:
        if first in places:  # a gradient would say less: it is a sum over all ranks
            what = f"the output of {first}" if first else "the inputs"
            everywhere = all(place == first for place in places)
            return what if everywhere else f"{what} on rank {places.index(first)}"
    named = [(name, local_tensor(p.grad)) for name, p in model.named_parameters() if p.grad is not None]
    mine = [name for name, grad in named if not grad.isfinite().all()]
    bad = {name for names in ranks.all_gather_object(mine) for name in names}
    return next((f"the gradient of {name}" for name, _ in reversed(named) if name in bad), "the loss")


@contextmanager
def watching_outputs(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Collects the names of modules whose output is not finite, in the order of the forward pass.

    Args:
        model: its modules are watched within the context.
        found: the names are appended to it.
    """

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
