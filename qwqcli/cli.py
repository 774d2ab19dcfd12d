"""The command line as a function: parse, run one command, show an error once.

`main(argv, env)` is the whole program, with its streams and environment passed in. Errors of ours
are shown here; anything else is a bug and shows itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from qwqcli import __version__
from qwqcli.commands import (
    Env,
    app,
    bench,
    cache,
    files,
    machine,
    prompts,
    sessions,
    settings,
    talk,
)
from qwqcli.errors import INTERRUPTED, ClosedPipe, QwqError, UsageError
from qwqcli.terminal import Output

__all__ = ["Env", "main"]
# Imported for the commands that they add; --help lists them in this order.
COMMANDS = (talk, files, machine, bench, sessions, prompts, cache, settings)
_ORDER = [module.__name__ for module in COMMANDS]
app.registered_commands.sort(key=lambda command: _ORDER.index(str(command.callback.__module__)))


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    if version:
        ctx.obj.stdout.write(f"qwq {__version__}\n")
        raise typer.Exit


def main(argv: Sequence[str] | None = None, env: Env | None = None) -> int:
    """Run one command line; returns its exit code. Raises nothing but bugs."""
    env = env or Env()
    try:
        result: Any = app(args=argv, prog_name="qwq", standalone_mode=False, obj=env)
    except ClosedPipe as error:
        # what is still in Python's own buffer must not fail again when it closes stdout
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), env.stdout.fileno())
        return error.exit_code
    except QwqError as error:
        return _fail(error, env)
    except typer.TyperException as error:
        hint = f"{_command(argv)} --help"
        return _fail(UsageError(error.format_message(), hint), env)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _fail(error: QwqError, env: Env) -> int:
    from qwqcli.render import show_error

    show_error(error, Output(env.stderr, env.environ))
    return error.exit_code


def _command(argv: Sequence[str] | None) -> str:
    """`qwq` and its command, for a hint."""
    words = sys.argv[1:] if argv is None else argv
    commands = app.registered_commands
    known = {command.name or getattr(command.callback, "__name__", "") for command in commands}
    return f"qwq {words[0]}" if words and words[0] in known else "qwq"
