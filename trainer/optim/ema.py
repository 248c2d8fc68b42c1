"""An exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.distributed.dtensor import local_tensor


class EMA:
    """Averages the parameters and floating-point buffers of a model: ``a <- decay a + (1 - decay) w``.

    Early on the decay is ``(1 + t) / (10 + t)`` if that is smaller, so that the average forgets the random
    start (as in TensorFlow's ExponentialMovingAverage).

    Args:
        model: the model to follow; its tensors are looked up by name.
        decay: weight of the old average per step, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.restart()

    def restart(self) -> None:
        """Begins with the present weights."""
        self.steps = 0
        self.average = {name: tensor.clone() for name, tensor in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the present weights: once after each optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(local_tensors(self.average), local_tensors(self._weights()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the model the averaged weights within the context, and afterwards its own again, to the bit."""
        weights = local_tensors(self._weights())
        own = [tensor.clone() for tensor in weights]
        torch._foreach_copy_(weights, local_tensors(self.average))
        try:
            yield
        finally:
            torch._foreach_copy_(weights, own)

    def state_dict(self) -> dict[str, object]:
        """Returns the number of updates and the average of each tensor by name."""
        return {"steps": self.steps, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, object]) -> None:
        """Copies what `state_dict` returned into the averages."""
        steps, average = state["steps"], state["average"]
        assert isinstance(steps, int)
        assert isinstance(average, dict)
        self.steps = steps
        for name, tensor in self.average.items():
            tensor.copy_(average[name])


def local_tensors(tensors: dict[str, Tensor]) -> list[Tensor]:
    """Returns the parts of the tensors on this rank: all of each, or its shard."""
    return [local_tensor(tensor) for tensor in tensors.values()]
