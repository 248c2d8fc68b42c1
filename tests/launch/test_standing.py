"""State and reason of a run from its own status and its job's."""

from typing import Any

import pytest

from launch.standing import Job, judge

RUNNING, PREEMPTED = {"state": "running"}, {"state": "preempted", "error": "stopped at 5"}
FAILED, FINISHED = {"state": "failed", "error": "bad"}, {"state": "finished", "error": None}


@pytest.mark.parametrize(
    ("status", "job", "started", "current", "expected"),
    [
        ({}, Job(("PENDING", "Resources")), False, False, ("queued", "Resources")),
        ({}, Job(("RUNNING", "None")), False, False, ("starting", None)),
        (RUNNING, Job(("RUNNING", "None")), True, True, ("running", None)),
        (RUNNING, Job(("RUNNING", "None")), True, False, ("starting", None)),  # that was its last start
        (PREEMPTED, Job(("PENDING", "BeginTime")), True, True, ("queued", "stopped at 5")),
        (FAILED, Job(("PENDING", "Priority")), False, False, ("queued", "Priority")),  # submitted again
        (FINISHED, Job(("COMPLETING", "None")), True, True, ("finished", None)),
        (FINISHED, Job(None, "COMPLETED"), True, True, ("finished", None)),
        (FAILED, Job(None, "FAILED"), True, True, ("failed", "bad")),
        (PREEMPTED, Job(None), True, True, ("preempted", "stopped at 5")),
        (PREEMPTED, Job(None, "CANCELLED by 0"), True, True, ("cancelled", "stopped at 5")),
        ({}, Job(None, "CANCELLED by 0"), False, False, ("cancelled", None)),
        (RUNNING, Job(None, "TIMEOUT"), True, True, ("lost", "Slurm says TIMEOUT")),
        (RUNNING, Job(None), True, True, ("lost", "its job is gone without a word")),
        (FAILED, Job(None, "NODE_FAIL"), False, False, ("lost", "Slurm says NODE_FAIL")),
        (RUNNING, None, True, True, ("unknown", None)),
        (FINISHED, None, True, True, ("finished", None)),
    ],
)
def test_judge(
    status: dict[str, Any], job: Job | None, started: bool, current: bool, expected: tuple[str, str | None]
) -> None:
    assert judge(status, job, started=started, current=current, cancelled=False) == expected


def test_cancelled_by_us_without_accounts() -> None:
    assert judge({}, Job(None), started=False, current=False, cancelled=True) == ("cancelled", None)
    assert judge(FINISHED, Job(None), started=True, current=True, cancelled=True) == ("finished", None)
    completing = Job(("COMPLETING", "None"))
    assert judge(RUNNING, completing, started=True, current=True, cancelled=True) == ("running", None)
