import json
import math
from contextlib import suppress

from tests.monitor.fake import CLOCK, loss, monitors, play, progress
from trainer.report.records import parse_record


def records(path):
    """The lines of a file without their checksums; each must be strict JSON."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert all(line.pop("checksum") for line in lines)
    return lines


def test_no_change_of_a_byte_goes_unnoticed(tmp_path):
    monitors(tmp_path, "jsonl").train(progress(1), {"loss": 0.5}, {})
    line = (tmp_path / "metrics.jsonl").read_bytes()
    written = parse_record(line, ())
    for place in range(len(line) - 1):
        for change in (1, 4, 128):
            changed = line[:place] + bytes([line[place] ^ change]) + line[place + 1 :]
            with suppress(ValueError, TypeError, KeyError):
                assert parse_record(changed, ("loss",)) == written, changed  # or the checksum has another key


def test_records(tmp_path):
    told = monitors(tmp_path, "jsonl")
    told.finish("finished", play(told, 1, 10))
    metrics, clock = records(tmp_path / "metrics.jsonl"), records(tmp_path / "clock.jsonl")
    assert [(r["kind"], r["step"]) for r in metrics] == [
        ("train", 5),
        ("train", 10),
        ("curvature", 10),
        ("evaluation", 10),
    ]
    assert metrics[0] == {
        "kind": "train",
        "step": 5,
        "epoch": 0.5,
        "train/loss": loss(5),
        "train/accuracy": math.exp(-loss(5)),
        "lr": 1e-3,
    }
    assert metrics[2]["layers"]["layer2"] == {"share": 2 / 10 + 10 / 1000}
    assert clock == [
        {"kind": "train", "step": 5, "seconds": 2.5, **CLOCK},
        {"kind": "train", "step": 10, "seconds": 5.0, **CLOCK},
        {"kind": "evaluation", "step": 10, "seconds": 5.0, "eval_seconds": 0.1},
    ]


def test_numbers_keep_all_their_bits(tmp_path):
    values = {"a": 0.1 + 0.2, "b": 5e-324, "c": 1.7976931348623157e308, "d": -0.0, "e": 1 / 3}
    told = monitors(tmp_path, "jsonl")
    told.train(progress(1), values, {})
    [record] = records(tmp_path / "metrics.jsonl")
    assert {name: record[name].hex() for name in values} == {name: v.hex() for name, v in values.items()}


def test_numbers_that_are_not_finite_are_null(tmp_path):
    told = monitors(tmp_path, "jsonl")
    told.train(progress(1), {"a": math.nan, "b": math.inf, "c": -math.inf}, {})
    told.curvature(progress(1), {"conv": {"share": math.nan}})
    train, curvature = records(tmp_path / "metrics.jsonl")
    assert (train["a"], train["b"], train["c"]) == (None, None, None)
    assert curvature["layers"] == {"conv": {"share": None}}


def test_a_record_is_there_at_once(tmp_path):
    told = monitors(tmp_path, "jsonl")
    told.train(progress(5), {"train/loss": 1.0}, {})
    assert len(records(tmp_path / "metrics.jsonl")) == 1


def test_killed_and_resumed_leaves_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for directory in (whole, killed):
        directory.mkdir()
    told = monitors(whole, "jsonl")
    told.finish("finished", play(told, 1, 60))

    first = monitors(killed, "jsonl")
    play(first, 1, 33)
    state = first.state_dict()
    play(first, 34, 48)
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    second = monitors(killed, "jsonl", resumed_step=33)
    second.load_state_dict(state)
    second.finish("finished", play(second, 34, 60))
    for name in ("metrics.jsonl", "clock.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_new_run_in_an_old_directory_starts_anew(tmp_path):
    play(monitors(tmp_path, "jsonl"), 1, 60)
    play(monitors(tmp_path, "jsonl"), 1, 5)
    assert [r["step"] for r in records(tmp_path / "metrics.jsonl")] == [5]


def test_a_file_shorter_than_at_the_checkpoint_is_not_filled_up(tmp_path):
    told = monitors(tmp_path, "jsonl", resumed_step=5)
    told.load_state_dict({"jsonl": {"metrics": 1000, "clock": 1000}})
    told.train(progress(6), {"train/loss": 1.0}, {})
    assert len(records(tmp_path / "metrics.jsonl")) == 1


def test_metrics_that_have_changed_are_told_at_resume(tmp_path, capsys):
    told = monitors(tmp_path, "jsonl")
    play(told, 1, 33)
    state = told.state_dict()
    play(told, 34, 40)
    file = tmp_path / "metrics.jsonl"
    written = file.read_bytes()
    for content, warned in (
        (written, False),
        (written.replace(b"18", b"19", 1), True),
        (written[:100], True),
    ):
        file.write_bytes(content)
        monitors(tmp_path, "console", "jsonl", resumed_step=33).load_state_dict(state)
        said = "warning: metrics.jsonl has changed since the checkpoint: it may be damaged"
        assert (said in capsys.readouterr().out) == warned
