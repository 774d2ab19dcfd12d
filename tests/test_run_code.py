"""Code from a model: it is tried only on request, and cannot do what it need not do."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

import pytest

from qwqcli import checkers
from qwqcli.checkers import code

pytestmark = pytest.mark.skipif(os.name != "posix", reason="code is not run on this system")
CONFINED = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
linux = pytest.mark.skipif(not CONFINED, reason="seccomp and Landlock are Linux's")
CHECKER = checkers.make("code", "assert f(2) == 4, 'f(2) is not 4'", {"entry": "f"})


def tried(program: str) -> checkers.Verdict:
    """The verdict on an answer with this program."""
    return checkers.check(CHECKER, f"Here:\n```python\n{program}\n```", run_code=True)


def test_code_is_not_run_unasked(tmp_path: Path) -> None:
    """Without --run-code nothing is run and nothing is judged."""
    trace = tmp_path / "trace"
    program = f"open({str(trace)!r}, 'w')\ndef f(x): return 4"
    verdict = checkers.check(CHECKER, f"```python\n{program}\n```")
    assert verdict.right is None
    assert not trace.exists()


HONEST = {
    "plain": "def f(x): return 2 * x",
    "asyncio": """
import asyncio
async def g(x): return 2 * x
def f(x): return asyncio.run(g(x))""",
    "thread": """
import threading
found = []
def f(x):
    thread = threading.Thread(target=found.append, args=(2 * x,))
    thread.start()
    thread.join()
    return found[0]""",
    "dataclass": """
import dataclasses
@dataclasses.dataclass
class P: x: int
def f(x): return 2 * P(x).x""",
    "own file": """
import tempfile
def f(x):
    with tempfile.TemporaryFile() as file:
        return file.write(b"abcd")""",
}


@pytest.mark.parametrize("program", HONEST.values(), ids=HONEST)
def test_honest_code_works(program: str) -> None:
    """Loops, threads, dataclasses and files of its own are all allowed."""
    assert tried(program.strip()).right is True


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("def f(x): return x", "f(2) is not 4"),
        ("def f(x): return 1 / 0", "ZeroDivisionError"),
        ("def f(x): return 4\nimport sys\nsys.exit(0)", "code 0"),
        ("def f(x): return 4\nimport os\nos._exit(0)", "code 0"),
        ("def f(x): return 4\nopen('a', 'w').write('x' * (3 << 20))", "too large"),
        ("def f(x): return 4\nwhile True: print('x' * 999)", "too large"),
        (
            "def f(x): return 4\nfor n in range(99): open(str(n), 'w').write('x' * (1 << 19))\n"
            "import time\ntime.sleep(60)",
            "files are larger",
        ),
    ],
    ids=["wrong", "raises", "leaves", "leaves hard", "file", "output", "files"],
)
def test_bad_code_is_wrong(program: str, told: str) -> None:
    """Code that fails, leaves early or fills the disk is wrong, and the verdict says how."""
    verdict = tried(program)
    assert verdict.right is False
    assert told in verdict.why


def test_code_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code has a time limit."""
    monkeypatch.setattr(code, "TIME_LIMIT_S", 1.0)
    assert "did not end" in tried("def f(x): return 4\nwhile True: pass").why


@linux
@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import os\nwhile True: os.fork()", "PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "PermissionError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))", "PermissionError"),
        ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
        ("import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))", "not allowed"),
        ("x = 'x' * (3 << 30)", "MemoryError"),
    ],
    ids=["fork", "program", "network", "signal", "limits", "memory"],
)
def test_code_is_confined(program: str, told: str) -> None:
    """No process, no program, no network, no signal and no more memory."""
    verdict = tried(f"def f(x): return 4\n{program}")
    assert verdict.right is False
    assert told in verdict.why


@linux
def test_code_reaches_no_files_of_the_person(tmp_path: Path) -> None:
    """A file outside of its folder can neither be read nor written nor removed."""
    if ctypes.CDLL(None).syscall(444, None, 0, 1) < 1:  # landlock_create_ruleset: its version
        pytest.skip("this kernel has no Landlock")
    secret = tmp_path / "secret"
    secret.write_text("mine")
    for action in ("print(open({}).read())", "open({}, 'w')", "__import__('os').remove({})"):
        program = f"def f(x): return 4\n{action.format(repr(str(secret)))}"
        assert "PermissionError" in tried(program).why
    assert secret.read_text() == "mine"
