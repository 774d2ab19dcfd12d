"""Code in an answer, tried by tests in a process of its own. Run only if a person asks for it.

Contract: the last fenced Python block that defines `entry` is run, then the tests, in a child that
confines itself (confine.py) in a throwaway folder. Wall clock, processor time, memory, output and
files have limits; whatever happens there, the verdict comes within TIME_LIMIT_S and a bit.
Limits: see confine.py for what that does not protect from. On Windows nothing is run.
"""

from __future__ import annotations

import ast
import json
import os
import secrets
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import qwqcli.checkers.confine as confine
from qwqcli.checkers.verdict import Verdict, code_blocks

TIME_LIMIT_S = 10.0
FOLDER_BYTES = 16 << 20  # all files together; confine.FILE_BYTES is for each
POLL_S = 0.02


@dataclass(frozen=True)
class Code:
    """Right if the Python code in the answer defines `entry` and passes the tests in `expected`.

    The tests see all names of the code, use `assert`, and pass if nothing is raised.
    """

    expected: str
    entry: str

    def __post_init__(self) -> None:
        if not self.entry.isidentifier():
            raise ValueError(f"entry must be the name of a function or class, not {self.entry!r}")
        try:
            compile(self.expected, "tests", "exec")
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"the tests in expected are not Python: {error}") from error

    def judge(self, answer: str) -> Verdict:
        """Run the code of the answer. Only for who allowed it: `checkers.check` asks."""
        code = find_code(answer, self.entry)
        if code is None:
            return Verdict(False, "", f"no Python code in the answer defines {self.entry}")
        if os.name != "posix":
            return Verdict(None, "", "code is not run on this system, which cannot confine it")
        with tempfile.TemporaryDirectory(prefix="qwq-code-", ignore_cleanup_errors=True) as folder:
            why = _run(code, self.expected, Path(folder))
        return Verdict(not why, f"{len(code.splitlines())} lines of code", why)


def find_code(answer: str, entry: str) -> str | None:
    """The last block of Python in an answer that defines `entry`, or the answer if it is code."""
    blocks = [text for language, text in code_blocks(answer) if language in _PYTHON]
    for text in reversed(blocks or [answer]):
        text = textwrap.dedent(text)
        if entry in _defined(text):
            return text
    return None


_PYTHON = ("", "py", "python", "python3")


def _defined(code: str) -> set[str]:
    """The names that a module defines at its top; none if it is no Python."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names = {n.name for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    names |= {n.name for n in body if isinstance(n, ast.ClassDef)}
    targets = [target for n in body if isinstance(n, ast.Assign) for target in n.targets]
    return names | {target.id for target in targets if isinstance(target, ast.Name)}


def _run(code: str, tests: str, folder: Path) -> str:
    """Why the code fails its tests; empty if it passes."""
    work, passed = folder / "work", secrets.token_hex(8)
    work.mkdir()
    request = {"code": code, "tests": tests, "passed": passed, "seconds": TIME_LIMIT_S}
    (folder / "request").write_text(json.dumps(request), encoding="utf-8")
    with (
        (folder / "request").open("rb") as requests,
        (folder / "out").open("wb") as out,
        (folder / "err").open("wb") as err,
    ):
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(Path(confine.__file__))],
            stdin=requests,
            stdout=out,
            stderr=err,
            cwd=work,
            env={"HOME": str(work), "TMPDIR": str(work), "PATH": os.defpath, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        ended = _watch(process, work)
    said = (folder / "out").read_bytes()[-4096:].decode("utf-8", "replace").split()
    if not ended and process.returncode == 0 and said[-1:] == [passed]:
        return ""
    return ended or _last_line(folder / "err") or f"it ended with code {process.returncode}"


def _watch(process: subprocess.Popen[bytes], work: Path) -> str:
    """Wait for the end, and bring it about where a limit is passed; why it did."""
    deadline = time.monotonic() + TIME_LIMIT_S
    why = ""
    try:
        while process.poll() is None and not why:
            time.sleep(POLL_S)
            if time.monotonic() > deadline:
                why = f"it did not end within {TIME_LIMIT_S:g} s"
            elif _size(work) > FOLDER_BYTES:
                why = f"its files are larger than {FOLDER_BYTES >> 20} MiB"
    finally:
        process.kill()  # also on Ctrl-C
        process.wait()
    return why


def _size(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder, onerror=None):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_size + 4096
            except OSError:  # it is gone again
                continue
    return total


def _last_line(path: Path) -> str:
    text = path.read_bytes()[-4096:].decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
