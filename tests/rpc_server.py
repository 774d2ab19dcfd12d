"""A llama.cpp RPC server on loopback, as more devices for tests: `rpc_server.py PORT N BYTES`.

It offers this machine's CPU over RPC N times, and clients see GPU-like devices. It says that all of
the machine's memory is free, and may have no more than BYTES of address space (0: no limit), so
that a client can plan for memory which is then refused. It runs until killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import llama_cpp


def available() -> bool:
    """Whether this build of llama.cpp has the RPC backend."""
    return hasattr(llama_cpp.llama_cpp._lib, "ggml_backend_rpc_start_server")


@contextlib.contextmanager
def running(devices: int = 1, limit: int = 0) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """An endpoint that answers, and the process behind it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, *map(str, (port, devices, limit))]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        yield f"127.0.0.1:{port}", server
    finally:
        server.kill()
        server.wait()


def _wait(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
            return
        time.sleep(0.05)
    raise RuntimeError("the RPC server did not start")


def serve(port: int, count: int, limit: int) -> None:
    """Offer the first device of this machine; returns only when the server fails."""
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    library = llama_cpp.llama_cpp._lib  # its lookup finds the one ggml that it is linked to
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    library.ggml_backend_rpc_start_server.argtypes = [
        *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t),
        ctypes.POINTER(ctypes.c_void_p),
    ]
    devices = (ctypes.c_void_p * count)(*[library.ggml_backend_dev_get(0)] * count)
    library.ggml_backend_rpc_start_server(f"127.0.0.1:{port}".encode(), None, 1, count, devices)


if __name__ == "__main__":
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    serve(*map(int, sys.argv[1:]))
