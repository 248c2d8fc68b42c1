"""Weights & Biases: a run with the options as its config, and the numbers as rows of its history.

The run goes where WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and WANDB_BASE_URL say. In a Slurm job without WANDB_MODE it
is ``offline``: the node may reach no server. The package keeps its files in ``wandb`` in the run directory.

W&B takes its own row numbers in ascending order only, so ``step`` is a column, which all others are shown against. What
it has is asked of the server, and offline read from the package's files, see `trainer.trackers.wandb_files`.
"""

import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import wandb

from trainer.trackers.base import PROJECT, TrackedRun, Tracker, in_slurm_job, steps_of
from trainer.trackers.wandb_files import newest_id, stored_rows, wait_for_end

OPENING, CLOSING = 20, 60
"""Seconds after which a server that does not answer is given up. In between, another process talks to it."""

EXIT_CODES = {"finished": 0, "failed": 1}
"""Of states; a run in another one may go on, which W&B calls preempting."""


class Wandb(Tracker):
    """A run in W&B; see `Tracker` for the arguments.

    Raises:
        wandb.Error: the server does not answer or refuses, or nobody is logged in.
    """

    def __init__(self, run: TrackedRun, id: str | None, anew: bool) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # neither prints nor asks for a key in the terminal
        mode = os.environ.get("WANDB_MODE") or ("offline" if in_slurm_job() else "online")
        self._offline = mode == "offline"
        folder = run.directory / "wandb"
        self.id = id or own_id(run, folder, anew)
        self._run = wandb.init(
            id=self.id,
            mode=mode,  # type: ignore[arg-type]  # whatever is in the variable; wandb refuses what it does not know
            resume="allow" if mode == "online" else None,
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            dir=run.directory,
            config=dict(run.options),
            allow_val_change=True,  # a run that goes on may have a larger budget
            reinit="create_new",
            settings=SETTINGS,
        )
        self._run.define_metric("*", step_metric="step")
        self.steps = steps_of(self._server_rows() if mode == "online" else stored_rows(folder, self.id))

    def add(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Adds a row, which another process stores and sends."""
        self._run.log({"step": step, "seconds": seconds, **values})

    def flush(self) -> None:
        """Nothing: offline, the package writes what it has in pieces of 32 KiB, and cannot be told to do so earlier."""

    def close(self, state: str) -> None:
        """Has all stored or sent, and the run's end."""
        if state not in EXIT_CODES:
            self._run.mark_preempting()
        self._run.finish(exit_code=EXIT_CODES.get(state, 1))
        if self._offline:
            wait_for_end(Path(self._run.dir).parent / f"run-{self.id}.wandb", CLOSING)

    def _server_rows(self) -> Iterator[Mapping[str, Any]]:
        if self._run.resumed:
            yield from wandb.Api(timeout=OPENING).run(self._run.path).scan_history(use_cache=False)


SETTINGS = wandb.Settings(
    init_timeout=OPENING,
    finish_timeout=CLOSING,
    finish_timeout_raises=True,
    silent=True,
    console="off",  # run.log has what a run says
    save_code=False,
    disable_code=True,  # environment.json has the commit, and the machine, which may not be the one that pushes
    disable_git=True,
    x_disable_meta=True,
    x_disable_machine_info=True,
    x_disable_stats=True,
)
"""A run's numbers and options, and nothing of the process that reports them."""


def own_id(run: TrackedRun, folder: Path, anew: bool) -> str:
    """W&B's name for a run that no checkpoint tells: that of the newest files, else the run's identity.

    Args:
        run: that is tracked.
        folder: with the package's files.
        anew: whether the files are those of another run.
    """
    newest = newest_id(folder)
    if newest is None:
        return run.identity
    return uuid.uuid4().hex if anew else newest


TRACKER = Wandb
