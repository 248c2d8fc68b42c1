"""The memory of a plan against the bytes of the tensors themselves."""

import torch
from torch import nn

from trainer.optim import AdaFisher
from trainer.training.tensor_memory import TensorShare, mebibytes, tensors_of


def test_shares_of_a_linear_layers_state() -> None:
    """Weight [8, 3] in float32: on four ranks each holds two rows of all but H, whose three columns every rank has."""
    model = nn.Linear(3, 8, bias=False)
    tensors = tensors_of(model, AdaFisher(model, capture="hooks"), None)
    here = {name: sum(share.bytes_here() for share in shares) for name, shares in tensors.items()}
    each = {name: sum(share.bytes_in(4) for share in shares) for name, shares in tensors.items()}
    assert here == {
        "parameters": 8 * 3 * 4,
        "gradients": 8 * 3 * 4,
        "optimizer state": 8 * 3 * 4 + 4,  # and the number of the step
        "curvature factors": (3 + 8) * 4,
    }
    assert each == {
        "parameters": 2 * 3 * 4,
        "gradients": 2 * 3 * 4,
        "optimizer state": 2 * 3 * 4 + 4,
        "curvature factors": (3 + 2) * 4,
    }
    total = mebibytes(tensors, TensorShare.bytes_here)["all of these"]
    assert total == sum(here.values()) / 2**20


def test_other_optimizers_have_no_factors() -> None:
    model = nn.Linear(3, 8)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert "curvature factors" not in tensors_of(model, optimizer, None)
