"""What a pull says while it works: small frozen values, in the order in which things happen.

Chosen, then for each file (Found | Waiting* Progress* Checking*), with Retrying and Notice wherever
something had to be said, and one Pulled at the end. Sizes are bytes, times seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

# downloaded: fetched by us · kept: it was already in its place · linked: a second name for a file
# of another tool · in place: used where the other tool keeps it · imported: given by the person
How = Literal["downloaded", "kept", "linked", "in place", "imported"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What will be pulled, as the source announced it."""

    repo: str
    quantization: str
    source: str
    commit: str
    files: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Found:
    """The content of `file` is on this machine already, so it is not downloaded."""

    file: str
    path: Path
    owner: str  # whose folder it is in, such as Ollama


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another process downloads the same file; its progress as of its last note."""

    file: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A download goes on; the counters without `file_` are over all files of the pull."""

    file: str
    number: int  # of the file, from 1
    count: int
    file_done: int
    file_total: int
    done: int
    total: int
    rate: float  # bytes per second over the last seconds
    eta_s: float | None  # None: nothing to tell it from
    hashed: int  # bytes of the file whose checksum is computed
    connections: int  # that bring bytes now
    mending: bool = False  # fetching again to find what differs


@dataclass(frozen=True, slots=True)
class Checking:
    """A file is read for its checksum; nothing is downloaded meanwhile."""

    file: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Retrying:
    """A connection failed and is tried again after `wait_s`."""

    reason: str
    wait_s: float


@dataclass(frozen=True, slots=True)
class Notice:
    """One sentence that the person should see."""

    text: str


@dataclass(frozen=True, slots=True)
class Pulled:
    """The model is here: `paths` are its files in order, llama.cpp loads the first."""

    name: str
    paths: tuple[Path, ...]
    how: How
    size: int
    received: int  # bytes that came over the network


Event: TypeAlias = Chosen | Found | Waiting | Progress | Checking | Retrying | Notice | Pulled
