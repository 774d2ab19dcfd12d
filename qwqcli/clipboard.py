"""Puts text on the clipboard, through the terminal and through the system's own tool.

The terminal's way (OSC 52) also reaches the clipboard of the machine one sits at over ssh, but many
terminals ignore it without a word; the system's tool tells whether it worked. So both are used.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from qwqcli.terminal import Output

OSC52_LIMIT = 74_994  # bytes of text; xterm takes 100,000 of base64 with its frame
WAIT_S = 3.0


def copy(text: str, out: Output, environ: Mapping[str, str]) -> list[str]:
    """The ways that `text` went; none if there is none."""
    ways = [Path(command[0]).name for command in tools(environ)[:1] if _give(command, text)]
    data = text.encode("utf-8")
    if out.live and len(data) <= OSC52_LIMIT:
        out.write(f"\x1b]52;c;{base64.b64encode(data).decode('ascii')}\x07")
        ways.append("the terminal")
    return ways


def tools(environ: Mapping[str, str]) -> list[list[str]]:
    """Commands that take a clipboard's text from their input, as far as they are here."""
    commands: list[list[str]] = []
    if environ.get("WAYLAND_DISPLAY"):
        commands.append(["wl-copy"])
    if environ.get("DISPLAY"):
        commands += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    if sys.platform == "darwin":
        commands.append(["pbcopy"])
    commands.append(["clip.exe"])  # Windows, and Linux on it
    places = [shutil.which(name, path=environ.get("PATH", "")) for name, *_ in commands]
    found = zip(places, commands, strict=True)
    return [[place, *command[1:]] for place, command in found if place]


def _give(command: list[str], text: str) -> bool:
    # UTF-16 with its mark is what clip.exe reads right
    data = text.encode("utf-16") if command[0].endswith("clip.exe") else text.encode("utf-8")
    try:
        # xclip stays in the background and keeps its output open: nobody may wait for that
        done = subprocess.run(
            command,
            input=data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=WAIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
