"""A runner that trains nothing, for searches of which only the choices matter."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainer.compare.planning import PlannedRun
from trainer.compare.runner import Interrupted, has_ended
from trainer.report.read_runs import RecordedRun, read_run
from trainer.rundir.status import change_state, read_status, write_status
from trainer.rundir.strict_json import dumps

METRIC = "val/loss"


class ToyRunner:
    """Leaves what a run would have left whose loss falls towards that of its optimizer's options.

    Args:
        loss: of these options at the end; infinite: the run fails; nan: it ends without a number.
        evaluations: of a run.
        interrupted_at: the number of evaluations over all runs after which a signal comes.
    """

    def __init__(
        self, loss: Callable[[dict[str, Any]], float], evaluations: int = 1, interrupted_at: float = math.inf
    ) -> None:
        self.loss, self.evaluations, self.left = loss, evaluations, interrupted_at
        self.order: list[str] = []
        """The names of the runs as they were trained."""

    def run(
        self, planned: Sequence[PlannedRun], what: str, verdict: Callable[[], str | None] = lambda: None
    ) -> list[RecordedRun]:
        for each in planned:
            if not has_ended(read_status(each.path)):
                self.order.append(each.path.name)
                self.train(each.path, verdict)
        return [read_run(each.path) for each in planned]

    def train(self, path: Path, verdict: Callable[[], str | None]) -> None:
        loss = self.loss(yaml.safe_load((path / "config.yaml").read_text())["optimizer"])
        fields: dict[str, Any] = {"step": 0, "primary": METRIC}
        if loss == math.inf:
            write_status(path, "failed", **fields, error="10 steps in a row were not finite")
            return
        first = read_status(path).get("step", 0) // 10 + 1
        for number in range(first, self.evaluations + 1):
            if self.left <= 0:
                write_status(path, "preempted", **fields)
                raise Interrupted
            value = loss + 1 / number - 1 / self.evaluations
            fields |= {"step": 10 * number, "metrics": {METRIC: value}}
            append(path / "metrics.jsonl", step=10 * number, epoch=1.0, **{METRIC: value})
            append(path / "clock.jsonl", step=10 * number, seconds=float(number))
            write_status(path, "running", **fields)
            self.left -= 1
            if (reason := verdict()) and number < self.evaluations:
                change_state(path, "pruned", reason)
                return
        write_status(path, "finished", **fields)

    def pause(self, seconds: float) -> None:
        raise AssertionError("there is nobody to wait for")


def append(file: Path, **record: Any) -> None:
    with file.open("a") as lines:
        lines.write(dumps({"kind": "evaluation", **record}) + "\n")
