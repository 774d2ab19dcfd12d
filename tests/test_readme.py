"""README is true: its commands run, its tables say what the code says."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwqcli import errors, hardware
from qwqcli.config import Settings, apply, read_file
from qwqcli.repl.commands import manual

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line[2:] for block in BLOCKS for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.skipif(shutil.which("sh") is None, reason="the commands are for a shell")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_as_written(command: str, tmp_path: Path, cache: Path) -> None:
    """Each command of README ends well, typed as it stands there."""
    (tmp_path / "notes.txt").write_text("Buy milk.\n")
    (tmp_path / "notes-long.txt").write_text("Buy milk, bread and 12 eggs.\n" * 200)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "qwq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qwqcli "$@"\n')
    (bin_folder / "qwq").chmod(0o755)
    environ = {
        "PATH": f"{bin_folder}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "QWQ_THREADS": "1",
        "QWQ_CACHE_DIR": str(cache),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout or ">" in command


def test_settings_block_holds_every_default(tmp_path: Path) -> None:
    """The settings file that README shows is valid, complete, and changes nothing."""
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    path = tmp_path / "config.yaml"
    path.write_text(block[1], encoding="utf-8")
    values = read_file(path)
    assert set(values) == {field.name for field in dataclasses.fields(Settings)}
    assert apply(Settings(), values, "README") == Settings()


def test_exit_codes_are_all_told() -> None:
    """README's table names every exit code that an error of ours can end in."""
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.QwqError)}
    assert told == codes | {0, errors.INTERRUPTED}


def test_every_command_and_key_of_the_chat_is_told() -> None:
    """CHAT.md holds the table that the command table makes: `make manual` writes it anew."""
    assert manual() in (ROOT / "qwqcli" / "CHAT.md").read_text(encoding="utf-8")


def test_install_lines_are_the_doctors() -> None:
    """README gives the same install lines as `qwq doctor`."""
    told = dict(re.findall(r"^\| ([^|`]+) \| `([^`]*pip install[^`]*)` \|$", README, re.MULTILINE))
    assert told == hardware.INSTALL


def test_links_lead_somewhere() -> None:
    """Every file that README links to is there."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
