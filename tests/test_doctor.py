"""`qwq doctor`: each check on a world that has the fault, and a report without the person."""

from __future__ import annotations

import getpass
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import qwq
from gguf_files import write_qwq_shaped
from hub_server import HubServer
from hub_world import FILE, QWEN, World

from qwqcli import checkup
from qwqcli.checkup import Damaged, Folder, Later, Reached, Seen, Shelf
from qwqcli.config import Settings
from qwqcli.doctor import Check, anonymous, examine, exit_code
from qwqcli.hardware import INSTALL, GiB, Unused, card, known_machine, newest_cuda, wheel
from qwqcli.sessions import Store

HEALTHY = Seen(
    python=(3, 12, 1),
    system="Linux 6.8 x86_64",
    engine="0.3.36",
    machine=replace(known_machine("3090"), backends=("CUDA", "CPU"), driver="560.35"),
    self_check="fast",
    self_check_fix="",
    model_folder="/models",
    disk_free_bytes=100 * 10**9,
    folders=(Folder("config", "/config", ""), Folder("cache", "/cache", "")),
    sessions_problem="",
    settings=Settings(),
    settings_problem="",
    settings_fix="",
    built_in_problem="",
    hub=Reached("huggingface.co", 0.3),
    mirror=Reached("www.modelscope.cn", 0.9),
    token="valid",
    models=Shelf(1, 19_851_336_512, 2, (), read_through=False),
    encoding="utf-8",
    terminal=True,
    live=True,
    colour=True,
    columns=80,
    best="q4_k_m",
)


def only(checks: list[Check]) -> Check:
    """The one check that did not pass."""
    (check,) = [check for check in checks if check.status != "pass"]
    return check


def test_a_healthy_machine_passes() -> None:
    """Nothing to do: every check passes, and the exit code is 0."""
    checks = examine(HEALTHY)
    assert {check.status for check in checks} == {"pass"}
    assert not any(check.fix for check in checks)
    assert exit_code(checks) == 0


IDLE = replace(
    known_machine("cpu-64"),
    backends=("CPU",),
    unused=(Unused("NVIDIA GeForce RTX 3090", wheel("cu124"), "nvidia-smi"),),
)
BUSY = replace(
    known_machine("3090"),
    devices=(replace(card(0, 24 * GiB, "NVIDIA GeForce RTX 3090"), free_bytes=8 * GiB),),
)
BLIND = replace(known_machine("cpu-64"), backends=("CUDA", "CPU"), driver="550.54.14")
GONE = Reached("huggingface.co", None, "it is gone")
MUTE = replace(known_machine("cpu-64"), problems=("llama.cpp could not be asked: code -11",))
SWAPPING = replace(known_machine("3090"), swap_total_bytes=8 * GiB, swap_free_bytes=GiB)
SMALL = replace(known_machine("cpu-16"), ram_free_bytes=4 * GiB)

FAULTS = [  # the fault, the check that finds it, how bad it is, words of the detail, the fix
    (replace(HEALTHY, python=(3, 9, 2)), "python", "fail", "3.9.2", "3.10"),
    (replace(HEALTHY, engine=""), "engine", "fail", "not installed", "pip install"),
    (replace(HEALTHY, machine=MUTE), "engine", "fail", "code -11", "pip install"),
    (
        replace(HEALTHY, self_check="it dies", self_check_fix="do it"),
        "self-check",
        "fail",
        "it dies",
        "do it",
    ),
    (replace(HEALTHY, built_in_problem="cut"), "built-in model", "fail", "cut", "pip install"),
    (replace(HEALTHY, machine=IDLE), "gpu", "fail", "an RTX 3090", "/whl/cu124"),
    (replace(HEALTHY, machine=BUSY), "gpu", "warn", "another program", "nvidia-smi"),
    (replace(HEALTHY, machine=SWAPPING), "swap", "warn", "7.0 GiB of 8.0", "Close"),
    (replace(HEALTHY, machine=SMALL), "memory", "warn", "too little", "Close"),
    (replace(HEALTHY, disk_free_bytes=10**10), "disk", "warn", "10.0 GB", "HF_HOME"),
    (replace(HEALTHY, disk_free_bytes=None), "disk", "fail", "does not answer", "HF_HOME"),
    (
        replace(HEALTHY, settings_problem="bad YAML", settings_fix="Mend it"),
        "settings",
        "fail",
        "bad YAML",
        "Mend it",
    ),
    (
        replace(HEALTHY, folders=(Folder("data", "/data", "Permission denied"),)),
        "data",
        "fail",
        "Permission denied",
        "chmod",
    ),
    (
        replace(HEALTHY, machine=replace(HEALTHY.machine, driver="390.157")),
        *("driver", "fail", "390.157 older than 450", "nvidia.com"),
    ),
    (replace(HEALTHY, machine=BLIND), "driver", "fail", "finds no card CUDA 12", "/whl/cu125"),
    (
        replace(HEALTHY, settings=Settings(gpu_layers=0)),
        *("use", "warn", "gpu_layers CUDA0 idle", "QWQ_GPU_LAYERS"),
    ),
    (
        replace(HEALTHY, settings=Settings(device="none")),
        *("use", "warn", "device CUDA0 idle", "QWQ_DEVICE"),
    ),
    (
        replace(HEALTHY, settings=Settings(threads=1)),
        *("use", "warn", "threads is 1 8 cores", "QWQ_THREADS"),
    ),
    (replace(HEALTHY, hub=GONE), "hub", "warn", "huggingface.co: it is gone", "modelscope"),
    (replace(HEALTHY, hub=GONE, mirror=GONE), "hub", "warn", "it is gone", "proxies"),
    (replace(HEALTHY, token="refused"), "token", "fail", "not valid", "hf auth login"),
    (
        replace(HEALTHY, models=Shelf(1, 9, 0, (Damaged("o/m:Q8_0", "cut", True),), True)),
        *("models", "fail", "o/m:Q8_0: cut", "qwq pull o/m:Q8_0"),
    ),
    (
        replace(HEALTHY, models=Shelf(1, 9, 0, (Damaged("mine", "cut", False),), True)),
        *("models", "fail", "mine: cut", "qwq rm mine"),
    ),
    (replace(HEALTHY, models=None), "models", "fail", "do not answer", "HF_HOME"),
    (
        replace(HEALTHY, sessions_problem="file is not a database"),
        *("sessions", "fail", "not a database", "sessions.db"),
    ),
    (replace(HEALTHY, sessions_problem=None), "sessions", "fail", "disk", "QWQ_DATA_DIR"),
    (replace(HEALTHY, encoding="ascii"), "terminal", "warn", "ascii", "LANG"),
    (replace(HEALTHY, best=None), "QwQ-32B", "warn", "no quantization", "qwq plan"),
    (replace(HEALTHY, best="iq2_xs"), "QwQ-32B", "warn", "errs", "qwq plan"),
]


@pytest.mark.parametrize(("seen", "name", "status", "words", "fix"), FAULTS)
def test_each_fault_is_found(seen: Seen, name: str, status: str, words: str, fix: str) -> None:
    """One fault gives one check that is not passed, and what to type."""
    check = only(examine(seen))
    assert (check.name, check.status) == (name, status)
    assert all(word in check.detail for word in words.removeprefix("an ").split())
    assert fix in check.fix
    assert exit_code([check]) == (status == "fail")


def test_what_the_machine_could_do_is_compared_with_what_it_does() -> None:
    """A card that lies idle: its name, what the build is for, and the line that changes it."""
    check = only(examine(replace(HEALTHY, machine=IDLE)))
    assert "RTX 3090 was found" in check.detail
    assert "for CPU alone" in check.detail
    assert check.fix.startswith("pip install ")


def test_safe_is_not_a_fault() -> None:
    """An engine that works without repacked weights works."""
    assert exit_code(examine(replace(HEALTHY, self_check="safe"))) == 0


@pytest.mark.parametrize("backend", INSTALL)
def test_install_lines_replace_the_build(backend: str) -> None:
    """Every line really reinstalls: pip would otherwise keep the build or its cached wheel."""
    line = INSTALL[backend]
    assert "--force-reinstall" in line
    assert "--no-cache-dir" in line
    assert "llama-cpp-python" in line


def test_a_report_does_not_name_the_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """Home is ~ and the user's name is taken out of other paths; words stay as they are."""
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    check = Check("x", "fail", "/home/ada/models and /media/ada/disk, ada or Canada", "ls /srv/ada")
    assert anonymous(check).detail == "~/models and /media/<user>/disk, ada or Canada"
    assert anonymous(check).fix == "ls /srv/<user>"
    other = Check("x", "fail", "/home/ada-data, /home/ada.old and /home/ada: '/home/ada'", "")
    assert anonymous(other).detail == "/home/ada-data, /home/ada.old and ~: '~'"
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert anonymous(Check("x", "fail", "/proc/meminfo", "")).detail == "/proc/meminfo"


def test_a_disk_that_hangs_is_an_answer() -> None:
    """A question to a dead network disk ends at its limit."""
    began = time.monotonic()
    assert Later(lambda: time.sleep(5)).answer(0.1) is None
    assert time.monotonic() - began < 2


def test_folders_that_are_not_there_are_fine(tmp_path: Path) -> None:
    """What can be made is as good as what is there, and nothing is made by looking."""
    wanted = tmp_path / "a" / "b"
    assert checkup._folder("data", wanted).problem == ""
    assert list(tmp_path.iterdir()) == []
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert checkup._folder("data", blocked / "b").problem


def test_this_machine(environ: dict[str, str]) -> None:
    """On the machine that runs the tests: every check has a line, and no secret is shown."""
    _, out, err = qwq("doctor", environ={**environ, "HF_TOKEN": "hf_secret"})
    names = ("python", "engine", "self-check", "gpu", "memory", "disk", "models", "hub", "settings")
    names += ("sessions", "terminal")
    assert all(any(name in line for line in out.splitlines()) for name in names)
    assert "hf_secret" not in out + err
    assert "\x1b" not in out


def test_json(environ: dict[str, str]) -> None:
    """The same as values, one object for each check."""
    _, out, _ = qwq("doctor", "--json", environ=environ)
    checks = json.loads(out)["checks"]
    assert all(tuple(check) == ("name", "status", "detail", "fix") for check in checks)
    assert all(check["fix"] for check in checks if check["status"] != "pass")


def test_broken_settings_are_a_check(environ: dict[str, str]) -> None:
    """A settings file that cannot be read fails one check; the others are still made."""
    folder = Path(environ["QWQ_CONFIG_DIR"])
    folder.mkdir()
    (folder / "config.yaml").write_text("thinking: [")
    code, out, _ = qwq("doctor", environ=environ)
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith("fail  settings")]
    assert "self-check" in out


# --- the network, and models on disk -----------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, cache: Path) -> Iterator[World]:
    """A hub with one model that was pulled from it."""
    with HubServer(token="hf_right") as server:
        world = World(server, tmp_path)
        shape = write_qwq_shaped(tmp_path / "small.gguf", layers=1, vocab=1024)
        file = bytes(shape.read_bytes()[: 1 << 20])  # most of it is not there, as after a crash
        world.server.add(QWEN, {FILE: file})
        world.pulled()
        yield world


def checks(world: World, cache: Path, *argv: str, **more: str) -> dict[str, Any]:
    """The checks of `qwq doctor` by name, for the person of this world."""
    environ = {**world.environ, "QWQ_CACHE_DIR": str(cache), **more}
    _, out, err = qwq("doctor", "--json", *argv, environ=environ)
    assert "hf_" not in out + err
    return {check["name"]: check for check in json.loads(out)["checks"]}


def test_sources_are_asked(world: World, cache: Path) -> None:
    """Both are asked for the repository of QwQ's makers, and say how long they took."""
    found = checks(world, cache)
    assert re.fullmatch(r"127\.0\.0\.1 answers in \d+\.\d s", found["hub"]["detail"])
    assert found["mirror"]["detail"].startswith("localhost answers")
    requests = len(world.server.log)
    assert checks(world, cache, "--offline")["hub"]["detail"] == "not asked (offline)"
    assert len(world.server.log) == requests


def test_a_hub_that_is_gone(world: World, cache: Path) -> None:
    """The other source is what to type; nothing fails, for models that are here still run."""
    found = checks(world, cache, HF_ENDPOINT="http://127.0.0.1:9")
    assert (found["hub"]["status"], found["hub"]["fix"]) == ("warn", "qwq pull --source modelscope")


@pytest.mark.parametrize(
    ("token", "status"), [("hf_right", "pass"), ("hf_wrong", "fail"), ("", "pass")]
)
def test_a_token_is_tried_and_never_shown(
    world: World, cache: Path, monkeypatch: pytest.MonkeyPatch, token: str, status: str
) -> None:
    """Whether the hub takes it is all that is said; nor is the person named whom it belongs to."""
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HOME", str(world.home))
    found = checks(world, cache)
    assert found["token"]["status"] == status
    assert "a-person" not in json.dumps(found)


def test_a_model_that_lost_bytes_is_found(world: World, cache: Path) -> None:
    """A file whose header promises more than is there, and one that is shorter than it was."""
    assert checks(world, cache)["models"]["status"] == "fail"
    (path,) = world.hub().models()[0].paths
    with path.resolve().open("r+b") as file:
        file.truncate(1000)
    found = checks(world, cache)["models"]
    assert "1,000 bytes instead of 1,048,576" in found["detail"]
    assert found["fix"] == f"qwq pull {QWEN}:Q4_K_M"


def test_deep_reads_every_byte(tiny: Path, tmp_path: Path, cache: Path) -> None:
    """One flipped bit passes the quick look and not the deep one; a pull then mends it."""
    with HubServer() as server:
        world = World(server, tmp_path)
        world.server.add(QWEN, {FILE: tiny.read_bytes()})
        path = world.pulled().paths[0].resolve()
        assert "intact" in checks(world, cache, "--deep")["models"]["detail"]
        with path.open("r+b") as file:
            file.seek(-9, 2)
            byte = file.read(1)
            file.seek(-9, 2)
            file.write(bytes([byte[0] ^ 1]))
        assert checks(world, cache)["models"]["status"] == "pass"
        found = checks(world, cache, "--deep")["models"]
        assert (found["status"], found["fix"]) == ("fail", f"qwq pull {QWEN}:Q4_K_M")
        world.pulled()
        assert "intact" in checks(world, cache, "--deep")["models"]["detail"]


def test_sessions_that_are_no_database(environ: dict[str, str]) -> None:
    """The file is looked at without being changed."""
    path = Path(environ["QWQ_DATA_DIR"]) / "sessions.db"
    Store(path).close()
    assert "sessions       can be read" in qwq("doctor", environ=environ).out
    path.write_bytes(b"no database at all, and long enough to be looked at" * 100)
    code, out, _ = qwq("doctor", environ=environ)
    assert code == 1
    assert "not a database" in out
    assert path.read_bytes().startswith(b"no database")


@pytest.mark.parametrize(
    ("driver", "cuda"), [("390.157", None), ("470.82", 11), ("525.60.13", 12), ("581.2", 13)]
)
def test_what_a_driver_runs(driver: str, cuda: int | None) -> None:
    """By NVIDIA's own table of the oldest driver for each version of CUDA."""
    assert newest_cuda(driver) == cuda
