"""Settings and paths. A setting is a flag, else `QWQ_<NAME>`, else in the YAML file, else here.

Nothing is read or created at import; a missing file is an empty one. Folders are the system's own
(platformdirs) and can each be moved with QWQ_CONFIG_DIR, QWQ_CACHE_DIR and QWQ_DATA_DIR.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qwqcli import atomic, budget
from qwqcli.errors import UsageError
from qwqcli.messages import Budget, Sampling

Thinking = Literal["show", "fold", "hide"]
FlashAttn = Literal["auto", "on", "off", "prompts"]  # prompts: not for generation
Display = Literal["auto", "plain"]
Editing = Literal["emacs", "vi"]
Prefer = Literal["context", "speed", "quality"]
KV = Literal["f16", "q8_0", "q4_0"]  # types of the KV cache


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a person can set, with its default."""

    model: str = "auto"  # the QwQ-32B that was pulled, else the built-in model
    thinking: Thinking = "fold"
    think_budget: str = "auto"  # how long a reply may think: see budget.py
    system: str = ""
    ctx: int | None = None  # None: as much as is sensible for the model
    threads: int | None = None  # None: the physical cores
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    rpc: str | None = None  # HOST:PORT[,HOST:PORT] of llama.cpp RPC servers, for more devices
    device: str | None = None  # names of the devices to use; None: those that llama.cpp would use
    gpu_layers: int | None = None  # None: as many as fit
    kv: KV | None = None  # None: f16 while there is room
    flash_attn: FlashAttn | None = None  # None: what the plan says
    prefer: Prefer | None = (
        None  # what is kept longest where memory is short; None: as PLAN.md says
    )
    margin_gb: float = 1.0  # GiB that stay free on each device
    snapshots_gb: float = 8.0  # GiB that KV states of sessions may take on disk; 0 keeps none
    display: Display = "auto"  # plain: nothing is redrawn, for screen readers
    editing: Editing = "emacs"  # keys of the prompt

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            self.temperature, self.top_p, self.top_k, self.min_p, self.seed, self.max_tokens
        )

    @property
    def budget(self) -> Budget:
        return budget.parse(self.think_budget)

    @property
    def thinks(self) -> bool:
        """Whether replies are to think at all."""
        return self.budget.tokens != 0


MAX_THREADS = 512  # GGML_MAX_N_THREADS

# setting -> (lowest, highest); what is outside is a slip, not a wish
RANGES: dict[str, tuple[float, float]] = {
    "ctx": (256, 1 << 20),
    "threads": (1, MAX_THREADS),
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1_000_000),
    "min_p": (0.0, 1.0),
    "seed": (0, 2**32 - 2),
    "max_tokens": (1, 1 << 20),
    "gpu_layers": (0, 10_000),
    "margin_gb": (0.0, 1024.0),
    "snapshots_gb": (0.0, 10_000.0),
}


@dataclass(frozen=True, slots=True)
class Paths:
    """Where qwq keeps things; nothing here need exist."""

    config: Path
    cache: Path
    data: Path

    @property
    def settings_file(self) -> Path:
        return self.config / "config.yaml"

    @property
    def input_history(self) -> Path:
        return self.data / "input_history"

    @property
    def sessions(self) -> Path:
        return self.data / "sessions.db"


def paths(environ: Mapping[str, str]) -> Paths:
    """The folders of this person on this system."""
    import platformdirs

    def folder(name: str, default: str) -> Path:
        return Path(environ.get(name) or default).expanduser()

    return Paths(
        config=folder("QWQ_CONFIG_DIR", platformdirs.user_config_dir("qwq", appauthor=False)),
        cache=folder("QWQ_CACHE_DIR", platformdirs.user_cache_dir("qwq", appauthor=False)),
        data=folder("QWQ_DATA_DIR", platformdirs.user_data_dir("qwq", appauthor=False)),
    )


def load(environ: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> Settings:
    """Merge the three sources over the defaults; a flag that is None was not given."""
    path = paths(environ).settings_file
    settings = apply(Settings(), read_file(path), str(path))
    settings = apply(settings, from_environ(environ), "the environment")
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    return apply(settings, given, "the command line")


def apply(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    """`settings` with `values` over them. Raises UsageError for an unknown name or bad value."""
    checked = {name: convert(name, value, source) for name, value in values.items()}
    return replace(settings, **checked)


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; none if there is no file. Raises UsageError."""
    from qwqcli import yaml_file

    try:
        content = yaml_file.read(path).content
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"The settings file {path} must hold lines like `thinking: fold`.")
    return content


def origins(environ: Mapping[str, str]) -> dict[str, str]:
    """Where each setting comes from: a variable, the settings file, or the defaults."""
    path = paths(environ).settings_file
    origins = dict.fromkeys((field.name for field in fields(Settings)), "default")
    origins |= dict.fromkeys(read_file(path), str(path))
    return origins | {name: f"QWQ_{name.upper()}" for name in from_environ(environ)}


def write(path: Path, name: str, value: Any) -> None:
    """Set one line of the settings file. Raises UsageError where that is not one line."""
    from qwqcli import yaml_file

    wanted = {**read_file(path), name: value}
    line = f"{name}: {json.dumps(value, ensure_ascii=False)}"  # JSON's scalars are YAML
    text = path.read_bytes().decode("utf-8") if path.exists() else ""
    windows = "\r\n" in text
    text = text.replace("\r\n", "\n")
    text, changed = _line_of(name).subn(lambda _: line, text, count=1)
    if not changed:
        text += ("" if not text or text.endswith("\n") else "\n") + line + "\n"
    try:
        done = _values(yaml_file.parse(text, path).content) == _values(wanted)
    except UsageError:  # what is left of a text of several lines
        done = False
    if not done:
        raise UsageError(
            f"{name} does not stand in {path} as one line, `{name}: value`.", "qwq config edit"
        )
    write_text(path, text.replace("\n", "\r\n") if windows else text)


def _line_of(name: str) -> re.Pattern[str]:
    """The line of one setting up to its comment, which begins with a blank and a #."""
    value = r'"(?:\\.|[^"\\\n])*"|\'(?:\'\'|[^\'\n])*\'|[^\n]*?'
    return re.compile(rf"^{name}[ ]*:[ ]*(?:{value})(?=[ ]*$|[ ]+#[^\n]*$)", re.MULTILINE)


def _values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """To compare by: the newline at the end of a text depends on what follows it in the file."""
    return {n: v.rstrip("\n") if isinstance(v, str) else v for n, v in settings.items()}


def write_text(path: Path, text: str) -> None:
    """Replace the settings file as a whole; half of it is never there. Raises UsageError.

    Where its name is a link, the file that it leads to; who may read it stays as it was.
    """
    try:
        file = Path(os.path.realpath(path))
        mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o644
        atomic.write_text(file, text, mode)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


def commented_defaults() -> str:
    """A settings file that changes nothing and shows every setting."""
    rows = [f"# {f.name}: {json.dumps(f.default)}\n" for f in fields(Settings)]
    return "# Settings of qwq; take away a # to change one.\n" + "".join(rows)


def from_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Settings given as QWQ_<NAME>; an empty variable counts as not given."""
    names = [field.name for field in fields(Settings)]
    return {name: value for name in names if (value := environ.get(f"QWQ_{name.upper()}"))}


def convert(name: str, value: Any, source: str) -> Any:
    """`value` as the type of the setting `name`, in its range. Raises UsageError."""
    hints = get_type_hints(Settings)
    if name not in hints:
        raise UsageError(f"{source} sets '{name}', which is not a setting.", nearest(name, hints))
    optional = get_origin(hints[name]) in (Union, UnionType)
    if value is None and optional:
        return None
    if name == "think_budget":
        return _budget(value, source)
    wanted = get_args(hints[name])[0] if optional else hints[name]  # T | None is T
    if get_origin(wanted) is Literal:
        return _choice(name, value, get_args(wanted), source)
    return _in_range(name, _number_or_text(name, value, wanted, source), source)


def typed(name: str, text: str, source: str) -> Any:
    """The setting `name` from what a person typed; `none` where it may be unset."""
    optional = type(None) in get_args(get_type_hints(Settings).get(name))
    return convert(name, None if optional and text in ("none", "null") else text, source)


def shown(value: Any) -> str:
    """A value as one types it."""
    if value is None:
        return "none"
    return (
        json.dumps(value, ensure_ascii=False) if value == "" or "\n" in str(value) else str(value)
    )


def nearest(name: str, known: Any) -> str:
    """What was probably meant, else all that could be."""
    return closest(name, known) or f"one of {', '.join(sorted(known))}"


def closest(name: str, known: Iterable[str]) -> str:
    """What was probably meant; empty if nothing is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def _choice(name: str, value: Any, choices: tuple[str, ...], source: str) -> str:
    if isinstance(value, bool) and {"on", "off"} <= set(choices):  # YAML's own on and off
        value = "on" if value else "off"
    if value in choices:
        return str(value)
    raise UsageError(
        f"{source} sets {name} to {value!r}.", f"Use {name} with one of: {', '.join(choices)}"
    )


def _budget(value: Any, source: str) -> str:
    text = "off" if value is False else str(value)  # YAML's own off
    try:
        budget.parse(text)
    except UsageError as error:
        raise UsageError(f"{source} sets think_budget: {error.message}", error.hint) from error
    return text


def _number_or_text(name: str, value: Any, kind: type, source: str) -> Any:
    if kind is str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UsageError(
                f"{source} sets {name} to {value!r}, which is not a text.", f'{name}: "a text"'
            )
        return str(value)
    if isinstance(value, bool):
        raise UsageError(f"{source} sets {name} to {value!r}, which is not a number.")
    try:
        number = kind(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{source} sets {name} to {value!r}, which is not a number.") from error
    if isinstance(value, float) and kind is int and number != value:
        raise UsageError(f"{source} sets {name} to {value!r}, which is not a whole number.")
    return number


def _in_range(name: str, value: Any, source: str) -> Any:
    if name not in RANGES:
        return value
    low, high = RANGES[name]
    if not low <= value <= high:  # also false for NaN
        raise UsageError(
            f"{source} sets {name} to {value}, outside {low:.10g} to {high:.10g}.",
            f"Choose {name} between {low:.10g} and {high:.10g}",
        )
    return value
