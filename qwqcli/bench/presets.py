"""Speed suites: what `qwq bench` measures, as YAML files that people can write themselves.

Contract: `load` takes the name of a suite that comes with qwq, or a path that ends in .yaml, and
gives a `Wanted`. Keys are `n_prompt`, `n_gen`, `n_depth` (lists of tokens), `repetitions`,
`chat_tokens` and `seconds`; what is left out is taken from the suite `default`. Raises UsageError
with the line.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qwqcli.bench.measure import Wanted
from qwqcli.config import nearest
from qwqcli.errors import UsageError
from qwqcli.portable import typed_path
from qwqcli.yaml_file import YamlFile, read

FOLDER = "suites"
MOST = 10**9  # tokens, repetitions
NOTHING = Wanted((), (), None, 0, 0)


def names() -> list[str]:
    """The suites that come with qwq."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def is_suite(name: str) -> bool:
    """Whether `name` is one of speed, and not of prompts."""
    return name in names() or name.endswith((".yaml", ".yml"))


def load(name: str) -> Wanted:
    """The suite called `name`, or in the file `name`."""
    path = _folder() / f"{name}.yaml" if name in names() else typed_path(name)
    start = NOTHING if name == "default" else load("default")
    try:
        file = read(path)
    except FileNotFoundError as error:
        raise UsageError(f"There is no suite at {path}.", f"--suite {names()[0]}") from error
    if not isinstance(file.content, dict):
        raise file.error((), "a suite is a list of keys and values.", "n_prompt: [512]")
    return replace(start, **dict(_field(file, *item) for item in file.content.items()))


def _field(file: YamlFile, key: str, value: Any) -> tuple[str, Any]:
    if key not in (known := asdict(NOTHING)):
        raise file.error((key,), "no key of a speed suite.", f"{nearest(key, known)}: ...")
    if key.startswith("n_"):
        return key, _counts(file, key, value)
    if type(value) is not int or not 0 <= value < MOST:
        raise file.error((key,), f"{value!r} is no number of them.", f"{key}: 5")
    return key, value


def _counts(file: YamlFile, key: str, value: Any) -> tuple[int, ...]:
    counts = value if isinstance(value, list) else [value]
    if not counts or any(type(count) is not int or not 0 <= count < MOST for count in counts):
        raise file.error((key,), f"{value!r} is no list of numbers of tokens.", f"{key}: [0, 2048]")
    return tuple(dict.fromkeys(counts))


def _folder() -> Path:
    """Beside this module where it is installed, else in the repository."""
    here = Path(__file__).parent
    inside = here / FOLDER
    return inside if inside.is_dir() else here.parent.parent / "benchmarks" / FOLDER
