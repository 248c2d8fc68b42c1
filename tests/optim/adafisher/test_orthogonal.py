"""rule="orthogonal": polar factors, which parameters are orthogonalised in which blocks, and their steps."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.optim.adafisher.small import Net, everything, same, train
from trainer.models.gpt import GPT
from trainer.optim.adafisher import AdaFisher, polar, update_orthogonal
from trainer.optim.adafisher.polar import POLAR_EXPRESS, polar_factor, product_dtype
from trainer.optim.adafisher.roles import roles_of

# Polar factors ----------------------------------------------------------------------------------------------------


def matrices(rows: int, columns: int, condition: float) -> tuple[Tensor, Tensor, Tensor]:
    """Three random matrices with their singular vectors; the singular values reach from 1 to 1 / condition."""
    generator = torch.Generator().manual_seed(rows)
    random = torch.randn(3, rows, columns, generator=generator, dtype=torch.float64)
    left, _, right = torch.linalg.svd(random, full_matrices=False)
    values = torch.logspace(0, -math.log10(condition), min(rows, columns), dtype=torch.float64)
    return left * values @ right, left, right


@pytest.mark.parametrize("shape", [(8, 8), (8, 30), (30, 8)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_polar_factors_have_the_singular_vectors_of_an_svd(shape: tuple[int, int], scale: float) -> None:
    X, left, right = matrices(*shape, condition=100)
    singular = left.mT @ polar_factor(scale * X) @ right.mT
    values = singular.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(singular, torch.diag_embed(values), rtol=0, atol=1e-10)
    assert values.min() > 0.4
    assert values.max() < 1.6
    fifth, fixed = (2.300652019954817, -1.6689039845749493, 0.4188073119525673), (1.875, -1.25, 0.375)
    to_the_end = [*POLAR_EXPRESS, fifth, *[fixed] * 6]  # one is a fixed point of the last ones
    torch.testing.assert_close(polar_factor(X / 10, to_the_end), left @ right, rtol=0, atol=1e-9)


def test_polar_factors_of_zeros_are_zeros() -> None:
    X = torch.randn(2, 6, 9)
    X[0], X[1, 2] = 0, 0
    found = polar_factor(X)
    assert not found[0].any()
    assert not found[1, 2].any()
    assert found.isfinite().all()


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e8])
def test_few_digits_are_lost_in_products_of_rows(monkeypatch: pytest.MonkeyPatch, condition: float) -> None:
    """Floats of twice as many columns as rows iterate on X Xᵀ, doubles on X."""
    monkeypatch.setattr(polar, "cpu_multiplies_bfloat16", lambda: False)
    X, left, right = matrices(32, 128, condition)
    deficient = left[:, :, :5] @ right[:, :5]
    for each in (X, X.mT, deficient):
        exact = polar_factor(each)
        error = torch.linalg.vector_norm(polar_factor(each.float()) - exact) / torch.linalg.vector_norm(exact)
        assert error < 1e-3


def test_bfloat16_is_taken_where_it_is_fast_and_sound() -> None:
    X = torch.randn(2, 64, 80)
    exact = polar_factor(X.double()).float()
    angle = nn.functional.cosine_similarity(polar_factor(X).float().flatten(), exact.flatten(), dim=0)
    assert angle > 0.999
    assert product_dtype(X[:, :63]) == torch.float32
    assert product_dtype(X.double()) == torch.float64
    torch.use_deterministic_algorithms(True)
    try:
        assert product_dtype(X) == torch.float32
    finally:
        torch.use_deterministic_algorithms(False)


# Roles ------------------------------------------------------------------------------------------------------------


class Experts(nn.Module):
    """A stack of matrices, which no layer of known type has."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn(3, 6, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("eoi,bi->beo", self.stack, x + self.position.mean((0, 1))))


def zoo() -> nn.ModuleDict:
    modules: dict[str, nn.Module] = {
        "linear": nn.Linear(300, 300),
        "attention": nn.MultiheadAttention(16, 2),
        "qkv": nn.Linear(16, 32),
        "grouped": nn.Conv2d(8, 12, 3, groups=2),
        "depthwise": nn.Conv1d(12, 12, 3, groups=12),
        "up": nn.ConvTranspose2d(8, 8, 2),
        "embedding": nn.Embedding(9, 16),
        "position_embedding": nn.Embedding(5, 16),  # calibrated: none of its rows is rare
        "tied": nn.Linear(16, 9),
        "narrow": nn.Linear(16, 3),
        "norm": nn.LayerNorm(16),
        "experts": Experts(),
        "head": nn.Linear(16, 9),
    }
    modules["tied"].weight = modules["embedding"].weight
    return nn.ModuleDict(modules)


def roles(model: nn.Module, **chosen: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    found = roles_of(model, chosen)
    return {name: tuple(found[p]) for name, p in model.named_parameters() if p in found}


def test_roles_follow_from_the_model() -> None:
    assert roles(zoo()) == {
        "linear.weight": ("orthogonal", (100, 100, 100)),
        "attention.in_proj_weight": ("orthogonal", (16, 16, 16)),
        "attention.out_proj.weight": ("orthogonal", (16,)),
        "qkv.weight": ("orthogonal", (16, 8, 8)),  # fewer keys and values than queries
        "grouped.weight": ("orthogonal", (6, 6)),
        "depthwise.weight": ("calibrated", ()),
        "embedding.weight": ("rooted", ()),
        "narrow.weight": ("calibrated", ()),
        "head.weight": ("rooted", ()),  # as many rows as the embedding has: of a language model
    }


def test_roles_can_be_chosen_by_name() -> None:
    chosen = {
        "*": "whole",
        "*.bias": "calibrated",
        "linear.*": 128,
        "linear.bias": "rooted",
        "experts.stack": 4,
    }
    found = roles(zoo(), **chosen)
    assert found["linear.weight"] == ("orthogonal", (100, 100, 100))
    assert found["linear.bias"] == ("rooted", ())
    assert found["qkv.weight"] == ("orthogonal", (16, 8, 8))
    assert found["embedding.weight"] == ("orthogonal", (9,))
    assert found["experts.stack"] == ("orthogonal", (3, 3, 3, 3, 3, 3))
    assert found["norm.weight"] == ("calibrated", ())


def test_only_what_is_fused_is_cut_at_queries_keys_and_values() -> None:
    modules = {
        "attention": nn.MultiheadAttention(16, 2, kdim=8, vdim=8, bias=False),
        "main_proj": nn.Linear(8, 24, bias=False),
        "Wqkv": nn.Linear(8, 24, bias=False),
        "qkv_proj": nn.Linear(8, 24, bias=False),
    }
    blocks = {name: role[1] for name, role in roles(nn.ModuleDict(modules)).items()}
    assert blocks == {
        "attention.q_proj_weight": (16,),
        "attention.k_proj_weight": (16,),
        "attention.v_proj_weight": (16,),
        "attention.out_proj.weight": (16,),
        "main_proj.weight": (24,),
        "Wqkv.weight": (8, 8, 8),
        "qkv_proj.weight": (8, 8, 8),
    }


def test_coverage_tells_the_steps() -> None:
    model = GPT(layers=1, width=12, heads=2, vocab_size=17, context_length=6)
    steps = {
        row.parameter: row.update
        for row in AdaFisher(model, rule="orthogonal", roles={"*qkv*": 7}).coverage()
    }
    assert steps["tokens.weight"] == "rooted"
    assert steps["blocks.0.attention.qkv.weight"] == "orthogonal, 6 rows at a time"
    assert steps["blocks.0.mlp.0.weight"] == "orthogonal, 48 rows at a time"
    assert steps["norm.weight"] == "calibrated"
    assert {row.update for row in AdaFisher(model, rule="paper").coverage()} == {"paper"}


# Steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rows"), [("stack", 3), ("position", 5)])
def test_each_matrix_of_a_stack_has_blocks_and_curvature_of_its_own(name: str, rows: int) -> None:
    torch.manual_seed(0)
    model = Experts().double()
    stack = model.get_parameter(name)
    options: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0, "lr": 1.0}
    optimizer = AdaFisher(model, rule="orthogonal", roles={name: rows}, **options)
    before = stack.detach().clone()
    model(torch.randn(9, 8, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    square = stack.grad.square()
    F = square.mean(2, keepdim=True) * square.mean(1, keepdim=True) / square.mean((1, 2), keepdim=True)
    means = [F.mean(axis, keepdim=True) / F.mean() + 0.1 for axis in (2, 1)]
    factors = polar_factor(stack.grad.view(-1, rows, 8)).view_as(F)
    update = factors / (means[0] * means[1]).sqrt()
    torch.testing.assert_close(stack.detach(), before - 0.2 * update / update.square().mean().sqrt())


MATRICES: dict[
    str, tuple[nn.Module, tuple[int, ...]]
] = {  # and how its groups, rows and columns are laid out
    "linear": (nn.Linear(6, 5), (1, 5, 6)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (2, 4, 27)),
    "transposed": (nn.ConvTranspose2d(6, 5, 3), (1, 6, 45)),
    "transposed in groups": (nn.ConvTranspose1d(8, 10, 3, groups=2), (2, 4, 15)),
    "scale": (nn.LayerNorm((4, 6)), (1, 4, 6)),
}


@pytest.mark.parametrize("capture", ["hooks", "gradient"])
@pytest.mark.parametrize("name", MATRICES)
def test_matrices_are_divided_by_roots_of_their_means(name: str, capture: Any) -> None:
    module, shape = MATRICES[name]
    model = copy.deepcopy(module).double()
    optimizer = AdaFisher(model, roles={"weight": "whole"}, capture=capture, damping=0.1)
    weight = model.get_parameter("weight")
    inside = {nn.Linear: (6,), nn.LayerNorm: (4, 6), nn.ConvTranspose1d: (8, 7)}.get(type(module), (6, 5, 5))
    model(torch.randn(3, *inside, dtype=torch.float64)).sin().sum().backward()
    optimizer.step()
    assert weight.isfinite().all()
    plain = AdaFisher(model, rule="calibrated", capture=capture, damping=0.1)
    plain.load_state_dict({**optimizer.state_dict(), "rule": "calibrated"})
    F = (plain.preconditioner(weight) - 0.1).view(shape if capture == "hooks" else (1, -1, shape[2]))
    expected = ((F.mean(2, keepdim=True) + 0.1) * (F.mean(1, keepdim=True) + 0.1)).sqrt()
    torch.testing.assert_close(optimizer.preconditioner(weight), expected.view_as(weight))


def test_an_embedding_of_one_row_has_one_number() -> None:
    model = nn.Sequential(nn.Embedding(1, 5), nn.Linear(5, 3)).double()
    optimizer = AdaFisher(model, damping=0.1)
    model(torch.zeros(4, dtype=torch.long)).sin().sum().backward()
    optimizer.step()
    torch.testing.assert_close(  # the mean of F is one
        optimizer.preconditioner(model[0].weight), torch.full((1, 5), 1.1, dtype=torch.float64)
    )


@pytest.mark.parametrize("capture", ["hooks", "gradient"])
def test_embeddings_are_divided_by_a_root_of_each_rows_curvature(capture: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)).double()
    model[1].weight = model[0].weight
    optimizer = AdaFisher(model, rule="orthogonal", capture=capture, damping=0.1)
    tokens = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 3]])
    nn.functional.cross_entropy(model(tokens)[0], tokens[0].roll(1)).backward()
    optimizer.step()
    plain = AdaFisher(model, rule="calibrated", capture=capture, damping=0.1)
    plain.load_state_dict({**optimizer.state_dict(), "rule": "calibrated"})
    F = plain.preconditioner(model[0].weight) - 0.1
    expected = (F.mean(1, keepdim=True).sqrt() + 0.1).expand_as(F)
    torch.testing.assert_close(optimizer.preconditioner(model[0].weight), expected)


def test_steps_follow_matrices_that_move_in_memory() -> None:
    still, moved = Net(), Net()
    a, b = AdaFisher(still, rule="orthogonal"), AdaFisher(moved, rule="orthogonal")
    for step in range(4):
        train(still, a, range(step, step + 1))
        train(moved, b, range(step, step + 1))
        moved.first.weight.data = moved.first.weight.data.clone()
        b.state[moved.first.weight]["exp_avg"] = b.state[moved.first.weight]["exp_avg"].clone()
    same(everything(still, a), everything(moved, b))


def test_matrices_that_are_updated_apart_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    together, apart = Net(), Net()
    a = AdaFisher(together, rule="orthogonal", roles={"*.weight": 2})
    train(together, a, range(4))
    monkeypatch.setattr(update_orthogonal, "_TOGETHER", 0)
    b = AdaFisher(apart, rule="orthogonal", roles={"*.weight": 2})
    train(apart, b, range(4))
    torch.testing.assert_close(everything(together, a), everything(apart, b))


def test_matrices_without_a_gradient_stay() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    optimizer = AdaFisher(model, rule="orthogonal", weight_decay=0.0)
    before = model[0].weight.detach().clone()
    (model(torch.randn(3, 6)) * torch.zeros(4)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)


def test_diagnostics_know_the_lengths_of_steps() -> None:
    model = GPT(layers=1, width=12, heads=2, vocab_size=17, context_length=6)
    optimizer = AdaFisher(model, rule="orthogonal", weight_decay=0.0, update_interval=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.arange(12).view(2, 6)).square().mean().backward()
    optimizer.step()
    for name, row in optimizer.diagnostics().items():
        after = model.get_parameter(name).detach()
        length = (after - before[name]).norm() / after.norm()
        assert length.item() == pytest.approx(row["update_ratio"], rel=1e-3), name
        assert length * after.norm() / after.numel() ** 0.5 == pytest.approx(0.2 * 1e-2, rel=1e-3), name
