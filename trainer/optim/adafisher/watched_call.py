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
    """Stands between a module's call and its ``forward``, and shows what passes to those who watch.

    They see the inputs as hooks of the user have changed them, and the output before such hooks do.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
        self.before = module.__dict__.get(CALL)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer, which is seen in training mode under gradients."""
        if torch.compiler.is_compiling():
            return self.module._call_impl(*args, **kwargs)
        module = calling_module() or self.module
        own = module.__dict__
        if (
            not module.training
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
            for watcher in self.watchers:
                watcher.watch(self.module, module, inputs, output)
            return output

        own["forward"] = watched
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            own.pop("forward", None)


def watch(module: nn.Module, watcher: Watcher) -> None:
    """Shows a module's calls to one more watcher, until `unwatch`."""
    call = module.__dict__.get(CALL)
    if not isinstance(call, WatchedCall):
        call = module.__dict__[CALL] = WatchedCall(module)
    call.watchers.add(watcher)


def unwatch(module: nn.Module, watcher: Watcher | None = None) -> None:
    """Ends it, or removes what a watcher that is gone has left. What was called before `watch` is called again."""
    call = module.__dict__.get(CALL)
    if not isinstance(call, WatchedCall):
        return
    if watcher is not None:
        call.watchers.discard(watcher)
    if not any(True for _ in call.watchers):
        del module.__dict__[CALL]
        if call.before is not None:
            module.__dict__[CALL] = call.before
