"""Kills runs on an image folder with SIGKILL, starts each again at once, and compares it with an undisturbed one.

    python tests/training/kill_images.py --kills 20

One process, two ranks under DDP and two under FSDP, each with two data workers; the pictures come from a folder, from a
pack, from memory, or from a folder with timm's augmentation (--source). The kills come at start-up, while a
checkpoint is written, during evaluations and anywhere else; of two ranks they hit both, or one, whose end must end the
other. The same command starts the run again, while data workers of the last session may still be there. At the end
parameters, optimizer state, random numbers and metrics.jsonl must be those of the undisturbed run, bit for bit.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.data.pictures import cats_and_dogs
from tests.distributed.ranks import end, start_trainer
from tests.training.kill_and_resume import compare, wait_for_save
from trainer.data.pack import pack
from trainer.rundir.logs import last_lines
from trainer.rundir.status import read_status

RANKS = {"none": 1, "ddp": 2, "fsdp": 2}
EVAL_EVERY = 4
TIMM = "data.augment=timm data.auto_augment=rand-m9 data.random_erasing=0.5 data.mixup=0.8 data.cutmix=1"
SOURCES = {
    "folder": "data.root={folder}",
    "pack": "data.path={pack}",
    "memory": "data.path={pack} data.cache=memory data.mixup=0.8",
    "timm": f"data.root={{folder}} {TIMM}",
}
LINE = (
    "data=image_folder data.image_size=16 data.resize=16 data.batch_size=16 data.num_workers=2 model=cnn "
    "model.widths=[4] model.dropout=0.1 optimizer=adafisher optimizer.update_interval=3 loop.ema=0.9 "
    f"loop.max_steps=40 loop.log_every=1 loop.eval_every={EVAL_EVERY} checkpoint.every_steps=3 "
    "monitor.sinks=[console,jsonl,runlog] monitor.predictions=0"
)


class Disturbed:
    """A run that is killed again and again.

    Args:
        root: where the run, the undisturbed one and what they print go.
        source: overrides that say where the pictures are.
        strategy: of the run.
        moments: draws when it is killed, and which ranks are.
    """

    def __init__(self, root: Path, source: str, strategy: str, moments: random.Random) -> None:
        self.undisturbed, self.run, self.log = root / "undisturbed", root / "disturbed", root / "out"
        root.mkdir()
        self.ranks = RANKS[strategy]
        self.line = [*LINE.split(), *source.split(), f"parallel={strategy}"]
        self.moments = moments
        self.kills: Counter[str] = Counter()
        begun = time.monotonic()
        assert end(self.start(self.undisturbed)) == [0] * self.ranks, self.said()
        self.longest = time.monotonic() - begun

    def start(self, directory: Path) -> list[BaseProcess]:
        return start_trainer(self.ranks, [*self.line, f"hydra.run.dir={directory}"], self.log)

    def said(self) -> str:
        return "".join(Path(f"{self.log}{rank}").read_text() for rank in range(self.ranks))

    def kill_once(self) -> None:
        """Starts or resumes the run and kills it; one that has ended is compared, and the next starts anew."""
        processes = self.start(self.run)
        kind = self.moments.choice(["start-up", "save", "evaluation", "anywhere"])
        if kind == "start-up":
            time.sleep(self.moments.uniform(0, 1))
        elif kind == "save":
            wait_for_save(self.run, self.moments.randint(1, 4), processes[0])
            time.sleep(self.moments.uniform(0, 0.03))
        elif kind == "evaluation":
            wait_for_evaluation(self.run, processes[0])
            time.sleep(self.moments.uniform(0, 0.03))
        else:
            time.sleep(self.moments.uniform(0, self.longest))
        victims = processes if self.moments.random() < 0.5 else [self.moments.choice(processes)]
        for process in victims:
            process.kill()
        for process in victims:
            process.join()
        codes = end(processes)  # a rank that is alive ends, since the other is gone
        if all(process.exitcode == 0 for process in victims):
            kind = "after the end"
            self.compare()
        else:
            assert -signal.SIGKILL in codes, f"exit codes {codes}: {self.said()}"
        self.kills[kind] += 1

    def compare(self) -> None:
        assert read_status(self.run)["state"] == "finished"
        found = compare(self.run, self.undisturbed)
        assert not found, f"other than in the undisturbed run: {', '.join(found)}"
        shutil.rmtree(self.run)

    def finish(self) -> None:
        """Lets the run come to its end, and compares it."""
        codes = end(self.start(self.run))
        assert codes == [0] * self.ranks, f"exit codes {codes}: {self.said()}"
        self.compare()


def wait_for_evaluation(run: Path, process: BaseProcess) -> None:
    """Until a step is reported after which there is an evaluation, or the process has ended."""

    def last_record() -> dict[str, Any]:
        records = last_lines(run / "metrics.jsonl")
        try:
            return json.loads(records[-1]) if records else {}
        except ValueError:  # half a line, when a run was killed
            return {}

    before = last_record()
    while process.is_alive():
        record = last_record()
        if record != before and record.get("kind") == "train" and record["step"] % EVAL_EVERY == 0:
            return
        time.sleep(0.001)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="of each strategy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy", choices=RANKS, nargs="*", default=list(RANKS))
    parser.add_argument("--source", choices=SOURCES, default="folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures, packed = cats_and_dogs(Path(folder) / "pictures"), Path(folder) / "pack"
        pack(pictures, packed, 512, lambda *_: None)
        source = SOURCES[args.source].format(folder=pictures, pack=packed)
        for strategy in args.strategy:
            begun = time.monotonic()
            disturbed = Disturbed(Path(folder) / strategy, source, strategy, random.Random(args.seed))
            for _ in range(args.kills):
                disturbed.kill_once()
            disturbed.finish()
            kills = ", ".join(f"{count} {kind}" for kind, count in sorted(disturbed.kills.items()))
            print(f"{strategy}: {kills}; the same to the bit ({time.monotonic() - begun:.0f} s)", flush=True)
