"""A layer's call, with somebody who sees its inputs and its output. Nothing else about the layer changes."""

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ._torch_private import CALL, calling_module, is_transformed


class Watcher(Protocol):
    """Sees the calls of layers, as `hooks.Capture` does."""

    def watch(self, module: nn.Module, called: nn.Module, inputs: list[Tensor], output: Any) -> None:
        """Is shown a call: of a layer, or of its replica on another device."""


class WatchedCall:
    """Stands between a module's call and its ``forward``, and shows a watcher what passes.

    It sees the inputs as hooks of the user have changed them, and the output before they do.
    """

    def __init__(self, capture: Watcher, module: nn.Module) -> None:
        self.capture = weakref.ref(capture)
        self.module = module
        self.before = module.__dict__.get(CALL)
        module.__dict__[CALL] = self

    def remove(self) -> None:
        """Restores what was there before, unless somebody has replaced it in the meantime."""
        if self.module.__dict__.get(CALL) is self:
            del self.module.__dict__[CALL]
            if self.before is not None:
                self.module.__dict__[CALL] = self.before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; in training mode under gradients the watcher sees it."""
        if torch.compiler.is_compiling():
            return self.module._call_impl(*args, **kwargs)
        module, capture = calling_module() or self.module, self.capture()
        own = module.__dict__
        if (
            capture is None
            or not module.training
            or not torch.is_grad_enabled()
            or torch.jit.is_tracing()
            or is_transformed()
            or "forward" in own  # what reaches a forward of the user's need not be what the weight multiplies
        ):
            is_compiled = self.before is not None and module is self.module
            return (self.before if is_compiled else module._call_impl)(*args, **kwargs)  # type: ignore[misc]
        forward = module.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            capture.watch(self.module, module, inputs, output)
            return output

        own["forward"] = watched
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            own.pop("forward", None)
