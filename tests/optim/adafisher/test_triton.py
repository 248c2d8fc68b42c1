"""The kernels for GPUs against the update block by block: by Triton's interpreter where there is no GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.optim import AdaFisher
from trainer.optim.adafisher import group_update

update_kernel = pytest.importorskip("trainer.optim.adafisher.update_triton", reason="Triton is not installed")
squares_kernel = pytest.importorskip(
    "trainer.optim.adafisher.mean_squares_triton", reason="Triton is not installed"
)
pytestmark = pytest.mark.slow  # by the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Tied(nn.Module):
    """Its embedding is its head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.never = nn.Linear(3, 3)
        self.experts = nn.Parameter(
            torch.randn(3, 6, 6) / 6
        )  # a matrix of each, with factors from the gradient

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens))
        x = x + torch.einsum("bnd,kde->bne", x, self.experts)
        return self.head(x + self.attention(x, x, x)[0])


def convnet() -> nn.Module:
    """With a convolution in groups, a depthwise one, and more elements than one job has."""
    layers = [
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=2, bias=False),
        nn.ReLU(),
    ]
    return nn.Sequential(
        *layers, nn.Conv2d(12, 12, 3, groups=12), nn.Flatten(), nn.Linear(192, 50), nn.Linear(50, 7)
    )


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these models have several jobs."""
    monkeypatch.setattr(update_kernel, "_STRETCH", 2048)
    monkeypatch.setattr(update_kernel, "_BLOCK", 512)


def trained(
    model: nn.Module, data: str, use_kernels: bool, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Any:
    torch.manual_seed(0)
    model = model.to(DEVICE)
    used = []

    def gpu_kernels(*lists: Any) -> Any:
        used.append(use_kernels and update_kernel.fits(*lists[:2]))
        return update_kernel.Kernels(*lists) if used[-1] else None

    with monkeypatch.context() as patch:
        patch.setattr(group_update, "gpu_kernels", gpu_kernels)
        optimizer = AdaFisher(model, update_interval=2, **options)
        for step in range(1 if data == "half" else 5):  # rounding errors grow
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (step + 1)
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(step)
            if data == "text":
                x = torch.randint(11, (4, 5), generator=generator).to(DEVICE)
                loss = cross_entropy(model(x).flatten(0, 1).float(), x.flatten())
            else:
                dtype = next(model.parameters()).dtype
                x = torch.randn(4, 3, 10, 10, generator=generator).to(DEVICE, dtype)
                loss = cross_entropy(model(x).float(), torch.arange(4, device=DEVICE))
            loss.backward()
            optimizer.step()
    assert used
    assert all(use_kernels == use for use in used)
    return [p.detach() for p in model.parameters()], [s["exp_avg"] for s in optimizer.state.values()]


@pytest.mark.parametrize(
    ("rule", "decoupled"),
    [("calibrated", True), ("paper", True), ("paper", False), ("released", True), ("released", False)],
)
@pytest.mark.parametrize("model", ["text", "images", "channels_last", "half"])
def test_as_block_by_block(rule: str, decoupled: bool, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        network = Tied() if model == "text" else convnet()
        if model == "channels_last":
            network = network.to(memory_format=torch.channels_last)
        return network.bfloat16() if model == "half" else network

    tolerance = {"rtol": 1e-3, "atol": 1e-5}  # a GPU's convolutions are not the same twice
    if model == "half":
        tolerance = {"rtol": 2e-2, "atol": 1e-3}
    options = {"rule": rule, "decoupled": decoupled, "weight_decay": 0.1, "damping": 0.05}
    ours, theirs = (trained(make(), model, use, monkeypatch, **options) for use in (True, False))
    torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("shape", [(1, 1), (1000, 3), (77, 130), (5, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2])
def test_moments(
    shape: tuple[int, int], dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squares_kernel, "_PROGRAMS", 4)
    x = torch.randn(shape, device=DEVICE).to(dtype)
    expected = torch.stack([x.float().square().mean(0), x.float().mean(0)])[:count]
    torch.testing.assert_close(squares_kernel.moments(x, count), expected)
