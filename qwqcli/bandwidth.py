"""How fast the CPU's cores read memory together, measured on the spot.

Contract: `measure` reads two buffers of the size of what a token reads, all threads at once, and
gives bytes per second of the best round: what the machine can, not what it did while disturbed.
What counts is every byte that is compared, once: C's `memcmp` of equal buffers reads both to the
end, writes nothing, and ctypes releases the interpreter lock meanwhile.
Limits: the buffers are as large as the weights, or `MOST_BYTES`, so a model that fits into the
CPU's cache is measured against the cache, as it is when it runs. One core's share may be less than
what the memory can give; that is what it is measured with as many threads as the model gets for.
Non-goals: GPUs (hardware.py knows their data sheets).
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable

LEAST_BYTES, MOST_BYTES = 64 << 20, 1 << 30
ROUNDS = 5
LIMIT_S = 2.0  # no round is begun after that

Clock = Callable[[], float]


def measure(n_bytes: int, threads: int, clock: Clock = time.perf_counter) -> float:
    """Bytes per second at which `threads` read `n_bytes` (within the limits above) together."""
    share = min(max(n_bytes, LEAST_BYTES), MOST_BYTES) // threads // 128 * 128
    compare = _memcmp()
    buffers = [ctypes.create_string_buffer(share) for _ in range(threads)]

    def fill(buffer: ctypes.Array[ctypes.c_char]) -> None:
        ctypes.memset(buffer, 1, share)  # pages that were never written are all the same page

    def read(buffer: ctypes.Array[ctypes.c_char]) -> None:
        start = ctypes.addressof(buffer)
        assert compare(start, start + share // 2, share // 2) == 0

    _together(fill, buffers)
    best, began = 0.0, clock()
    for _ in range(ROUNDS):
        before = clock()
        _together(read, buffers)
        now = clock()
        best = max(best, share * threads / (now - before))
        if now - began > LIMIT_S:
            break
    return best


def _together(
    work: Callable[[ctypes.Array[ctypes.c_char]], None],
    buffers: list[ctypes.Array[ctypes.c_char]],
) -> None:
    workers = [threading.Thread(target=work, args=(buffer,)) for buffer in buffers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _memcmp() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None if os.name == "posix" else "msvcrt").memcmp
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    function.restype = ctypes.c_int
    return function
