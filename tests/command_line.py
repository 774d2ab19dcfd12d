"""`qwq ...` in this process, with streams and an environment of the test's own."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import NamedTuple

from qwqcli.cli import Env, main


class Result(NamedTuple):
    """Exit code and both outputs of one command line."""

    code: int
    out: str
    err: str


def qwq(*argv: str, environ: Mapping[str, str] | None = None, stdin: bytes = b"") -> Result:
    """Run one command line (an engine is a child process all the same)."""
    out, err = io.StringIO(), io.StringIO()
    env = Env(io.TextIOWrapper(io.BytesIO(stdin)), out, err, environ or {"HF_HUB_OFFLINE": "1"})
    return Result(main(argv, env), out.getvalue(), err.getvalue())
