"""A layer's call, with somebody who sees its inputs and its output. Nothing else about the layer changes."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ._torch_private import CALL, calling_module, is_transformed, is_view


class Watcher(Protocol):
    """Sees the calls of layers, as `hooks.Capture` does."""

    def watch(self, module: nn.Module, called: nn.Module, inputs: list[Tensor], output: Any) -> None:
        """Is shown a call: of a layer, or of its replica on another device."""


class WatchedCall:
    """Stands between a module's call and its ``forward``, and shows a watcher what passes.

    It sees the inputs as hooks of the user have changed them, and the output before they do. Several watchers of a
    module stand one before the other; the outermost shows all of them what passes.

    Args:
        capture: the watcher.
        module: the layer.
        output: the name of the child whose input counts as the layer's output, if it is not what it returns.
    """

    def __init__(self, capture: Watcher, module: nn.Module, output: str | None = None) -> None:
        self.capture = weakref.ref(capture)
        self.module = module
        self.output = output
        self.before = module.__dict__.get(CALL)
        module.__dict__[CALL] = self

    def remove(self) -> None:
        """Restores what was there before, unless somebody has replaced it in the meantime."""
        own = self.module.__dict__
        if own.get(CALL) is self:
            del own[CALL]
            if self.before is not None:
                own[CALL] = self.before
        for outer in _chain(own.get(CALL)):
            if outer.before is self:
                outer.before = self.before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; in training mode under gradients the watchers see it."""
        if torch.compiler.is_compiling():
            return self.module._call_impl(*args, **kwargs)
        module, calls = calling_module() or self.module, [*_chain(self)]
        captures = [capture for call in calls if (capture := call.capture()) is not None]
        own = module.__dict__
        if (
            not captures
            or not module.training
            or not torch.is_grad_enabled()
            or torch.jit.is_tracing()
            or is_transformed()
            or "forward" in own  # what reaches a forward of the user's need not be what the weight multiplies
        ):
            before = calls[-1].before
            is_compiled = before is not None and module is self.module
            return (before if is_compiled else module._call_impl)(*args, **kwargs)  # type: ignore[misc]
        forward = module.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]

            def show(output: Any) -> None:
                for capture in captures:
                    capture.watch(self.module, module, inputs, output)

            if self.output is not None:
                with _shown_input(module.get_submodule(self.output), show):
                    return forward(*args, **kwargs)
            output = forward(*args, **kwargs)
            show(output)
            return output

        own["forward"] = watched
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            own.pop("forward", None)


def _chain(call: Any) -> Iterator[WatchedCall]:
    """The calls that stand one before the other, from the outermost."""
    while isinstance(call, WatchedCall):
        yield call
        call = call.before


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
