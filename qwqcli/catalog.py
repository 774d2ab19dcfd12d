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
from qwqcli.gguf import ModelInfo

BUILT_IN = "tiny"

# Quantizations of QwQ-32B that people publish (llama.cpp's names, lower case).
QUANTIZATIONS = (
    *("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_0", "q4_k_m", "q4_k_s", "q4_0", "iq4_nl", "iq4_xs"),
    *("q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs"),
    *("q2_k", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"),
)


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
    if name.lower() in (*QUANTIZATIONS, "qwq", "qwq-32b"):
        raise UsageError(
            f"QwQ-32B ({name}) is not on this machine.",
            "Give the path of a GGUF file (--model PATH), or try the built-in: --model tiny",
        )
    raise UsageError(
        f"There is no model called '{name}'.",
        f"--model {nearest(name.lower(), (BUILT_IN, 'qwq', *QUANTIZATIONS))}",
    )


def is_qwq(info: ModelInfo, path: Path) -> bool:
    """Whether a file is QwQ-32B itself, whose makers forbid greedy decoding."""
    named = "qwq" in f"{info.name or ''} {path.name}".lower()
    return named and info.n_embd == 5120


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith(".gguf") or Path(name).exists()
