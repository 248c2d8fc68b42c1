"""status.json, and whether the process that wrote it is still there."""

import errno
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer.report.read_runs import STATES as SHOWN
from trainer.rundir import files
from trainer.rundir import status as module
from trainer.rundir.files import STATUS
from trainer.rundir.status import (
    STATES,
    StatusFile,
    change_state,
    process_is_alive,
    read_status,
    write_status,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_status(tmp_path, "running", step=3, metrics={"val/loss": 0.5})
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["metrics"]) == ("running", 3, {"val/loss": 0.5})
    assert (status["host"], status["pid"]) == (socket.gethostname(), os.getpid())
    assert json.loads((tmp_path / STATUS).read_text())["format"] == 1


def test_who_says_how_a_run_ended_is_not_taken_for_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_status(tmp_path, "running", step=3)
    own = os.getpid()
    monkeypatch.setattr(module.os, "getpid", lambda: own + 1)
    change_state(tmp_path, "pruned", "others were better")
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["pid"]) == ("pruned", 3, own)


def test_a_metric_that_is_not_finite_is_null_in_the_file(tmp_path: Path) -> None:
    write_status(tmp_path, "failed", metrics={"val/loss": math.nan})
    assert json.loads((tmp_path / STATUS).read_text(), parse_constant=pytest.fail)["metrics"] == {
        "val/loss": None
    }
    assert math.isnan(read_status(tmp_path)["metrics"]["val/loss"])


def test_the_state_is_told_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no room for a second file, from which the first would be replaced."""
    write_status(tmp_path, "running", step=3, error="x" * 100)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", refuse)
    write_status(tmp_path, "failed", step=4)
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["step"]) == ("failed", 4)
    assert files.overwrite(tmp_path / STATUS, "{}")
    assert not files.overwrite(tmp_path / STATUS, "x" * 10_000)
    assert json.loads((tmp_path / STATUS).read_text()) == {}
    with pytest.raises(OSError, match="No space left"):
        write_status(tmp_path, "failed", error="x" * 10_000)


def test_no_change_of_a_byte_gives_another_value(tmp_path: Path) -> None:
    write_status(tmp_path, "finished", step=44, metrics={"val/loss": 0.5, "val/accuracy": None}, error="ö")
    written, content = read_status(tmp_path), (tmp_path / STATUS).read_bytes()
    seen = []
    for place in range(len(content)):
        for change in (1, 16, 128):
            changed = bytes([content[place] ^ change])
            (tmp_path / STATUS).write_bytes(content[:place] + changed + content[place + 1 :])
            status = read_status(tmp_path)
            known = {
                key: value for key, value in status.items() if key in written
            }  # or the checksum has another key
            if str(known) != str(written):  # nan is not equal to itself
                seen.append(status.get("error", "no JSON"))
                assert status.keys() in ({"error"}, {"state", "error"}), f"byte {place} changed by {change}"
    assert (
        f"{tmp_path / STATUS} is damaged, its checksum is that of other content: remove or restore it" in seen
    )


def test_what_a_report_shows_are_states() -> None:
    assert set(SHOWN) <= STATES.keys()


@pytest.mark.parametrize("content", ["", '{"format": 1, "sta', "null", "[]", "3", "[" * 10_000, "\x00"])
def test_no_status_is_empty_and_a_damaged_one_says_so(content: str, tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    (tmp_path / STATUS).write_text(content)
    [(key, said)] = read_status(tmp_path).items()
    assert key == "error"
    assert said.startswith(f"{tmp_path / STATUS} is damaged: ")
    assert "\n" not in said


@pytest.mark.parametrize("record", [{"state": "finished"}, {"format": 2, "state": "finished"}])
def test_a_status_of_another_format_is_unknown_and_says_why(record: object, tmp_path: Path) -> None:
    (tmp_path / STATUS).write_text(json.dumps(record))
    status = read_status(tmp_path)
    assert status["state"] == "unknown"
    assert status["error"].startswith(f"{tmp_path / STATUS} has ")
    assert status.keys() == {"state", "error"}


def test_damaged_fields_are_left_out(tmp_path: Path) -> None:
    good = {"format": 1, "state": "failed", "step": 3, "error": None, "later": [1]}
    bad = {
        "saved": "x",
        "metrics": [1],
        "primary": 3,
        "host": None,
        "pid": 2**31,
        "time": "now",
        "started": -1,
    }
    (tmp_path / STATUS).write_text(json.dumps({**good, **bad}))
    assert read_status(tmp_path) == good
    (tmp_path / STATUS).write_text(json.dumps({**good, "metrics": {"a": None, "b": "x", "c": 2}}))
    assert list(read_status(tmp_path)["metrics"]) == ["a", "c"]


def test_a_run_that_has_ended_does_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that reports the end, and another that reports progress a moment later."""
    status = StatusFile(tmp_path, "val/loss", 1, saved=None, metrics={})
    status.write("running", step=2)
    write, late = module.write_status, threading.Event()

    def slow(*arguments: object, **fields: object) -> None:
        late.wait(0.2)
        write(*arguments, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_status", slow)
    threads = [threading.Thread(target=status.write, args=("failed",), kwargs={"error": "rank 1 is gone"})]
    threads.append(threading.Thread(target=status.write, args=("running",), kwargs={"step": 3}))
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["error"]) == ("failed", "rank 1 is gone")
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


def test_only_a_process_of_this_machine_is_known_to_be_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not process_is_alive(socket.gethostname(), process.pid)
    assert process_is_alive("another", process.pid)
    assert process_is_alive(socket.gethostname(), os.getpid())
    assert process_is_alive(socket.gethostname(), 1)
