"""The plan's bytes against llama.cpp's own, on files of QwQ-32B's true size that take no disk."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import llama_memory
import pytest
import rpc_server
from gguf_files import write_qwq_shaped

from qwqcli import costs, planning
from qwqcli.engine.probe import Probe
from qwqcli.gguf import ModelInfo, read_file_header
from qwqcli.hardware import Device, Machine
from qwqcli.layout import Want
from qwqcli.plan import Plan, corrected, make_plan

GiB, TiB = 2**30, 2**40

pytestmark = pytest.mark.skipif(
    not (llama_memory.available() and rpc_server.available()),
    reason="needs llama.cpp's accounting on x86-64 Linux, and its RPC backend",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files written so far, by quantization; `file_of` adds to it."""
    folder = tmp_path_factory.mktemp("qwq")
    return {"": folder}


def file_of(files: dict[str, Path], quant: str) -> Path:
    if quant not in files:
        files[quant] = write_qwq_shaped(files[""] / f"{quant}.gguf", quant)
    return files[quant]


@pytest.fixture(scope="module")
def one() -> Iterator[tuple[llama_memory.Asked, str]]:
    """llama.cpp with one device beside the CPU, and where that is."""
    with rpc_server.running() as (endpoint, _), llama_memory.asking(endpoint) as asked:
        yield asked, endpoint


def remote(index: int = 0, free: int = TiB) -> Device:
    return Device(f"RPC{index}", "a test", "RPC", "remote", free, free, 500e9, "a test")


def machine(*devices: Device) -> Machine:
    return Machine("a test", devices, TiB, TiB, cores=4)


def agree(
    plan: Plan, info: ModelInfo, path: Path, ask: llama_memory.Asked, *endpoints: str
) -> None:
    """Weights and KV to the byte, compute within 5 %, each device within 1 %."""
    measured = ask(path, plan.placement(), (info.architecture, info.n_vocab))
    # every server calls its first device RPC0; llama.cpp counts them on
    buffers = {f"RPC{no}": f"RPC0[{endpoint}]" for no, endpoint in enumerate(endpoints)}
    for share in plan.devices:
        found = measured.get(buffers.get(share.name, share.name), (0, 0, 0))
        assert (share.weights_bytes, share.kv_bytes) == found[:2], share
        assert share.compute_bytes == pytest.approx(found[2], rel=0.05), share
        assert share.used_bytes == pytest.approx(sum(found), rel=0.01), share


ROWS = [  # what the row is for
    ("q4_k_m", 8_192, "f16", 0),  # all in RAM: attention scores without flash attention
    ("q4_k_m", 131_072, "q8_0", 0),  # the longest context, flash attention on the CPU
    ("q4_k_m", 16_384, "f16", 20),  # split, layers of two sizes
    ("q4_k_m", 16_384, "q8_0", 20),  # split, blocks of 34 bytes in the cache
    ("q4_k_m", 131_072, "f16", 20),  # split, a mask of 128 MiB
    ("q4_k_m", 32_768, "f16", 65),  # all on the device: only the embedding stays
    ("q4_k_m", 8_192, "q8_0", 65),  # the same, quantized cache
    ("q4_k_m", 16_384, "f16", 1),  # the output layer alone
    ("q4_k_m", 16_384, "f16", 64),  # all but the first layer
    ("q4_k_m", 20_000, "q8_0", 65),  # a context that llama.cpp rounds up to 20,224
    ("q8_0", 16_384, "f16", 0),  # a quantization with one type
    ("q8_0", 16_384, "q8_0", 40),
    ("q8_0", 32_768, "f16", 65),
]
GRID = [
    row
    for row in itertools.product(
        ("q4_k_m", "q8_0", "q6_k"),
        (8_192, 16_384, 32_768, 131_072),
        ("f16", "q8_0"),
        (0, 20, 65),
    )
    if row not in ROWS
]


@pytest.mark.parametrize(
    ("quant", "n_ctx", "kv", "layers"),
    [*ROWS, *(pytest.param(*row, marks=pytest.mark.slow) for row in GRID)],
)
def test_bytes_are_llama_cpps_own(
    files: dict[str, Path],
    one: tuple[llama_memory.Asked, str],
    quant: str,
    n_ctx: int,
    kv: costs.KV,
    layers: int,
) -> None:
    """For a quantization, context, KV type and number of layers, a plan has llama.cpp's bytes."""
    path = file_of(files, quant)
    info = read_file_header(path)
    here = machine(remote()) if layers else machine()
    plan = make_plan(info, here, Want(n_ctx=n_ctx, kv=kv, gpu_layers=layers))
    assert plan.gpu_layers == layers
    agree(plan, info, path, *one)


@pytest.mark.parametrize(
    ("n_ctx", "n_batch"), [(4_096, 512), (16_384, 512), pytest.param(32_768, 128)]
)
def test_feed_forward_weights_in_ram(
    files: dict[str, Path], one: tuple[llama_memory.Asked, str], n_ctx: int, n_batch: int
) -> None:
    """Where only feed-forward weights stay in RAM, llama.cpp puts the same bytes there."""
    path = file_of(files, "q4_k_m")
    info = read_file_header(path)
    here = machine(remote(free=12 * GiB))
    plan = make_plan(info, here, Want(n_ctx=n_ctx, n_batch=n_batch))
    assert plan.cpu_ffn
    agree(plan, info, path, *one)


@pytest.mark.parametrize("n_ctx", [512, 16_384, 131_072])
def test_a_second_cache_for_generation(
    files: dict[str, Path], one: tuple[llama_memory.Asked, str], n_ctx: int
) -> None:
    """With flash attention in prompts only, both contexts are counted as llama.cpp has them."""
    path = file_of(files, "q4_k_m")
    info = read_file_header(path)
    plan = make_plan(info, machine(), Want(n_ctx=n_ctx, flash_attn="prompts"))
    assert plan.flash_attn == "prompts"
    agree(plan, info, path, *one)


@pytest.mark.parametrize("free", [(16, 16), (9, 24)])
def test_two_devices_share_by_free_memory(files: dict[str, Path], free: tuple[int, int]) -> None:
    """Two devices get the layers that the plan gives them, by llama.cpp's count as by ours."""
    path = file_of(files, "q4_k_m")
    info = read_file_header(path)
    here = machine(*(remote(index, size * GiB) for index, size in enumerate(free)))
    plan = make_plan(info, here)
    assert sum(plan.tensor_split) == plan.gpu_layers == 65
    with (
        rpc_server.running() as (first, _),
        rpc_server.running() as (second, _),
        llama_memory.asking(first, second) as asked,
    ):
        agree(plan, info, path, asked, first, second)


def test_a_real_load_takes_what_was_planned(
    tiny: Path, one: tuple[llama_memory.Asked, str]
) -> None:
    """Not only a dry load: a model that is really loaded has the planned weights and cache."""
    info = read_file_header(tiny)
    want = Want(n_ctx=1024, kv="f16", gpu_layers=2)
    plan = make_plan(info, machine(remote()), want)
    ask, endpoint = one
    measured = ask(tiny, plan.placement(), None)
    for share in plan.devices:
        found = measured[share.name if share.name == "CPU" else f"RPC0[{endpoint}]"]
        assert share.weights_bytes == pytest.approx(found[0], abs=4096)  # padding of its tensors
        assert share.kv_bytes == found[1]


def test_a_dry_load_corrects_the_plan(files: dict[str, Path]) -> None:
    """The compute buffers of a dry load stand in the plan, to llama.cpp's printed rounding."""
    path = file_of(files, "q4_k_m")
    info = read_file_header(path)
    want, here = Want(n_ctx=16_384), machine(remote())
    with rpc_server.running() as (endpoint, _), Probe(endpoint) as probe:
        assert [row["name"] for row in probe.devices()["devices"]] == ["CPU", "RPC0"]
        plan = make_plan(info, here, want)
        answer = probe.dry_load(path, plan.placement(), (info.architecture, info.n_vocab))
    exact = corrected(info, here, want, plan, answer["compute"])
    assert exact.compute_source == "dry load"
    for before, after in zip(plan.devices, exact.devices, strict=True):
        assert after.compute_bytes == pytest.approx(before.compute_bytes, rel=0.05)


def test_yarn_reaches_llama_cpp(files: dict[str, Path]) -> None:
    """The plan's rope scaling is what llama.cpp says it uses, and costs no memory."""
    path = file_of(files, "q4_k_m")
    info = read_file_header(path)
    plan = make_plan(info, machine(), Want(n_ctx=65_536))
    child = [sys.executable, "-c", YARN, str(path), json.dumps(plan.placement())]
    said = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    assert re.search(r"freq_scale += 0\.25\b", said)


YARN = """
import json, sys
from pathlib import Path
from qwqcli.engine import native
placement = native.Placement(**json.loads(sys.argv[2]))
native.dry_load(Path(sys.argv[1]), placement, ("qwen2", 152064))
print(native.log.text())
"""


def test_the_files_take_no_disk(files: dict[str, Path]) -> None:
    """Twenty gigabytes of model are a few megabytes on disk."""
    found = file_of(files, "q4_k_m").stat()
    assert found.st_size > 19_800_000_000
    assert found.st_blocks * 512 < 16_000_000


@pytest.mark.slow
def test_planning_takes_half_a_second(files: dict[str, Path]) -> None:
    """From a local file to a plan, start of the child and dry load included: 0.5 s at best."""
    path = file_of(files, "q4_k_m")
    times = []
    for _ in range(5):
        began = time.perf_counter()
        with Probe() as probe:
            info, _ = planning.subject(str(path))
            probe.devices()
            plan = planning.measured(path, info, machine(), Want(), probe)
        assert plan.compute_source == "dry load"
        times.append(time.perf_counter() - began)
    assert min(times) < 0.5, times
