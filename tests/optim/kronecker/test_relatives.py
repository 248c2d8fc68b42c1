"""FOOF, Eva, Shampoo and AdaHessian against dense algebra and Newton's step."""

import pytest
import torch
from torch import nn

from tests.optim.kronecker.small import (
    LAYERS,
    PLAIN,
    build,
    gradients,
    matrix,
    network,
    rows_of,
    step_of,
    take_step,
)
from trainer.errors import ConfigError

DAMPING = 0.1


def test_foof_solves_with_the_inputs_second_moment() -> None:
    model, _, taken = step_of("foof", damping=DAMPING)
    grads = gradients(model)
    for layer, (h, _) in rows_of(model).items():
        h = h.flatten(0, 1)
        damped = h.T @ h / len(h) + DAMPING * torch.eye(h.shape[1]).double()
        expected = torch.linalg.solve(damped, matrix(grads, layer).T).T
        torch.testing.assert_close(matrix(taken, layer), expected)


def test_one_step_of_foof_solves_least_squares() -> None:
    layer, x, target = nn.Linear(4, 3).double(), torch.randn(12, 4).double(), torch.randn(12, 3).double()
    optimizer = build(layer, "foof", **PLAIN, damping=1e-12)
    ((layer(x) - target).square().sum(1).mean() / 2).backward()
    optimizer.step()
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(12, 1).double()], 1), target).solution
    torch.testing.assert_close(torch.cat([layer.weight, layer.bias[:, None]], 1), solution.T)


def test_eva_solves_with_the_outer_product_of_means() -> None:
    model, _, taken = step_of("eva", damping=DAMPING)
    grads = gradients(model)
    for layer, (h, s) in rows_of(model).items():
        v = torch.kron(s.flatten(0, 1).mean(0), h.flatten(0, 1).mean(0))
        gradient = matrix(grads, layer)
        dense = torch.outer(v, v) + DAMPING * torch.eye(len(v)).double()
        expected = torch.linalg.solve(dense, gradient.flatten()).view_as(gradient)
        torch.testing.assert_close(matrix(taken, layer), expected)


def test_shampoo_takes_dense_roots_of_all_gradients_so_far() -> None:
    scipy = pytest.importorskip("scipy.linalg")
    model = network()
    optimizer = build(model, "shampoo", **{**PLAIN, "lr": 1e-3, "damping": 0.5})
    statistics = {
        name: [0.5 * torch.eye(n).double() for n in p.shape] for name, p in model.named_parameters()
    }
    for seed in range(2):
        grads = gradients(model, seed)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        take_step(model, optimizer, seed)
        for name, param in model.named_parameters():
            g = update = grads[name]
            if not name.startswith("1."):
                letters = "abcd"[: g.dim()]
                for axis, letter in enumerate(letters):
                    other = letters.replace(letter, "z")
                    statistics[name][axis] += torch.einsum(f"{letters},{other}->{letter}z", g, g)
                    root = scipy.fractional_matrix_power(statistics[name][axis].numpy(), -1 / (2 * g.dim()))
                    update = torch.einsum(f"{letters},z{letter}->{other}", update, torch.from_numpy(root))
            torch.testing.assert_close((before[name] - param) / 1e-3, update, rtol=1e-6, atol=1e-8)


def test_adahessian_takes_newtons_step_where_the_hessian_is_diagonal() -> None:
    class Bowl(nn.Module):
        """Σ c (θ − o)² / 2, of which the Hessian is diag c."""

        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.randn(7).double())

    bowl, c, optimum = Bowl(), torch.rand(7).double() + 0.1, torch.randn(7).double()
    optimizer = build(bowl, "adahessian", lr=1.0, eps=1e-15, weight_decay=0.0)
    (c * (bowl.theta - optimum) ** 2 / 2).sum().backward(create_graph=True)
    optimizer.step()
    torch.testing.assert_close(bowl.theta.detach(), optimum)
    numbers = optimizer.diagnostics()["theta"]
    assert [numbers[f"preconditioner_{k}"] for k in ("min", "max")] == pytest.approx(
        [c.min().item(), c.max().item()]
    )


def test_adahessian_averages_over_kernels_and_undoes_a_loss_scale() -> None:
    conv, x = nn.Conv2d(2, 3, 2, bias=False).double(), torch.randn(4, 2, 2, 2).double()
    optimizer = build(conv, "adahessian", weight_decay=0.0)
    optimizer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loss = (conv(x) ** 2).mean(0).sum() / 2  # the Hessian of an output channel is E[x xᵀ] of its patches
    optimizer.grad_scaler.scale(loss).backward(create_graph=True)
    torch.manual_seed(1)
    diagonal = optimizer.hessian_diagonals()[conv.weight]
    torch.manual_seed(1)
    signs = torch.randint_like(conv.weight, 2).mul_(2).sub_(1).flatten(1)
    rows = x.flatten(1)
    expected = (signs @ (rows.T @ rows / 4)).abs().view_as(conv.weight).mean((2, 3), keepdim=True)
    torch.testing.assert_close(diagonal, expected)


def test_adahessian_says_that_it_needs_the_graph() -> None:
    layer = nn.Linear(2, 2)
    optimizer = build(layer, "adahessian")
    layer(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match=r"call loss.backward\(create_graph=True\)$"):
        optimizer.step()


def test_adahessian_names_what_has_no_second_derivative() -> None:
    layer = nn.Linear(2, 2)
    optimizer = build(layer, "adahessian")
    nn.functional.hardsigmoid(layer(torch.ones(1, 2))).sum().backward(create_graph=True)
    with pytest.raises(
        ConfigError, match=r"train this model: aten::hardsigmoid_backward is not implemented$"
    ):
        optimizer.step()


def test_clips_come_after_preconditioning() -> None:
    _, optimizer, free = step_of("foof", damping=DAMPING)
    _, _, clipped = step_of("foof", damping=DAMPING, clip_norm=1e-2)
    norm = torch.cat([u.flatten() for u in free.values()]).norm()
    for name, update in free.items():
        torch.testing.assert_close(clipped[name], update * 1e-2 / norm)

    model, _, limited = step_of("foof", damping=DAMPING, kl_clip=1e-3)
    grads = gradients(model)
    layers = [name for name in free if name.split(".")[0] in LAYERS]
    divergence = sum((free[name] * grads[name]).sum() for name in layers)
    for name, update in free.items():
        scale = (1e-3 / divergence).sqrt() if name in layers else 1.0
        torch.testing.assert_close(limited[name], update * scale)
    assert optimizer.steps == 1
