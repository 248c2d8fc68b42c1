"""trackio: a run with the options as its config, and the numbers as rows of its metrics, in a SQLite file.

The file is in the folder of TRACKIO_DIR. Where that is not set it is in trackio's default folder, in a Slurm job in
``trackio`` in the run directory. Nothing is sent anywhere: ``trackio sync`` takes a folder's runs to a server.

trackio knows no end of a run, so ``state`` is a part of its config. The axis of time counts training seconds from the
run's start.
"""

import os
import time
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from trackio.utils import TRACKIO_DIR

from trainer._private import trackio_storage
from trainer.trackers.base import PROJECT, TrackedRun, Tracker, in_slurm_job, steps_of

CREATED = "_Created"
"""The name under which trackio keeps a run's start in its config."""
SECONDS = 10.0
"""Between two transactions while a run trains."""


class Trackio(Tracker):
    """A run in trackio; see `Tracker` for the arguments.

    Raises:
        OSError: the folder cannot be written, or another process has locked its file for 10 seconds.
        sqlite3.Error: its file cannot be written.
    """

    def __init__(self, run: TrackedRun, id: str | None, anew: bool) -> None:
        if in_slurm_job():
            # a network file system may hold the folder: SQLite's WAL, trackio's choice, is not for that
            os.environ.setdefault("TRACKIO_SQLITE_JOURNAL_MODE", "delete")
        self._folder = folder_for(run)
        names = {each["id"]: each["name"] for each in self._storage.get_run_records(PROJECT)}
        self.id = id or own_id(run, list(names), anew)
        self._name = names.get(self.id, run.name)  # it may have been renamed
        stored = self._storage.get_run_config(PROJECT, run_id=self.id) or {}
        self._start = datetime.fromisoformat(stored.get(CREATED) or datetime.now(timezone.utc).isoformat())
        own = {"run_directory": str(run.directory.resolve()), CREATED: self._start.isoformat()}
        self._config = {**stored, **run.options, **own}
        self.steps = steps_of(self._storage.get_logs(PROJECT, run_id=self.id))
        self._waiting: list[tuple[int, float, Mapping[str, float]]] = []
        self._stored = time.monotonic()
        self._store_config("running")

    def add(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Adds a row with the next transaction."""
        self._waiting.append((step, seconds, values))
        if time.monotonic() - self._stored >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Stores what waits."""
        self._store(self._waiting)
        self._waiting.clear()
        self._stored = time.monotonic()

    def close(self, state: str) -> None:
        """Stores what waits, and the run's end."""
        self.flush()
        self._store_config(state)

    @property
    def _storage(self) -> Any:
        return trackio_storage(self._folder)

    def _store_config(self, state: str) -> None:
        """With a row that has no values: trackio stores no config without a row, and ignores a second one."""
        self._store([(0, 0.0, {})], {**self._config, "state": state})

    def _store(
        self,
        rows: list[tuple[int, float, Mapping[str, float]]],
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Stores rows; one that another process has stored since the run was opened, such as a push, is ignored."""
        self._storage.bulk_log(
            project=PROJECT,
            run=self._name,
            run_id=self.id,
            metrics_list=[dict(values) for *_, values in rows],
            steps=[step for step, *_ in rows],
            timestamps=[(self._start + timedelta(seconds=seconds)).isoformat() for _, seconds, _ in rows],
            log_ids=[f"{self.id}/{step}/{min(values, default='')}" for step, _, values in rows],
            config=config,
        )


def folder_for(run: TrackedRun) -> Path:
    """Where the file is that has the run."""
    if folder := os.environ.get("TRACKIO_DIR"):
        return Path(folder)
    return run.directory.resolve() / "trackio" if in_slurm_job() else TRACKIO_DIR


def own_id(run: TrackedRun, known: list[str], anew: bool) -> str:
    """trackio's name for a run that no checkpoint tells: that of the newest run of its directory, or a new one.

    Args:
        run: that is tracked.
        known: the names of all runs, the newest last.
        anew: whether those of the directory are other runs.
    """
    own = [id for id in known if id.startswith(run.identity)]
    return own[-1] if own and not anew else f"{run.identity}-{uuid.uuid4().hex[:8]}"


TRACKER = Trackio
