"""What the machine has. So far: the cores worth a thread.

Every fact is asked of the system with no waiting: nothing here can hang.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_SYSCTL_LIMIT_S = 2.0


def physical_cores() -> int:
    """Cores that this process may use, hyper-threads and efficiency cores not counted.

    Token generation waits for memory: a second thread on the same core only gets in the way.
    """
    return (_darwin_cores() if sys.platform == "darwin" else _linux_cores()) or os.cpu_count() or 1


def _linux_cores() -> int:
    """Distinct sets of sibling threads among the CPUs that the scheduler allows; 0 if unknown."""
    try:
        allowed = os.sched_getaffinity(0)
        siblings = {
            (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in allowed
        }
    except (AttributeError, OSError):  # not Linux, or a container that hides the topology
        return 0
    return len(siblings)


def _darwin_cores() -> int:
    """Performance cores of Apple silicon, all cores of an Intel Mac; 0 if unknown."""
    for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
        try:
            answer = subprocess.run(
                ["sysctl", "-n", name], capture_output=True, timeout=_SYSCTL_LIMIT_S, check=True
            )
            return int(answer.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            continue
    return 0
