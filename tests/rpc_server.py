"""A llama.cpp RPC server on loopback, as more devices for tests: `rpc_server.py PORT N BYTES`.

It offers this machine's CPU over RPC N times, and clients see GPU-like devices. It says that all of
the machine's memory is free, and gets no more than BYTES of it (0: no limit), so that a client
plans for memory which is then refused. It runs until killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp


def available() -> bool:
    """Whether this build of llama.cpp has the RPC backend."""
    return hasattr(llama_cpp.llama_cpp._lib, "ggml_backend_rpc_start_server")


@contextlib.contextmanager
def running(
    devices: int = 1, limit: int = 0, port: int = 0
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """An endpoint that answers, and the process behind it."""
    port = port or free_port()
    command = [sys.executable, __file__, *map(str, (port, devices, limit))]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        yield f"127.0.0.1:{port}", server
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def address_space() -> int:
    """Bytes that this process has taken."""
    return int(re.findall(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def _wait(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
            return
        time.sleep(0.05)
    raise RuntimeError("the RPC server did not start")


def serve(port: int, count: int, limit: int) -> None:
    """Offer the first device of this machine; returns only when the server fails."""
    library = llama_cpp.llama_cpp._lib  # its lookup finds the one ggml that it is linked to
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    library.ggml_backend_rpc_start_server.argtypes = [
        *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t),
        ctypes.POINTER(ctypes.c_void_p),
    ]
    devices = (ctypes.c_void_p * count)(*[library.ggml_backend_dev_get(0)] * count)
    if limit:
        limit += address_space()
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    library.ggml_backend_rpc_start_server(f"127.0.0.1:{port}".encode(), None, 1, count, devices)


if __name__ == "__main__":
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    serve(*map(int, sys.argv[1:]))
