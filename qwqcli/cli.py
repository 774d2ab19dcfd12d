"""The command line: parse, call, draw. Each command is a few lines over the modules below it.

`main(argv, env)` is the whole program as a function, with its streams and environment passed in.
Errors of ours are shown once, here; anything else is a bug and shows itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TextIO

import typer

from qwqcli import __version__, catalog, config, quants
from qwqcli.engine.process import ProcessEngine, open_engine
from qwqcli.errors import INTERRUPTED, ClosedPipe, QwqError, UsageError
from qwqcli.gguf import read_file_header
from qwqcli.interrupt import interruptible
from qwqcli.messages import Message
from qwqcli.terminal import Output, Screen

app = typer.Typer(
    name="qwq",
    rich_markup_mode=None,  # help without rich: it must be fast
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="QwQ-32B in your terminal: see it think, stop it, measure it.",
)


@dataclass(frozen=True)
class Env:
    """The world as a command sees it; a test makes its own."""

    stdin: TextIO = field(default_factory=lambda: sys.stdin)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def piped(self) -> BinaryIO | None:
        """Standard input, if something is piped in."""
        return None if self.stdin.isatty() else self.stdin.buffer


Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A model's name, or the path of a GGUF file."),
]
Think = Annotated[
    str | None, typer.Option("--thinking", help="The thought: show, fold or hide it.")
]
System = Annotated[str | None, typer.Option("--system", help="Instructions for the whole talk.")]
MaxTokens = Annotated[int | None, typer.Option(help="Stop after so many tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0.6 is QwQ's own; 0 is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Nucleus sampling (0.95).")]
TopK = Annotated[int | None, typer.Option(help="Only the k likeliest tokens (40).")]
MinP = Annotated[float | None, typer.Option(help="Drop tokens below this share (0).")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same reply.")]
Ctx = Annotated[int | None, typer.Option("--ctx", help="Tokens of context.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; the physical cores if absent.")]
GpuLayers = Annotated[int | None, typer.Option(help="Layers that go to the GPU.")]
NoGpu = Annotated[bool, typer.Option("--no-gpu", help="Everything on the CPU.")]
Kv = Annotated[str | None, typer.Option("--kv-type", help="KV cache: f16, q8_0 or q4_0.")]
Flash = Annotated[str | None, typer.Option("--flash-attn", help="auto, on or off.")]
Rpc = Annotated[
    str | None, typer.Option(help="HOST:PORT of a llama.cpp RPC server to use as a GPU.")
]
Force = Annotated[bool, typer.Option("--force", help="Allow greedy decoding on QwQ.")]


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    if version:
        ctx.obj.stdout.write(f"qwq {__version__}\n")
        raise typer.Exit


@app.command()
def ask(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[QUESTION]...")] = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", "-f", help="A text file to add; may be repeated.")
    ] = None,
    model: Model = None,
    thinking: Think = None,
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
    rpc: Rpc = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
    stream_json: Annotated[
        bool, typer.Option("--stream-json", help="One JSON object a line, as it comes.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Figures on stderr at the end.")] = False,
    force: Force = False,
) -> None:
    """Ask one question. The answer goes to stdout, thought and figures to stderr.

    The question is the words, what is piped in, or both:  cat log | qwq ask 'why did it fail?'
    """
    from qwqcli import render
    from qwqcli.inputs import read_prompt

    env: Env = ctx.obj
    settings = _settings(ctx)
    prompt = read_prompt(words or [], env.piped, file or [])
    screen = Screen(env.stdout, env.stderr, env.environ)
    messages = [Message("system", settings.system)] if settings.system else []
    messages.append(Message("user", prompt))
    ref = check_model(settings, force)
    view: render.View = render.AskView(screen, settings.thinking, settings.max_tokens)
    if json:
        view = render.JsonView(screen, ref.name)
    if stream_json:
        view = render.StreamJsonView(screen, ref.name)
    engine = open_engine(ref.path, settings, config.paths(env.environ).cache)
    with contextlib.closing(engine), interruptible(twice_leaves=True) as pressed:
        cancel = render.ticking(view, pressed)
        reply = render.draw_reply(engine.stream(messages, settings.sampling, cancel), view)
        if stats:
            screen.err.write(render.stats_line(reply.stats) + "\n")
            screen.err.write(engine.info().placement + "\n")
    raise typer.Exit(reply.exit_code)


@app.command()
def chat(
    ctx: typer.Context,
    model: Model = None,
    thinking: Think = None,
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
    rpc: Rpc = None,
    force: Force = False,
) -> None:
    """Talk with a model. Type /help there for what can be done."""
    from qwqcli import repl

    env: Env = ctx.obj
    settings = _settings(ctx)
    paths = config.paths(env.environ)

    def open_model(name: str) -> ProcessEngine:
        wanted = replace(settings, model=name)
        return open_engine(check_model(wanted, force).path, wanted, paths.cache)

    screen = Screen(env.stdout, env.stderr, env.environ)
    raise typer.Exit(repl.run_chat(open_model, settings, paths, screen, env.stdin))


@app.command()
def plan(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL|QUANT]", help="All quantizations if absent.")
    ] = None,
    ctx_tokens: Ctx = None,
    kv: Annotated[str | None, typer.Option(help="KV cache: f16, q8_0 or q4_0.")] = None,
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
    rpc: Rpc = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show which layers would go where, how much context fits, how fast it would be, and why.

    Needs no download and no network.
    """
    from qwqcli import planning, tables

    env: Env = ctx.obj
    want = planning.wish(ctx_tokens, kv, prefer, gpu_layers, threads, margin)
    asked = planning.Asked(model, want, machine, vram, ram, rpc)
    tables.show_answer(*planning.answer(asked), Output(env.stdout, env.environ), as_json=json)


@app.command()
def doctor(
    ctx: typer.Context,
    rpc: Rpc = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check what qwq needs, and say what to type where something is missing.

    The report names no user and no secret: it can be pasted into a bug report.
    """
    from qwqcli import doctor, tables

    env: Env = ctx.obj
    screen = Screen(env.stdout, env.stderr, env.environ)
    checks = doctor.examine(doctor.look(env.environ, screen.out, rpc))
    tables.show_checks(checks, screen.out, as_json=json)
    raise typer.Exit(doctor.exit_code(checks))


def _settings(ctx: typer.Context) -> config.Settings:
    """The settings of this call: those of its options that are settings, over all else."""
    names = {field.name for field in fields(config.Settings)}
    flags = {name: value for name, value in ctx.params.items() if name in names}
    flags["ctx"] = ctx.params["ctx_tokens"]
    if ctx.params["no_gpu"]:
        flags["gpu_layers"] = 0
    return config.load(ctx.obj.environ, flags)


def check_model(settings: config.Settings, force: bool) -> catalog.ModelRef:
    """The model that is wanted, refused where its file or the settings make no sense for it."""
    ref = catalog.resolve(settings.model)
    header = read_file_header(ref.path)
    if settings.ctx is not None and 0 < header.n_ctx_train < settings.ctx:
        raise UsageError(
            f"{ref.name} was trained for {header.n_ctx_train:,} tokens of context, not for"
            f" {settings.ctx:,}.",
            f"Try --ctx {header.n_ctx_train}",
        )
    if settings.sampling.greedy and quants.is_qwq(header, ref.path.name) and not force:
        raise UsageError(
            "QwQ must not be decoded greedily: its makers warn that it then repeats itself"
            " without end.",
            "Leave out --temperature (0.6 is QwQ's own), or add --force",
        )
    return ref


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
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    return f"qwq {words[0]}" if words and words[0] in known else "qwq"
