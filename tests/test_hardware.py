"""What is said of a machine: real facts with their source, on systems that this one is not."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import rpc_server

from qwqcli import hardware
from qwqcli.engine.probe import Probe
from qwqcli.errors import UsageError
from qwqcli.hardware import (
    APPLE_BANDWIDTH,
    GiB,
    MiB,
    System,
    ask_engine,
    known_machine,
    machine_names,
    parse_size,
    probe,
    run_limited,
    with_memory,
)

MEMINFO = """\
MemTotal:       32000000 kB
MemFree:         1000000 kB
MemAvailable:   20000000 kB
SwapTotal:       8000000 kB
SwapFree:        6000000 kB
"""
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               100000.
Pages active:                             500000.
Pages inactive:                           400000.
Pages speculative:                         20000.
Pages throttled:                               0.
Pages wired down:                         200000.
Pages purgeable:                           10000.
"""
CPU_ROW = {
    "name": "CPU",
    "description": "a CPU",
    "backend": "CPU",
    "kind": "cpu",
    "free_bytes": 8 * GiB,
    "total_bytes": 16 * GiB,
}
CUDA_ROW = {
    "name": "CUDA0",
    "description": "NVIDIA GeForce RTX 3090",
    "backend": "CUDA",
    "kind": "gpu",
    "free_bytes": 23_982 * MiB,
    "total_bytes": 24_576 * MiB,
}
MTL_ROW = {
    "name": "MTL0",
    "description": "Apple M4 Pro",
    "backend": "MTL",
    "kind": "gpu",
    "free_bytes": 36 * GiB,
    "total_bytes": 36 * GiB,
}


def saying(*rows: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]]:
    """An engine with these devices."""
    return lambda: {"devices": [CPU_ROW, *rows], "backends": ["CPU"]}


def nothing(command: Sequence[str], limit_s: float) -> str | None:
    """A system on which every command is missing."""
    return None


def commands(answers: Mapping[str, str]) -> hardware.Run:
    """A system on which these commands answer."""
    return lambda command, limit_s: answers.get(" ".join(command))


def linux(root: Path, files: Mapping[str, str], run: hardware.Run = nothing) -> System:
    """A Linux whose files are these."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return System("linux", "x86_64", root, run)


def mac(root: Path, machine: str = "arm64") -> System:
    """A Mac with an M4 Pro and 48 GB."""
    answers = {
        "vm_stat": VM_STAT,
        "sysctl -n hw.memsize": str(48 * GiB),
        "sysctl -n machdep.cpu.brand_string": "Apple M4 Pro\n",
        "sysctl -n vm.swapusage": "total = 2048.00M  used = 512.00M  free = 1536.00M  (encrypted)",
    }
    return System("darwin", machine, root, commands(answers))


def gpu(vendor: str, kind: str = "0x030000", at: str = "0000:01:00.0") -> dict[str, str]:
    """A PCI device."""
    folder = f"sys/bus/pci/devices/{at}"
    return {f"{folder}/vendor": f"{vendor}\n", f"{folder}/class": f"{kind}\n"}


# --- this machine ------------------------------------------------------------------------------


def test_this_machine_is_seen() -> None:
    """RAM, cores and backends of the machine that runs the tests, each with its source."""
    machine = probe()
    assert not machine.problems
    assert "CPU" in machine.backends
    assert 0 < machine.ram_free_bytes <= machine.ram_total_bytes
    assert machine.cores >= 1
    assert {fact for fact, _ in machine.sources} >= {"devices", "RAM", "memory bandwidth", "cores"}
    assert all(source for _, source in machine.sources)


def test_probe_child_answers_and_ends() -> None:
    """The child says its devices once, then does dry loads, and says why one fails."""
    with Probe() as child:
        assert [row["kind"] for row in child.devices()["devices"]] == ["cpu"]
        placement = {"n_ctx": 512, "gpu_layers": 0}
        answer = child.dry_load(Path("/nowhere.gguf"), placement, ("qwen2", 1024))
        assert "nowhere.gguf" in answer["error"]


def test_probe_child_without_its_rpc_server() -> None:
    """A server that does not answer, or no RPC backend, is a sentence and not a dead process."""
    said = "127.0.0.1:1" if rpc_server.available() else "no RPC backend"
    with Probe("127.0.0.1:1") as child:
        assert said in child.devices()["error"]


# --- nothing hangs -----------------------------------------------------------------------------


def test_a_command_that_hangs_is_left_behind() -> None:
    """A probe that takes too long is an unknown fact, at its limit and not after."""
    began = time.monotonic()
    assert run_limited([sys.executable, "-c", "import time; time.sleep(60)"], 0.3) is None
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "command",
    [
        ["no-such-command-here"],
        [sys.executable, "-c", "raise SystemExit(3)"],
    ],
)
def test_a_command_that_fails_is_an_unknown_fact(command: list[str]) -> None:
    """Missing or failing, a command says nothing and raises nothing."""
    assert run_limited(command, 5) is None


def test_an_engine_that_dies_leaves_a_usable_machine(tmp_path: Path) -> None:
    """Where llama.cpp cannot be asked, the rest is known and the reason is kept."""
    system = linux(tmp_path, {"proc/meminfo": MEMINFO})
    machine = probe(lambda: {"error": "the probe ended with code -11"}, system)
    assert machine.devices == ()
    assert machine.ram_free_bytes == 20_000_000 * 1024
    assert "code -11" in machine.problems[0]


def test_the_engine_is_asked_with_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that hangs, inside a driver for example, is an answer too."""
    monkeypatch.setattr(hardware, "ENGINE_LIMIT_S", 0.01)
    assert "0.01 s" in ask_engine()["error"]


# --- memory ------------------------------------------------------------------------------------


def test_available_is_not_free(tmp_path: Path) -> None:
    """MemAvailable counts what the kernel would give up; swap is known beside it."""
    machine = probe(saying(), linux(tmp_path, {"proc/meminfo": MEMINFO}))
    assert machine.ram_free_bytes == 20_000_000 * 1024
    assert machine.ram_total_bytes == 32_000_000 * 1024
    assert machine.swap_total_bytes - machine.swap_free_bytes == 2_000_000 * 1024


CGROUPS = [
    # v2: the limit of the group itself; cache that can be dropped is not in use
    pytest.param(
        {
            "proc/self/cgroup": "0::/box\n",
            "sys/fs/cgroup/box/memory.max": f"{8 * GiB}\n",
            "sys/fs/cgroup/box/memory.current": f"{3 * GiB}\n",
            "sys/fs/cgroup/box/memory.stat": f"anon 1\ninactive_file {GiB}\n",
        },
        6 * GiB,
        id="v2",
    ),
    # v2: no limit on the group, one on its parent
    pytest.param(
        {
            "proc/self/cgroup": "0::/slice/box\n",
            "sys/fs/cgroup/slice/box/memory.max": "max\n",
            "sys/fs/cgroup/slice/memory.max": f"{4 * GiB}\n",
            "sys/fs/cgroup/slice/memory.current": f"{GiB}\n",
        },
        3 * GiB,
        id="v2-parent",
    ),
    # v2 in a container: its path is that of the host, its limit is at the root
    pytest.param(
        {
            "proc/self/cgroup": "0::/docker/abc\n",
            "sys/fs/cgroup/memory.max": f"{2 * GiB}\n",
            "sys/fs/cgroup/memory.current": f"{GiB}\n",
        },
        GiB,
        id="v2-container",
    ),
    # v1: a file of its own for the memory controller
    pytest.param(
        {
            "proc/self/cgroup": "5:cpu:/x\n4:memory:/box\n0::/\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{5 * GiB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{2 * GiB}\n",
            "sys/fs/cgroup/memory/box/memory.stat": f"total_inactive_file {GiB}\n",
        },
        4 * GiB,
        id="v1",
    ),
    # v1 without a limit: a number beyond all memory
    pytest.param(
        {
            "proc/self/cgroup": "4:memory:/box\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "1\n",
        },
        20_000_000 * 1024,
        id="v1-none",
    ),
    # used beyond its limit: nothing is free, and nothing is negative
    pytest.param(
        {
            "proc/self/cgroup": "0::/box\n",
            "sys/fs/cgroup/box/memory.max": f"{GiB}\n",
            "sys/fs/cgroup/box/memory.current": f"{2 * GiB}\n",
        },
        0,
        id="over",
    ),
    # lines that make no sense
    pytest.param({"proc/self/cgroup": "nonsense\n\n0\n"}, 20_000_000 * 1024, id="nonsense"),
]


@pytest.mark.parametrize(("files", "free"), CGROUPS)
def test_a_container_has_its_limit(tmp_path: Path, files: dict[str, str], free: int) -> None:
    """What a control group leaves is what is free, with its file as the source."""
    machine = probe(saying(), linux(tmp_path, {"proc/meminfo": MEMINFO, **files}))
    assert machine.ram_free_bytes == free
    limited = free != 20_000_000 * 1024
    assert ("/sys/fs/cgroup" in dict(machine.sources)["RAM"]) == limited


def test_memory_of_a_mac(tmp_path: Path) -> None:
    """On macOS: pages that can be had without swapping, Apple's bandwidth, swap."""
    machine = probe(saying(MTL_ROW), mac(tmp_path))
    assert machine.ram_free_bytes == (100_000 + 400_000 + 20_000 + 10_000) * 16_384
    assert machine.ram_total_bytes == 48 * GiB
    assert machine.swap_total_bytes - machine.swap_free_bytes == 512 * MiB
    assert machine.ram_bandwidth == APPLE_BANDWIDTH["Apple M4 Pro"] * 1e9


def dmi(*modules: Mapping[str, object]) -> dict[str, str]:
    """What udev keeps of the memory modules."""
    lines = ["I:123", "E:MEMORY_ARRAY_NUM_DEVICES=4"]
    for number, module in enumerate(modules):
        lines += [f"E:MEMORY_DEVICE_{number}_{name}={value}" for name, value in module.items()]
    return {"run/udev/data/+dmi:id": "\n".join(lines) + "\n"}


DDR4 = {"SIZE": 16 * GiB, "SPEED_MTS": 3600, "CONFIGURED_SPEED_MTS": 3200, "DATA_WIDTH": 64}
EMPTY = {"PRESENT": 0, "SIZE": 0, "LOCATOR": "DIMM 1"}
LPDDR5 = {"SIZE": 4 * GiB, "CONFIGURED_SPEED_MTS": 6400, "DATA_WIDTH": 16}


@pytest.mark.parametrize(
    ("modules", "gigabytes"),
    [
        ([DDR4, DDR4], 51.2),  # two channels at the speed that is set, not the one on the box
        ([DDR4, EMPTY], 25.6),  # one module is one channel
        ([DDR4] * 4, 51.2),  # four modules of a desktop share two channels
        ([DDR4] * 8, 204.8),  # a server has more
        ([LPDDR5] * 8, 102.4),  # a laptop's chips have narrow channels
        ([DDR4, {**DDR4, "CONFIGURED_SPEED_MTS": 2400}], 38.4),  # the slowest sets the pace
        ([{**DDR4, "CONFIGURED_SPEED_MTS": 0, "SPEED_MTS": 0}], None),  # a virtual machine
        ([{**DDR4, "CONFIGURED_SPEED_MTS": "fast"}], 28.8),  # nonsense is not a number
        ([], None),
    ],
)
def test_bandwidth_of_the_ram(
    tmp_path: Path, modules: list[Mapping[str, object]], gigabytes: float | None
) -> None:
    """What the firmware says of the modules, without root; unknown where it says nothing."""
    machine = probe(saying(), linux(tmp_path, {"proc/meminfo": MEMINFO, **dmi(*modules)}))
    assert machine.ram_bandwidth == (pytest.approx(gigabytes * 1e9) if gigabytes else None)
    assert ("MT/s" in dict(machine.sources)["memory bandwidth"]) == (gigabytes is not None)


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    """Without /proc and without commands, llama.cpp's view of the RAM is taken."""
    machine = probe(saying(), System("linux", "x86_64", tmp_path, nothing))
    assert (machine.ram_free_bytes, machine.ram_total_bytes) == (8 * GiB, 16 * GiB)


# --- devices -----------------------------------------------------------------------------------


def test_devices_as_the_engine_sees_them(tmp_path: Path) -> None:
    """Free memory is the engine's word, bandwidth is looked up, the CPU is not a device."""
    machine = probe(saying(CUDA_ROW), linux(tmp_path, {}))
    (device,) = machine.devices
    assert (device.name, device.kind, device.free_bytes) == ("CUDA0", "gpu", 23_982 * MiB)
    assert device.bandwidth == 936e9


def test_memory_of_its_own_or_shared(tmp_path: Path) -> None:
    """Metal and integrated GPUs share the RAM; a device behind RPC is somewhere else."""
    igpu = {**CUDA_ROW, "name": "Vulkan0", "backend": "Vulkan", "kind": "igpu"}
    rpc = {**CUDA_ROW, "name": "RPC0", "backend": "RPC[10.0.0.2:50052]", "description": "10.0.0.2"}
    machine = probe(saying(MTL_ROW, igpu, rpc), linux(tmp_path, {}))
    assert [device.kind for device in machine.devices] == ["remote", "unified"]
    assert machine.devices[0].bandwidth is None
    assert probe(saying(igpu), linux(tmp_path, {})).devices[0].kind == "unified"


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (["CUDA0", "CUDA1", "RPC0"], ["RPC0", "CUDA0", "CUDA1"]),  # the network comes first
        (["CUDA0", "Vulkan0"], ["CUDA0"]),  # one card, seen by two backends
        (["CUDA0", "igpu0"], ["CUDA0"]),  # an integrated GPU is left out beside a card
        (["igpu0", "RPC0"], ["RPC0", "igpu0"]),  # but not beside a server
        (["igpu0", "igpu1"], ["igpu0", "igpu1"]),
        ([], []),
    ],
)
def test_devices_in_llama_cpps_order(tmp_path: Path, rows: list[str], names: list[str]) -> None:
    """A tensor split goes by llama.cpp's own list of devices, so ours is the same."""
    kinds = {"igpu": {"kind": "igpu", "description": "AMD Radeon 780M", "backend": "Vulkan"}}
    given = [
        {**CUDA_ROW, "backend": name[:-1], "name": name, **kinds.get(name[:-1], {})}
        for name in rows
    ]
    found = probe(saying(*given), linux(tmp_path, {})).devices
    assert [device.name for device in found] == names


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("NVIDIA GeForce RTX 4070", 504),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 672),  # the longest name that fits decides
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 576),  # a laptop's is another card
        ("AMD Radeon RX 7900 XTX (RADV NAVI31)", 960),
        ("NVIDIA A100-SXM4-40GB", 1555),
        ("NVIDIA GeForce RTX 9999", None),
    ],
)
def test_bandwidth_by_name(tmp_path: Path, name: str, gigabytes: int | None) -> None:
    """Bandwidth is known for the very card, or not at all."""
    row = {**CUDA_ROW, "description": name}
    (device,) = probe(saying(row), linux(tmp_path, {})).devices
    assert device.bandwidth == (gigabytes * 1e9 if gigabytes else None)


NVIDIA_SMI = {
    "nvidia-smi --query-gpu=name --format=csv,noheader": "NVIDIA GeForce RTX 3090\n",
    "nvidia-smi": "| NVIDIA-SMI 560.35   Driver Version: 560.35   CUDA Version: 12.6 |",
}
OLD_SMI = {**NVIDIA_SMI, "nvidia-smi": "CUDA Version: 11.4"}
NEW_SMI = {**NVIDIA_SMI, "nvidia-smi": "CUDA Version: 13.1"}


@pytest.mark.parametrize(
    ("files", "answers", "name", "install"),
    [
        # the newest wheel that the driver runs
        (gpu("0x10de"), NVIDIA_SMI, "NVIDIA GeForce RTX 3090", "/whl/cu125"),
        (gpu("0x10de"), NEW_SMI, "NVIDIA GeForce RTX 3090", "/whl/cu130"),
        # a driver older than every wheel: compile
        (gpu("0x10de"), OLD_SMI, "NVIDIA GeForce RTX 3090", "CMAKE_ARGS=-DGGML_CUDA=on"),
        # a card, but no driver that answers
        (gpu("0x10de", "0x030200"), {}, "driver does not answer", "nvidia-smi"),
        # WSL shows no PCI device
        ({"dev/dxg": ""}, NVIDIA_SMI, "NVIDIA GeForce RTX 3090", "/whl/cu125"),
        (gpu("0x1002"), {}, "AMD GPU", "/whl/vulkan"),
        ({**gpu("0x1002"), "dev/kfd": "", "opt/rocm/x": ""}, {}, "AMD GPU", "/whl/rocm72"),
        (gpu("0x8086", at="0000:03:00.0"), {}, "Intel GPU", "/whl/vulkan"),  # an Arc card
    ],
)
def test_a_gpu_that_this_build_cannot_use(
    tmp_path: Path, files: dict[str, str], answers: dict[str, str], name: str, install: str
) -> None:
    """A GPU without a device in the engine is named, with the one line that changes it."""
    (unused,) = probe(saying(), linux(tmp_path, files, commands(answers))).unused
    assert name in unused.name
    assert install in unused.install
    assert unused.source


@pytest.mark.parametrize(
    "files",
    [
        {},
        gpu("0x8086", at="0000:00:02.0"),  # an integrated Intel GPU reads the same memory
        {  # an integrated AMD GPU has a little memory of its own
            **gpu("0x1002", at="0000:0b:00.0"),
            "sys/bus/pci/devices/0000:0b:00.0/mem_info_vram_total": f"{GiB // 2}\n",
        },
        gpu("0x10de", "0x040300"),  # the sound of a graphics card
        gpu("0x1234"),  # the picture of a virtual machine
        {"dev/dxg": ""},  # WSL without an NVIDIA card
    ],
)
def test_no_gpu_worth_a_word(tmp_path: Path, files: dict[str, str]) -> None:
    """What would not help is not mentioned."""
    assert probe(saying(), linux(tmp_path, files)).unused == ()


def test_a_gpu_that_is_used_is_not_unused(tmp_path: Path) -> None:
    """A card that the engine has is not reported a second time."""
    system = linux(tmp_path, gpu("0x10de"), commands(NVIDIA_SMI))
    assert probe(saying(CUDA_ROW), system).unused == ()


def test_a_card_behind_rpc_does_not_hide_ours(tmp_path: Path) -> None:
    """A device on another machine says nothing about the card in this one."""
    rpc = {**CUDA_ROW, "name": "RPC0", "backend": "RPC"}
    system = linux(tmp_path, gpu("0x10de"), commands(NVIDIA_SMI))
    assert len(probe(saying(rpc), system).unused) == 1


def test_apple_silicon_without_metal(tmp_path: Path) -> None:
    """A Mac whose build has no Metal gets Metal's line; an Intel Mac gets none."""
    (unused,) = probe(saying(), mac(tmp_path)).unused
    assert "Apple M4 Pro" in unused.name
    assert "/whl/metal" in unused.install
    assert probe(saying(MTL_ROW), mac(tmp_path)).unused == ()
    assert probe(saying(), mac(tmp_path, "x86_64")).unused == ()


# --- machines by name --------------------------------------------------------------------------


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_of_the_table(name: str) -> None:
    """Each has memory, cores, and a bandwidth for every device that it has."""
    machine = known_machine(name)
    assert machine.name == name
    assert 0 < machine.ram_free_bytes < machine.ram_total_bytes
    assert machine.ram_bandwidth
    assert all(device.bandwidth and device.free_bytes > 0 for device in machine.devices)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("RTX 3090", "3090"),
        ("rtx_4090", "4090"),
        ("NVIDIA RTX 4080", "4080"),
        ("3060-12G", "3060-12g"),
        ("3060", "3060-12g"),
        ("Mac Mini 32GB", "mac-mini-32"),
        ("mac-studio-64", "mac-studio-64"),
        ("cpu-32", "cpu-32"),
        ("7900XTX", "7900xtx"),
    ],
)
def test_names_as_people_type_them(typed: str, name: str) -> None:
    """Case, spaces, the maker's name and GB make no difference."""
    assert known_machine(typed).name == name


@pytest.mark.parametrize("name", ["", "3099", "mac-mini-20", "cpu", "cpu-0", "mac-mini-", "💻"])
def test_an_unknown_machine(name: str) -> None:
    """A name that is not in the table is an error that ends in one that is."""
    with pytest.raises(UsageError) as caught:
        known_machine(name)
    assert caught.value.hint.startswith("--machine ")


def test_metal_leaves_a_third_or_a_quarter() -> None:
    """Macs up to 32 GB give the GPU two thirds, larger ones three quarters (36 GB: 28,991 MB)."""
    sizes = {
        name: known_machine(name).devices[0].total_bytes / GiB
        for name in ("mac-mini-16", "mac-mini-24", "mac-mini-32", "mac-studio-36", "mac-studio-64")
    }
    assert [round(size, 1) for size in sizes.values()] == [10.7, 16.0, 21.3, 27.0, 48.0]


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("24G", 24 * GiB),
        ("24", 24 * GiB),
        ("11.5 GiB", int(11.5 * GiB)),
        ("8192M", 8 * GiB),
        (" 16gb ", 16 * GiB),
    ],
)
def test_sizes(text: str, n_bytes: int) -> None:
    """A number alone is gigabytes, which for memory are powers of two."""
    assert parse_size(text, "--ram") == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "G", "-1G", "1e9", "24 apples", "0x10", "24G,12G", "nan", "99999G", "1M", "٢٤G", "24\n12"],
)
def test_sizes_that_are_none(text: str) -> None:
    """What is not the size of a memory is refused, with an example to type."""
    with pytest.raises(UsageError) as caught:
        parse_size(text, "--ram")
    assert caught.value.hint == "--ram 24G"


def test_other_memory_on_a_machine() -> None:
    """--vram replaces the cards, --ram the RAM; 0 takes the cards away."""
    machine = with_memory(known_machine("3090"), "24G,12G", "64G")
    assert [round(device.total_bytes / GiB) for device in machine.devices] == [24, 12]
    assert machine.devices[1].bandwidth == 936e9  # as the card that is there
    assert machine.ram_total_bytes == 64 * GiB
    assert with_memory(known_machine("3090"), "0", None).devices == ()
    assert with_memory(known_machine("cpu-32"), "24G", None).devices[0].bandwidth is None


@pytest.mark.parametrize("vram", ["24G,", ",", "24G,nonsense", ",".join(["8G"] * 17)])
def test_cards_that_are_none(vram: str) -> None:
    """A list with a hole in it, or more cards than llama.cpp takes, is a slip."""
    with pytest.raises(UsageError):
        with_memory(known_machine("cpu-32"), vram, None)


def test_a_probe_that_speaks_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that is not the probe's is an error of ours, whatever it is."""
    for said in ("", "null", "[1]", "{broken", json.dumps("text")):
        monkeypatch.setattr(hardware, "run_limited", lambda command, limit, said=said: said)
        assert "error" in ask_engine()
