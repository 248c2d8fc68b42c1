"""What the layers of a model saw: their rows, taken in when their gradient arrives.

While a `Capture` is attached, each layer's call goes through a `watched_call.WatchedCall`. Nothing else about the model
changes, so that whatever saves, copies, scripts, traces or exports it in the meantime does not meet it.
"""

import math
import threading
import weakref
from collections.abc import Mapping, Sequence, Set
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from . import dtensor, eager, watched_call
from ._torch_private import (
    NO_BACKWARD,
    adds_to_gradient,
    current_backward,
    foreach_div_,
    foreach_mul_,
)
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

    Rows count if they belong to the gradients that the optimizer will find: those of a backward pass that adds to
    the gradient of a parameter of the layer, which has not been dropped since. A forward in ``eval()``, without
    gradients or under `torch.func` is not seen, one that activation checkpointing repeats does no work, and one whose
    output gets no gradient leaves nothing behind. Compiled functions run eagerly where they call a layer to be seen
    (`eager`): a compiled graph would not let it be.
    """

    def __init__(self, layers: Mapping[nn.Module, Layer]) -> None:
        self.layers = layers
        params = {module: dict(module.named_parameters(remove_duplicate=False)) for module in layers}
        self._names = {module: [*named] for module, named in params.items()}
        self._params = {module: sorted(named.values(), key=_elements) for module, named in params.items()}
        self._seen: dict[nn.Module, _Seen] = {}
        self.has_seen = False
        """Whether it ever took in anything."""
        self._backward = NO_BACKWARD
        self._lock = threading.Lock()  # a backward pass has a thread for each device
        self._watched: list[weakref.ref[nn.Module]] = []
        weakref.finalize(self, _tidy, self._watched)

    @property
    def is_attached(self) -> bool:
        """Whether it watches."""
        return bool(self._watched)

    def attach(self) -> None:
        """Watches all layers until `detach`."""
        if not self._watched:
            for module, layer in self.layers.items():
                watched_call.watch(module, self, layer.output)
                self._watched.append(weakref.ref(module))
            eager.watch(self)

    def detach(self) -> None:
        """Watches no layer any more; keeps what was captured."""
        for module in self.layers:
            watched_call.unwatch(module, self)
        self._watched.clear()
        eager.unwatch(self)

    def clear(self) -> None:
        """Drops what was captured."""
        self._seen.clear()

    def take_over(self, other: "Capture") -> None:
        """Goes on from what another capture has seen of layers that are this one's, too."""
        self.has_seen, self._backward = other.has_seen, other._backward
        self._seen = {module: seen for module, seen in other._seen.items() if module in self.layers}

    def watches(self, modules: Set[nn.Module] | None = None) -> bool:
        """Whether a forward pass now, of these modules or of any, would be seen."""
        among = self.layers if modules is None else self.layers.keys() & modules
        return self.is_attached and torch.is_grad_enabled() and any(module.training for module in among)

    def collect(self, scale: float, per_sample: bool, ranks: int = 1) -> dict[nn.Module, Rows]:
        """Returns what every layer saw whose gradient is there, unless it is not finite, and drops it.

        Args:
            scale: the factor by which a GradScaler multiplied the loss.
            per_sample: S of the gradients of each sample's loss; else of the mean loss over all micro-batches of
                ``ranks`` ranks.
        """
        self._drop_discarded()
        seen = {module: item for module, item in self._seen.items() if item.fits(self.layers[module])}
        self.clear()
        if not seen:
            return {}
        Ss = [item.S for item in seen.values()]
        degrees = [self.layers[module].degree for module in seen]
        units = [float(item.samples) if per_sample else 1 / ranks for item in seen.values()]
        foreach_mul_(Ss, [unit**degree for unit, degree in zip(units, degrees, strict=True)])
        foreach_div_(Ss, [scale**degree for degree in degrees])
        rows = {module: Rows(item.H, item.S, item.rows, item.samples) for module, item in seen.items()}
        if not _flat([factor for item in rows.values() for factor in item[:2]]).isfinite().all():
            rows = {module: item for module, item in rows.items() if _flat(item[:2]).isfinite().all()}
        return rows

    # During a forward and backward pass

    def watch(self, module: nn.Module, called: nn.Module, inputs: list[Tensor], output: Any) -> None:
        """Computes H of one call of a layer, and holds it until the gradient of its output comes with S.

        Args:
            called: the layer, or its replica on another device.
        """
        if not isinstance(output, Tensor) or not output.requires_grad or not output.numel():
            return
        names = self._names[module]
        param = min(
            (p for p in map(_parameter(called), names) if p.requires_grad), key=Tensor.numel, default=None
        )
        if param is None:  # frozen
            return
        node = torch.autograd.graph.get_gradient_edge(param).node
        if current_backward() != NO_BACKWARD:
            # Recomputed by activation checkpointing. Only the reentrant kind runs a backward through this graph.
            output.register_hook(partial(_refuse_reentrant, node))
            return
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            H = self.layers[module].H(*(x.detach() for x in inputs), output.shape)
        output.register_hook(partial(self._record, module, id(called), node, H))

    @torch.no_grad()
    def _record(self, module: nn.Module, place: int, node: Any, H: Tensor, s: Tensor) -> None:
        """Takes in one call of a layer: its H, and the gradient of its output, which has just arrived."""
        if not adds_to_gradient(node):
            return
        layer, s, backward = self.layers[module], s.detach(), current_backward()
        H, S = (H, layer.S(s)) if layer.joint is None else layer.joint(H, s)
        rows = s.numel() / (layer.width or S.numel())
        with self._lock:
            self.has_seen = True
            if backward != self._backward:
                self._drop_discarded()
                self._backward = backward
            self._seen.setdefault(module, _Seen()).add(H, S, rows, s.shape, (backward, place))

    def _drop_discarded(self) -> None:
        """Drops the rows of backward passes whose gradients are gone or have been set to zero since.

        A sharded parameter has no gradient before the last micro-batch: its rows stay.
        """
        smallest: dict[nn.Module, Tensor] = {}
        for module in [*self._seen]:
            params = self._params[module]
            grad = next((p.grad for p in params if p.grad is not None), None)
            if dtensor.is_dtensor(params[0]):
                continue
            if grad is None or grad.is_sparse:
                del self._seen[module]
            else:
                smallest[module] = grad
        if not smallest:
            return
        lengths = torch.tensor([grad.numel() for grad in smallest.values()])
        flat = _flat([*smallest.values()]).float().abs()
        sizes = torch.segment_reduce(flat, "sum", lengths=lengths.to(flat.device), unsafe=True)
        for module, size in zip(smallest, sizes.tolist(), strict=True):
            # one that is zero does not speak for all
            if size == 0 and not any(p.grad.any() for p in self._params[module] if p.grad is not None):
                del self._seen[module]


class _Seen:
    """Running means of one layer's H and S over the rows since the last refresh."""

    def __init__(self) -> None:
        self.rows = 0.0
        self.samples = 0
        self.passes: set[tuple[int, int]] = set()

    def add(self, H: Tensor, S: Tensor, rows: float, shape: torch.Size, of: tuple[int, int]) -> None:
        self.rows += rows
        if self.rows == rows:
            self.H, self.S = H, S
        else:
            self.H = torch.lerp(self.H, H.to(self.H.device), rows / self.rows)
            self.S = torch.lerp(self.S, S.to(self.S.device), rows / self.rows)
        if of not in self.passes:  # a layer called twice in one forward saw the same samples twice
            self.samples += shape[0] if len(shape) > 1 else 1
            self.passes.add(of)

    def fits(self, layer: Layer) -> bool:
        """Whether the layer has not been given parameters of another shape since."""
        return not layer.views or (self.H.shape, self.S.shape) == layer.sizes


def _parameter(module: nn.Module) -> Any:
    return lambda name: attrgetter(name)(module)


def _refuse_reentrant(node: Any, grad: Tensor) -> None:
    if adds_to_gradient(node):
        raise RuntimeError(
            "Layers are not seen under reentrant activation checkpointing: "
            "call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements, so that one operation looks at them, on the device of the first."""
    device = tensors[0].device
    return torch.cat(
        [t if t.dim() == 1 and t.device == device else t.reshape(-1).to(device) for t in tensors]
    )


def _elements(param: Tensor) -> float:
    return math.inf if is_lazy(param) else param.numel()


def _tidy(watched: list["weakref.ref[nn.Module]"]) -> None:
    """A function, not a method, so that a capture that is collected while attached cleans up after itself."""
    for module in watched:
        if (there := module()) is not None:
            watched_call.unwatch(there)
    eager.tidy()
