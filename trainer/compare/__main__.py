"""``python -m trainer.compare``: see HELP."""

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from trainer.cli.common import exit_code, table_console
from trainer.compare.arguments import FOLDER, Command, parse_command
from trainer.compare.protocol import ComparisonRun, Outcome
from trainer.compare.resume import read_record, write_record
from trainer.compare.runner import Interrupted, Runner
from trainer.compare.sentences import failed_trials
from trainer.errors import UserError
from trainer.report.output import write
from trainer.report.render import show
from trainer.report.serialize import as_json
from trainer.rundir.directory import RunDirectory
from trainer.rundir.files import STATUS
from trainer.rundir.status import CRASHED, FINISHED, PREEMPTED, write_status
from trainer.rundir.strict_json import dumps
from trainer.streams import print_if_read, to_stdout

HELP = """\
python -m trainer.compare OPTION=VALUE[,VALUE] ... [budget_from=CONTENDER] [tune.OPTION=GRID ...] [compare.dir=FOLDER]
python -m trainer.compare table=NAME [OPTION=VALUE ...]

Trains contenders, which are all combinations of what is swept but for the seed, interleaved, one at a time, each in a
process of its own, and reports on them. Options are those of python -m trainer.

  budget_from=adafisher          times a run of this contender with its own budget, and gives each the same training
                                 seconds; without it, each has the budget of its config, such as loop.max_epochs=3
  tune.lr=log(1e-4,1,9)          first tries nine values of optimizer.lr for each contender on a validation split
                                 (data.holdout, if not given 0.1); the best one then runs with the seeds, on test
  tune.lr=lin(0.1,0.9,5)         evenly spaced; or a list: tune.lr=[1e-3,1e-2]; several tune.OPTIONs make a grid
  tune.lr.sgd=log(1e-3,10,9)     a grid for one contender, of as many values
  tune.search=tpe tune.trials=30 tries 30 values that Optuna chooses (random: draws), each with a view to those before,
                                 of tune.lr=log(1e-4,1), tune.momentum=lin(0,0.99) or tune.nesterov=[true,false]
  tune.prune=asha                ends a trial early that is not among the best quarter after 1, 4, 16, ... evaluations
                                 (median: one that is worse than the median of those before)
  table=cifar_cnn                the recipes, budget and seeds of a published table, cifar_cnn, cifar_vit, wikitext2 or
                                 imagenet; what you give in addition, such as seed=0, has precedence
  compare.dir=FOLDER             where (default: outputs/comparisons/DATE_TIME); the same command with the folder of
                                 an interrupted comparison resumes where it stopped
  tune.dir=FOLDER                where the search is (default: compare.dir); comparisons on several machines that name
                                 the same folder share its trials
  compare.baseline=adafisher     tests the differences to this contender alone, not those of all pairs
  compare.seeds=[0,1]            those of the seeds that are run here; []: none, only trials of the search
  --json                         prints JSON instead of tables

  python -m trainer.compare optimizer=adafisher,adamw,sgd seed=0,1,2 loop.max_epochs=3 budget_from=adafisher
  python -m trainer.compare optimizer=adafisher,adamw seed=0,1,2 loop.max_epochs=3 'tune.lr=log(1e-4,1e-1,7)'
  python -m trainer.compare table=cifar_cnn model=resnet50_cifar data=cifar100
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return FINISHED
    return exit_code(lambda: compare(argv))


def compare(argv: Sequence[str]) -> int:
    """Makes a comparison, or continues one; writes and prints its report; returns the exit code.

    Raises:
        UserError: the command line is wrong, another process is at it, or a run cannot be started.
    """
    command = parse_command(argv)
    folder = command.folder or Path("outputs", "comparisons", time.strftime("%Y-%m-%d_%H-%M-%S"))
    directory = RunDirectory(folder, unique=command.folder is None, option=FOLDER)
    try:
        return compare_in(directory.path, command)
    finally:
        directory.remove_if_unused()
        directory.release()


def compare_in(folder: Path, command: Command) -> int:
    """As `compare`, in a folder that this process has locked."""
    console = Console(stderr=True)
    recorded = read_record(command, folder)
    if recorded is not None:
        command = dataclasses.replace(command, contenders=recorded)
    comparison = ComparisonRun(command, folder)
    try:
        with Runner(folder, console, command.runs) as runner:
            if recorded is None:
                runner.check(comparison.configs)
                write_record(command, folder)
            write_status(folder, "running")
            if not command.own_seeds:
                return search_only(comparison, runner)
            outcome = comparison.run(runner)
    except Interrupted:
        words = shlex.join([*command.words, f"compare.dir={folder}"])
        print(f"interrupted; resume with: python -m trainer.compare {words}", file=sys.stderr)
        if (folder / STATUS).exists():
            write_status(folder, "preempted")
        return PREEMPTED
    except UserError as error:
        if (folder / STATUS).exists():
            write_status(folder, "failed", error=str(error))
        raise
    write(outcome.report, folder / "report")
    problem = " ".join(map(failed_trials, outcome.untuned))
    write_status(folder, "failed" if problem else "finished", error=problem or None)
    with to_stdout():
        if command.json:
            print(dumps(record(outcome, folder), indent=2))
        else:
            show(outcome.report, table_console())
            print(f"report: {folder / 'report'}")
    if problem:
        print(f"error: {problem}", file=sys.stderr)
    return CRASHED if problem else FINISHED


def search_only(comparison: ComparisonRun, runner: Runner) -> int:
    """Makes trials of a search, whose comparisons are other processes' task, until none is left to be made."""
    search = comparison.search(runner, None, to_the_end=False)
    write_status(comparison.folder, "finished")
    print_if_read(f"no trial is left to be made in {search.folder}")
    return FINISHED


def record(outcome: Outcome, folder: Path) -> dict:
    """The outcome and its report, for JSON."""
    return {
        "folder": str(folder),
        "seconds": outcome.seconds,
        "tuned": outcome.tuned.best,
        "search": {name: dataclasses.asdict(cost) for name, cost in outcome.tuned.costs.items()},
        "untuned": outcome.untuned,
        **as_json(outcome.report),
    }


if __name__ == "__main__":
    sys.exit(main())
