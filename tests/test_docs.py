"""README and docs are true as far as a program can tell: links, paths, commands and code blocks in them are valid.

Commands are checked as far as that goes without training: the config of ``python -m trainer ...`` is composed, for
example. Each check returns what is wrong with a page, and the last test shows that each of them finds a mistake.
"""

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from launch.__main__ import main as launch
from tests.test_architecture import FLOORS
from trainer import generate, predict
from trainer.analyze.__main__ import parser as analyze_parser
from trainer.cli import list_options
from trainer.cli.train import check as compose_all
from trainer.compare.arguments import parse_command as parse_comparison
from trainer.config.command_line import parse_arguments
from trainer.data.__main__ import parser as data_parser
from trainer.errors import ConfigError
from trainer.evaluate.__main__ import parser as evaluate_parser
from trainer.export.__main__ import parser as export_parser
from trainer.report import diff, push
from trainer.report.__main__ import parser as report_parser

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "tests/README.md",
    "tests/abuse/README.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]
README_LINES = 150

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS_BEGIN = re.compile(
    r"(\$ )?([A-Z_]+=\S+ )?(python|torchrun|make|tensorboard|source|tests/\S+\.sh)( |$)"
)


# Links and paths ------------------------------------------------------------------------------------------------


def wrong_links(page: str, text: str) -> list[str]:
    """Links and images to files or headings that do not exist."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not target.startswith(("http://", "https://")) and (
            not file.exists() or (heading and heading not in headings(file.read_text()))
        ):
            wrong.append(target)
    return wrong


def headings(text: str) -> list[str]:
    """The anchors that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def wrong_paths(page: str, text: str) -> list[str]:
    """Paths of this repository in backticks that do not exist, but for those with a NAME to fill in."""
    top = "trainer|launch|conf|docs|tests"
    paths = re.findall(rf"`((?:{top})/[\w./-]*|[.\w]+\.(?:toml|txt|cff|sh))`", text)
    return [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]


def wrong_tests(page: str, text: str) -> list[str]:
    """Tests that are named, by their files from tests/ on, and do not exist."""
    named = re.findall(r"`(?:tests/)?([\w/]+\.py)::(\w+)`", text)
    files = {file: ROOT / "tests" / file for file, _ in named}
    sources = {file: path.read_text() if path.exists() else "" for file, path in files.items()}
    return [f"{file}::{test}" for file, test in named if f"\ndef {test}(" not in sources[file]]


# Commands -------------------------------------------------------------------------------------------------------


def quoted_commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a page, in a block or in backticks, with the error that is shown as its answer."""
    prose = FENCED.sub(lambda block: block[2] if block[1] in ("", "sh", "bash") else "", text)
    lines = [line.strip() for line in prose.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", prose)
    for line, answer in [*zip(lines, [*lines[1:], ""], strict=True), *((span, "") for span in spans)]:
        if COMMANDS_BEGIN.match(line):
            yield line.removeprefix("$ "), answer if answer.startswith("error: ") else ""


def wrong_commands(page: str, text: str) -> list[str]:
    """Commands that a shell, or the program that they name, would refuse."""
    wrong = []
    for line, answer in quoted_commands(text):
        syntax = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
        words = shlex.split(line, comments=True)
        problems = [syntax.stderr.strip()] if syntax.returncode else []
        while "&&" in words:
            end = words.index("&&")
            problems.append(refusal(words[:end]))
            words = words[end + 1 :]
        problems.append(refusal(words))
        problem = next(filter(None, problems), "")
        if not (
            problem == "" if not answer else answer.partition(" (known")[0].removeprefix("error: ") in problem
        ):
            wrong.append(f"{line}: {problem or f'does not answer {answer}'}")
    return wrong


def refusal(words: list[str]) -> str:
    """Why a command cannot be run; empty if it can."""
    while "=" in words[0]:
        words = words[1:]
    program, *rest = words
    if program == "torchrun":
        rest = rest[rest.index("-m") :]
    if program == "make":
        known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return next((f"no target {target}" for target in rest if target not in known), "")
    if program in ("tensorboard", "source"):
        return ""
    if program.endswith(".sh"):
        return "" if (ROOT / program).exists() else "no such script"
    if rest[:1] == ["-m"]:
        return refusal_of_module(*rest[1:])
    return refusal_of_script(*rest)


def refusal_of_script(path: str, *arguments: str) -> str:
    if not (ROOT / path).exists():
        return "no such script"
    source = (ROOT / path).read_text()
    flags = [argument for argument in arguments if argument.startswith("--")]
    return next((f"no flag {flag}" for flag in flags if f'"{flag}"' not in source), "")


def refusal_of_module(module: str, *arguments: str) -> str:
    # looking for pip makes setuptools give up its distutils, which torch.compile needs later in this process
    if module != "pip" and importlib.util.find_spec(module) is None:
        return f"no module {module}"
    try:
        if arguments:
            MODULES.get(module, lambda argv: None)(list(arguments))
    except ConfigError as error:
        return str(error)
    except SystemExit as error:  # argparse, after --help
        return "" if error.code == 0 else f"exit code {error.code}"
    return ""


def check_train(argv: list[str]) -> None:
    if argv[:1] == ["options"]:
        list_options.table_of(argv[1] if argv[1:] else "")
        return
    made_up = ("--config-path", "--config-dir", "plugins=")
    if argv != ["--help"] and not any(argument.startswith(made_up) for argument in argv):
        compose_all(parse_arguments(argv))


def check_launch(argv: list[str]) -> None:
    """Composes a sweep, or lets a command fail to find the directory DIR, but not to read its arguments."""
    is_command = argv[0].isalpha() and argv[0] != "compare"
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = launch([*argv, "DIR"][: max(2, len(argv))] if is_command else [*argv, "--dry-run"])
    if code and not (is_command and "DIR" in errors.getvalue() and "--help" not in errors.getvalue()):
        raise ConfigError(errors.getvalue())


def check_pip(argv: list[str]) -> None:
    """The extras of ``pip install '.[dev,zoo]'`` exist."""
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\w+", "".join(re.findall(r"\.\[(.*)\]", " ".join(argv)))):
        if not re.search(rf"^{extra} = \[", project, re.MULTILINE):
            raise ConfigError(f"no extra {extra}")


def check_pytest(argv: list[str]) -> None:
    for argument in argv:
        if argument.startswith("tests/") and not (ROOT / argument.partition("::")[0]).exists():
            raise ConfigError(f"{argument} does not exist")


def check_compare(argv: list[str]) -> None:
    if argv != ["--help"]:
        parse_comparison(argv)


def check_report(argv: list[str]) -> None:
    if argv[0] == "diff":
        diff.parser().parse_args(argv[1:])
    elif argv[0] == "push":
        push.parser().parse_args(argv[1:])
    else:
        report_parser().parse_args(argv)


MODULES: dict[str, Callable[[list[str]], object]] = {
    "trainer": check_train,
    "trainer.compare": check_compare,
    "trainer.report": check_report,
    "trainer.analyze": lambda argv: analyze_parser().parse_args(argv),
    "trainer.data": lambda argv: data_parser().parse_args(argv),
    "trainer.evaluate": lambda argv: evaluate_parser().parse_intermixed_args(argv),
    "trainer.predict": lambda argv: predict.parser().parse_intermixed_args(argv),
    "trainer.generate": lambda argv: generate.parser().parse_args(argv),
    "trainer.export": lambda argv: export_parser().parse_args(argv),
    "launch": check_launch,
    "pip": check_pip,
    "pytest": check_pytest,
}


# Blocks ---------------------------------------------------------------------------------------------------------


CLIENTS = {"accelerate", "lightning", "pytorch_optimizer", "timm", "transformers"}
"""Libraries of the extra ``clients``; tests/optim/test_clients.py runs the blocks that import them."""


def wrong_blocks(page: str, text: str) -> list[str]:
    """Blocks of Python or YAML that cannot be read, and imports in them that fail."""
    wrong = []
    for language, source in FENCED.findall(text):
        try:
            if language == "python":
                for node in ast.walk(ast.parse(source)):
                    if isinstance(node, ast.Import | ast.ImportFrom) and not imported(node) & CLIENTS:
                        exec(ast.unparse(node), {})
            elif language == "yaml":
                yaml.safe_load(source)
        except (SyntaxError, ImportError, yaml.YAMLError) as error:
            wrong.append(f"{type(error).__name__}: {error}")
    return wrong


def imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The packages that a statement imports from."""
    modules = (
        [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    )
    return {module.partition(".")[0] for module in modules}


# Pages ----------------------------------------------------------------------------------------------------------


def wrong_length(page: str, text: str) -> list[str]:
    lines = text.count("\n")
    return [f"{lines} lines"] if page == "README.md" and lines > README_LINES else []


def wrong_floors(page: str, text: str) -> list[str]:
    """The table of floors, from the top down, where it differs from the test that holds them."""
    if page != "docs/architecture.md":
        return []
    table = text.partition("| floor |")[2].partition("\n\n")[0]
    shown = re.findall(r"^\| (\w+) \| `([^`]+)` \|", table, re.MULTILINE)
    return [] if shown[::-1] == list(FLOORS.items()) else [f"{shown}"]


CHECKS = [wrong_links, wrong_paths, wrong_tests, wrong_commands, wrong_blocks, wrong_length, wrong_floors]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, check: Callable[[str, str], list[str]]) -> None:
    assert check(page, (ROOT / page).read_text()) == []


def test_every_case_of_abuse_has_a_test() -> None:
    rows = re.findall(r"^\| (.*) \|$", (ROOT / "tests/abuse/README.md").read_text(), re.MULTILINE)
    cases = [row.split(" | ") for row in rows if row.count(" | ") == 2 and not row.endswith(" | test")]
    assert len(cases) > 100
    assert [case for case, _, tests in cases if "::" not in tests] == []


def test_commands_are_found() -> None:
    found = [line for page in PAGES for line, _ in quoted_commands((ROOT / page).read_text())]
    assert len(found) > 50
    assert {line.split()[2] for line in found if line.startswith("python -m")} >= MODULES.keys()


TRAIN = "    python -m trainer "


@pytest.mark.parametrize(
    ("check", "page", "text"),
    [
        (wrong_links, "README.md", "[a page](docs/none.md)"),
        (wrong_links, "docs/a.md", "![a picture](docs/images/text.png)"),
        (wrong_links, "README.md", "[a heading](docs/optimizer.md#none)"),
        (wrong_paths, "README.md", "see `trainer/none.py`"),
        (wrong_tests, "README.md", "`rundir/test_status.py::test_none`"),
        (wrong_tests, "README.md", "`rundir/none.py::test_none`"),
        (wrong_commands, "README.md", TRAIN + "data.batchsize=32"),
        (wrong_commands, "README.md", TRAIN + "model=none    # a comment"),
        (wrong_commands, "README.md", TRAIN + "options model=none"),
        (wrong_commands, "README.md", TRAIN + "seed=range(3) --multirun"),
        (wrong_commands, "README.md", "    $ python -m trainer data.batchsize=32\n    error: never said"),
        (wrong_commands, "README.md", "    $ python -m trainer\n    error: never said"),
        (wrong_commands, "README.md", "    torchrun -m trainer parallel=none2"),
        (wrong_commands, "README.md", "`python -m trainer.none`"),
        (wrong_commands, "README.md", "    python -m trainer.compare optimizer=sgd,none"),
        (wrong_commands, "README.md", "    python -m trainer.report a --none"),
        (wrong_commands, "README.md", "    python -m trainer.report diff a"),
        (wrong_commands, "README.md", "    python -m trainer.report push a --to none"),
        (wrong_commands, "README.md", "    python -m trainer.analyze RUN --none"),
        (wrong_commands, "README.md", "    python -m trainer.evaluate RUN --none"),
        (wrong_commands, "README.md", "    python -m trainer.predict RUN"),
        (wrong_commands, "README.md", "    python -m trainer.generate RUN a --tokens none"),
        (wrong_commands, "README.md", "    python -m trainer.export RUN --none"),
        (wrong_commands, "README.md", "    python -m trainer.data tokenize a --out b"),
        (wrong_commands, "README.md", "    python -m launch status DIR --none"),
        (wrong_commands, "README.md", "    python -m launch launch.none=1"),
        (wrong_commands, "README.md", "    python -m launch none DIR"),
        (wrong_commands, "README.md", "    python -m pip install '.[none]' && python -m trainer"),
        (wrong_commands, "README.md", "    X=1 python -m pytest tests/none"),
        (wrong_commands, "README.md", "    python tests/none.py"),
        (wrong_commands, "README.md", "    python tests/benchmarks/optimizer.py --none 1"),
        (wrong_commands, "README.md", "    tests/none.sh"),
        (wrong_commands, "README.md", "    make none"),
        (wrong_blocks, "README.md", "```python\nfrom trainer.optim import Nothing\n```\n"),
        (wrong_blocks, "README.md", "```python\nx = = 1\n```\n"),
        (wrong_blocks, "README.md", "```yaml\na: [\n```\n"),
        (wrong_length, "README.md", "\n" * (README_LINES + 1)),
        (wrong_floors, "docs/architecture.md", "| floor | packages |\n| cluster | `launch` |\n"),
    ],
)
def test_a_mistake_is_found(check: Callable[[str, str], list[str]], page: str, text: str) -> None:
    assert len(check(page, text)) == 1
