"""Finding the layer where numbers stopped being finite."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.data import Batch
from trainer.precision import Precision


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


def first_non_finite(model: nn.Module, batches: list[Batch], precision: Precision) -> str:
    """Names the first layer whose output or gradient is not finite, by running the batch again."""
    found: list[str] = []
    with watching_outputs(model, found), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for inputs, _ in batches:
            if inputs.is_floating_point() and not inputs.isfinite().all():
                return "the inputs"
            with precision.autocast():
                model(inputs)
    if found:
        return f"the output of {found[0]}"
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return f"the gradient of {bad[-1]}" if bad else "the loss"
