"""Small runs, and what must not change in their directories."""

import json
import shutil
from pathlib import Path
from typing import Any

from trainer.checkpoint import storage
from trainer.cli.train import main
from trainer.rundir.files import CHECKSUM, STATUS, with_checksum

TINY = [
    "model.widths=[4]",
    "data.batch_size=64",
    "optimizer=sgd",
    "monitor.sinks=[console,jsonl]",
    "monitor.predictions=0",
    "monitor.log_images=false",
    "loop.log_every=1",
    "loop.eval_every=3",
    "loop.max_steps=6",
    "checkpoint.every_steps=2",
]


def go(run: Path, *overrides: str) -> int:
    """The exit code of the command in a run directory."""
    return main([*TINY, *overrides, f"hydra.run.dir={run}"])


def copy_of(run: Path, place: Path) -> Path:
    return Path(shutil.copytree(run, place, symlinks=True))


def content(run: Path) -> dict[str, Any]:
    """Every file below a directory, but the lock."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != ".lock"
    }


def checkpoints(run: Path) -> list[Path]:
    """Newest first."""
    return storage.list_checkpoints(run / "checkpoints")


def stopped(run: Path) -> Path:
    """Makes of a finished run one that was killed."""
    (run / "status.json").unlink()
    return run


def restate(run: Path, **fields: Any) -> None:
    """Makes of a run one whose status has other fields, as that run would have written them."""
    status = json.loads((run / STATUS).read_text())
    status.pop(CHECKSUM)
    (run / STATUS).write_text(json.dumps(with_checksum({**status, **fields})))


def refusal(capsys: Any, code: int) -> str:
    """The one line that a command has said, which ended with the code of a user's mistake."""
    out, err = capsys.readouterr()
    assert code == 2, err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert out == "", out
    return err
