"""Which file, which engine, which machine: what two runs must share to be compared."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Generator
from importlib import metadata
from pathlib import Path

from qwqcli.gguf import ModelInfo, split_paths
from qwqcli.hub.events import Checking
from qwqcli.hub.reuse import Sums

_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256(path: Path, info: ModelInfo, cache: Path) -> Generator[Checking, None, str]:
    """The checksum of a model file; of a model in parts, of their checksums in order.

    Read once as long as the file stays the same. A file in the Hub's cache is called by it.
    """
    sums = Sums(cache / "known.json")
    parts = split_paths(path) if info.split and info.split.count > 1 else [path]
    found = []
    for part in parts:
        name = part.resolve().name
        found.append(name if _SHA256.fullmatch(name) else (yield from sums.of(part)))
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def engine_version() -> str:
    """Of llama-cpp-python, which vendors one commit of llama.cpp."""
    return metadata.version("llama-cpp-python")


def cpu_name() -> str:
    """As the system calls it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()
