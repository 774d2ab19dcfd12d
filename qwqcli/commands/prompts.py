"""`qwq prompts list | show | run | check`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from qwqcli import budget, config
from qwqcli.commands import (
    Ctx,
    Env,
    MaxTokens,
    Model,
    NoGpu,
    Seed,
    Temperature,
    Think,
    Threads,
    app,
    check_model,
    settings_of,
)  # fmt: skip
from qwqcli.errors import UsageError
from qwqcli.interrupt import interruptible
from qwqcli.messages import Message
from qwqcli.terminal import Output, Screen

prompts_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Prompts with known answers: those that come with qwq, and your own.",
)
app.add_typer(prompts_app, name="prompts")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The id of a prompt.")]
Var = Annotated[
    list[str] | None, typer.Option("--var", help="NAME=VALUE for a variable; may be repeated.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]
RunCode = Annotated[
    bool, typer.Option("--run-code", help="Try code that the model wrote; see README for the risk.")
]


@prompts_app.command(name="list")
def list_(
    ctx: typer.Context,
    suite: Annotated[
        str | None, typer.Argument(metavar="[SUITE]", help="A file, a tag or a language.")
    ] = None,
    json: Json = False,
) -> None:
    """List the prompts, by the file that they are in."""
    from qwqcli import prompts, reports

    env: Env = ctx.obj
    library = prompts.library(config.paths(env.environ))
    found = list(library) if suite is None else library.named(suite)
    reports.show_prompts(found, Output(env.stdout, env.environ), as_json=json)


@prompts_app.command()
def show(
    ctx: typer.Context,
    name: Name,
    var: Var = None,
    seed: Annotated[int, typer.Option(help="For documents that are made.")] = 0,
    json: Json = False,
) -> None:
    """Show one prompt as it is sent, and what is right."""
    from qwqcli import prompts, reports

    env: Env = ctx.obj
    prompt = prompts.library(config.paths(env.environ)).find(name)
    given = variables(var or [])
    whole = not set(prompt.missing) - set(given)
    rendered = prompts.render(prompt, given, seed=seed) if whole else None
    reports.show_prompt(prompt, rendered, Output(env.stdout, env.environ), as_json=json)


@prompts_app.command()
def run(
    ctx: typer.Context,
    name: Name,
    var: Var = None,
    model: Model = None,
    thinking: Think = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    ctx_tokens: Ctx = None,
    threads: Threads = None,
    no_gpu: NoGpu = False,
    run_code: RunCode = False,
) -> None:
    """Ask one prompt and check the answer. `qwq bench --suite` asks many, and measures.

    Ends in 0 also for a wrong answer; the verdict is on stderr.
    """
    from qwqcli import checkers, prompts, render, reports
    from qwqcli.engine.process import open_engine

    env: Env = ctx.obj
    settings = settings_of(ctx)
    screen = Screen(env.stdout, env.stderr, env.environ)
    prompt = prompts.library(config.paths(env.environ)).find(name)
    rendered = prompts.render(prompt, variables(var or []), seed=settings.seed or 0)
    sampling = prompts.recommended(prompt, settings.sampling, ctx.params)
    system = rendered.system or settings.system
    messages = [Message("system", system)] if system else []
    messages.append(Message("user", rendered.text))
    ref = check_model(settings, False, env.environ)
    view = render.AskView(screen, settings.thinking, sampling.max_tokens)
    engine = open_engine(ref.path, settings, config.paths(env.environ).cache)
    allowed = budget.parse(prompt.settings.budget) if prompt.settings.budget else settings.budget
    with contextlib.closing(engine), interruptible(twice_leaves=True) as pressed:
        control = render.ticking(view, pressed)
        events = engine.stream(
            messages, sampling, control, thinking=allowed.tokens != 0, budget=allowed
        )
        reply = render.draw_reply(events, view)
    if rendered.checker:
        verdict = checkers.check(rendered.checker, reply.answer, run_code=run_code)
        reports.show_verdict(verdict, screen.err)
    raise typer.Exit(reply.exit_code)


@prompts_app.command()
def check(
    ctx: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="YAML files; all if absent.")
    ] = None,
) -> None:
    """Check files of prompts: their schema, their variables, their checkers."""
    from qwqcli import prompts

    env: Env = ctx.obj
    paths = config.paths(env.environ)
    found = list(prompts.load_files(files) if files else prompts.library(paths))
    judged = sum(prompt.judged for prompt in found)
    out = Output(env.stdout, env.environ)
    out.write(f"{len(found)} prompts are sound, {judged} of them have an answer to check.\n")
    if not files:
        out.write(f"Your own are read from {paths.config / 'prompts'}\n")


def variables(given: Sequence[str]) -> dict[str, str]:
    """The values of `--var NAME=VALUE`."""
    pairs = [text.partition("=") for text in given]
    for name, equals, _ in pairs:
        if not equals or not name:
            raise UsageError(f"--var takes NAME=VALUE, not '{name}'.", "--var question='Why?'")
    return {name: value for name, _, value in pairs}
