"""What llama.cpp itself says that a load takes, per buffer type: `python llama_memory.py [RPC]`.

Reads one JSON object a line, `{"path", "placement", "vocabulary"}`, and answers each with
`{buffer type: [weights, KV cache, compute]}` in bytes, from llama.cpp's own accounting. That is a
C++ function which returns a std::map: called and walked here through ctypes, on x86-64 with
libstdc++ only. It runs in a process of its own, because an RPC device cannot be removed again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Breakdown = dict[str, tuple[int, int, int]]

BREAKDOWN = "_Z26llama_get_memory_breakdownPK13llama_context"
_ROOT, _LEFT, _RIGHT, _KEY, _VALUE = 16, 16, 24, 32, 40  # offsets in std::map and its nodes


def available() -> bool:
    """Whether this machine's C++ is the one that the layout above was written for."""
    import llama_cpp

    known = sys.platform == "linux" and platform.machine() == "x86_64"
    return known and hasattr(llama_cpp.llama_cpp._lib, BREAKDOWN)


class Asked:
    """A running child that answers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(
        self, path: Path, placement: Mapping[str, Any], vocabulary: tuple[str, int] | None
    ) -> Breakdown:
        """With a `vocabulary`, as of `native.dry_load`, nothing is allocated; without, all is."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"path": str(path), "placement": placement, "vocabulary": vocabulary}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return {name: (sizes[0], sizes[1], sizes[2]) for name, sizes in answer.items()}


@contextlib.contextmanager
def asking(*endpoints: str) -> Iterator[Asked]:
    """A child with the devices of these RPC servers."""
    process = subprocess.Popen(
        [sys.executable, __file__, *endpoints],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        yield Asked(process)
        process.kill()


def measure(path: str, placement: Mapping[str, Any], vocabulary: Any) -> Breakdown:
    """Load a model and its contexts as a placement says, for real or not."""
    import llama_cpp as lib

    from qwqcli.engine import native

    native.start()
    params = lib.llama_model_default_params()
    params.use_extra_bufts = False
    params.no_alloc, params.load_mode = vocabulary is not None, 0
    if vocabulary is not None:
        overrides = native._without_vocabulary(*vocabulary)
        params.kv_overrides = overrides
    placed = native.Placement(**placement)
    kept = native.place_weights(params, placed)
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    assert model, native.log.text()
    found: Breakdown = {}
    for part in placed.contexts:
        context_params = lib.llama_context_default_params()
        native.place_cache(context_params, part)
        context = lib.llama_init_from_model(model, context_params)
        assert context, native.log.text()
        for name, (weights, kv, compute) in _breakdown(lib, context).items():
            _, kv_before, compute_before = found.get(name, (0, 0, 0))
            found[name] = weights, kv_before + kv, compute_before + compute
        lib.llama_free(context)
    lib.llama_model_free(model)
    del kept
    return found


def _breakdown(lib: Any, context: Any) -> Breakdown:
    library = lib.llama_cpp._lib
    function = getattr(library, BREAKDOWN)
    function.restype, function.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p)
    library.ggml_backend_buft_name.restype = ctypes.c_char_p
    library.ggml_backend_buft_name.argtypes = (ctypes.c_void_p,)
    returned = (ctypes.c_uint64 * 6)()
    function(ctypes.addressof(returned), context)
    found: Breakdown = {}
    nodes = [_word(ctypes.addressof(returned) + _ROOT)]
    while nodes:
        node = nodes.pop()
        if node:
            name = library.ggml_backend_buft_name(_word(node + _KEY)).decode()
            sizes = [_word(node + _VALUE + 8 * index) for index in range(3)]
            found[name] = (sizes[0], sizes[1], sizes[2])
            nodes += [_word(node + _LEFT), _word(node + _RIGHT)]
    return found


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


if __name__ == "__main__":
    from qwqcli.engine.native import add_rpc_devices

    for endpoint in sys.argv[1:]:
        add_rpc_devices(endpoint)
    for line in sys.stdin:
        print(json.dumps(measure(**json.loads(line))), flush=True)
