"""Layers on a device: qwq's plan beside llama.cpp's own fit, at the same context and KV type.

    python benchmarks/fit.py --llama-fit-params PATH [--quants q4_k_m,q8_0]

Both plan for the same file of QwQ-32B's true size, which takes no disk, on the same device: an
RPC server on loopback, which announces all of this machine's memory; a margin leaves 8 to 20 GiB.
Both ask llama.cpp for the compute buffers. `llama-fit-params` keeps room for the logits of a whole
batch, which qwq's engine does not need. Build it with RPC from the llama.cpp that llama-cpp-python
vendors. The exit code is 1 if qwq has fewer layers anywhere.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import rpc_server
from gguf_files import write_qwq_shaped

from qwqcli import planning
from qwqcli.config import KV
from qwqcli.engine.probe import Probe
from qwqcli.errors import NoRoom
from qwqcli.gguf import read_file_header
from qwqcli.hardware import Device, GiB, Machine, MiB
from qwqcli.layout import Want

CARDS = (8, 10, 12, 16, 20)  # GiB
CONTEXTS = (8_192, 16_384, 32_768)
KV_TYPES: tuple[KV, ...] = ("f16", "q8_0")
BATCH = 512
RAM_BYTES = 1 << 40


def ours(path: Path, room: int, n_ctx: int, kv: KV, endpoint: str) -> int:
    """Layers of qwq's plan for a device with `room` bytes."""
    device = Device("RPC0", endpoint, "RPC", "remote", room, room, None, "a benchmark")
    machine = Machine("a benchmark", (device,), RAM_BYTES, RAM_BYTES, cores=2)
    want = Want(n_ctx=n_ctx, kv=kv, flash_attn="on", n_batch=BATCH, margin_bytes=0)
    with Probe(endpoint) as probe:
        probe.devices()
        try:
            plan = planning.measured(path, read_file_header(path), machine, want, probe)
        except NoRoom:
            return 0
    assert plan.compute_source == "dry load"
    return plan.gpu_layers


def theirs(tool: Path, path: Path, margin: int, n_ctx: int, kv: KV, endpoint: str) -> int:
    """Layers of llama.cpp's fit for the same device, of which `margin` bytes stay free."""
    command = [
        *(str(tool), "-m", str(path), "--rpc", endpoint, "-c", str(n_ctx), "-ctk", kv, "-ctv", kv),
        *("-fa", "on", "-b", str(BATCH), "-ub", str(BATCH), "-fitt", str(margin // MiB)),
    ]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"-ngl (-?\d+)", said)
    layers = int(found[1]) if found else 0
    return 65 if layers < 0 else layers  # -1: all


def announced(endpoint: str) -> int:
    """Bytes that the device says are free; it always says the same."""
    with Probe(endpoint) as probe:
        rows: list[dict[str, Any]] = probe.devices()["devices"]
    return next(int(row["free_bytes"]) for row in rows if row["name"] == "RPC0")


def main() -> None:
    """Compare over the grid and print each case, and how often who had more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-fit-params", type=Path, required=True)
    parser.add_argument("--quants", default="q4_k_m,q8_0")
    args = parser.parse_args()
    count: collections.Counter[int] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder, rpc_server.running() as (endpoint, _):
        free = announced(endpoint)
        for quant in args.quants.split(","):
            path = write_qwq_shaped(Path(folder) / f"{quant}.gguf", quant)
            for card, n_ctx, kv in itertools.product(CARDS, CONTEXTS, KV_TYPES):
                margin = (free - card * GiB) // MiB * MiB
                mine = ours(path, free - margin, n_ctx, kv, endpoint)
                fit = theirs(args.llama_fit_params, path, margin, n_ctx, kv, endpoint)
                count[mine - fit] += 1
                print(f"{quant} {card} GiB {n_ctx} {kv}: qwq {mine}, llama.cpp {fit}", flush=True)
    differences = ", ".join(f"{more:+d} layers in {n}" for more, n in sorted(count.items()))
    print(f"{sum(count.values())} cases: qwq has {differences}")
    sys.exit(any(more < 0 for more in count))


if __name__ == "__main__":
    main()
