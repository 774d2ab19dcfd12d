"""Names of models and what they stand for: the built-in one, a path, and what is on this machine.

Contract: a name that stands for nothing is an error that says what was probably meant, or how to
pull it. `auto`, the default, is the QwQ-32B that was pulled or used last, else the built-in model.
Limits: looks at the disk only, never at the network.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwqcli import config
from qwqcli.builtin import model_path
from qwqcli.errors import UsageError
from qwqcli.portable import typed_path
from qwqcli.quants import BY_NAME

if TYPE_CHECKING:
    from qwqcli.hub import Hub, Model

AUTO = "auto"
BUILT_IN = "tiny"
QWQ = ("qwq", "qwq-32b")
WORDS = (AUTO, BUILT_IN, *QWQ)  # names that mean something whatever is on the machine


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model that is on this machine; `model` is what is known of where it came from."""

    name: str  # as people call it
    path: Path
    model: Model | None = None


def resolve(name: str, environ: Mapping[str, str] = os.environ) -> ModelRef:
    """The model that `name` stands for. Raises UsageError if it stands for none."""
    if name == BUILT_IN:
        return ModelRef(BUILT_IN, model_path())
    if name.lower() in (AUTO, *QWQ):
        model = _latest(environ)
        if model is None and name == AUTO:
            return ModelRef(BUILT_IN, model_path())
    elif os.path.isfile(path := typed_path(name)):
        return ModelRef(path.stem, path)
    else:
        model = _hub(environ).find(name)
    if model is not None:
        return ModelRef(model.name, model.paths[0], model)
    if _is_path(name):
        return ModelRef(Path(name).stem, typed_path(name))
    raise _unknown(name)


def names(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Names that completion offers: what always means something, and what was pulled."""
    found = list(WORDS)
    for receipt in sorted((config.paths(environ).data / "models").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.append(str(json.loads(receipt.read_text(encoding="utf-8"))["name"]))
    return found


def used(ref: ModelRef, environ: Mapping[str, str] = os.environ) -> None:
    """Note that a model is used now."""
    if ref.name != BUILT_IN and _has_pulled(environ):
        _hub(environ).used(ref.path)


def _latest(environ: Mapping[str, str]) -> Model | None:
    return _hub(environ).latest() if _has_pulled(environ) else None


def _has_pulled(environ: Mapping[str, str]) -> bool:
    """Whether anything was pulled; without, the hub package need not be imported."""
    return any((config.paths(environ).data / "models").glob("*.json"))


def _hub(environ: Mapping[str, str]) -> Hub:
    from qwqcli.hub import Hub

    return Hub(environ)


def _is_path(name: str) -> bool:
    return name.endswith(".gguf") or name.startswith((".", "~", "/")) or "\\" in name


def _unknown(name: str) -> UsageError:
    """What to type instead: to pull it, or the name that was probably meant."""
    if name.lower() in QWQ:
        return UsageError("QwQ-32B is not on this machine.", "qwq pull")
    if name.lower() in BY_NAME:
        return UsageError(
            f"QwQ-32B ({name}) is not on this machine.",
            f"qwq pull {name.lower()}, or try the built-in: --model {BUILT_IN}",
        )
    if "/" in name:
        return UsageError(
            f"{name} is neither a file nor a model on this machine.", f"qwq pull {name}"
        )
    near = config.closest(name.lower(), (BUILT_IN, *QWQ, *BY_NAME)) or BUILT_IN
    return UsageError(f"There is no model called '{name}'.", f"--model {near}, or see: qwq list")
