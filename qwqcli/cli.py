"""The command line as a function: parse, run one command, show an error once.

`main(argv, env)` is the whole program, with its streams and environment passed in. Errors of ours
are shown here; anything else is a bug and shows itself.
"""

from __future__ import annotations

import contextlib
import copy
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
from qwqcli.errors import INTERRUPTED, ClosedPipe, LostOutput, QwqError, UsageError
from qwqcli.terminal import Output, output_errors

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
        Output(ctx.obj.stdout, ctx.obj.environ).write(f"qwq {__version__}\n")
        raise typer.Exit


def main(argv: Sequence[str] | None = None, env: Env | None = None) -> int:
    """Run one command line; returns its exit code. Raises nothing but bugs."""
    env = env or Env()
    try:
        wanted = _only(sys.argv[1:] if argv is None else argv)
        result: Any = wanted(args=argv, prog_name="qwq", standalone_mode=False, obj=env)
        with output_errors():
            env.stdout.flush()
            env.stderr.flush()
    except (ClosedPipe, BrokenPipeError):  # the latter of a plain line on stderr
        return ClosedPipe.exit_code
    except QwqError as error:
        return _fail(error, env)
    except typer.TyperException as error:
        hint = f"{_command(argv)} --help"
        return _fail(UsageError(error.format_message(), hint), env)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    finally:
        _drop_output(env)
    return result if isinstance(result, int) else 0


def _drop_output(env: Env) -> None:
    """What could not be written must not fail again when Python closes its streams."""
    for stream in (env.stdout, env.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(error: QwqError, env: Env) -> int:
    from qwqcli.render import show_error

    with contextlib.suppress(ClosedPipe, LostOutput):  # then nobody can be told
        show_error(error, Output(env.stderr, env.environ))
    return error.exit_code


def _only(words: Sequence[str]) -> typer.Typer:
    """The app with no other command than the one that is asked for, if there is one.

    Typer reads the options of every command that it has: 0.06 s, a sixth of the time to a prompt.
    """
    commands = [command for command in app.registered_commands if _name(command) in words[:1]]
    groups = [group for group in app.registered_groups if group.name in words[:1]]
    if not commands and not groups:
        return app
    only = copy.copy(app)
    only.registered_commands, only.registered_groups = commands, groups
    return only


def _command(argv: Sequence[str] | None) -> str:
    """`qwq` and its command, for a hint."""
    words = sys.argv[1:] if argv is None else argv
    return "qwq" if _only(words) is app else f"qwq {words[0]}"


def _name(command: Any) -> str:
    return str(command.name or getattr(command.callback, "__name__", ""))
