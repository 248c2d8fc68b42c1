from pathlib import Path

import pytest

from trainer.rundir.logs import TAIL, last_error, last_lines


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n\n  second \xff\n \nthird")
    assert last_lines(log) == ["first", "second \ufffd", "third"]
    assert last_lines(log, start=7) == ["second \ufffd", "third"]
    log.write_text("first\n" + TAIL * "x")
    assert last_lines(log) == [TAIL * "x"]
    assert last_lines(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["error: a", "more", "crashed: ValueError: b", "bye"], "ValueError: b"),
        (["error: a", "no error: here"], "a"),
        (["an error occurred"], None),
        ([], None),
    ],
)
def test_last_error(lines: list[str], found: str | None) -> None:
    assert last_error(lines) == found
