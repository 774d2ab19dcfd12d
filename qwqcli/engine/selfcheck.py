"""Is this build of llama.cpp to be trusted on this CPU? Found out once, in processes that may die.

A stock build can kill the process on its first decode: compiled with gcc 12 on a CPU with AMX, the
repacked matrix product runs with a half-written tile configuration. So before a build is used, a
child answers a sum with the built-in model, in quantizations that take different code paths. If it
dies, hangs or is wrong, the next safer setting is tried. The first that works is remembered for
this version, build and CPU, in `selfcheck.json` of the cache folder.

Not here: GPUs (a plan's business) and crashes later on (process.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path

from qwqcli import atomic
from qwqcli.builtin import model_path
from qwqcli.engine import EngineSpec
from qwqcli.errors import EngineError
from qwqcli.messages import Answer, Message, Sampling

QUESTION, RIGHT_ANSWER = "What is 47 + 86?", "133"
# enum llama_ftype: Q4_0 and the K-quants are repacked by code of their own
QUANTIZATIONS = {"Q4_0": 2, "Q4_K_M": 15}
TIME_LIMIT_S = 20.0  # a sound machine needs less than one second

REINSTALL = (
    "CMAKE_ARGS=-DGGML_NATIVE=off pip install --force-reinstall --no-cache-dir llama-cpp-python"
)


def trusted(spec: EngineSpec, cache: Path) -> tuple[EngineSpec, tuple[str, ...]]:
    """`spec` with settings that work here, and what the person should know of it.

    Raises EngineError if no setting works.
    """
    file = cache / "selfcheck.json"
    build = fingerprint()
    extra_bufts = _remembered(file, build)
    if extra_bufts is not None:
        return replace(spec, extra_bufts=spec.extra_bufts and extra_bufts), ()
    extra_bufts = _first_that_works()
    notices = _remember(file, build, extra_bufts)
    return replace(spec, extra_bufts=spec.extra_bufts and extra_bufts), notices


def fingerprint() -> str:
    """What a verdict holds for: library version, the very build, interpreter and CPU."""
    facts = [metadata.version("llama-cpp-python"), sys.version, platform.machine(), _cpu()]
    for library in sorted(_library_folder().glob("*ggml*")):
        stat = library.stat()
        facts.append(f"{library.name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def attempt(extra_bufts: bool) -> str:
    """Why this setting does not work here, in a few words; empty if it does."""
    command = [sys.executable, "-m", __name__, str(int(extra_bufts))]
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIME_LIMIT_S,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {TIME_LIMIT_S:.0f} s"
    if child.returncode:
        return f"the process ended with {child.returncode}: {_last_line(child.stderr)}"
    return child.stdout.decode("utf-8", "replace").strip()


def _first_that_works() -> bool:
    """The value of `extra_bufts` to use, the fast one first."""
    for extra_bufts in (True, False):
        reason = attempt(extra_bufts)
        if not reason:
            return extra_bufts
    raise EngineError(
        f"This build of llama.cpp does not work on this machine: {reason}.", REINSTALL
    )


def _remembered(file: Path, build: str) -> bool | None:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return bool(known["extra_bufts"]) if known["build"] == build else None
    except (OSError, ValueError, KeyError, TypeError):  # none, or not ours: check again
        return None


def _remember(file: Path, build: str, extra_bufts: bool) -> tuple[str, ...]:
    """Keep the verdict; returns a notice if that is not possible."""
    text = json.dumps({"build": build, "extra_bufts": extra_bufts})
    try:
        atomic.write_text(file, text)
    except OSError as error:
        return (
            f"{file.parent} cannot be written ({error.strerror}), so the engine is checked again"
            " at every start.",
        )
    return ()


def _library_folder() -> Path:
    spec = util.find_spec("llama_cpp")  # without importing it, which takes 140 ms
    if spec is None or spec.origin is None:
        raise EngineError("llama-cpp-python is not installed.", "pip install llama-cpp-python")
    return Path(spec.origin).parent / "lib"


def _cpu() -> str:
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "stepping", "CPU part")
    return "\n".join(line for line in first.splitlines() if line.startswith(wanted))


def _last_line(output: bytes) -> str:
    return (output.decode("utf-8", "replace").strip().splitlines() or ["no output"])[-1]


def _check(extra_bufts: bool) -> str:
    """In the child: answer the sum in each quantization; what was wrong, empty if nothing."""
    with tempfile.TemporaryDirectory(prefix="qwq-") as folder:
        for name, path in _variants(Path(folder)):
            answer = _answer(EngineSpec(str(path), n_ctx=512, extra_bufts=extra_bufts))
            if RIGHT_ANSWER not in answer:
                return f"in {name} it says {answer.strip()!r} to {QUESTION!r}"
    return ""


def _variants(folder: Path) -> Iterator[tuple[str, Path]]:
    from qwqcli.engine.native import quantize

    yield "Q8_0", model_path()
    for name, ftype in QUANTIZATIONS.items():
        path = folder / f"{name}.gguf"
        quantize(model_path(), path, ftype, threads=2)
        yield name, path


def _answer(spec: EngineSpec) -> str:
    from qwqcli.engine.llama import LlamaEngine

    engine = LlamaEngine(spec)
    greedy = Sampling(temperature=0, max_tokens=256)
    events = engine.stream([Message("user", QUESTION)], greedy)
    answer = "".join(event.text for event in events if isinstance(event, Answer))
    engine.close()
    return answer


if __name__ == "__main__":
    print(_check(extra_bufts=sys.argv[1] == "1"))
