"""What other systems lack is taken away here, and all must go on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import Fault, HubServer
from hub_world import FILE, World

from qwqcli import portable
from qwqcli.hub import Notice, Pulled

LACKING = ("pread", "pwrite", "fdatasync", "geteuid", "O_NOFOLLOW")


@pytest.fixture
def as_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what Windows lacks: some calls, links for everyone, a new name for an open file."""

    def replace(source: Any, target: Any, plain: Any = os.replace) -> None:
        for number in Path("/proc/self/fd").glob("*"):
            assert not (number.exists() and number.samefile(source)), f"{source} is open"
        plain(source, target)

    def symlink_to(*_: object) -> None:
        raise OSError("A required privilege is not held by the client")

    for name in LACKING:
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Path, "symlink_to", symlink_to)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with HubServer() as server:
        yield World(server, tmp_path)


@pytest.mark.parametrize("lacking", [False, True])
def test_bytes_at_a_place(lacking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are written and read where it is said, with and without the system's own call."""
    if lacking:
        monkeypatch.delattr(os, "pread", raising=False)
        monkeypatch.delattr(os, "pwrite", raising=False)
    number = portable.open_own(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert portable.write_at(number, memoryview(b"\r\n456"), 3) == 5
    assert portable.write_at(number, memoryview(b"012"), 0) == 3
    assert portable.read_at(number, 4, 2) == b"2\r\n4"
    assert portable.read_at(number, 9, 6) == b"56"
    assert portable.read_at(number, 9, 8) == b""
    os.close(number)


def test_bytes_on_the_disk(tmp_path: Path) -> None:
    """A file of holes takes less than its size; where blocks are not told, its size is taken."""
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 20)
        assert portable.disk_bytes(os.fstat(file.fileno())) < 1 << 20
    about: Any = SimpleNamespace(st_size=70)
    assert portable.disk_bytes(about) == 70


@pytest.mark.usefixtures("as_on_windows")
def test_a_pull(world: World) -> None:
    """Over several connections the exact bytes come, are known again, and can be removed."""
    pulled = world.pulled()
    assert pulled.paths[0].read_bytes() == world.data
    assert (pulled.paths[0].name, pulled.received) == (FILE, len(world.data))
    assert list(world.blobs.iterdir()) == []  # the snapshot has the file itself
    assert world.pulled().how == "kept"
    hub = world.hub()
    assert hub.remove(hub.models()[0]).freed >= len(world.data)
    assert not pulled.paths[0].exists()


@pytest.mark.usefixtures("as_on_windows")
def test_a_pull_that_mends(world: World, tmp_path: Path) -> None:
    """What came with wrong bytes is compared with a second copy, and written again."""
    world.server.faults = [Fault(flip=700_000, times=1)]
    world.patient(connections=1, piece=1 << 30)
    events = world.pull(to=tmp_path / "models")
    assert any(isinstance(event, Notice) and "wrong checksum" in event.text for event in events)
    assert isinstance(events[-1], Pulled)
    assert events[-1].paths[0].read_bytes() == world.data
