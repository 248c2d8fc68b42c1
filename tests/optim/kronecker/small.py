"""A small network in float64, its batches, and an optimizer from the registry on it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.optim import OPTIMIZERS, param_groups

SAMPLES, CLASSES = 6, 5
PLAIN = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": None, "kl_clip": None}
"""The parameters' step is minus the preconditioned gradient."""


def network() -> nn.Sequential:
    """Layers with one row a sample and with several, with a bias and without, and a norm.

    None has more columns than a batch has rows, so that the eigenvectors of its factors are no matter of rounding.
    """
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.GroupNorm(1, 3), nn.Tanh(), nn.Conv2d(3, 4, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)).double()


LAYERS = ("0", "3", "6")


def batch(seed: int = 0, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 2, 5, 5, dtype=torch.float64, generator=generator)
    return x, torch.randint(CLASSES, (samples,), generator=generator)


def build(model: nn.Module, name: str, **options: Any) -> Any:
    config = OPTIMIZERS.check({"name": name, **options})
    return OPTIMIZERS.build(config, model, param_groups(model, True))


def take_step(model: nn.Module, optimizer: Any, seed: int = 0, parts: int = 1, scale: float = 1.0) -> None:
    """One step on a batch in micro-batches."""
    x, y = batch(seed)
    optimizer.zero_grad()
    graph = getattr(optimizer, "needs_create_graph", False)
    for x_part, y_part in zip(x.chunk(parts), y.chunk(parts), strict=True):
        loss = cross_entropy(model(x_part), y_part) / parts * scale
        loss.backward(create_graph=graph)
    optimizer.step()


def gradients(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    x, y = batch(seed)
    names, params = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(cross_entropy(model(x), y), params), strict=True))


def sample_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of each sample's loss, [samples, *shape], by parameter."""
    x, y = batch()
    params = dict(model.named_parameters())

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, params, x[None]), y[None])

    return torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y)


def matrix(values: dict[str, Tensor], layer: str, axes: int = 0) -> Tensor:
    """What is known of a layer's weight and bias by name as [..., rows, columns (+ 1)], after so many other axes."""
    parts = [values[f"{layer}.weight"].flatten(axes + 1)]
    if f"{layer}.bias" in values:
        parts.append(values[f"{layer}.bias"].unsqueeze(-1))
    return torch.cat(parts, -1)


def step_of(name: str, **options: Any) -> tuple[nn.Module, Any, dict[str, Tensor]]:
    """A network, its optimizer after a step, and what the step took off each parameter; the network is as before."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = build(model, name, **{**PLAIN, **options})
    take_step(model, optimizer)
    after = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(before)
    return model, optimizer, {key: before[key] - after[key] for key in before}


def rows_of(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """By layer, the rows that it multiplies and those of the gradient of the per-sample loss: [N, T, width]."""
    x, y = batch()
    seen: dict[str, list[Tensor]] = {name: [] for name in LAYERS}
    for name in LAYERS:
        model.get_submodule(name).register_forward_hook(
            lambda m, args, output, name=name: seen[name].extend((args[0].detach(), output))
        )
    loss = cross_entropy(model(x), y, reduction="sum")
    outputs = [seen[name][1] for name in LAYERS]
    result = {}
    for name, output, s in zip(LAYERS, outputs, torch.autograd.grad(loss, outputs), strict=True):
        layer, h = model.get_submodule(name), seen[name][0]
        layer._forward_hooks.clear()
        if isinstance(layer, nn.Conv2d):  # patch by patch, from slices of the padded input
            padded = nn.functional.pad(h, [layer.padding[0]] * 4)
            k, places = layer.kernel_size[0], range(output.shape[-1])
            h = torch.stack(
                [padded[:, :, i : i + k, j : j + k].flatten(1) for i in places for j in places], 1
            )
            s = s.flatten(2).mT
        else:
            h, s = h[:, None], s[:, None]
        if layer.bias is not None:
            h = torch.cat([h, h.new_ones(*h.shape[:2], 1)], -1)
        result[name] = h, s
    return result
