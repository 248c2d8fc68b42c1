"""Hooks on the layers of a model: which layer saw which rows, recorded when their gradient arrives."""

import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._torch_private import NO_BACKWARD, current_backward, foreach_div_, foreach_mul_
from .layers import Layer


class Rows(NamedTuple):
    """What one layer saw on this rank since the last refresh."""

    H: Tensor
    """Mean over the rows, in the shape that the layer gives it."""
    S: Tensor
    """Likewise."""
    rows: float
    """How many there were: samples, times positions or tokens."""
    samples: float
    """Of how many samples."""


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
        """Puts hooks on all layers, and compiled functions into eager mode, until `detach`."""
        if not self._handles:
            for module, layer in self.layers.items():
                self._handles.append(module.register_forward_hook(_Hook(self, layer), with_kwargs=True))
            _eager.hold(self._handles)

    def detach(self) -> None:
        """Removes the hooks; keeps what was captured."""
        _detach(self._handles)

    def clear(self) -> None:
        """Drops what was captured."""
        self._seen.clear()

    def collect(self, scale: float | Tensor, per_sample: bool, ranks: int = 1) -> dict[nn.Module, Rows]:
        """Returns what every layer that got a gradient saw, and drops it.

        Args:
            scale: the factor by which a GradScaler multiplied the loss.
            per_sample: S of the gradients of each sample's loss; else of the mean loss over all micro-batches of
                ``ranks`` ranks.
        """
        seen = {**self._seen}
        self.clear()
        if not seen:
            return {}
        Ss = [of_layer.S for of_layer in seen.values()]
        units = [float(of_layer.samples) if per_sample else 1 / ranks for of_layer in seen.values()]
        foreach_mul_(Ss, [unit**2 for unit in units])
        foreach_div_(Ss, scale**2)
        return {module: Rows(item.H, item.S, item.rows, item.samples) for module, item in seen.items()}

    def record(self, module: nn.Module, layer: Layer, H: Tensor, s: Tensor) -> None:
        """Takes in one call of a layer: its H, and the gradient of its output, which has just arrived."""
        S = layer.S(s.detach())
        self._seen.setdefault(module, _Seen()).add(H, S, s.shape, current_backward())


class _Seen:
    """Running means of one layer's H and S over the rows since the last refresh."""

    def __init__(self) -> None:
        self.rows = 0.0
        self.samples = 0
        self.backward = NO_BACKWARD

    def add(self, H: Tensor, S: Tensor, shape: torch.Size, backward: int) -> None:
        rows = shape.numel() / S.numel()
        self.rows += rows
        if self.rows == rows:
            self.H, self.S = H, S
        else:
            self.H = torch.lerp(self.H, H, rows / self.rows)
            self.S = torch.lerp(self.S, S, rows / self.rows)
        if backward != self.backward:  # a layer called twice in one forward saw the same samples twice
            self.samples += shape[0] if len(shape) > 1 else 1
            self.backward = backward


class _Hook:
    """Forward hook of one layer: computes H at once and holds it until the gradient of the output comes with S."""

    def __init__(self, capture: Capture, layer: Layer) -> None:
        self.capture = weakref.ref(capture)
        self.layer = layer

    @torch.no_grad()
    def _input_factor(self, inputs: list[Tensor], output: Tensor) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            return self.layer.H(*(x.detach() for x in inputs), output.shape)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        capture = self.capture()
        if capture is None or not module.training or not output.requires_grad:
            return
        if current_backward() != NO_BACKWARD:
            # Recomputed by activation checkpointing. Only the reentrant kind runs a backward through this graph.
            output.register_hook(_refuse_reentrant)
            return
        H = self._input_factor([x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)], output)
        output.register_hook(partial(capture.record, module, self.layer, H))

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
