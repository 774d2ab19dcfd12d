"""Memory that seemed to be free is refused: a load is tried again with less, then given up."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import rpc_server
from gguf_files import write_qwq_shaped

from qwqcli import quants
from qwqcli.engine import RETRIES, EngineSpec
from qwqcli.engine.process import ProcessEngine
from qwqcli.errors import EngineError, NoRoom
from qwqcli.gguf import read_file_header
from qwqcli.hardware import GiB, MiB, known_machine
from qwqcli.layout import Want
from qwqcli.messages import Answer, Message, Notice, Sampling
from qwqcli.plan import make_plan, refused, squeezed

Q4 = quants.model_info(quants.BY_NAME["q4_k_m"])
SUM = [Message("user", "What is 47 + 86?")]
GREEDY = Sampling(temperature=0, max_tokens=200)
needs_rpc = pytest.mark.skipif(not rpc_server.available(), reason="built without GGML_RPC")


# --- what is asked for the next time -----------------------------------------------------------


@pytest.mark.parametrize("name", ["3090", "4070", "mac-mini-pro-48", "cpu-64"])
def test_each_plan_takes_less_where_the_layers_were(name: str) -> None:
    """However much seemed free, the next plan wants at least 15 % less of what was refused."""
    machine = known_machine(name)
    before = make_plan(Q4, machine).devices[0].used_bytes
    for times in (1, 2):
        plan = make_plan(Q4, squeezed(Q4, machine, Want(), times))
        now = plan.devices[0].used_bytes
        assert now <= 0.85 * before
        before = now


def test_memory_to_spare_is_no_excuse(tiny: Path) -> None:
    """A small model in a large memory gets less, too: the machine may lie about all of it."""
    info, machine = read_file_header(tiny), known_machine("cpu-64")
    used = [
        make_plan(info, squeezed(info, machine, Want(), times)).devices[0].used_bytes
        for times in range(RETRIES)
    ]
    assert used == sorted(used, reverse=True)
    assert len(set(used)) == RETRIES


def test_the_end_names_the_smaller_quantization() -> None:
    """QwQ that was refused again and again: which quantization would take less."""
    machine = squeezed(Q4, known_machine("3090"), Want(), 2)
    error = refused(Q4, machine, Want(), 4)
    assert "refused 4 times" in error.message
    smaller = quants.BY_NAME[error.hint.removeprefix("qwq plan ")]
    assert smaller.file_bytes < Q4.file_bytes


def test_wishes_that_leave_nothing_to_give_end_at_once() -> None:
    """Layers, context and cache are fixed: the most layers that would take less are named."""
    want = Want(n_ctx=16_384, kv="q8_0", gpu_layers=65)
    with pytest.raises(NoRoom, match="refused once") as caught:
        squeezed(Q4, known_machine("3090"), want, 3)
    assert re.match(r"--gpu-layers \d+ is the most", caught.value.hint)


# --- real refusals -----------------------------------------------------------------------------


@needs_rpc
def test_a_device_that_has_less_than_it_says(tiny_spec: EngineSpec, cache: Path) -> None:
    """It refuses again and again; each try is said, and the answer comes from what is left."""
    with rpc_server.running(limit=8 * MiB) as (endpoint, _):
        engine = ProcessEngine(replace(tiny_spec, rpc=endpoint), cache)
        events = list(engine.stream(SUM, GREEDY))
        engine.close()
    notices = " ".join(event.text for event in events if isinstance(event, Notice))
    assert "It is started again with less memory (1 of 3)." in notices
    assert "133" in "".join(event.text for event in events if isinstance(event, Answer))


def starved(smollm: Path, spare: int, environ: dict[str, str]) -> tuple[int, str]:
    """`qwq ask` on SmolLM2, whose processes get so many bytes beside the weights."""
    script = (
        "import rpc_server; from qwqcli.engine import hosted; print(rpc_server.address_space())"
    )
    # glibc reserves 64 MiB of address space for the heap of every thread
    environ = {**environ, "MALLOC_ARENA_MAX": "1", "PYTHONPATH": ":".join(sys.path)}
    base = int(subprocess.check_output([sys.executable, "-c", script], env=environ))
    limit = (base + smollm.stat().st_size + spare) // 1024
    command = f'ulimit -v {limit}; exec "$0" -m qwqcli ask --max-tokens 3 --stats -m "$1" hi'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, smollm], env=environ, capture_output=True, timeout=120
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is for Linux")
@pytest.mark.parametrize(
    ("spare", "code", "end"),
    [
        (200 * MiB, 0, "tokens of context"),  # it begins with some 330 MiB of cache and buffers
        (20 * MiB, 3, "  try: --ctx "),
    ],
)
def test_a_system_that_has_less_than_it_says(
    smollm: Path, environ: dict[str, str], spare: int, code: int, end: str
) -> None:
    """With less context it runs; without room for any, what would fit is said in the end."""
    returned, said = starved(smollm, spare, environ)
    assert returned == code, said
    assert "(1 of 3)" in said
    assert end in said


@needs_rpc
@pytest.mark.slow
def test_qwq_on_a_device_that_has_less_than_it_says(tmp_path: Path, cache: Path) -> None:
    """A model of QwQ's true size that a device refuses ends in the quantization to take."""
    path = write_qwq_shaped(tmp_path / "qwq.gguf", "q4_k_m")
    with rpc_server.running(limit=8 * GiB) as (endpoint, _):
        engine = ProcessEngine(EngineSpec(str(path), threads=1, rpc=endpoint), cache)
        with pytest.raises(NoRoom) as caught:
            engine.info()
        engine.close()
    assert caught.value.hint.startswith("qwq plan ")


@needs_rpc
def test_a_failed_load_can_be_tried_again(tiny_spec: EngineSpec, cache: Path) -> None:
    """What was in the way may be gone: the next reply loads anew, as it was wished."""
    port = rpc_server.free_port()
    engine = ProcessEngine(replace(tiny_spec, rpc=f"127.0.0.1:{port}"), cache)
    with pytest.raises(EngineError, match="No RPC server answers"):
        list(engine.stream(SUM, GREEDY))
    with rpc_server.running(port=port):
        events = list(engine.stream(SUM, GREEDY))
        assert not any(isinstance(event, Notice) for event in events)
        assert engine.info().placement.startswith("7 of 7 layers on RPC0")
        engine.close()
