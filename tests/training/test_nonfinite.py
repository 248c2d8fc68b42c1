"""Where numbers stop being finite: in the inputs, in a layer's output, in a gradient, or in the loss alone."""

import pytest
import torch

from tests.training.helpers import parts_of
from trainer.training.nonfinite import first_non_finite, watching_outputs
from trainer.training.parts import RunParts


@pytest.fixture
def parts() -> RunParts:
    """A run of two linear layers, after a backward pass."""
    parts = parts_of("model=mlp", "data.batch_size=16", "device=cpu")
    [(inputs, targets)] = parts.state.loader.next_batch()
    torch.nn.functional.cross_entropy(parts.model(inputs), targets).backward()
    return parts


def test_places(parts: RunParts) -> None:
    batches = parts.state.loader.next_batch()
    assert first_non_finite(parts, batches) == "the loss"

    (first, *_, last) = [name for name, _ in parts.model.named_parameters() if name.endswith("weight")]
    for name in (first, last):
        gradient = parts.model.get_parameter(name).grad
        assert gradient is not None
        gradient[0, 0] = torch.nan
    # a backward pass comes to the last layer first
    assert first_non_finite(parts, batches) == f"the gradient of {last}"

    with torch.no_grad():
        parts.model.get_parameter(last)[0, 0] = torch.inf
    assert first_non_finite(parts, batches) == f"the output of {last.removesuffix('.weight')}"

    batches[0][0][0, 0] = torch.nan
    assert first_non_finite(parts, batches) == "the inputs"


def test_outputs_are_watched_only_within() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Identity(), torch.nn.ReLU())
    found: list[str] = []
    with watching_outputs(model, found):
        model(torch.ones(1, 2))
        assert found == []
        model(torch.full((1, 2), torch.inf))
    assert found == ["0", "1", "2"]
    model(torch.full((1, 2), torch.inf))
    assert len(found) == 3
    assert not any(module._forward_hooks for module in model.modules())
