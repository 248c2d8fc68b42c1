"""Every test starts from the same random numbers, on one thread, with nothing of the last one's left.

Tests run on the CPU, so that they are the same on every machine. Those in tests/gpu, and the kernels, run on a GPU by

    TEST_DEVICE=cuda python -m pytest tests/gpu tests/optim/adafisher/test_triton.py
"""

import os
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.get("TEST_DEVICE") != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TRITON_INTERPRET"] = "1"  # its kernels run on the CPU

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[int, str], None]:
    """Checks that a command with this exit code told of a mistake in one line, with the hint, and of nothing else."""

    def check(code: int, hint: str) -> None:
        out, err = capsys.readouterr()
        assert code == 2
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("error: ")
        assert hint in err

    return check
