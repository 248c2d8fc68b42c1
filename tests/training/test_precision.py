"""What each precision computes in, on the CPU."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from trainer.training.precision import Precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_layers_compute_in_it_and_parameters_stay_float32(name: str, dtype: torch.dtype) -> None:
    precision, layer = Precision(name, CPU), nn.Linear(3, 2)
    with precision.autocast():
        output = layer(torch.ones(1, 3))
    output.float().sum().backward()
    assert output.dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert layer(torch.ones(1, 3)).dtype == torch.float32, "outside of the context"
    assert precision.scaler.is_enabled() == (name == "fp16")


def test_tf32_is_set_and_set_back() -> None:
    with pytest.warns(UserWarning, match="precision=tf32 changes nothing on cpu"):
        Precision("tf32", CPU)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    Precision("fp32", CPU)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
