"""Files are replaced as a whole or not at all, and those of another version are refused in one line."""

from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.rundir.files import FORMAT, atomic_path, atomic_write_text, check_format


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write_text(path, "old")
    with atomic_path(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def interrupted(path: Path, kind: str) -> None:
    with atomic_path(path) as part:
        write_half(part, kind)
        raise KeyboardInterrupt


def write_half(part: Path, kind: str) -> None:
    if kind == "file":
        part.write_text("half")
    elif kind == "link":
        part.symlink_to("elsewhere")
    else:
        part.mkdir()
        (part / "file").write_text("half")


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_an_error_leaves_the_old_file_and_nothing_else(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, kind)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_a_killed_process_left_does_not_hinder(kind: str, tmp_path: Path) -> None:
    write_half(tmp_path / ".new.part", kind)
    with atomic_path(tmp_path / "new") as part:
        part.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert list((tmp_path / "new").iterdir()) == []


def test_the_present_format_is_read() -> None:
    check_format({"format": FORMAT}, Path("record.json"))


@pytest.mark.parametrize(
    ("record", "what"), [({}, "no format number"), ([], "no format number"), ({"format": 99}, "format 99")]
)
def test_another_format_is_refused_in_one_line(record: object, what: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_format(record, Path("runs/record.json"))
    message = str(refusal.value)
    assert message.startswith(
        f"runs/record.json has {what}, but this version of the trainer reads format 1 only: "
    )
    assert "\n" not in message
