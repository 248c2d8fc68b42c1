"""Runs on a GPU, as a user starts them."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.kill_and_resume import RUNS, trial
from trainer.cli.train import main

pytestmark = pytest.mark.gpu

RUN = ["device=cuda", "loop.max_steps=120", "loop.eval_every=60", "data.batch_size=64"]


def accuracy(directory: Path) -> float:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return max(line["test/accuracy"] for line in lines if "test/accuracy" in line)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_precisions(precision: str, memory_format: str, tmp_path: Path) -> None:
    layout = f"loop.channels_last={str(memory_format == 'channels_last').lower()}"
    assert main([*RUN, f"precision={precision}", layout, f"hydra.run.dir={tmp_path}"]) == 0
    assert accuracy(tmp_path) > 0.85


def test_compiled_model(tmp_path: Path) -> None:
    assert main([*RUN, "loop.compile=true", "precision=bf16", f"hydra.run.dir={tmp_path}"]) == 0
    assert accuracy(tmp_path) > 0.85


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_rank_over_nccl(parallel: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "1",
        "-m",
        "trainer",
    ]
    options = [f"parallel={parallel}", "precision=bf16", "checkpoint.async=true", f"hydra.run.dir={tmp_path}"]
    subprocess.run([*command, *RUN, *options], check=True, timeout=200)
    assert accuracy(tmp_path) > 0.85


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_random_moments(name: str, tmp_path: Path) -> None:
    assert trial(f"{RUNS[name]} device=cuda deterministic=true", tmp_path, kills=2, seed=1) == []


def test_a_dry_run_tells_of_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "dry_run=true", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert "peak" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_where_the_memory_is(tmp_path: Path) -> None:
    assert main([*RUN, "profile=memory", "monitor.profile_steps=3", f"hydra.run.dir={tmp_path}"]) == 0
    mib = json.loads((tmp_path / "profile/memory.json").read_text())["mib"]
    kept = sum(mib[name] for name in ("parameters", "optimizer state", "activations"))
    assert kept < mib["peak of the step"]
    [events] = pickle.loads((tmp_path / "profile/memory.pickle").read_bytes())["device_traces"][:1]
    assert {"alloc", "free_completed"} <= {event["action"] for event in events}
