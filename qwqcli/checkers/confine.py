"""The program of the child that runs a model's code: first it gives up what it need not have.

It uses the standard library alone and is started by its path (`python -I -B confine.py`), in a
folder made for it, with a JSON object on stdin: `code`, `tests`, `passed`, `seconds`.

What holds: processor time, memory, the size of each file and of the output (resource limits, any
Unix); on Linux (x86-64, aarch64) no sockets but pairs within the process, no other programs, no
forks, no signals to others (a seccomp filter), and since Linux 5.13 no file outside of its folder
can be written, and none read outside of Python and the system's libraries (Landlock).
What does not: this is not a virtual machine. A hole in the kernel is a hole here; code that wants
to can see that it is being tested and cheat; on macOS the network stays open and files can be
read and written as far as the person may. Code from a model that you distrust belongs into a
container or a virtual machine.
Sources: seccomp(2), landlock(7), Linux's asm/unistd.h of both machines.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import sys
import types

MEMORY_BYTES, FILE_BYTES, OPEN_FILES = 1 << 30, 1 << 20, 64

# system calls that are refused, as (x86-64, aarch64); -1: this machine lacks it
_REFUSED = {
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept4": (288, 242),
    "fork": (57, -1),
    "vfork": (58, -1),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "mount": (165, 40),
    "umount2": (166, 39),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
}
_CLONE, _CLONE3, _CLONE_THREAD = (56, 220), (435, 435), 0x10000
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # AUDIT_ARCH_*
_EPERM, _ENOSYS = 1, 38


def confine(folder: str, seconds: float) -> list[str]:
    """Give up what is not needed; returns what could be given up: limits, network, files."""
    held = []
    if _limit(seconds):
        held.append("limits")
    if sys.platform == "linux" and platform.machine() in _ARCHITECTURES:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, which both of these need
        if _keep_to_files(libc, folder):
            held.append("files")
        if _refuse_calls(libc):
            held.append("network")
    return held


def _limit(seconds: float) -> bool:
    if sys.platform == "win32":
        return False
    import resource

    whole = int(seconds) + 1
    limits = {
        "RLIMIT_CPU": whole,
        "RLIMIT_AS": MEMORY_BYTES,
        "RLIMIT_DATA": MEMORY_BYTES,
        "RLIMIT_FSIZE": FILE_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0,
    }
    if sys.platform != "linux":  # there threads count as well, and seccomp does it better
        limits["RLIMIT_NPROC"] = 0
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, ValueError, OSError):  # macOS does not limit the address space
            continue
    return True


def _refuse_calls(libc: ctypes.CDLL) -> bool:
    """Install a seccomp filter; a refused call fails with EPERM, as if it were not permitted."""
    column, architecture = _ARCHITECTURES[platform.machine()]
    refused = sorted({numbers[column] for numbers in _REFUSED.values()} - {-1})
    load, equal, above, all_bits, back = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, fail, kill = 0x7FFF0000, 0x00050000, 0x80000000
    clone = _CLONE[column]
    program = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 1, 0, architecture),
        (back, 0, 0, kill),
        (load, 0, 0, 0),  # seccomp_data.nr
        (above, 0, 1, 0x40000000),  # the x32 numbers of x86-64
        (back, 0, 0, fail | _EPERM),
        (equal, 0, 1, _CLONE3[column]),  # its flags are in memory: make libc use clone
        (back, 0, 0, fail | _ENOSYS),
        (equal, 0, 4, clone),
        (load, 0, 0, 16),  # the low half of its first argument, the flags
        (all_bits, 0, 1, _CLONE_THREAD),
        (back, 0, 0, allow),
        (back, 0, 0, fail | _EPERM),
    ]
    for number in refused:
        program += [(equal, 0, 1, number), (back, 0, 0, fail | _EPERM)]
    program.append((back, 0, 0, allow))
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))  # struct sock_fprog
    filter_ = ctypes.create_string_buffer(header, len(header))
    return bool(libc.prctl(22, 2, filter_, 0, 0) == 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


_O_PATH = 0o10000000  # on both machines; macOS has none
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # on every machine
_READ, _READ_FILE, _WRITE_FILE = 0b1101, 0b101, 0b10  # execute, read file, read folder


def _keep_to_files(libc: ctypes.CDLL, folder: str) -> bool:
    """Restrict this process to its folder, and to reading Python and the system's libraries."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    # 13 rights in the first version; 2 adds linking across folders, 3 truncating
    handled = (1 << (13 + min(version - 1, 2))) - 1
    attribute = ctypes.create_string_buffer(struct.pack("=Q", handled), 8)
    rules = libc.syscall(_LANDLOCK_CREATE, attribute, 8, 0)
    if rules < 0:
        return False
    places = {sys.prefix, sys.base_prefix, "/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib"}
    places |= {"/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/urandom", "/dev/zero"}
    for place in places:
        _allow(libc, rules, place, _READ if os.path.isdir(place) else _READ_FILE)
    _allow(libc, rules, "/dev/null", _READ_FILE | _WRITE_FILE)
    _allow(libc, rules, folder, handled)
    held = libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0
    os.close(rules)
    return bool(held)


def _allow(libc: ctypes.CDLL, rules: int, place: str, rights: int) -> None:
    try:
        descriptor = os.open(place, _O_PATH)
    except OSError:  # this system has no such place
        return
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor), 12)
    libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0)  # LANDLOCK_RULE_PATH_BENEATH
    os.close(descriptor)


def main() -> None:
    """Confine this process, run the code and its tests, and say the word if nothing was raised."""
    request = json.load(sys.stdin)
    confine(os.getcwd(), request["seconds"])
    module = types.ModuleType("answer")
    sys.modules["answer"] = module  # dataclasses look their own module up
    exec(compile(request["code"], "answer.py", "exec"), module.__dict__)
    tests = dict(module.__dict__)
    exec(compile(request["tests"], "tests.py", "exec"), tests)
    sys.stdout.flush()
    print(f"\n{request['passed']}", flush=True)
    os._exit(0)  # threads that the code has left behind end here


if __name__ == "__main__":
    main()
