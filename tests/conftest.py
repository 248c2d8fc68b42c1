"""Every test starts from the same random numbers, on one thread, with nothing of the last one's left.

Tests run on the CPU, so that they are the same on every machine; tests/README.md says how to run them on a GPU.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.get("TEST_DEVICE") != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TRITON_INTERPRET"] = "1"  # its kernels run on the CPU
os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # read once, and needed by deterministic algorithms

import pytest
import torch

torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, here and in what the tests start

SLOWEST = [
    "slurm/test_jobs.py",
    "distributed/test_checkpoints.py",
    "training/test_resume.py",
    "training/test_recipes.py",
    "optim/adafisher/test_optimizer.py",
    "launch/test_local_executor.py",
    "launch/test_pack.py",
    "slurm/test_pack.py",
    "compare/test_comparison.py",
    "distributed/test_adafisher.py",
    "distributed/test_failures.py",
    "distributed/test_strategies.py",
    "training/test_loop.py",
    "launch/test_compose_comparison.py",
    "analyze/test_command.py",
    "config/test_plugins.py",
    "distributed/test_costs.py",
    "optim/test_registry.py",
    "optim/test_clients.py",
]
"""Files that take longest, in that order: they come first, so that no worker of pytest-xdist ends with a long one.

Between the two with a Slurm cluster are others, so that the jobs of both do not run at once.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    place = {here / name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))  # the order within a file stays


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A test may block signals or handle them, and the next one still receives them."""
    numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    handlers = {number: signal.getsignal(number) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[int, str], None]:
    """Checks that a command with this exit code reported a mistake in one line, with the hint, and nothing else."""

    def check(code: int, hint: str) -> None:
        out, err = capsys.readouterr()
        assert code == 2
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("error: ")
        assert hint in err

    return check
