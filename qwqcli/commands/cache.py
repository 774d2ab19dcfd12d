"""`qwq cache`."""

from __future__ import annotations

import json as json_
from typing import Annotated

import typer

from qwqcli import config
from qwqcli.commands import Env, app
from qwqcli.terminal import Output


@app.command()
def cache(
    ctx: typer.Context,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show what conversations keep of the model's memory, so that they go on at once.

    Nothing that was said is in danger: without it a conversation is processed again. The setting
    snapshots_gb says how much it may take.
    """
    from qwqcli.engine import pages

    env: Env = ctx.obj
    out = Output(env.stdout, env.environ)
    settings, root = config.load(env.environ), config.paths(env.environ).sessions.with_suffix("")
    removed = pages.make_room(root, 0) if clear else 0
    used, cap = pages.usage(root), int(settings.snapshots_gb * 2**30)
    if json:
        plain = {"folder": str(root), "cap_bytes": cap, "removed_bytes": removed, "sessions": used}
        out.write(json_.dumps(plain, ensure_ascii=False) + "\n")
        return
    if clear:
        env.stderr.write(f"{_mib(removed)} removed.\n")
    for session, size in sorted(used.items(), key=lambda item: -item[1]):
        out.write(f"{session:10} {_mib(size):>12}\n")
    total = sum(used.values())
    out.write(f"{_mib(total)} of at most {_mib(cap)} in {root}\n")
    if not clear:
        env.stderr.write("QWQ_SNAPSHOTS_GB=4 would allow 4 GiB, 0 none; --clear removes all.\n")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
