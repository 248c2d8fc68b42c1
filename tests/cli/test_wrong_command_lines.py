"""Every mistake a user can make: exit code 2, one line that helps, nothing left on disk."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.cli.train import main

WRONG = [
    # unknown group options
    ("model=cnnn", "unknown option model=cnnn; did you mean cnn"),
    ("data=digit", "did you mean digits"),
    ("data=_loader", "unknown option data=_loader (known: cifar10, "),
    ("optimizer=adamW", "did you mean adamw"),
    ("schedule=cosin", "did you mean cosine"),
    ("precision=fp8", "known: bf16, fp16, fp32, tf32"),
    ("parallel=fsdp2", "did you mean fsdp"),
    ("checkpoint=none", "known: default"),
    ("experiment=digits_typo", "unknown option experiment=digits_typo"),
    # unknown keys at any depth
    ("modell=cnn", "unknown option modell; did you mean model"),
    ("sed=1", "unknown option sed; did you mean seed"),
    ("callback=[sharpness]", "did you mean callbacks"),
    ("loop.max_step=10", "did you mean max_steps"),
    ("loop.clip.norm=1", "unknown option loop.clip"),
    ("optimizer.learning_rate=0.1", "unknown option optimizer.learning_rate"),
    ("optimizer.momentun=0.9", "did you mean momentum"),
    ("data.batchsize=32", "did you mean batch_size"),
    ("checkpoint.every_step=5", "did you mean every_steps"),
    ("monitor.sink=[console]", "did you mean sinks"),
    ("schedule.warm_up=3", "did you mean warmup"),
    ("+loop.extra=1", "unknown option loop.extra"),
    ("+optimizer.betas=0.9", "unknown option optimizer.betas"),
    # options of another component
    ("model=mlp model.num_heads=3", "unknown option model.num_heads"),
    # wrong types
    ("seed=one", "seed=one is wrong: it must be an integer"),
    ("loop.max_steps=1.5", "loop.max_steps=1.5 is wrong: it must be an integer >= 1 or null"),
    ("loop.compile=maybe", "must be true or false"),
    ("data.batch_size=many", "must be an integer >= 1"),
    ("optimizer.lr=fast", "must be a number"),
    ("model.widths=16", "must be a list"),
    ("loop.eval_every=weekly", "a number of steps or '2 epochs'"),
    ("plugins=no.such.module", "plugin 'no.such.module' cannot be imported"),
    ("name=a/b", "must consist of letters, digits"),
    # out of range
    ("optimizer.lr=-0.1", "optimizer.lr=-0.1 is wrong"),
    ("optimizer.lr=inf", "optimizer.lr=inf is wrong"),
    ("loop.max_time=inf", "loop.max_time=inf is wrong: it must be a number > 0 or null, and finite"),
    ("optimizer.momentum=1", "optimizer.momentum=1 is wrong"),
    ("optimizer=adamw optimizer.betas=[0.9,1.0]", "optimizer.betas=[0.9, 1.0] is wrong"),
    ("data.batch_size=0", "data.batch_size=0 is wrong: it must be an integer >= 1"),
    ("data.batch_size=100000", "exceeds the training set"),
    ("loop.accumulate=5", "does not divide"),
    ("loop.ema=1.0", "must be a number >= 0 and < 1 or null"),
    ("loop.label_smoothing=-1", "loop.label_smoothing=-1 is wrong"),
    ("optimizer.decoupled=false", "rule='orthogonal' always decouples weight decay"),
    ("optimizer.update_interval=0", "optimizer.update_interval=0 is wrong"),
    ("model.dropout=1.5", "model.dropout=1.5 is wrong"),
    # unknown names inside a component
    ("optimizer.rule=fisher", "must be one of"),
    ("model=torchvision model.arch=resnet19", "resnet18"),
    ("monitor.sinks=[neptune]", "unknown sink 'neptune'"),
    ("optimizer=pytorch_optimizer optimizer.algorithm=soup", "did you mean soap"),
    # missing data
    ("data=cifar10 data.root=/nonexistent", "data.download=true"),
    ("data=image_folder data.root=/nonexistent", "/nonexistent"),
    ("data=text data.path=/nonexistent model=gpt", "/nonexistent"),
    ("data=fashion_mnist data.root=/nonexistent", "apt-get install dataset-fashion-mnist"),
    # parts that do not fit each other
    ("model.num_classes=5", "model.num_classes=5 does not fit data=digits, which has 10"),
    ("model=mlp model.image_size=16", "model.image_size=16 does not fit data=digits, which has 8"),
    (
        "data=synthetic_tokens model=gpt model.context_length=16",
        "model.context_length=16 does not fit data=synthetic_tokens, which has 64",
    ),
    ("parallel=fsdp loop.channels_last=true", "loop.channels_last=true does not work with parallel=fsdp"),
    ("model.in_channels=3", "model.in_channels=3 does not fit data=digits, which has 1"),
    ("model=gpt", "model=gpt reads tokens, but data=digits gives images"),
    ("model.widths=[8,8,8,8,8]", "fewer widths"),
    ("parallel=fsdp", "parallel=fsdp needs more than one rank"),
    ("parallel=ddp", "parallel=ddp needs more than one rank"),
    ("loop.max_epochs=1 loop.max_steps=10", "loop.max_epochs=1 and loop.max_steps=10 exclude each other"),
    ("loop.max_steps=5 loop.max_time=10", "exclude each other"),
    ("loop.max_time=10 schedule.warmup=100", "give a share below 1"),
    ("loop.max_steps=10 schedule.warmup=100", "longer than the run's 10 steps"),
    ("device=cuda", "device=cuda is not available"),
    # resuming
    ("checkpoint.resume=/nonexistent", "checkpoint.resume=/nonexistent does not exist"),
    ("checkpoint.resume=.", "has no checkpoints"),
    # the command line itself
    ("optimizer", "cannot read 'optimizer'"),
    ("loop.max_steps=[1", "cannot read"),
    ("--no-such-flag", "--no-such-flag"),
    ("optimizer=adamw,sgd", "--multirun"),
    ("--config-dir /nonexistent", "/nonexistent is not a directory"),
    ("--config-path /nonexistent --config-name config", "/nonexistent"),
    ("--multirun seed=0,1 optimizer.lr=0.1,-1", "optimizer.lr=-1 is wrong"),
    ("--multirun optimizer=adafisher,adamm", "did you mean"),
    ("--cfg job modell=cnn", "did you mean model"),
    ("dry_run.worldsize=8", "unknown option dry_run.worldsize; did you mean world_size"),
    ("dry_run.world_size=8", "dry_run.world_size=8 needs parallel=ddp, fsdp or hsdp"),
    ("parallel=ddp dry_run.world_size=3", "data.batch_size=64 does not divide into 3 ranks"),
    (
        "parallel=ddp dry_run.world_size=400 data.batch_size=400",
        "the evaluation split test has 360 samples for 400 ranks: start fewer ranks",
    ),
    (
        "parallel=hsdp dry_run.world_size=8",
        "parallel.replicas=null is wrong: it must be a divisor of 8 ranks",
    ),
    ("parallel=fsdp parallel.replicas=2", "unknown option parallel.replicas"),
    ("loop.activation_checkpointing=some", "must be one of none, full or an integer >= 1"),
    ("loop.activation_checkpointing=2", "finds no blocks that recur in model=cnn"),
    ("dry_run=true data.batch_size=0", "data.batch_size=0 is wrong"),
]


@pytest.mark.parametrize(("line", "hint"), WRONG, ids=[line for line, _ in WRONG])
def test_one_line_and_nothing_left(
    line: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[[int, str], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    if line == "device=cuda":
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(main(line.split(" ")), hint)
    assert list(tmp_path.iterdir()) == []


def test_an_extra_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(["model=timm", "model.arch=vit_tiny_patch16_224"]) == 2
    assert "pip install '.[zoo]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_compiler_is_not_imported() -> None:
    """It would take another second, for which a mistake, a report or a launch would wait."""
    code = "import sys, trainer.cli.train; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
