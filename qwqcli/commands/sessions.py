"""`qwq sessions`: list, show, search, export and remove what was said in chats."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwqcli import config
from qwqcli.commands import Env, app, confirm
from qwqcli.commands.complete import session_names
from qwqcli.errors import UsageError
from qwqcli.terminal import Output, visible

if TYPE_CHECKING:
    from qwqcli.sessions import Store

group = typer.Typer(
    help="What was said in chats: list, show, search, export, remove.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(group, name="sessions")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME|ID", help="A name, or (the beginning of) an id.", autocompletion=session_names
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@group.command(name="list")
def list_sessions(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(help="How many; -1 for all.")] = 50,
    json: Json = False,
) -> None:
    """List sessions, the latest first."""
    from dataclasses import asdict

    from qwqcli.progress import write_json
    from qwqcli.repl.turns import line

    env: Env = ctx.obj
    out = Output(env.stdout, env.environ)
    with _store(env) as store:
        summaries = store.summaries(limit)
    if json:
        write_json({"sessions": [asdict(summary) for summary in summaries]}, out)
    elif summaries:
        out.write("".join(visible(line(summary)) + "\n" for summary in summaries))
    else:
        env.stderr.write("There are no sessions yet. Begin one: qwq chat\n")


@group.command()
def show(ctx: typer.Context, session: Name, json: Json = False) -> None:
    """Print a session as Markdown, its thoughts folded, or all of it as JSON."""
    from qwqcli import export

    env: Env = ctx.obj
    out = Output(env.stdout, env.environ)
    with _store(env) as store:
        text = export.export(*store.load(store.find(session)), ".json" if json else ".md")
    out.write(visible(text) if out.terminal else text)


@group.command()
def search(
    ctx: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="WORD...", help='All of them; "in a row".')],
    limit: Annotated[int, typer.Option(help="How many turns.")] = 20,
    json: Json = False,
) -> None:
    """Find words in questions, answers and thoughts; the latest turns first."""
    from dataclasses import asdict

    from qwqcli.progress import write_json

    env: Env = ctx.obj
    out = Output(env.stdout, env.environ)
    # a word that the shell gave us with blanks in it stood in quotes
    typed = " ".join(f'"{word}"' if " " in word.strip('"') else word for word in words)
    with _store(env) as store:
        hits = store.search(typed, limit)
    if json:
        write_json({"hits": [asdict(hit) for hit in hits]}, out)
        return
    for hit in hits:
        when = datetime.fromtimestamp(hit.asked).strftime("%Y-%m-%d %H:%M")
        head = f"{hit.session}  {when}  {hit.name}".rstrip()
        out.write(visible(f"{head}\n  {hit.where}: {hit.excerpt}\n"))
    if not hits:
        env.stderr.write("Nothing was found.\n")
        raise typer.Exit(1)


@group.command()
def export(
    ctx: typer.Context,
    session: Name,
    file: Annotated[Path, typer.Argument(help="talk.md, talk.html or talk.json")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
) -> None:
    """Write a session into a file, in the format that its extension names."""
    from qwqcli import export

    env: Env = ctx.obj
    with _store(env) as store:
        text = export.export(*store.load(store.find(session)), file.suffix.lower())
    try:
        with file.open("w" if force else "x", encoding="utf-8", errors="replace") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise UsageError(f"{file} exists.", "Choose another name, or add --force") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}.") from error


@group.command()
def rm(
    ctx: typer.Context,
    sessions: Annotated[
        list[str], typer.Argument(metavar="NAME|ID...", autocompletion=session_names)
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove sessions so that nothing of their text is left on disk, backups included.

    What was asked in them also leaves the history of the prompt.
    """
    from qwqcli.repl.commands import typed_in
    from qwqcli.repl.prompt import forget
    from qwqcli.repl.turns import line

    env: Env = ctx.obj
    with _store(env) as store:
        known = {summary.session.id: summary for summary in store.summaries()}
        ids = list(dict.fromkeys(store.find(session) for session in sessions))
        env.stderr.write("".join(visible(line(known[id])) + "\n" for id in ids))
        if not yes:
            what = "this session" if len(ids) == 1 else f"these {len(ids)} sessions"
            confirm(env, f"Remove {what}?", f"qwq sessions rm {shlex.join(sessions)} -y")
        for id in ids:
            forget(config.paths(env.environ).input_history, typed_in(*store.load(id)))
            if not store.remove(id):
                env.stderr.write("Another qwq is reading; its log is emptied when that ends.\n")


@contextlib.contextmanager
def _store(env: Env) -> Iterator[Store]:
    """The store on disk, or an empty one where there is none yet."""
    from qwqcli.sessions import Store

    path = config.paths(env.environ).sessions
    with contextlib.closing(Store(path if path.exists() else None)) as store:
        yield store
