"""Jobs on Slurm: submitting through submitit, asking for their states, cancelling."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmInfoWatcher

from launch.options import SlurmOptions
from launch.pack import Pack
from launch.sweep_dir import Sweep, SweepRun, by_stage
from launch.worker import STRAGGLER_SECONDS, Task
from trainer._private import SUBMITIT_WORKER, _make_sbatch_string
from trainer.errors import ConfigError, UserError, one_line

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
"""The option to change, by a pattern in the message with which Slurm refuses a job."""


def check_path(path: Path) -> None:
    """Refuses the directory of a sweep if Slurm would write the logs elsewhere.

    Raises:
        ConfigError: it holds what Slurm replaces in the names of logs, or a line's end.
    """
    if not str(path).isprintable() or set(str(path)) & set("%\\"):
        raise ConfigError(
            f"launch.dir={str(path)!r} is wrong: for Slurm it must be one line of characters other than % and \\"
        )


def submit(sweep: Sweep, runs: Sequence[SweepRun]) -> None:
    """Submits runs, the jobs of a stage as one array if they are several, and notes the job of each in sweep.json.

    Raises:
        UserError: Slurm is not installed, does not answer, or refuses the jobs; with Slurm's own message.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "sbatch is not installed here: launch from a node of a Slurm cluster, or with launch=local"
        )
    jobs: list[str] = []
    try:
        for stage in by_stage(runs):
            submitted = submit_stage(sweep, stage, jobs)
            for group, job in zip(groups_of(sweep, stage), submitted, strict=True):
                for run in group:
                    run.jobs.append(job)
            jobs += submitted
        sweep.write()
    except (UserError, OSError):
        if jobs:
            cancel(jobs)
        raise


def submit_stage(sweep: Sweep, runs: Sequence[SweepRun], earlier: Sequence[str]) -> list[str]:
    """Submits the runs of a stage; returns the jobs, one for each of `groups_of`.

    Args:
        sweep: of the runs.
        runs: of one stage.
        earlier: jobs that must have ended, in whatever way, before they start.

    Raises:
        UserError: as in `submit`.
    """
    executor = SlurmExecutor(sweep.jobs)
    executor.update_parameters(**parameters(sweep, earlier))
    try:
        with without_job_variables(), contextlib.redirect_stderr(io.StringIO()):
            jobs = executor.submit_array([job_of(sweep, group) for group in groups_of(sweep, runs)])
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(explain(one_line(error))) from None
    return [job.job_id for job in jobs]


def groups_of(sweep: Sweep, runs: Sequence[SweepRun]) -> list[Sequence[SweepRun]]:
    """The runs of each job, in their order; the last job may have fewer than the others."""
    size = sweep.options.runs_per_job
    return [runs[first : first + size] for first in range(0, len(runs), size)]


def job_of(sweep: Sweep, runs: Sequence[SweepRun]) -> Task | Pack:
    """What a job executes for its runs."""
    options = sweep.options
    if options.runs_per_job > 1:
        return Pack(sweep.path, [run.name for run in runs])
    [run] = runs
    command = sweep.command(run)
    return Task(sweep.directory(run), sweep.jobs, sweep.cwd, command, options.tasks, options.max_requeues)


def script(sweep: Sweep, count: int, earlier: Sequence[str] = ()) -> str:
    """The text of the script that `submit` gives to sbatch for a number of jobs, which start after earlier ones."""
    command = f"{shlex.quote(sys.executable)} -u -m {SUBMITIT_WORKER} {shlex.quote(str(sweep.jobs))}"
    several: dict[str, Any] = {"map_count": count} if count > 1 else {}
    text: str = _make_sbatch_string(
        command=command, folder=sweep.jobs, **parameters(sweep, earlier), **several
    )
    return text


def parameters(sweep: Sweep, earlier: Sequence[str]) -> dict[str, Any]:
    """The parameters of submitit's executor; it leaves those that are None out of the script.

    Args:
        sweep: which is submitted.
        earlier: jobs that must have ended before.
    """
    after = {"dependency": f"afterany:{':'.join(main_ids(earlier))}"} if earlier else {}
    options = sweep.options
    assert isinstance(options, SlurmOptions)
    python = shlex.quote(sys.executable)
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
        "time": longest(options.partition) if options.time == "max" else options.time,
        "constraint": options.constraint,
        "exclude": options.exclude,
        "signal_delay_s": options.signal_seconds,
        "additional_parameters": {"requeue": True, **(options.sbatch or {}), **after},
        "setup": [*options.setup, f"cd {shlex.quote(str(sweep.code))} || exit 1"],
        "srun_args": [f"--wait={STRAGGLER_SECONDS}", f"--cpus-per-task={options.cpus_per_task}"],
        "teardown": [f"{python} -m launch.on_exit {shlex.quote(str(sweep.jobs))} $?"],
        "stderr_to_stdout": True,
        "wckey": None,
        "array_parallelism": options.array_parallelism or sys.maxsize,  # submitit's own limit is 256
    }


def longest(partition: str | None) -> str:
    """The longest time limit that a partition allows, as sbatch takes it.

    Args:
        partition: its name; None: the cluster's default.

    Raises:
        UserError: Slurm does not answer, or does not say it.
    """
    answer = call(
        ["sinfo", "--noheader", "--format=%P %l", *([f"--partition={partition}"] if partition else [])]
    )
    if answer.returncode:
        raise UserError(f"Slurm does not answer: {one_line(RuntimeError(answer.stderr))}")
    limits = dict(
        line.split() for line in answer.stdout.splitlines() if line.strip()
    )  # the default's name ends in *
    chosen = {name: limit for name, limit in limits.items() if partition or name.endswith("*")}
    if len(chosen) != 1:
        known = ", ".join(name.removesuffix("*") for name in limits) or "none"
        raise UserError(
            f"launch.time=max needs one partition, but launch.partition={partition} leads to {len(chosen)} "
            f"(known: {known})"
        )
    [limit] = chosen.values()
    return "UNLIMITED" if limit == "infinite" else limit


@contextlib.contextmanager
def without_job_variables() -> Iterator[None]:
    """Hides the variables of the job in which this process itself may run, which a new job must not inherit."""
    names = [name for name in os.environ if re.match(r"(SLURM|SRUN|SBATCH)_", name) and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def explain(message: str) -> str:
    """An error message of sbatch, and the option to change if there is one for it."""
    message = message.removeprefix("sbatch: error: ").replace("sbatch: error: ", "")
    if re.search("unable to contact|connection|timed out", message, re.IGNORECASE):
        return f"Slurm does not answer: {message}"
    for pattern, option in OPTIONS.items():
        if re.search(pattern, message, re.IGNORECASE):
            return f"Slurm refused the jobs: {message}; change launch.{option}"
    return f"Slurm refused the jobs: {message}"


def queued(jobs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """State and reason, in Slurm's words, of those jobs that are in the queue, by job id.

    Raises:
        UserError: Slurm does not answer.
    """
    answer = call(
        ["squeue", "--noheader", "--array", "--jobs", ",".join(main_ids(jobs)), "--format=%i|%T|%r"]
    )
    if "Invalid job id" in answer.stderr:  # none of them is in the queue
        return {}
    if answer.returncode:
        raise UserError(f"Slurm does not answer: {one_line(RuntimeError(answer.stderr))}")
    entries = [line.split("|", 2) for line in answer.stdout.splitlines()]
    return {job: (state, reason) for job, state, reason in entries}


def ended(jobs: Sequence[str]) -> dict[str, str]:
    """Slurm's state of jobs by job id; empty where Slurm keeps no accounts."""
    answer = call(["sacct", "-X", "--parsable2", "--jobs", ",".join(main_ids(jobs)), "-o", "JobID,State"])
    records = SlurmInfoWatcher().read_info(answer.stdout) if answer.returncode == 0 else {}
    return {job: record["State"] for job, record in records.items()}


def cancel(jobs: Sequence[str]) -> None:
    """Cancels jobs; those that run save a checkpoint first, if Slurm gives them the time.

    Raises:
        UserError: Slurm refuses or does not answer.
    """
    answer = call(["scancel", *dict.fromkeys(jobs)])
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise UserError(f"Slurm did not cancel the jobs: {one_line(RuntimeError(answer.stderr))}")


def main_ids(jobs: Sequence[str]) -> list[str]:
    """The ids without the indices of arrays, each once."""
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))


def call(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Executes a command of Slurm; one that is not installed fails like any other."""
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} is not installed here")
