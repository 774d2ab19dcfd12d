"""A short-lived child that asks llama.cpp about this machine: its devices, and dry loads.

Contract: `python -m qwqcli.engine.probe [HOST:PORT,...]` prints one JSON object with the devices,
then answers each line of its stdin, a dry load to do, with another; it leaves when stdin ends.
`Probe` is the parent's side: native code never runs in the parent, and nothing waits longer than
its limit. A probe that fails is a fact too: its answer says why and has no devices.
Not here: what the system says without llama.cpp (hardware.py), and what is made of it (plan.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwqcli.engine.pipes import APART, answers
from qwqcli.errors import QwqError
from qwqcli.hardware import abandon

DEVICES_LIMIT_S = 10.0  # a first CUDA start loads its kernels; a sound machine needs 0.2 to 2 s
DRY_LOAD_LIMIT_S = 20.0  # 0.3 s for QwQ-32B


class Probe:
    """The child, started at once; use it as a context manager."""

    def __init__(self, rpc: str | None = None) -> None:
        # no `Pipes`: those wait for their child's end, and one in a driver's call may never end
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qwqcli.engine.probe", *([rpc] if rpc else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            **APART,
        )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def devices(self) -> Mapping[str, Any]:
        """`{"devices": [...], "backends": [...]}`, or `{"error": why}`. Ask once.

        A device has the fields of native.DeviceInfo.
        """
        return self._answer(DEVICES_LIMIT_S)

    def dry_load(
        self, path: Path, placement: Mapping[str, Any], vocabulary: tuple[str, int]
    ) -> Mapping[str, Any]:
        """`{"compute": {buffer type: bytes}}`, or `{"error": why}`."""
        request = {"path": str(path), "placement": placement, "vocabulary": vocabulary}
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a dead child is found when its answer is missing
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(DRY_LOAD_LIMIT_S)

    def close(self) -> None:
        """End the child, wherever it is; safe to call twice."""
        abandon(self._process)

    def _answer(self, limit_s: float) -> Mapping[str, Any]:
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            return {"error": f"llama.cpp did not answer within {limit_s:g} s"}
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            return {"error": f"the probe ended with code {self._code()}"}
        return answer

    def _code(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(1.0)
        return None

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # closed by `close`
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(b"")


def main(arguments: list[str]) -> None:
    """In the child."""
    say = answers()
    from qwqcli.engine import native  # loads the library

    say(_devices(native, arguments))
    for line in sys.stdin:
        say(_dry_load(native, json.loads(line)))


def _devices(native: Any, arguments: list[str]) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        for endpoint in arguments:
            native.add_rpc_devices(endpoint)
        found = native.machine()
    except QwqError as error:
        return {"error": error.message}
    seconds = round(time.perf_counter() - began, 3)
    return {**found, "seconds": seconds}


def _dry_load(native: Any, request: dict[str, Any]) -> dict[str, Any]:
    architecture, n_vocab = request["vocabulary"]
    placement = native.Placement(**request["placement"])
    try:
        compute = native.dry_load(Path(request["path"]), placement, (architecture, n_vocab))
    except QwqError as error:
        return {"error": error.message}
    return {"compute": compute}


if __name__ == "__main__":
    main(sys.argv[1:])
