"""Optimizers that precondition layers by what the layers see: which they are, and when they are watched."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from trainer.optim.adafisher import dtensor
from trainer.optim.adafisher.hooks import Capture
from trainer.optim.adafisher.layers import Layer, own_parameters
from trainer.optim.adafisher.loss_scale import loss_scale
from trainer.optim.adafisher.mean_squares import factor_dtype
from trainer.optim.adafisher.refresh import layer_sums
from trainer.optim.kronecker.preconditioned_sgd import PreconditionedSGD
from trainer.optim.kronecker.rows import MatrixLayer, columns_of, is_matrix_layer


class Watched(NamedTuple):
    """A layer that is preconditioned as a whole: its weight and, as one more column, its bias."""

    module: MatrixLayer
    weight: Tensor
    bias: Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of its matrix."""
        return len(self.weight), columns_of(self.module)

    def gradient(self) -> Tensor | None:
        """[rows, columns] in the precision of factors; None if this step has none."""
        if self.weight.grad is None or (self.bias is not None and self.bias.grad is None):
            return None
        columns = [self.weight.grad.flatten(1)]
        if self.bias is not None and self.bias.grad is not None:
            columns.append(self.bias.grad[:, None])
        return torch.cat(columns, 1).to(factor_dtype(self.weight.dtype))

    def split(self, matrix: Tensor) -> dict[Tensor, Tensor]:
        """What a matrix [rows, columns] says of the weight and of the bias."""
        if self.bias is None:
            return {self.weight: matrix.view(self.weight.shape)}
        return {self.weight: matrix[:, :-1].reshape(self.weight.shape), self.bias: matrix[:, -1]}


class Seen(NamedTuple):
    """What a layer saw on all ranks since the last step."""

    H: Tensor
    """Mean over the rows of what the layer's H returns."""
    S: Tensor
    """Likewise, of the gradient of the per-sample loss."""
    rows_per_sample: float
    """T: 1 of vectors, positions or tokens else."""


class LayerwisePreconditioner(PreconditionedSGD):
    """Preconditions Linear and Conv2d layers; all other parameters take the plain gradient.

    A layer is left out as well if it has groups, shares a parameter or has one that is not trained, or if a side of its
    matrix is longer than ``largest_factor``. What a subclass keeps of a layer is in the state of its weight, with
    ``refreshes``, the number of times that it was seen; a layer that was never seen takes the plain gradient.
    """

    largest_factor: int
    grad_scaler: GradScaler | None = None

    def find_layers(self) -> None:
        """Finds the layers, and what is said of parameters of others."""
        modules = [(module, own_parameters(module)) for module in self.model.modules()]
        uses: Counter[Tensor] = Counter(p for _, params in modules for p in params.values())
        self.layers: dict[Tensor, Watched] = {}
        """By weight."""
        self._sources: dict[Tensor, str] = {}
        self._weights: dict[Tensor, Tensor] = {}
        for module, params in modules:
            reason = self._reason_against(module, params, uses)
            kind = type(module).__name__
            self._sources |= dict.fromkeys(params.values(), f"none: {reason}" if reason else kind)
            if not reason and is_matrix_layer(module):
                watched = Watched(module, module.weight, module.bias)
                self.layers[module.weight] = watched
                self._weights |= dict.fromkeys(params.values(), module.weight)
        self._capture = Capture({})

    def _reason_against(
        self, module: nn.Module, params: Mapping[str, Tensor], uses: Mapping[Tensor, int]
    ) -> str | None:
        """Why a module is not preconditioned; None if it is."""
        if not is_matrix_layer(module) or "weight" not in params:
            return f"{type(module).__name__} is no Linear or Conv2d"
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            return f"a convolution with {module.groups} groups"
        if any(uses[p] > 1 for p in params.values()):
            return "shared by several modules"
        if any(p not in self.names for p in params.values()):
            return "a parameter of its layer is not trained"
        side = max(self.sides(len(module.weight), columns_of(module)))
        if side > self.largest_factor:
            return f"a side of {side} > largest_factor={self.largest_factor}"
        return None

    # What a subclass gives

    def sides(self, rows: int, columns: int) -> tuple[int, ...]:
        """The sides of a layer's matrix that have a matrix of their own."""
        return rows, columns

    def described(self, watched: Watched) -> Layer | None:
        """What the coming step has a layer's rows made into; None if it does without."""
        raise NotImplementedError

    def new_factors(self, watched: Watched, options: Mapping[str, Any]) -> dict[str, Tensor]:
        """The state of a layer before it was seen; ``options`` are dtype and device."""
        raise NotImplementedError

    def take(self, watched: Watched, seen: Seen, state: dict[str, Any]) -> None:
        """Takes what a layer saw into its state, and counts it in ``refreshes``."""
        raise NotImplementedError

    def update(self, watched: Watched, state: dict[str, Any], gradient: Tensor) -> Tensor:
        """Preconditions the gradient of a layer, [rows, columns]."""
        raise NotImplementedError

    # What `PreconditionedSGD` asks for

    def source(self, param: Tensor) -> str:
        """The type of the parameter's layer, or why it is not preconditioned."""
        weight = self._weights.get(param)
        if weight is not None and self.state[param]["step"] and not self.state[weight]["refreshes"]:
            return "none: its layer was not called"
        return self._sources[param]

    def new_state(self, param: Tensor) -> dict[str, Any]:
        """The factors of a weight's layer."""
        if param not in self.layers:
            return {}
        options = {"dtype": factor_dtype(param.dtype), "device": param.device}
        return {"refreshes": 0, **self.new_factors(self.layers[param], options)}

    def refresh(self) -> None:
        """Takes what all ranks' layers saw into the state."""
        for weight, seen in self.collect().items():
            self.take(self.layers[weight], seen, self.state[weight])

    def precondition(self) -> dict[Tensor, Tensor]:
        """P g of the layers that have been seen."""
        updates: dict[Tensor, Tensor] = {}
        for weight, watched in self.layers.items():
            gradient = watched.gradient()
            if gradient is not None and self.state[weight]["refreshes"]:
                updates |= watched.split(self.update(watched, self.state[weight], gradient))
        return updates

    # Watching

    def arrange(self) -> None:
        """Watches the layers if the coming step refreshes the factors."""
        self._capture.detach()
        if self.needs_refresh:
            described = {w.module: self.described(w) for w in self.layers.values()}
            self._capture = Capture({module: layer for module, layer in described.items() if layer})
            self._capture.attach()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients and drops what was captured with them."""
        super().zero_grad(set_to_none)
        self._capture.clear()

    def collect(self) -> dict[Tensor, Seen]:
        """What the layers saw on all ranks, by weight, in one all-reduce; without those that no rank called."""
        captured = self._capture.collect(loss_scale(self.grad_scaler), per_sample=True)
        ranks = dtensor.ranks_of([*self.names])
        if ranks is None:
            return {
                weight: Seen(rows.H, rows.S, rows.rows / rows.samples)
                for weight, watched in self.layers.items()
                if (rows := captured.get(watched.module)) is not None
            }
        layers = self._capture.layers
        sums: dtensor.Tensors = {
            weight: layer_sums(layers[watched.module], captured.get(watched.module), weight)
            for weight, watched in self.layers.items()
            if watched.module in layers
        }
        (sums,) = dtensor.sum_over_ranks([sums], ranks)
        return {
            weight: Seen(H / counts[0], S / counts[0], (counts[0] / counts[1]).item())
            for weight, (H, S, counts) in sums.items()
            if counts[0]  # some rank called it
        }


class FactorInverter(LayerwisePreconditioner):
    """Refreshes factors every ``factor_interval`` steps, and inverts them every ``inverse_interval``."""

    factor_interval: int
    inverse_interval: int

    def invert(self, state: dict[str, Any]) -> None:
        """Inverts the factors in a layer's state."""
        raise NotImplementedError

    @property
    def takes_factors(self) -> bool:
        """Whether the coming step refreshes factors."""
        return self.steps % self.factor_interval == 0

    @property
    def inverts(self) -> bool:
        """Whether the coming step inverts factors, new ones or not."""
        return self.steps % self.inverse_interval == 0

    @property
    def needs_refresh(self) -> bool:
        """Whether the coming step refreshes factors or inverses."""
        return self.takes_factors or self.inverts

    def refresh(self) -> None:
        """Takes in what the layers saw; inverts factors that are due, and those of layers that are seen first."""
        new = {weight for weight in self.layers if not self.state[weight]["refreshes"]}
        super().refresh()
        for weight in self.layers:
            state = self.state[weight]
            if state["refreshes"] and (self.inverts or weight in new):
                self.invert(state)
