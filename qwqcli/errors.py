"""Every error that qwq raises on purpose, and the exit code that each one ends in.

QwqError                 1  anything below that has no code of its own
├── UsageError           2  the command line or a setting makes no sense
├── NoRoom               3  memory or disk is too small for what was asked
│   └── OutOfMemory      3  the machine refused memory that seemed to be free
├── NetworkError         4  a download could not go on; running it again resumes
├── BadFile              5  a model file that is not what it should be
├── EngineError          6  llama.cpp refused, or its process died
│   └── ContextFull      7  the conversation does not fit into the context
├── StoreError           1  sessions cannot be read or written; a chat goes on without them
├── NoAnswer             7  the reply ended inside its thought: there is no answer
├── LostOutput           1  the output cannot be written, as on a full disk
└── ClosedPipe         141  who read our output has left; nothing is said

Ctrl-C ends in 130. Each error says in one sentence what is wrong, and its `hint` is the next
thing to type. Foreign exceptions become one of these in the module that owns the library.
"""

from __future__ import annotations

INTERRUPTED = 130


class QwqError(Exception):
    """Something a person can act on: `message` says what is wrong, `hint` what to type next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(QwqError):
    """An option, a name or a setting that cannot be meant."""

    exit_code = 2


class NoRoom(QwqError):
    """Memory or disk is too small for what was asked."""

    exit_code = 3


class OutOfMemory(NoRoom):
    """The machine refused memory that seemed to be free; with less it may work."""


class NetworkError(QwqError):
    """The network or the server let us down; nothing that was fetched is lost."""

    exit_code = 4


class BadFile(QwqError):
    """A file that is not the model file it should be."""

    exit_code = 5


class EngineError(QwqError):
    """llama.cpp refused a request, or the process that hosts it died."""

    exit_code = 6


class ContextFull(EngineError):
    """The conversation does not fit into the context window."""

    exit_code = 7


class StoreError(QwqError):
    """The sessions on disk cannot be read or written; the conversation itself is not harmed."""


class ClosedPipe(QwqError):
    """Who read our output has left. A shell reports the same for a command ended by SIGPIPE."""

    exit_code = 141


class LostOutput(QwqError):
    """The output cannot be written, as on a full disk."""


class NoAnswer(QwqError):
    """The reply ended while it was still thinking."""

    exit_code = 7
