"""`qwq ask` and `qwq chat`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwqcli import config
from qwqcli.commands import (
    Ctx,
    Device,
    Env,
    Flash,
    Force,
    GpuLayers,
    Kv,
    MaxTokens,
    MinP,
    Model,
    NoGpu,
    NoThink,
    Rpc,
    Seed,
    System,
    Temperature,
    Think,
    ThinkBudget,
    Threads,
    TopK,
    TopP,
    app,
    check_model,
    complete,
    settings_of,
)  # fmt: skip
from qwqcli.errors import UsageError
from qwqcli.interrupt import alone, answer_key, interruptible, orderly
from qwqcli.terminal import Screen

if TYPE_CHECKING:
    from qwqcli.engine import Control
    from qwqcli.engine.process import ProcessEngine


@app.command()
def ask(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[QUESTION]...")] = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", "-f", help="A text file to add; may be repeated.")
    ] = None,
    model: Model = None,
    thinking: Think = None,
    think_budget: ThinkBudget = None,
    no_think: NoThink = False,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    ctx_tokens: Ctx = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    no_gpu: NoGpu = False,
    kv: Kv = None,
    flash_attn: Flash = None,
    device: Device = None,
    rpc: Rpc = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
    stream_json: Annotated[
        bool, typer.Option("--stream-json", help="One JSON object a line, as it comes.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Figures on stderr at the end.")] = False,
    trim: Annotated[
        str | None,
        typer.Option(help="oldest: what is too long is cut, from its beginning, and told."),
    ] = None,
    force: Force = False,
) -> None:
    """Ask one question. The answer goes to stdout, thought and figures to stderr.

    The question is the words, what is piped in, or both:  cat log | qwq ask 'why did it fail?'
    """
    from qwqcli import render
    from qwqcli.engine.process import open_engine
    from qwqcli.inputs import read_asked
    from qwqcli.oneshot import Oneshot

    env: Env = ctx.obj
    settings = settings_of(ctx)
    if trim not in (None, "oldest"):
        raise UsageError(f"--trim '{trim}' is unknown.", "--trim oldest")
    asked = read_asked(words or [], env.piped, file or [])
    screen = Screen(env.stdout, env.stderr, env.environ)
    ref = check_model(settings, force, env.environ)
    ours = alone(env.stdin, env.stdout, env.stderr)

    def view() -> render.View:
        if stream_json:
            return render.StreamJsonView(screen, ref.name)
        drawn: render.View
        if json:
            drawn = render.JsonView(screen, ref.name)
        else:
            drawn = render.AskView(screen, settings.thinking, settings.max_tokens)
        drawn.hint = ("Ctrl+N answers now",) if ours else ()
        return drawn

    engine = open_engine(ref.path, settings, config.paths(env.environ).cache)
    with contextlib.closing(engine), _keys(env, ours, screen.err.leave) as pressed:
        reply = Oneshot(engine, settings, view, pressed).ask(asked, trim=trim == "oldest")
        if stats:
            screen.err.write(render.stats_line(reply.stats) + "\n")
            screen.err.write(engine.info().placement + "\n")
    raise typer.Exit(reply.exit_code)


@contextlib.contextmanager
def _keys(env: Env, ours: bool, leave: Callable[[], None]) -> Iterator[Control]:
    """Ctrl-C, Ctrl-Z, and Ctrl-N where it can be ours; `leave` is called before a suspension."""
    with interruptible(twice_leaves=True) as pressed, orderly(leave, lambda: None):
        if not ours:
            yield pressed
            return
        with answer_key(env.stdin, pressed, leave) as control:
            yield control


@app.command()
def chat(
    ctx: typer.Context,
    session: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|ID]",
            help="The session for --resume.",
            autocompletion=complete.session_names,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", "-r", help="Go on with a session; alone: choose one.")
    ] = False,
    latest: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the latest session.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Redraw nothing: for screen readers and logs.")
    ] = False,
    no_save: Annotated[bool, typer.Option("--no-save", help="Keep nothing on disk.")] = False,
    model: Model = None,
    thinking: Think = None,
    think_budget: ThinkBudget = None,
    no_think: NoThink = False,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    ctx_tokens: Ctx = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    no_gpu: NoGpu = False,
    kv: Kv = None,
    flash_attn: Flash = None,
    device: Device = None,
    rpc: Rpc = None,
    force: Force = False,
) -> None:
    """Talk with a model. Type /help there for what can be done."""
    from qwqcli import repl
    from qwqcli.engine.process import open_engine

    env: Env = ctx.obj
    settings = settings_of(ctx)
    if plain:
        settings = replace(settings, display="plain")
    paths = config.paths(env.environ)

    def open_model(name: str) -> ProcessEngine:
        wanted = replace(settings, model=name)
        return open_engine(check_model(wanted, force, env.environ).path, wanted, paths.cache)

    def check(wanted: config.Settings) -> None:
        check_model(wanted, force, env.environ)

    if session and not resume:
        raise UsageError("qwq chat takes no words.", f"qwq ask, or qwq chat --resume {session}")
    opening = repl.Opening(
        save=not no_save,
        latest=latest,
        resume=(session or "") if resume else None,
        given=frozenset(name for name in ("model", "system") if ctx.params[name] is not None),
    )
    screen = Screen(env.stdout, env.stderr, env.environ)
    code = repl.run_chat(open_model, settings, paths, screen, env.stdin, opening, check)
    raise typer.Exit(code)
