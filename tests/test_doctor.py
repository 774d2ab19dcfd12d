"""`qwq doctor`: each check on a world that has the fault, and a report without the person."""

from __future__ import annotations

import getpass
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import qwq

from qwqcli import doctor
from qwqcli.doctor import Check, Folder, Seen, anonymous, examine, exit_code
from qwqcli.hardware import INSTALL, GiB, Unused, card, known_machine, wheel

HEALTHY = Seen(
    python=(3, 12, 1),
    system="Linux 6.8 x86_64",
    engine="0.3.36",
    machine=replace(known_machine("3090"), backends=("CUDA", "CPU")),
    self_check="fast",
    self_check_fix="",
    model_folder="/models",
    disk_free_bytes=100 * 10**9,
    folders=(Folder("config", "/config", ""), Folder("cache", "/cache", "")),
    settings_problem="",
    settings_fix="",
    built_in_problem="",
    encoding="utf-8",
    terminal=True,
    live=True,
    colour=True,
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


def test_a_disk_that_hangs_is_an_answer() -> None:
    """A question to a dead network disk ends at its limit."""
    began = time.monotonic()
    assert doctor._within(0.1, lambda: time.sleep(5)) is None
    assert time.monotonic() - began < 2


def test_folders_that_are_not_there_are_fine(tmp_path: Path) -> None:
    """What can be made is as good as what is there, and nothing is made by looking."""
    wanted = tmp_path / "a" / "b"
    assert doctor._folder("data", wanted).problem == ""
    assert list(tmp_path.iterdir()) == []
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert doctor._folder("data", blocked / "b").problem


def test_this_machine(environ: dict[str, str]) -> None:
    """On the machine that runs the tests: every check has a line, and no secret is shown."""
    _, out, err = qwq("doctor", environ={**environ, "HF_TOKEN": "hf_secret"})
    names = ("python", "engine", "self-check", "gpu", "memory", "disk", "settings", "terminal")
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
