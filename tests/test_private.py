"""The private names of other libraries exist, and do what this project relies on."""

import inspect
from importlib.util import find_spec

import pytest

from trainer import _private
from trainer._private import NAMES, SUBMITIT_WORKER


@pytest.mark.parametrize("name", NAMES)
def test_the_name_exists(name: str) -> None:
    assert callable(getattr(_private, name))


def test_other_names_do_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = _private.nonsense


def test_submitit_executes_the_same_module_and_script(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What --dry-run prints is what an executor would submit."""
    from submitit import SlurmExecutor

    assert find_spec(SUBMITIT_WORKER)
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 2))  # as if srun were installed
    executor = SlurmExecutor(tmp_path)
    assert f"-u -m {SUBMITIT_WORKER} {tmp_path}" in executor._submitit_command_str
    options = {"time": 7, "setup": ["module load cuda"], "srun_args": ["--wait=60"], "signal_delay_s": 30}
    executor.update_parameters(**options)
    script = _private._make_sbatch_string(command="python x", folder=tmp_path, **options)
    assert script == executor._make_submission_file_text("python x", "0")
    for line in ("#SBATCH --time=7", "#SBATCH --signal=USR2@30", "module load cuda"):
        assert line in script.splitlines()
    parameters = inspect.signature(_private._make_sbatch_string).parameters
    assert {
        "map_count",
        "teardown",
        "additional_parameters",
        "stderr_to_stdout",
        "wckey",
    } <= parameters.keys()
