"""Which devices are used: all, those that are named, or none; tried on devices behind RPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import rpc_server
from command_line import qwq

from qwqcli.engine.llama import layers_line
from qwqcli.errors import UsageError
from qwqcli.hardware import GiB, Machine, card, chosen, known_machine

SUM = "What is 47 + 86?"
TWO = replace(known_machine("3090"), devices=(card(0, 24 * GiB), card(1, 12 * GiB)))
SPARE = replace(TWO, devices=TWO.devices[:1], others=TWO.devices[1:])


def names(machine: Machine) -> tuple[list[str], list[str]]:
    return [d.name for d in machine.devices], [d.name for d in machine.others]


@pytest.mark.parametrize(
    ("machine", "text", "used", "left"),
    [
        (TWO, "CUDA1", ["CUDA1"], ["CUDA0"]),
        (TWO, "cuda1, CUDA0", ["CUDA1", "CUDA0"], []),  # in the order asked for
        (TWO, "CUDA0,CUDA0", ["CUDA0"], ["CUDA1"]),
        (TWO, "none", [], ["CUDA0", "CUDA1"]),
        (SPARE, "CUDA1", ["CUDA1"], ["CUDA0"]),  # one that llama.cpp would leave alone
    ],
)
def test_devices_by_name(machine: Machine, text: str, used: list[str], left: list[str]) -> None:
    """Whatever capitals; what is not named is left alone, and known to be there."""
    assert names(chosen(machine, text)) == (used, left)


@pytest.mark.parametrize("text", ["CUDA7", "", "CUDA0,", "none,CUDA0", "GPU"])
def test_an_unknown_device_names_those_there_are(text: str) -> None:
    """A slip is refused with every name that would do."""
    with pytest.raises(UsageError, match="CUDA0, CUDA1") as caught:
        chosen(TWO, text)
    assert "--device CUDA0" in caught.value.hint


def test_no_device_at_all() -> None:
    """On a build for the CPU, the one who can tell why is the doctor."""
    with pytest.raises(UsageError, match="none beside the CPU") as caught:
        chosen(known_machine("cpu-32"), "CUDA0")
    assert caught.value.hint == "qwq doctor"


LOG = """\
load_tensors: offloaded 31/65 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   417.66 MiB
load_tensors:    CUDA_Host model buffer size =   100.00 MiB
load_tensors:  MTL0_Mapped model buffer size = 18508.00 MiB
load_tensors: RPC0[127.0.0.1:5] model buffer size = 8508.00 MiB
"""


def test_buffers_of_the_host_are_no_device() -> None:
    """After a load the devices are named by their own names, in llama.cpp's order."""
    owners = {"CPU": "CPU", "RPC0[127.0.0.1:4]": "RPC0", "RPC0[127.0.0.1:5]": "RPC1"}
    owners |= {"CUDA0": "CUDA0", "MTL0": "MTL0"}
    assert layers_line(LOG, owners) == "31 of 65 layers on RPC1 and MTL0"


# --- real devices ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers() -> Iterator[str]:
    """Three devices behind two RPC servers."""
    if not rpc_server.available():
        pytest.skip("llama.cpp was built without GGML_RPC")
    with rpc_server.running(2) as (first, _), rpc_server.running() as (second, _):
        yield f"{first},{second}"


@pytest.mark.parametrize(
    ("device", "placement"),
    [
        ("RPC1", "7 of 7 layers on RPC1 "),
        ("RPC2,rpc0", "7 of 7 layers on RPC0 and RPC2 "),
        ("none", "all layers on the CPU "),
    ],
)
def test_layers_go_where_they_are_sent(
    environ: dict[str, str], servers: str, device: str, placement: str
) -> None:
    """The load log names the devices that were asked for, and no other."""
    argv = ("--rpc", servers, "--device", device, "--temperature", "0", "--stats")
    result = qwq("ask", *argv, SUM, environ=environ)
    assert "133" in result.out
    assert placement in result.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "CUDA0"], "RPC0, RPC1, RPC2"),
        (["--device", "none", "--gpu-layers", "3"], "no place for --gpu-layers 3"),
        (["--no-gpu", "--device", "RPC0"], "exclude each other"),
        (["--no-gpu", "--gpu-layers", "3"], "exclude each other"),
    ],
)
def test_what_cannot_work_is_said_before_loading(
    environ: dict[str, str], servers: str, options: list[str], words: str
) -> None:
    """One error, one line to type, and no loading before it."""
    result = qwq("ask", "--stream-json", "--rpc", servers, *options, SUM, environ=environ)
    assert (result.code, result.out) == (2, "")
    error, hint = result.err.splitlines()
    assert words in error
    assert hint.startswith("  try: ")


def test_a_plan_for_some_of_the_devices(environ: dict[str, str], servers: str) -> None:
    """The memory table has the devices asked for, each with its own compute buffer."""
    argv = ("plan", "tiny", "--rpc", servers, "--device", "RPC2,RPC0", "--json")
    plan = json.loads(qwq(*argv, environ=environ).out)
    rows = {row["name"]: row["compute_bytes"] for row in plan["devices"]}
    assert list(rows) == ["RPC2", "RPC0", "CPU"]
    assert all(rows.values())
