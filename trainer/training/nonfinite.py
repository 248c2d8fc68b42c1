"""Finding the layer where numbers stopped being finite."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.data import Batch
from trainer.distributed.dtensor import local_tensor
from trainer.distributed.strategies import Strategy
from trainer.training.precision import Precision


@contextmanager
def watching_outputs(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Collects the names of modules whose output is not finite, in the order of the forward pass."""

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


def first_non_finite(model: nn.Module, batches: list[Batch], precision: Precision, strategy: Strategy) -> str:
    """Names the first layer whose output or gradient is not finite, by running the batch again on all ranks."""
    found: list[str] = []
    with watching_outputs(model, found), strategy.inference(), torch.compiler.set_stance("force_eager"):
        for inputs, _ in batches:
            if inputs.is_floating_point() and not inputs.isfinite().all():
                found.insert(0, "")  # all the same the ranks run through the model together
            with precision.autocast():
                model(inputs)
    places = strategy.ranks.all_gather_object(found[:1])
    for rank, place in enumerate(places):
        if place:  # a gradient would tell less: all ranks have a share in it
            what = f"the output of {place[0]}" if place[0] else "the inputs"
            return what if all(other == place for other in places) else f"{what} on rank {rank}"
    named = [(name, local_tensor(p.grad)) for name, p in model.named_parameters() if p.grad is not None]
    mine = [name for name, grad in named if not grad.isfinite().all()]
    bad = {name for names in strategy.ranks.all_gather_object(mine) for name in names}
    return next((f"the gradient of {name}" for name, _ in reversed(named) if name in bad), "the loss")
