"""What every command shares: the app, its world, and options that several commands have.

Each module here adds its commands to `app` when it is imported; `cli` imports them all, in the
order in which `qwq --help` lists them. A command is a few lines over the modules below it and
imports them when it runs, so that `qwq --help` stays fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, BinaryIO, Literal, TextIO

import typer

from qwqcli import catalog, config, quants
from qwqcli.commands.complete import model_names
from qwqcli.errors import UsageError
from qwqcli.gguf import read_file_header
from qwqcli.terminal import visible

app = typer.Typer(
    name="qwq",
    rich_markup_mode=None,  # help without rich: it must be fast
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="QwQ-32B in your terminal: see it think, stop it, measure it.",
)


def _open(stream: TextIO | None, mode: Literal["r", "w"]) -> TextIO:
    """`stream`, or nothing to read or write where it was closed before we began."""
    return stream or open(os.devnull, mode, encoding="utf-8")


@dataclass(frozen=True)
class Env:
    """The world as a command sees it; a test makes its own."""

    stdin: TextIO = field(default_factory=lambda: _open(sys.stdin, "r"))
    stdout: TextIO = field(default_factory=lambda: _open(sys.stdout, "w"))
    stderr: TextIO = field(default_factory=lambda: _open(sys.stderr, "w"))
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def piped(self) -> BinaryIO | None:
        """Standard input, if something is piped in."""
        return None if self.stdin.isatty() else self.stdin.buffer


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A model's name, or the path of a GGUF file.",
        autocompletion=model_names,
    ),
]
Think = Annotated[
    str | None, typer.Option("--thinking", help="The thought: show, fold or hide it.")
]
ThinkBudget = Annotated[
    str | None,
    typer.Option("--think-budget", help="How long it may think: auto, off, or as 4k, 90s, 10m."),
]
NoThink = Annotated[bool, typer.Option("--no-think", help="Answer at once, without a thought.")]
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
Kv = Annotated[str | None, typer.Option("--kv-type", "--kv", help="KV cache: f16, q8_0 or q4_0.")]
Flash = Annotated[
    str | None,
    typer.Option("--flash-attn", help="auto, on or off; prompts: on but for generation."),
]
Rpc = Annotated[
    str | None, typer.Option(help="HOST:PORT[,HOST:PORT] of llama.cpp RPC servers to use as GPUs.")
]
Device = Annotated[
    str | None, typer.Option(help="Devices to use, in order: CUDA0,Vulkan1; none for the CPU.")
]
Force = Annotated[bool, typer.Option("--force", help="Allow greedy decoding on QwQ.")]


def settings_of(ctx: typer.Context) -> config.Settings:
    """The settings of this call: those of its options that are settings, over all else."""
    names = {field.name for field in fields(config.Settings)}
    flags = {name: value for name, value in ctx.params.items() if name in names}
    flags["ctx"] = ctx.params["ctx_tokens"]
    if ctx.params.get("no_think"):
        flags["think_budget"] = "0"
    if ctx.params["no_gpu"]:
        _check_no_gpu(flags)
        flags["gpu_layers"] = 0
    settings = config.load(ctx.obj.environ, flags)
    if settings.model != catalog.AUTO:
        return settings
    return replace(settings, model=catalog.resolve(catalog.AUTO, ctx.obj.environ).name)


def _check_no_gpu(flags: Mapping[str, Any]) -> None:
    for name in ("gpu_layers", "device"):
        value = flags.get(name)
        if value not in (None, 0, "none"):
            option = f"--{name.replace('_', '-')} {value}"
            raise UsageError(f"--no-gpu and {option} exclude each other.", f"Leave out {option}")


def check_model(
    settings: config.Settings, force: bool, environ: Mapping[str, str]
) -> catalog.ModelRef:
    """The model that is wanted, refused where its file or the settings make no sense for it.

    It is then noted as used.
    """
    ref = catalog.resolve(settings.model, environ)
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
    catalog.used(ref, environ)
    return ref


def confirm(env: Env, question: str, without: str) -> None:
    """Go on only if the person says yes to a removal. `without` is the command that does not ask.

    Raises UsageError where nobody can be asked.
    """
    if not env.stdin.isatty():
        raise UsageError("Nobody is there to be asked.", without)
    env.stderr.write(visible(f"{question} [y/N] "))
    env.stderr.flush()
    if env.stdin.readline().strip().lower() not in ("y", "yes"):
        env.stderr.write("Nothing was removed.\n")
        raise typer.Exit(1)
