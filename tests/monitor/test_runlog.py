import re

from tests.monitor.fake import monitors, play


def test_a_diary_that_a_resumed_run_continues(tmp_path):
    first = monitors(tmp_path, "runlog")
    first.message("the loss is not finite", "warning")
    play(first, 1, 10)
    first.finish("preempted", {})
    second = monitors(tmp_path, "runlog", resumed_step=10)
    second.finish("finished", play(second, 11, 20))

    lines = (tmp_path / "run.log").read_text().splitlines()
    texts = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (\w+) +(.*)", line).groups() for line in lines]
    summary = ("info", "cnn (93,322 parameters) on digits (1,437 samples), cpu, fp32")
    assert texts == [
        summary,
        ("warning", "the loss is not finite"),
        ("info", "step 10  epoch 1.00  5.0 s  test/loss=1.79502  test/accuracy=0.183595"),
        ("info", "preempted"),
        summary,
        ("info", "step 20  epoch 2.00  10.0 s  test/loss=1.54612  test/accuracy=0.235482"),
        ("info", "finished"),
    ]
