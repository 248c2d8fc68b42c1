"""Slurm: submits jobs through submitit, asks for their states, cancels them."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmInfoWatcher

from launch.options import SlurmOptions
from launch.sweep_dir import Sweep, SweepRun
from launch.worker import Task
from trainer._private import SUBMITIT_WORKER, sbatch_script
from trainer.errors import UserError, one_line

STRAGGLERS_SECONDS = 60
"""After the first task of a job has ended, the others have that long."""

OPTIONS = {
    "account": "account",
    "partition": "partition",
    "qos": "qos",
    "gres|generic resource": "gpus_per_node",
    "time limit|--time": "time",
    "memory|--mem": "mem",
    "feature": "constraint",
    "node name|exclude": "exclude",
    "node count|node config|cpu count|processors": "nodes, .gpus_per_node, .cpus_per_task or .mem",
    "job array": "array_parallelism, or launch fewer runs at a time",
    "unrecognized option": "sbatch",
}
"""What Slurm is_primary_replica of, as a pattern, and the option to change."""


def submit(sweep: Sweep, runs: Sequence[SweepRun]) -> None:
    """Submits runs, several as one job array, and notes their jobs.

    Raises:
        UserError: Slurm does not take them; in its own words, with the option to change.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "sbatch is not installed here: launch from a node of a Slurm cluster, or with launch=local"
        )
    executor = SlurmExecutor(sweep.jobs)
    executor.update_parameters(**parameters(sweep))
    count, limit = sweep.options.tasks, sweep.options.max_requeues
    tasks = [Task(sweep.directory(run), sweep.cwd, sweep.command(run), count, limit) for run in runs]
    try:
        with without_job_variables(), contextlib.redirect_stderr(io.StringIO()):
            jobs = executor.submit_array(tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(explain(one_line(error))) from None
    for run, job in zip(runs, jobs, strict=True):
        run.jobs.append(job.job_id)
    try:
        sweep.write()
    except OSError:
        cancel([job.job_id for job in jobs])
        raise


def script(sweep: Sweep, count: int) -> str:
    """The script that sbatch would get for that many runs."""
    command = f"{shlex.quote(sys.executable)} -u -m {SUBMITIT_WORKER} {shlex.quote(str(sweep.jobs))}"
    several: dict[str, Any] = {"map_count": count} if count > 1 else {}
    return sbatch_script(command, sweep.jobs, {**parameters(sweep), **several})


def parameters(sweep: Sweep) -> dict[str, Any]:
    """What submitit shall write into the script; it leaves out what is None."""
    options = sweep.options
    assert isinstance(options, SlurmOptions)
    python = shlex.quote(sys.executable)
    parallel = {"array_parallelism": options.array_parallelism} if options.array_parallelism else {}
    return {
        "job_name": sweep.path.name,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "nodes": options.nodes,
        "ntasks_per_node": options.tasks_per_node,
        "gpus_per_node": options.gpus_per_node or None,
        "cpus_per_task": options.cpus_per_task,
        "mem": options.mem,
        "time": options.time,
        "constraint": options.constraint,
        "exclude": options.exclude,
        "signal_delay_s": options.signal_seconds,
        "additional_parameters": {"requeue": True, **(options.sbatch or {})},
        "setup": [*options.setup, f"cd {shlex.quote(str(sweep.code))} || exit 1"],
        "srun_args": [f"--wait={STRAGGLERS_SECONDS}", f"--cpus-per-task={options.cpus_per_task}"],
        "teardown": [f"{python} -m launch.on_exit {shlex.quote(str(sweep.jobs))} $?"],
        "stderr_to_stdout": True,
        "wckey": None,
        **parallel,
    }


@contextlib.contextmanager
def without_job_variables() -> Iterator[None]:
    """Hides what tells of a job that we are in ourselves, which a new one must not inherit."""
    names = [name for name in os.environ if re.match(r"(SLURM|SRUN|SBATCH)_", name) and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def explain(words: str) -> str:
    """What Slurm said, and what to do about it."""
    words = words.removeprefix("sbatch: error: ").replace("sbatch: error: ", "")
    if re.search("unable to contact|connection|timed out", words, re.IGNORECASE):
        return f"Slurm does not answer: {words}"
    for pattern, option in OPTIONS.items():
        if re.search(pattern, words, re.IGNORECASE):
            return f"Slurm refused the jobs: {words}; change launch.{option}"
    return f"Slurm refused the jobs: {words}"


def queued(jobs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """State and reason of those jobs that are in the queue.

    Raises:
        UserError: Slurm does not answer.
    """
    said = ask(["squeue", "--noheader", "--array", "--jobs", ",".join(main_ids(jobs)), "--format=%i|%T|%r"])
    if "Invalid job id" in said.stderr:  # all are gone
        return {}
    if said.returncode:
        raise UserError(f"Slurm does not answer: {one_line(RuntimeError(said.stderr))}")
    rows = [line.split("|", 2) for line in said.stdout.splitlines()]
    return {job: (state, reason) for job, state, reason in rows}


def ended(jobs: Sequence[str]) -> dict[str, str]:
    """How Slurm says that jobs have ended, where it keeps accounts."""
    said = ask(["sacct", "-X", "--parsable2", "--jobs", ",".join(main_ids(jobs)), "-o", "JobID,State"])
    rows = SlurmInfoWatcher().read_info(said.stdout) if said.returncode == 0 else {}
    return {job: row["State"] for job, row in rows.items()}


def cancel(jobs: Sequence[str]) -> None:
    """Ends jobs; those that run save a checkpoint first, if Slurm gives them the time.

    Raises:
        UserError: Slurm does not do it.
    """
    said = ask(["scancel", *jobs])
    if said.returncode and "Invalid job id" not in said.stderr:
        raise UserError(f"Slurm does not cancel the jobs: {one_line(RuntimeError(said.stderr))}")


def main_ids(jobs: Sequence[str]) -> list[str]:
    """Each array once."""
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))


def ask(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} is not installed here")
