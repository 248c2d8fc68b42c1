import pytest
import torch


@pytest.fixture(autouse=True)
def on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: TEST_DEVICE=cuda python -m pytest tests/gpu")
