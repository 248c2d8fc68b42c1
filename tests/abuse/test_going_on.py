"""The command is repeated in a run directory, with other options, other data, another budget."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.abuse.runs import checkpoints, content, go, refusal, restate, stopped
from tests.data.test_corpus import write_shards
from tests.training.helpers import parts_of
from tests.training.kill_and_resume import compare
from trainer.checkpoint.reading import read_verified
from trainer.cli.train import main
from trainer.config.schema import check_config
from trainer.errors import UserError
from trainer.rundir.frozen_config import read_frozen
from trainer.training.start import compare_with_stored


@pytest.mark.parametrize("state", ["finished", "stopped"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["optimizer.lr=1e-4", "optimizer.momentum=0"],
            "optimizer.lr=0.1 there, 0.0001 here; optimizer.momentum=0.9 there, 0.0 here",
        ),
        (["optimizer=adamw"], "optimizer=sgd there, adamw here"),
        (["seed=7", "data.batch_size=32"], "data.batch_size=64 there, 32 here; seed=0 there, 7 here"),
        (
            ["loop.ema=0.9", "loop.clip_norm=1"],
            "loop.clip_norm=null there, 1.0 here; loop.ema=null there, 0.9 here",
        ),
        (
            ["precision=bf16", "model.dropout=0.5"],
            "model.dropout=0.0 there, 0.5 here; precision.name=fp32 there",
        ),
        (["schedule.warmup=0.1"], "schedule.warmup=0.0 there, 0.1 here"),
        (["checkpoint.weights=/somewhere"], "checkpoint.weights=null there, /somewhere here"),
    ],
)
def test_another_config_is_refused_and_nothing_is_touched(
    options: list[str], said: str, state: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if state == "stopped":
        stopped(run)
    before = content(run)
    capsys.readouterr()
    line = refusal(capsys, go(run, *options))
    assert line.startswith(f"error: {run} is the run of another config: {said}")
    assert line.endswith(": choose another hydra.run.dir\n")
    assert content(run) == before


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_a_run_without_its_config_is_refused(
    state: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It could be that of any other."""
    if state == "stopped":
        stopped(run)
    (run / "config.yaml").unlink()
    before = content(run)
    capsys.readouterr()
    assert f"{run} holds a run without its config.yaml" in refusal(capsys, go(run, "optimizer.lr=0.5"))
    assert content(run) == before


def test_one_optimizer_does_not_become_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for first, then, said in (
        ("optimizer=adamw", "optimizer=adam", "optimizer=adamw there, adam here"),
        ("optimizer=adamw", "optimizer=sgd", "optimizer=adamw there, sgd here"),
        ("optimizer=adafisher", "optimizer.rule=paper", "optimizer.rule=orthogonal there, paper here"),
    ):
        run = tmp_path / first.partition("=")[2]
        assert go(run, first, "loop.max_steps=1") == 0
        capsys.readouterr()
        assert said in refusal(capsys, go(run, first, then, "loop.max_steps=9"))


def test_what_does_not_change_what_is_learnt_may_differ(finished: Path, run: Path) -> None:
    """And what is learnt is the same to the bit."""
    for newest in checkpoints(run)[:1]:
        newest.rename(newest.with_name("elsewhere"))
    others = [
        "data.num_workers=2",
        "checkpoint.keep_last=1",
        "checkpoint.async=true",
        "monitor.curvature=false",
    ]
    assert go(stopped(run), *others, "device=cpu", "loop.max_bad_steps=3") == 0
    assert compare(run, finished) == []
    assert yaml.safe_load((run / "config.yaml").read_text())["checkpoint"]["keep_last"] == 1


def test_a_larger_budget_extends_a_finished_run(
    finished: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert go(run, "loop.max_steps=12") == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "loop.max_steps=12 instead of 6: schedule=cosine follows the new budget from step 6 on" in said
    assert (
        "the learning rate goes from 0.0067 to 0.05" in said
    )  # half a cosine: the last of 6 steps, and the half
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
    assert json.loads((run / "status.json").read_text())["step"] == 12
    sessions = json.loads((run / "environment.json").read_text())
    first = json.loads((finished / "environment.json").read_text())
    assert {key: sessions[key] for key in first} == first
    assert [session["step"] for session in sessions["sessions"]] == [6]

    before = content(run)
    for same_or_less in ("loop.max_steps=12", "loop.max_steps=3"):
        assert go(run, same_or_less) == 0
        assert "finished already at step 12" in capsys.readouterr().out
    assert content(run) == before


def test_a_constant_rate_makes_an_extended_run_that_of_the_larger_budget(tmp_path: Path) -> None:
    constant = ["schedule=constant", "loop.eval_every=6"]
    assert go(tmp_path / "extended", *constant) == 0
    assert go(tmp_path / "extended", *constant, "loop.max_steps=12") == 0
    assert go(tmp_path / "whole", *constant, "loop.max_steps=12") == 0
    assert compare(tmp_path / "extended", tmp_path / "whole") == []


def test_a_run_that_was_ended_early_goes_on_without_what_has_ended_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, early = tmp_path / "run", ["callbacks=[early_stop]", "callbacks.early_stop.target=0"]
    assert go(run, *early) == 0
    capsys.readouterr()
    assert go(run, *early) == 0
    assert "finished already at step 3" in capsys.readouterr().out
    assert go(run, *early, "callbacks.early_stop.patience=9") == 0
    assert "ended at step 3: test/accuracy has reached" in capsys.readouterr().out.replace("\n", " ")
    assert go(run) == 0
    assert compare(run, finished) == []


def test_a_damaged_config_is_no_reason_to_overwrite_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes of it are changed at random: told in one line, or without consequence."""
    chance = random.Random(0)
    original = (run / "config.yaml").read_bytes()
    config = check_config(read_frozen(run / "config.yaml"))
    said = []
    for _ in range(200):
        place, value = chance.randrange(original.index(b"\n"), len(original)), chance.randrange(256)
        (run / "config.yaml").write_bytes(original[:place] + bytes([value]) + original[place + 1 :])
        try:
            compare_with_stored(config, run)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 100
    assert not [line for line in said if "\n" in line]
    (run / "config.yaml").write_bytes(b"\xff" + original)
    before = content(run)
    capsys.readouterr()
    assert f"{run / 'config.yaml'} cannot be read" in refusal(capsys, go(run))
    assert content(run) == before


def folder(path: Path, count: int) -> Path:
    for split, classes in (("train", count), ("val", 4)):
        for label in ("cat", "dog"):
            (path / split / label).mkdir(parents=True, exist_ok=True)
            for i in range(classes):
                pixels = np.full((8, 8, 3), 10 * i, dtype=np.uint8)
                Image.fromarray(pixels).save(path / split / label / f"{i}.png")
    return path


def test_a_file_is_added_to_an_image_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = folder(tmp_path / "data", 12), tmp_path / "run"
    line = [
        "data=image_folder",
        "data.image_size=8",
        "data.resize=8",
        "data.batch_size=8",
        "data.num_workers=0",
    ]
    assert go(run, *line, f"data.root={root}") == 0
    moved = root.rename(tmp_path / "moved")  # the same data in another place
    assert go(run, *line, f"data.root={moved}", "loop.max_steps=8") == 0
    Image.new("RGB", (8, 8)).save(moved / "train" / "cat" / "new.png")
    before = content(run)
    capsys.readouterr()
    longer = [*line, f"data.root={moved}", "loop.max_steps=10"]
    said = refusal(capsys, go(run, *longer))
    assert "the data are not those that the run was trained on: training files: 24 " in said
    assert said.endswith("here: checkpoint.accept_changed_data=true goes on with them\n")
    assert content(run) == before
    assert go(run, *longer, "checkpoint.accept_changed_data=true") == 0
    assert go(run, *longer[:-1], "loop.max_steps=12") == 0  # the new data are the run's now


def test_a_text_is_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, run = tmp_path / "text", tmp_path / "run"
    line = [
        *("data=text", f"data.path={text}", "data.context_length=8", "data.batch_size=8", "optimizer=sgd"),
        *("model=gpt", "model.layers=1", "model.width=8", "model.heads=2", "monitor.sample_tokens=0"),
        *("monitor.sinks=[console,jsonl]", f"hydra.run.dir={run}"),
    ]
    text.write_text("abcdefgh" * 60)
    assert main([*line, "loop.max_steps=2"]) == 0
    capsys.readouterr()
    assert "model.heads=2 there, 1 here" in refusal(
        capsys, main([*line, "model.heads=1", "loop.max_steps=4"])
    )
    text.write_text("abcdefgh" * 59 + "hgfedcba")
    capsys.readouterr()
    said = refusal(capsys, main([*line, "loop.max_steps=4"]))
    assert "val text: 48 tokens " in said


def test_a_folder_of_a_mixture_is_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    a, b = (
        write_shards(tmp_path / name, rng.integers(30, size=size), vocab_size=30)
        for name, size in (("a", 400), ("b", 300))
    )
    line = [
        *("data=tokens", "data.context_length=8", "data.batch_size=8", "data.val_fraction=0.1"),
        *("optimizer=sgd", "model=gpt", "model.layers=1", "model.width=8", "model.heads=2"),
        *("monitor.sample_tokens=0", "monitor.sinks=[console,jsonl]", f"hydra.run.dir={tmp_path / 'run'}"),
    ]
    assert main([*line, "loop.max_steps=2", f"data.sources={{{a}:3,{b}:1}}"]) == 0
    moved = a.rename(tmp_path / "moved")
    capsys.readouterr()
    for sources, said in (
        (f"{moved}:1,{b}:1", f"data.sources={{'{a}': 3, '{b}': 1}} there, {{'{moved}': 1, '{b}': 1}} here"),
        (f"{b}:3,{moved}:1", "tokens of source 1: "),
    ):
        assert said in refusal(capsys, main([*line, "loop.max_steps=4", f"data.sources={{{sources}}}"]))
    assert main([*line, "loop.max_steps=4", f"data.sources={{{moved}:3,{b}:1}}"]) == 0


def test_a_teacher_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, run, old = (tmp_path / name for name in ("teacher", "run", "old"))
    taught = ["objective=distillation", f"objective.teacher={teacher}"]
    assert go(teacher, "loop.max_steps=2") == 0
    assert go(run, *taught) == 0
    with monkeypatch.context() as patch:
        patch.setattr("trainer.training.start.teachers_of", lambda _: {})  # as an older version
        assert go(old, *taught) == 0
    assert go(teacher, "loop.max_steps=4") == 0
    before = content(run)
    capsys.readouterr()
    said = refusal(capsys, go(run, *taught, "loop.max_steps=8"))
    former = f"objective.teacher={teacher}/checkpoints/step_00000002"
    assert f"objective.teacher={teacher} is step_00000004 " in said
    assert f": name that one, {former}, or" in said
    assert content(run) == before
    assert go(run, *taught, former, "loop.max_steps=8") == 0
    assert go(old, *taught, "loop.max_steps=8") == 0


def test_a_set_that_became_smaller_goes_on_with_its_next_epoch() -> None:
    loader = parts_of("data.batch_size=64").state.loader
    loader.load_state_dict({"epoch": 3, "batch": 80})
    assert (loader.epoch, loader.batch) == (4, 0)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for checkpoint in checkpoints(run):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    (run / "checkpoints" / "best").unlink()
    restate(run, state="running", step=1, saved=None)
    assert go(run) == 0
    assert "the run had reached step 1 and no checkpoint: it starts again" in capsys.readouterr().out
    assert compare(run, finished) == []


def test_a_state_that_cannot_be_saved_is_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["plugins=[tests.abuse.plugins]", "model=keeps_an_object", "loop.max_steps=2"]
    assert main([*line, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "model.0._extra_state is a object, which a checkpoint cannot hold" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("decay", ["true", "false"])
def test_nothing_is_to_be_trained(decay: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plugins=[tests.abuse.plugins]", "model=all_frozen", f"optimizer.decay_norms_and_biases={decay}"]
    said = refusal(capsys, main([*line, f"hydra.run.dir={tmp_path / 'run'}"]))
    assert said == "error: model=all_frozen has no trainable parameter\n"
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_to_start_anew_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command would overwrite it; the one that the run prints goes on with it."""
    run = tmp_path / "run"
    assert go(run, "checkpoint.resume=none") == 0
    capsys.readouterr()
    assert "would overwrite" in refusal(capsys, go(stopped(run), "checkpoint.resume=none"))
    assert main(["--config-path", str(run), "loop.max_steps=7"]) == 0
    assert go(run, "loop.max_steps=8") == 0


def test_extra_state_and_buffers_that_are_not_persistent_go_on(tmp_path: Path) -> None:
    line = [
        *(
            "plugins=[tests.abuse.plugins]",
            "model=counts_calls",
            "optimizer=sgd",
            "monitor.sinks=[console,jsonl]",
        ),
        *("data.batch_size=64", "loop.log_every=1", "loop.eval_every=3", "checkpoint.every_steps=2"),
        *("monitor.predictions=0", "monitor.log_images=false", "loop.max_steps=6"),
    ]
    for name in ("whole", "resumed"):
        assert main([*line, f"hydra.run.dir={tmp_path / name}"]) == 0
    newest = checkpoints(tmp_path / "resumed")[0]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert main([*line, f"hydra.run.dir={stopped(tmp_path / 'resumed')}"]) == 0
    assert compare(tmp_path / "resumed", tmp_path / "whole") == []
    saved = read_verified(checkpoints(tmp_path / "whole")[0])
    assert saved["model"]["0._extra_state"] == {"calls": 6}
    assert float(saved["buffers"]["0.scale"]) == 1.06
