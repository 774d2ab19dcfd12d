"""Text that comes from outside: the words on the command line, stdin and files, as one prompt.

Only text passes: bytes that are not UTF-8, or that hold a NUL, are refused with where they are.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qwqcli.errors import UsageError

LARGEST = 4_000_000  # bytes of one file; at about 4 a token, many times any context
MOST = 100  # files of one folder

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


def fence(text: str) -> str:
    """Backticks that no line of `text` can end."""
    return "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", text))])


def _fenced(file: Attachment) -> str:
    around = fence(file.text)
    return f"{file.name}:\n{around}\n{file.text}\n{around}"


@dataclass(frozen=True, slots=True)
class Asked:
    """What `qwq ask` was given: the words, what was piped in, the files."""

    question: str
    piped: str = ""
    files: tuple[Attachment, ...] = ()

    @property
    def prompt(self) -> str:
        """The question, then what was piped in, then each file under its name."""
        said = "\n\n".join(part for part in (self.question, self.piped) if part.strip())
        return with_attachments(said, self.files)

    @property
    def texts(self) -> list[str]:
        """What came with the question, in the order in which it is sent."""
        return [self.piped, *(file.text for file in self.files)]

    @property
    def names(self) -> list[str]:
        """How a person calls each of `texts`."""
        return ["what was piped in", *(file.name for file in self.files)]

    def with_texts(self, texts: Sequence[str]) -> Asked:
        """The same question with other `texts`."""
        piped, *others = texts
        pairs = zip(self.files, others, strict=True)
        return Asked(self.question, piped, tuple(Attachment(f.name, text) for f, text in pairs))


def read_asked(words: Sequence[str], piped: BinaryIO | None, files: Sequence[Path]) -> Asked:
    """What was given, read. Raises UsageError if all of it is empty."""
    question = decode(" ".join(words).encode("utf-8", "surrogateescape"), "The prompt")
    text = "" if piped is None else decode(piped.read(), "Standard input").strip("\r\n")
    attached = tuple(Attachment(path.name, read_file(path)) for path in files)
    asked = Asked(question.strip(), text, attached)
    if not asked.prompt:
        raise UsageError("There is nothing to ask.", "qwq ask 'What is 47 + 86?'")
    return asked


def read_file(path: Path) -> str:
    """The text of a file, without the line end at its end. Raises UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.", "Check the name") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder.", "Give the files in it, one by one") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > LARGEST:
        raise UsageError(
            f"{path} has more than {LARGEST // 1_000_000} MB, which no model can read at once.",
            "Give the part that matters",
        )
    return decode(data, str(path)).strip("\r\n")


def text_files(folder: Path) -> list[Attachment]:
    """The text files in a folder and below it, by their paths; hidden and binary ones are left out.

    Raises UsageError if there are more than MOST.
    """
    found: list[Attachment] = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if any(part.startswith(".") for part in inside) or not path.is_file():
            continue
        with contextlib.suppress(UsageError):
            found.append(Attachment(str(path), read_file(path)))
        if len(found) > MOST:
            raise UsageError(f"{folder} holds more than {MOST} text files.", "Give those you mean")
    return found


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
