"""How soon is qwq there? `qwq --help` beside `llm --help`, and the first key that chat accepts.

    python benchmarks/start.py [--rounds 7] [--model PATH]

The key: from the start of `qwq chat` in a pseudo-terminal until a typed character is echoed by the
prompt, sent again every 5 ms. Give a large model to see that its size does not matter.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pexpect
from common import pairs, report


def help_time(command: str) -> float:
    """Seconds of wall time of `command --help`."""
    executable = Path(sys.executable).with_name(command)
    began = time.perf_counter()
    subprocess.run([executable, "--help"], capture_output=True, check=True)
    return time.perf_counter() - began


def first_key(model: str) -> float:
    """Seconds until `qwq chat` shows a key that was typed."""
    executable = str(Path(sys.executable).with_name("qwq"))
    began = time.perf_counter()
    child = pexpect.spawn(executable, ["chat", "--model", model], env=os.environ, timeout=20)
    try:
        child.setecho(False)  # what comes back then is the prompt's own echo
        child.delaybeforesend = None
        while True:
            child.send("~")
            if child.expect([r"~", pexpect.TIMEOUT], timeout=0.005) == 0:
                return time.perf_counter() - began
    finally:
        child.close(force=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    helps = pairs(lambda: help_time("qwq"), lambda: help_time("llm"), args.rounds)
    report("qwq --help over llm --help", helps, "s", "<= 0.25")
    first_key(args.model)
    keys = [first_key(args.model) for _ in range(args.rounds)]
    print(
        f"first key in qwq chat: median {statistics.median(keys):.3f} s"
        f" ({min(keys):.3f} to {max(keys):.3f}, n={len(keys)}); goal <= 0.4"
    )


if __name__ == "__main__":
    main()
