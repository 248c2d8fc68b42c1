"""Small runs as the trainer leaves them."""

from pathlib import Path

import pytest

from trainer.cli.train import main as train

TEXT = "a quick brown fox jumps over a lazy dog; " * 60


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with averaged weights and three checkpoints, of the steps 4, 8 and 12."""
    path = tmp_path_factory.mktemp("after") / "digits"
    given = "loop.max_steps=12 loop.eval_every=4 checkpoint.every_steps=4 checkpoint.keep_last=3 model.widths=[8,8]"
    assert train([*given.split(), "loop.ema=0.9", "device=cpu", f"hydra.run.dir={path}"]) == 0
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of characters, without dropout but with position embeddings that training has moved."""
    folder = tmp_path_factory.mktemp("after")
    (folder / "fox.txt").write_text(TEXT)
    given = (
        f"data=text data.path={folder / 'fox.txt'} data.context_length=24 data.batch_size=8 model=gpt model.layers=2 "
        "model.width=32 model.heads=2 optimizer=adamw optimizer.lr=1e-2 loop.max_steps=30 device=cpu "
        "monitor.sinks=[jsonl]"
    )
    assert train([*given.split(), f"hydra.run.dir={folder / 'text'}"]) == 0
    return folder / "text"
