"""Hooks on the layers of a model: which layer saw which rows, committed when their gradient arrives."""

import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.optim.adafisher.layers import Layer

_NO_BACKWARD = -1


class Rows(NamedTuple):
    """Means of H and S over the rows that a layer saw, and a weight in proportion to their number."""

    H: Tensor
    S: Tensor
    weight: float


class Capture:
    """Collects H and S of a model's layers while it is attached.

    A forward in ``eval()`` or without gradients is not seen, one that activation checkpointing repeats does no work,
    and one whose output gets no gradient leaves nothing behind. Compiled modules run eagerly while hooks are
    attached: a compiled graph would not call them, and one that did would be broken by them.
    """

    def __init__(self, layers: Mapping[nn.Module, Layer]) -> None:
        self.layers = layers
        self._seen: dict[nn.Module, _Seen] = {}
        self._handles: list[Any] = []
        weakref.finalize(self, _detach, self._handles)

    def attach(self) -> None:
        if not self._handles:
            for module, layer in self.layers.items():
                self._handles.append(module.register_forward_hook(_Hook(self, layer), with_kwargs=True))
            _eager.hold(self._handles)

    def detach(self) -> None:
        _detach(self._handles)

    def clear(self) -> None:
        """Drops what was captured."""
        self._seen.clear()

    def collect(self, scale: float | Tensor, per_sample: bool, ranks: int = 1) -> dict[nn.Module, Rows]:
        """H and S of every layer that got a gradient; drops what was captured.

        Args:
            scale: what a GradScaler multiplied the loss with.
            per_sample: S of the gradients of each sample's loss, else of their mean over all micro-batches of so
                many ranks.
        """
        seen = {**self._seen}
        self.clear()
        if not seen:
            return {}
        Ss = [of_layer.S for of_layer in seen.values()]
        units = [float(of_layer.samples) if per_sample else 1 / ranks for of_layer in seen.values()]
        torch._foreach_mul_(Ss, [unit**2 for unit in units])
        torch._foreach_div_(Ss, scale**2)
        return {module: Rows(of_layer.H, of_layer.S, of_layer.weight) for module, of_layer in seen.items()}

    def commit(self, module: nn.Module, layer: Layer, H: Tensor, s: Tensor) -> None:
        """Takes in one call of a layer, now that its gradient is here."""
        S = layer.S(s.detach())
        self._seen.setdefault(module, _Seen()).add(H, S, s.shape, torch._C._current_graph_task_id())


class _Seen:
    """What one layer saw since the last refresh: means of H and S, weighted by the number of rows."""

    def __init__(self) -> None:
        self.weight = 0
        self.samples = 0
        self.backward = _NO_BACKWARD

    def add(self, H: Tensor, S: Tensor, shape: torch.Size, backward: int) -> None:
        weight = shape.numel()  # proportional to the number of rows
        self.weight += weight
        if self.weight == weight:
            self.H, self.S = H, S
        else:
            self.H = torch.lerp(self.H, H, weight / self.weight)
            self.S = torch.lerp(self.S, S, weight / self.weight)
        if backward != self.backward:  # a layer called twice in one forward saw the same samples twice
            self.samples += shape[0] if len(shape) > 1 else 1
            self.backward = backward


class _Hook:
    """Forward hook of one layer. It takes H now and holds it until the gradient of the output comes with S."""

    def __init__(self, capture: Capture, layer: Layer) -> None:
        self.capture = weakref.ref(capture)
        self.layer = layer

    @torch.no_grad()
    def _input_factor(self, x: Tensor, output: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer.H(x.detach(), output.shape)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        capture = self.capture()
        if capture is None or not module.training or not output.requires_grad:
            return
        if torch._C._current_graph_task_id() != _NO_BACKWARD:
            # Recomputed by activation checkpointing. Only the reentrant kind runs a backward through this graph.
            output.register_hook(_refuse_reentrant)
            return
        H = self._input_factor(args[0] if args else next(iter(kwargs.values())), output)
        output.register_hook(partial(capture.commit, module, self.layer, H))

    def __reduce__(self) -> tuple[Any, ...]:
        return _NoHook, ()  # a copied or pickled model is not this optimizer's


class _NoHook:
    def __call__(self, *args: Any) -> None:
        return None


def _refuse_reentrant(grad: Tensor) -> None:
    raise RuntimeError(
        "AdaFisher does not see the layers under reentrant activation checkpointing: "
        "call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
    )


class _Eager:
    """Makes compiled functions run eagerly for as long as anybody holds it, whatever the order of release."""

    def __init__(self) -> None:
        self._holders: set[int] = set()
        self._stance: Any = None

    def hold(self, holder: object) -> None:
        if not self._holders:
            self._stance = torch.compiler.set_stance("force_eager")
        self._holders.add(id(holder))

    def release(self, holder: object) -> None:
        if id(holder) in self._holders:
            self._holders.remove(id(holder))
            if not self._holders:
                self._stance.__exit__(None, None, None)


_eager = _Eager()


def _detach(handles: list[Any]) -> None:
    """A function, not a method, so that a capture that is collected while attached cleans up after itself."""
    for handle in handles:
        handle.remove()
    handles.clear()
    _eager.release(handles)
