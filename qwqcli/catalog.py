"""Names of models and what they stand for: the built-in one, a path, and QwQ-32B's quantizations.

Nothing here touches the network. A name that stands for nothing is an error that says what was
probably meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwqcli.builtin import model_path
from qwqcli.config import nearest
from qwqcli.errors import UsageError
from qwqcli.quants import BY_NAME

BUILT_IN = "tiny"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model that is on this machine."""

    name: str  # as people call it
    path: Path


def resolve(name: str) -> ModelRef:
    """The model that `name` stands for. Raises UsageError if it stands for none."""
    if name == BUILT_IN:
        return ModelRef(BUILT_IN, model_path())
    if _is_path(name):
        return ModelRef(Path(name).stem, Path(name).expanduser())
    if name.lower() in (*BY_NAME, "qwq", "qwq-32b"):
        raise UsageError(
            f"QwQ-32B ({name}) is not on this machine.",
            "Give the path of a GGUF file (--model PATH), or try the built-in: --model tiny",
        )
    raise UsageError(
        f"There is no model called '{name}'.",
        f"--model {nearest(name.lower(), (BUILT_IN, 'qwq', *BY_NAME))}",
    )


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith(".gguf") or Path(name).exists()
