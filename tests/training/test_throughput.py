"""Rates and peak memory against what the kernel says."""

import re
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.models.gpt import GPT
from trainer.training.flops import peak_flops, skeleton_of, training_flops
from trainer.training.precision import Precision
from trainer.training.throughput import GpuReadings, Speed, memory_mib


def test_speed_since_it_was_last_asked() -> None:
    speed = Speed(batch_size=30)
    speed.add(0.5, 0.1)
    speed.add(1.5, 0.4)
    assert speed.take() == {"samples_per_second": 30, "data_wait": 0.25}
    speed.add(0.25, 0.0)
    found = speed.take(flops=1e9, peak=480e9)
    assert found == {"samples_per_second": 120, "data_wait": 0, "flops_per_second": 120e9, "mfu": 0.25}
    assert speed.take() == {"samples_per_second": 0}
    speed.add(0.5, 0.1, {"optimizer": 0.25})
    speed.add(1.5, 0.4, {"optimizer": 0.25, "refresh": 0.5})
    assert speed.take() == {"samples_per_second": 30, "data_wait": 0.25, "optimizer": 0.25, "refresh": 0.25}


def test_readings_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(device: torch.device) -> int:
        asked.append(device)
        raise RuntimeError("not supported")

    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 75)
    monkeypatch.setattr(torch.cuda, "power_draw", refused)
    monkeypatch.setattr(torch.cuda, "device_memory_used", lambda device: 3 * 2**20)
    gpu = GpuReadings(torch.device("cuda", 1))
    for _ in range(2):
        assert gpu.read() == {"gpu_utilization": 0.75, "gpu_memory_mib": 3}
    assert asked == [torch.device("cuda", 1)]  # once
    assert GpuReadings(torch.device("cpu")).read() == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_driver_there_are_no_readings(capfd: pytest.CaptureFixture[str]) -> None:
    assert GpuReadings(torch.device("cuda", 0)).read() == {}
    assert capfd.readouterr() == ("", "")


def test_flops_of_a_gpt_are_those_of_its_formula() -> None:
    layers, width, time, vocabulary = 3, 16, 10, 50
    model = GPT(layers=layers, width=width, heads=2, vocab_size=vocabulary, context_length=time)
    before = torch.get_rng_state()
    skeleton = skeleton_of(model)
    assert skeleton is not None
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    matrices = layers * (4 + 8) * width**2 + vocabulary * width
    attention = layers * 2 * time * width  # of each token, with all others
    forward = 2 * time * (matrices + attention)
    assert training_flops(skeleton, torch.zeros(1, time, dtype=torch.long)) == 3 * forward
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_counted_is_unknown() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    assert training_flops(skeleton_of(Odd()), torch.ones(1, 2)) is None
    assert training_flops(skeleton_of(nn.Identity()), torch.ones(1, 2)) is None
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()  # type: ignore[assignment]
    assert skeleton_of(model) is None
    assert training_flops(None, torch.ones(1, 2)) is None


def test_peaks_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert peak_flops(cpu, Precision("fp32", cpu)) is None
    for name, precision, peak in (
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA H100 PCIe", "fp16", 756e12),
        ("NVIDIA RTX A1000", "bf16", None),
        ("NVIDIA L40", "bf16", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(cuda, Precision(precision, cpu)) == peak


def test_peak_memory_on_a_cpu_is_that_of_the_process() -> None:
    ballast = torch.ones(2**25)  # 128 MiB
    del ballast
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux's /proc")
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 1024
    assert memory_mib(torch.device("cpu")) == pytest.approx(peak, rel=0.02)
