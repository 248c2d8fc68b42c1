"""Private names of other libraries, all in one place, each with why no public one does.

They may change with any release: pyproject.toml bounds the versions, tests/test_private.py checks names and signatures.
A name is imported when it is first asked for, so that a command that needs no torch starts without it.
"""

import importlib
from typing import Any

NAMES = {
    # submitit
    "_make_sbatch_string": "submitit.slurm.slurm",  # the job script, which an executor writes only to submit it
}
"""The module of each name."""


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(NAMES[name]), name)


# submitit

SUBMITIT_WORKER = "submitit.core._submit"
"""The module that a job executes in each task; an executor names it only in the script that it submits."""
