"""`qwq config`: the settings, where each comes from, and changing them."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import typer

from qwqcli import config
from qwqcli.commands import Env, app
from qwqcli.commands.complete import setting_names
from qwqcli.terminal import Output, visible

group = typer.Typer(
    help="The settings: show them with where each comes from, set, edit.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(group, name="config")


@group.command()
def show(
    ctx: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show every setting, its value, and where that comes from."""
    from qwqcli.progress import write_json

    env: Env = ctx.obj
    out = Output(env.stdout, env.environ)
    settings, origins = config.load(env.environ), config.origins(env.environ)
    names = [field.name for field in fields(settings)]
    if json:
        rows = {n: {"value": getattr(settings, n), "from": origins[n]} for n in names}
        write_json({"settings": rows}, out)
        return
    for name in names:
        value = config.shown(getattr(settings, name))
        out.write(visible(f"{name:14} {value:16} {origins[name]}") + "\n")


@group.command()
def path(ctx: typer.Context) -> None:
    """Print the path of the settings file, which need not exist."""
    env: Env = ctx.obj
    Output(env.stdout, env.environ).write(f"{config.paths(env.environ).settings_file}\n")


@group.command(name="set")
def set_value(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(autocompletion=setting_names)],
    value: Annotated[str, typer.Argument(help="none unsets it where it may be unset.")],
) -> None:
    """Write one setting into the settings file; its other lines and comments stay."""
    env: Env = ctx.obj
    file = config.paths(env.environ).settings_file
    config.write(file, name, config.typed(name, value, "The command line"))
    if config.origins(env.environ)[name] != str(file):
        env.stderr.write(f"Written, but QWQ_{name.upper()} is set and counts more.\n")


@group.command()
def edit(ctx: typer.Context) -> None:
    """Open the settings file in your editor, and check what comes back."""
    from qwqcli.repl.prompt import run_editor

    env: Env = ctx.obj
    file = config.paths(env.environ).settings_file
    if not file.exists():
        config.write_text(file, config.commented_defaults())
    run_editor(str(file))
    config.load(env.environ)
