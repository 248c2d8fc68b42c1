"""Rates and peak memory against what the kernel says."""

import re
from pathlib import Path

import pytest
import torch

from trainer.training.throughput import SampleRate, memory_mib


def test_samples_per_second_since_it_was_last_asked() -> None:
    rate = SampleRate(batch_size=30)
    rate.add(0.5)
    rate.add(1.5)
    assert rate.take() == 30
    rate.add(0.25)
    assert rate.take() == 120
    assert rate.take() == 0


def test_peak_memory_on_a_cpu_is_that_of_the_process() -> None:
    ballast = torch.ones(2**25)  # 128 MiB
    del ballast
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux's /proc")
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 1024
    assert memory_mib(torch.device("cpu")) == pytest.approx(peak, rel=0.02)
