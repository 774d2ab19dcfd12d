"""`python -m tests.manual` writes the table of commands and keys into CHAT.md."""

from __future__ import annotations

import re
from pathlib import Path

from qwqcli.repl.commands import manual

FILE = Path(__file__).parents[1] / "qwqcli" / "CHAT.md"


def main() -> None:
    """Put the table in the place of the one that is there."""
    text = FILE.read_text(encoding="utf-8")
    table = re.compile(r"^\| command or key.*?(?=^$)", re.MULTILINE | re.DOTALL)
    new = table.sub(lambda _: manual() + "\n", text)
    FILE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
