"""A config as it is frozen in a run directory."""

import io
import random
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from trainer.errors import DataError
from trainer.options import flatten
from trainer.report.read_runs import read_config
from trainer.rundir.frozen_config import again, escaped, freeze, plugins_of, quote, read_frozen

CONFIG = {"seed": 3, "optimizer": {"name": "sgd", "lr": 1e-7}, "loop": {"ema": None}}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_it_is_the_config_in_its_order_with_the_command(tmp_path: Path) -> None:
    freeze(tmp_path, CONFIG, ["seed=3", "optimizer=sgd"])
    frozen = read(tmp_path / "config.yaml")
    assert frozen == CONFIG
    assert list(frozen) == list(CONFIG)
    (head, *_) = (tmp_path / "config.yaml").read_text().splitlines()
    assert head.startswith("# ")
    assert head.endswith(again(tmp_path))
    assert read(tmp_path / "overrides.yaml") == ["seed=3", "optimizer=sgd"]


def test_no_change_of_a_byte_gives_another_value(tmp_path: Path) -> None:
    freeze(tmp_path, CONFIG, [])
    file = tmp_path / "config.yaml"
    content, refused = file.read_bytes(), 0
    for place in range(len(content)):
        for change in (1, 4, 128):
            file.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
            try:
                # the checksum's own word may have changed: then it is a comment, or one more key
                assert {key: value for key, value in read_frozen(file).items() if key in CONFIG} == CONFIG
            except DataError:
                refused += 1
            config = read_config(tmp_path)
            assert config is None or {**config, **flatten(CONFIG)} == config
    assert refused > len(content)


def test_a_change_that_is_meant_takes_the_checksum_away(tmp_path: Path) -> None:
    freeze(tmp_path, CONFIG, [])
    file = tmp_path / "config.yaml"
    text = file.read_text().replace("seed: 3", "seed: 4")
    file.write_text(text)
    with pytest.raises(DataError, match="it is not what the run wrote: restore it, or remove its checksum"):
        read_frozen(file)
    file.write_text(text[: text.index("# checksum")])
    assert read_frozen(file) == {**CONFIG, "seed": 4}


def test_a_start_without_overrides_keeps_those_of_the_first(tmp_path: Path) -> None:
    freeze(tmp_path, CONFIG, [])
    assert read(tmp_path / "overrides.yaml") == []
    freeze(tmp_path, CONFIG, ["seed=3"])
    freeze(tmp_path, {**CONFIG, "seed": 4}, [])
    assert read(tmp_path / "overrides.yaml") == ["seed=3"]
    assert read(tmp_path / "config.yaml")["seed"] == 4


WORDS = [
    "1e3",
    "1_000",
    "yes",
    "null",
    "~",
    ".inf",
    "2020-01-01",
    "1:30",
    "=",
    "${b}",
    r"\${b}",
    "${",
    "",
    "é\x85",
]


def test_it_reads_as_it_was(tmp_path: Path) -> None:
    """Read by `read_frozen`, and by OmegaConf, which resolves what looks like an interpolation."""
    chance = random.Random(0)
    letters = "a1e3.:- #'\"\\${}[]!&*%@`,\n\té\u2028\x85|>?~=yn"
    texts = [*WORDS, *("".join(chance.choices(letters, k=chance.randint(1, 9))) for _ in range(100))]
    config = {f"k{i}": [text, {"x": text}] for i, text in enumerate(texts)}
    config |= {"numbers": [1e-05, 1e16, -0.0, float("inf"), 3, True, None], "tuple": (1, 2)}
    freeze(tmp_path, config, [])
    expected = {**config, "tuple": [1, 2]}
    assert read_frozen(tmp_path / "config.yaml") == expected
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=True) == expected
    assert OmegaConf.to_container(OmegaConf.create(escaped(config)), resolve=True) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name: ${oc.env:HOME}", "it has an interpolation"),
        (r"x: ['\\${b}']", "it has an interpolation"),
        ("a: &a [1]\nb: *a", "it has an alias"),
        ("- 1", "it is not the config of a run"),
        ("", "it is not the config of a run"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("[" * 3000, "cannot be read"),
        ("a: \x00", "cannot be read"),
    ],
)
def test_what_is_no_frozen_config_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(DataError, match=said) as refused:
        read_frozen(tmp_path / "config.yaml")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["a b,c=ä", "it's", "$(touch x)", "new\nline", "tab\tand 'quote' \\", "\udcff"]
)
def test_the_command_can_be_pasted(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.mkdir()
    freeze(path, {**CONFIG, "plugins": ["a.b", "c"]}, [])
    head = (path / "config.yaml").read_text(encoding="utf-8").splitlines()[0]
    words = head.partition("python -m trainer ")[2]
    assert words.isprintable()
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True).stdout
    assert [word.decode(errors="surrogateescape") for word in printed.split(b"\0")[:-1]] == [
        "--config-path",
        str(path),
        "--config-name",
        "config",
        "plugins=[a.b,c]",
    ]
    assert plugins_of(path) == ["a.b", "c"]
    assert quote("a b") == shlex.quote("a b")
