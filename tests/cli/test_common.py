"""What all commands share: exit codes, and mistakes in one line."""

from collections.abc import Callable

import pytest

from trainer.cli.common import Parser, exit_code, progress
from trainer.errors import ConfigError, UserError
from trainer.rundir.status import INTERRUPTED


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: 75) == 75
    assert exit_code(raising(KeyboardInterrupt())) == INTERRUPTED
    assert capsys.readouterr() == ("", "")


def test_a_users_error_is_one_line(refused: Callable[[int, str], None]) -> None:
    refused(exit_code(raising(UserError("there is no such run"))), "there is no such run")


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(raising(ZeroDivisionError()))


def test_argparse_raises_a_users_error() -> None:
    parser = Parser(prog="python -m trainer.report")
    parser.add_argument("--width", type=int)
    with pytest.raises(ConfigError, match=r"--width.*'wide' \(see python -m trainer\.report --help\)"):
        parser.parse_args(["--width", "wide"])


def test_progress_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")
