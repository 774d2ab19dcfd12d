"""`qwq plan` and `qwq doctor`."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from qwqcli.commands import Ctx, Device, Env, Flash, GpuLayers, Kv, Rpc, Threads, app, complete
from qwqcli.terminal import Output, Screen

PLANNED = "A quantization, a GGUF file, OWNER/NAME:QUANT or a URL; all quantizations if absent."


@app.command()
def plan(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL|QUANT]", help=PLANNED, autocompletion=complete.quant_names),
    ] = None,
    ctx_tokens: Ctx = None,
    kv: Kv = None,
    flash_attn: Flash = None,
    prefer: Annotated[
        str | None, typer.Option(help="What to keep longest: context, speed or quality.")
    ] = None,
    gpu_layers: GpuLayers = None,
    threads: Threads = None,
    vram: Annotated[
        str | None, typer.Option(help="Plan for cards of this size: 24G, or 24G,12G; 0 for none.")
    ] = None,
    ram: Annotated[str | None, typer.Option(help="Plan for so much RAM: 32G.")] = None,
    machine: Annotated[
        str | None, typer.Option(help="Plan for another machine: 3090, mac-mini-32, cpu-64, ...")
    ] = None,
    margin: Annotated[
        str | None, typer.Option(help="Memory to leave free on each device (1G).")
    ] = None,
    device: Device = None,
    rpc: Rpc = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub.")] = False,
    source: Annotated[
        str, typer.Option(help="Where to look: hf, modelscope or the URL of a mirror.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show which layers would go where, how much context fits, how fast it would be, and why.

    Nothing is downloaded; the hub is asked for sizes where it answers within seconds.
    """
    from qwqcli import config, planning, tables
    from qwqcli.bench import history

    env: Env = ctx.obj
    want = planning.wish(ctx_tokens, kv, flash_attn, prefer, gpu_layers, threads, margin)
    asked = planning.Asked(model, want, machine, vram, ram, rpc, device, offline, source)
    there, found = planning.answer(asked, env.environ)
    if asked.here:
        found = history.with_measured(found, config.paths(env.environ).data)
    tables.show_answer(there, found, Output(env.stdout, env.environ), as_json=json)


@app.command()
def doctor(
    ctx: typer.Context,
    rpc: Rpc = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every model, byte by byte.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the network.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check what qwq needs, and say what to type where something is missing.

    The report names no user and no secret: it can be pasted into a bug report.
    """
    from qwqcli import checkup, doctor, progress, tables

    env: Env = ctx.obj
    screen = Screen(env.stdout, env.stderr, env.environ)
    with contextlib.closing(progress.TextView(screen)) as view:
        view.wait("looking at this machine")
        seen = checkup.look(
            env.environ, screen.out, rpc, offline=offline, deep=deep, show=view.show
        )
    checks = doctor.examine(seen)
    tables.show_checks(checks, screen.out, as_json=json)
    raise typer.Exit(doctor.exit_code(checks))
