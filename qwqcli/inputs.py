"""Text that comes from outside: the words on the command line, stdin and files, as one prompt.

Only text passes: bytes that are not UTF-8, or that hold a NUL, are refused with where they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qwqcli.errors import UsageError

_UTF8_BOM, _UTF16_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text file as it was when it was attached."""

    name: str
    text: str


def with_attachments(question: str, attachments: Sequence[Attachment]) -> str:
    """The question, then each file under its name, fenced; parts that are empty are left out."""
    parts = [question, *(_fenced(file) for file in attachments)]
    return "\n\n".join(part for part in parts if part.strip())


def _fenced(file: Attachment) -> str:
    """The file between fences that are longer than any in it."""
    runs = re.findall(r"^ {0,3}(`{3,})", file.text, re.MULTILINE)
    fence = "`" * max([3, *(len(run) + 1 for run in runs)])
    return f"{file.name}:\n{fence}\n{file.text}\n{fence}"


def read_prompt(words: Sequence[str], piped: BinaryIO | None, files: Sequence[Path]) -> str:
    """The question, then what was piped in, then each file under its name.

    Raises UsageError if all of it is empty.
    """
    question = decode(" ".join(words).encode("utf-8", "surrogateescape"), "The prompt")
    parts = [question.strip()]
    if piped is not None:
        parts.append(decode(piped.read(), "Standard input").strip("\r\n"))
    said = "\n\n".join(part for part in parts if part.strip())
    text = with_attachments(said, [Attachment(path.name, read_file(path)) for path in files])
    if not text:
        raise UsageError("There is nothing to ask.", "qwq ask 'What is 47 + 86?'")
    return text


def read_file(path: Path) -> str:
    """The text of a file, without the line end at its end."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.", "Check the name given to --file") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder.", "Give --file once for each file in it") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    return decode(data, str(path)).strip("\r\n")


def decode(data: bytes, source: str) -> str:
    """`data` as text, or a UsageError that says where it stops being text."""
    if data.startswith(_UTF16_BOMS):
        raise UsageError(f"{source} is UTF-16, not UTF-8.", "Convert it: iconv -f UTF-16 -t UTF-8")
    nul = data.find(b"\0")
    if nul >= 0:
        raise UsageError(
            f"{source} is not text: it has a NUL byte at position {nul}.",
            "Give text, such as the output of `strings`",
        )
    try:
        return data.removeprefix(_UTF8_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source} is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}.",
            "Convert it first: iconv -f LATIN1 -t UTF-8",
        ) from error
