"""A layer's call, with somebody who sees its inputs and its output. Nothing else about the layer changes."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ._torch_private import CALL, calling_module, is_transformed, is_view


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
        self.watchers: weakref.WeakKeyDictionary[Watcher, str | None] = weakref.WeakKeyDictionary()
        """Each with the name of the child whose input it takes for the output, if not what the layer returns."""
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
        own["forward"] = partial(self._shown, module, module.forward)
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            own.pop("forward", None)

    def _shown(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a module's forward returns, after all watchers have seen it."""
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        after: list[Callable[[Any], None]] = []
        with ExitStack() as children:
            for watcher, child in self.watchers.items():
                show = partial(watcher.watch, self.module, module, inputs)
                if child is None:
                    after.append(show)
                else:
                    children.enter_context(_shown_input(module.get_submodule(child), show))
            output = forward(*args, **kwargs)
        for seen in after:
            seen(output)
        return output


@contextmanager
def _shown_input(child: nn.Module, show: Callable[[Any], None]) -> Iterator[None]:
    """Shows the input of a child's calls, which may be changed in place after that."""
    forward, own = child.forward, child.__dict__
    before = own.get("forward")

    def shown(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_view(x):
            x = x.clone()
        show(x)
        return forward(x, *args, **kwargs)

    own["forward"] = shown
    try:
        yield
    finally:
        del own["forward"]
        if before is not None:
            own["forward"] = before


def watch(module: nn.Module, watcher: Watcher, child: str | None = None) -> None:
    """Shows a module's calls to one more watcher, until `unwatch`; ``child``: see `WatchedCall.watchers`."""
    call = module.__dict__.get(CALL)
    if not isinstance(call, WatchedCall):
        call = module.__dict__[CALL] = WatchedCall(module)
    call.watchers[watcher] = child


def unwatch(module: nn.Module, watcher: Watcher | None = None) -> None:
    """Ends it, or removes what a watcher that is gone has left. What was called before `watch` is called again."""
    call = module.__dict__.get(CALL)
    if not isinstance(call, WatchedCall):
        return
    if watcher is not None:
        call.watchers.pop(watcher, None)
    if not any(True for _ in call.watchers):
        del module.__dict__[CALL]
        if call.before is not None:
            module.__dict__[CALL] = call.before
