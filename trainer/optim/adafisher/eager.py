"""Which calls of compiled functions run eagerly: those that call layers whose rows are to be seen, and no others.

``torch.compiler.set_stance("force_eager")`` would make all of them eager: evaluation, other models. The stance here
decides at every call of a compiled function. It lies above the stance of the user, which it follows otherwise.
"""

import weakref
from collections.abc import Set
from typing import Any, Protocol

from torch import nn

from ._torch_private import called_module, set_stance, stance


class Watcher(Protocol):
    """Sees layers, as `hooks.Capture` does."""

    def watches(self, modules: Set[nn.Module] | None = None) -> bool:
        """Whether a forward pass now, of these modules or of any, would be seen."""


_watchers: "weakref.WeakSet[Watcher]" = weakref.WeakSet()


class _Stance:
    """Has the attributes of torch's stances."""

    def __init__(self, below: Any) -> None:
        self.below = below
        self.skip_guard_eval_unsafe = below.skip_guard_eval_unsafe
        self.backend = below.backend

    @property
    def stance(self) -> str:
        return "force_eager" if _is_seen() else self.below.stance


def _is_seen() -> bool:
    """Whether the compiled function that is being called now calls a layer that somebody would see."""
    if not any(watcher.watches() for watcher in _watchers):
        return False
    is_call, module = called_module()
    if not is_call:
        return False
    modules = None if module is None else set(module.modules())
    return any(watcher.watches(modules) for watcher in _watchers)


def watch(watcher: Watcher) -> None:
    """Makes compiled functions run eagerly where the watcher would see them."""
    _watchers.add(watcher)
    if not isinstance(stance(), _Stance):
        set_stance(_Stance(stance()))


def unwatch(watcher: Watcher) -> None:
    """Ends it."""
    _watchers.discard(watcher)
    tidy()


def tidy() -> None:
    """Removes the stance if nobody watches. Below a stance of the user's it stays, and changes nothing."""
    while not any(True for _ in _watchers) and isinstance(stance(), _Stance):
        set_stance(stance().below)
