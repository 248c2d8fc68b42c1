"""The repeated blocks of a model, found from outside: what is sharded, recomputed and compiled one by one."""

from collections import Counter
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The outermost modules that have siblings of their class, such as transformer and residual blocks.

    Single layers and plain containers are no blocks; the only module of a ``nn.ModuleList`` is one. Blocks that share
    a parameter with the rest of the model are left out.
    """
    found: list[nn.Module] = []

    def visit(parent: nn.Module) -> None:
        kinds = Counter(type(child) for child in parent.children())
        for child in parent.children():
            recurs = kinds[type(child)] > 1 or isinstance(parent, nn.ModuleList)
            if recurs and type(child) not in CONTAINERS and _has_layers(child) and _is_closed(child, model):
                found.append(child)
            else:
                visit(child)

    visit(model)
    return found


def units_of_size(model: nn.Module, minimum: int) -> list[nn.Module]:
    """Disjoint parts of a model, innermost first.

    Args:
        model: it is not one of them itself.
        minimum: parameters of a part, not counting those of parts within it.
    """
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> int:
        """The number of parameters that are in no part yet."""
        count = sum(p.numel() for p in module.parameters(recurse=False))
        count += sum(visit(child) for child in module.children())
        callable_one = not isinstance(module, nn.ModuleList | nn.ModuleDict)
        if module is model or count < minimum or not callable_one or not _is_closed(module, model):
            return count
        found.append(module)
        return 0

    visit(model)
    return found


def recompute(blocks: list[nn.Module], every: int) -> None:
    """Makes every ``every``-th block keep only its inputs, and run again in the backward pass."""
    for block in blocks[::every]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_each(blocks: list[nn.Module]) -> None:
    """Compiles the blocks' forward passes; hooks of the blocks themselves stay outside of the compiled part."""
    for block in blocks:
        block.forward = torch.compile(block.forward)


def _has_layers(module: nn.Module) -> bool:
    return any(True for child in module.children() for _ in child.parameters())


def _is_closed(module: nn.Module, model: nn.Module) -> bool:
    """Whether no module outside shares a parameter with it."""
    inside, own = set(module.modules()), set(module.parameters())
    return not any(
        parameter in own
        for other in model.modules()
        if other not in inside
        for parameter in other.parameters(recurse=False)
    )
