"""MLflow: a run with the options as its parameters and the numbers as its metrics.

The run goes to the server or file of MLFLOW_TRACKING_URI. Where that is not set it goes to mlflow's default, in a Slurm
job to ``mlflow.db`` in the run directory: the node may reach no server, and a SQLite file wants one writer.

The server numbers its runs, so the run's identity is a tag. The axis of time counts training seconds from the run's
start.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from mlflow.entities import Metric, Param, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from trainer.trackers.base import PROJECT, TrackedRun, Tracker, in_slurm_job

IDENTITY = "adafisher_trainer.identity"
"""The tag that finds the run of a directory."""

URI = "MLFLOW_TRACKING_URI"
STATUS = {"finished": "FINISHED", "failed": "FAILED", "running": "RUNNING"}
"""Of states; the others were ended: KILLED."""

METRICS_AT_ONCE, PARAMS_AT_ONCE, LONGEST_PARAM = 1000, 100, 6000
"""Limits of the server."""
SECONDS = 10.0
"""Between two requests while a run trains."""


class Mlflow(Tracker):
    """A run in MLflow; see `Tracker` for the arguments.

    Raises:
        MlflowException: the server does not answer, or refuses.
    """

    def __init__(self, run: TrackedRun, id: str | None, anew: bool) -> None:
        # by default a server that is gone would hold up the training for many minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        logging.getLogger("mlflow").setLevel(
            logging.ERROR
        )  # as it makes a database, on the display of the run
        offline = in_slurm_job() and URI not in os.environ
        self._client = MlflowClient(f"sqlite:///{run.directory.resolve()}/mlflow.db" if offline else None)
        opened = (self._stored(id) if id else None) or self._find_or_create(run, anew)
        self.id = opened.info.run_id
        self._start = opened.info.start_time
        self.steps = {name: self._stored_steps(name) for name in opened.data.metrics}
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()
        self._client.update_run(self.id, status="RUNNING")
        self._add_params({key: value for key, value in run.options.items() if key not in opened.data.params})

    def add(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Adds the values with the next request."""
        timestamp = self._start + round(1000 * seconds)
        self._waiting += [Metric(name, value, timestamp, step) for name, value in values.items()]
        if len(self._waiting) >= METRICS_AT_ONCE or time.monotonic() - self._sent >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends what waits."""
        for part in parts(self._waiting, METRICS_AT_ONCE):
            self._client.log_batch(self.id, metrics=part)
        self._waiting.clear()
        self._sent = time.monotonic()

    def close(self, state: str) -> None:
        """Sends what waits, and the run's end."""
        self.flush()
        if (status := STATUS.get(state, "KILLED")) != "RUNNING":
            self._client.set_terminated(self.id, status)

    def _stored(self, id: str) -> Run | None:
        """The run of that id; None where there is none, as where an earlier session reported to another server."""
        try:
            return self._client.get_run(id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _find_or_create(self, run: TrackedRun, anew: bool) -> Run:
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)
        wanted = f"tags.`{IDENTITY}` = '{run.identity}'"
        found = self._client.search_runs([experiment], wanted, ViewType.ACTIVE_ONLY)
        if found and not anew:
            return found[0]
        for other in found:  # it keeps its numbers, and is no longer that of this directory
            self._client.delete_tag(other.info.run_id, IDENTITY)
        tags = {IDENTITY: run.identity, "run_directory": str(run.directory.resolve())}
        return self._client.create_run(experiment, tags=tags, run_name=run.name)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def _stored_steps(self, metric: str) -> set[int]:
        return {point.step for point in self._client.get_metric_history(self.id, metric)}

    def _add_params(self, options: Mapping[str, Any]) -> None:
        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in options.items()]
        for part in parts(params, PARAMS_AT_ONCE):
            self._client.log_batch(self.id, params=part)


def parts(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """The items in lists of at most that size."""
    left = iter(items)
    while part := list(islice(left, size)):
        yield part


TRACKER = Mlflow
