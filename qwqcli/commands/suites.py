"""What `qwq bench --suite` does, and `qwq prompts show-run`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwqcli import config
from qwqcli.commands import Env, check_model
from qwqcli.commands.prompts import prompts_app
from qwqcli.errors import INTERRUPTED, UsageError
from qwqcli.interrupt import interruptible
from qwqcli.messages import Order
from qwqcli.terminal import Output, Screen, StatusLine

if TYPE_CHECKING:
    from qwqcli.catalog import ModelRef
    from qwqcli.engine import Engine
    from qwqcli.engine.perplexity import Progress, Result
    from qwqcli.suite import Outcome
    from qwqcli.suite.journal import Journal
    from qwqcli.suite.run import Wanted


# settings of the engine that change what it computes, and so what a run is known by
COMPUTES = ("ctx", "kv", "flash_attn", "gpu_layers", "device", "rpc", "threads")


@dataclass(frozen=True)
class Options:
    """The options of `qwq bench` that belong to suites, as they were typed."""

    suite: str
    quant: str | None
    budget: str | None
    repeat: int
    seed: int
    flags: Mapping[str, Any]  # temperature, max_tokens
    save: bool
    fresh: bool
    run_code: bool
    json: bool


def bench_suite(env: Env, settings: config.Settings, options: Options) -> int:
    """Run a suite, draw what it found, and return the exit code."""
    from qwqcli.suite import draw, journal

    paths = config.paths(env.environ)
    screen = Screen(env.stdout, env.stderr, env.environ)
    wanted = _wanted(env.environ, settings, options)
    book = journal.start(paths.data, wanted.asked(), time.time(), fresh=options.fresh)
    outcomes = _run(wanted, settings, paths, book, screen)
    stopped = len(outcomes) < wanted.total
    if not stopped:
        book.finish()
    if options.json:
        draw.write_json(draw.scores_object(wanted.asked(), outcomes), screen.out)
    elif outcomes:
        draw.show_scores(outcomes, screen.out, details=True)
    if stopped:
        left = wanted.total - len(outcomes)
        screen.err.write(f"Stopped with {left} replies to go; the same command goes on.\n")
        return INTERRUPTED
    if options.save:
        screen.err.write(f"Saved: qwq prompts show-run {book.name}\n")
    else:
        book.remove()
    return 0


def bench_perplexity(
    env: Env,
    settings: config.Settings,
    text: Path,
    against: str | None,
    windows: int | None,
    *,
    as_json: bool,
) -> int:
    """Measure perplexity, and KL divergence from another model; returns the exit code."""
    from qwqcli.engine import perplexity
    from qwqcli.engine.process import stock_spec
    from qwqcli.inputs import read_file
    from qwqcli.suite import draw

    read_file(text)  # says what is wrong with it before a model is loaded
    screen = Screen(env.stdout, env.stderr, env.environ)
    names = [settings.model, *([against] if against else [])]
    refs = [check_model(replace(settings, model=name), True, env.environ) for name in names]
    specs = [stock_spec(ref.path, settings) for ref in refs]
    with interruptible(twice_leaves=True) as pressed:
        steps = perplexity.measure(
            specs[0],
            text,
            config.paths(env.environ).cache,
            n_ctx=settings.ctx or perplexity.WINDOW,
            windows=windows,
            base=specs[1] if against else None,
            stop=pressed,
        )
        result = _watched(steps, StatusLine(screen.err, screen.clock))
    if result is None:
        return INTERRUPTED
    draw.show_perplexity([ref.name for ref in refs], text.name, result, screen.out, as_json=as_json)
    return 0


def _watched(steps: Generator[Progress, None, Result | None], status: StatusLine) -> Result | None:
    """What `steps` returns, with a live row while it goes on."""
    with contextlib.closing(steps):
        while True:
            try:
                at = next(steps)
            except StopIteration as end:
                result: Result | None = end.value
                return result
            finally:
                status.clear()
            done = f"{at.done} of {at.total} windows"
            status.show([done, f"perplexity {at.sums.perplexity:.4f}"])


def _wanted(environ: Mapping[str, str], settings: config.Settings, options: Options) -> Wanted:
    """What to ask of whom. Raises UsageError before anything is loaded."""
    from qwqcli import budget, prompts
    from qwqcli.bench import presets
    from qwqcli.suite.run import Wanted, tasks_of

    if options.repeat < 1:
        raise UsageError("A suite is asked once at least.", "--repeat 1")
    budgets = [name.strip() for name in (options.budget or "").split(",")]
    for name in filter(None, budgets):
        budget.parse(name)
    words = (options.quant or settings.model).split(",")
    names = list(dict.fromkeys(filter(None, map(str.strip, words))))
    refs = [check_model(replace(settings, model=name), True, environ) for name in names]
    library = prompts.library(config.paths(environ))
    return Wanted(
        suite=options.suite,
        tasks=tasks_of(library, options.suite, options.seed, settings.system, presets.names()),
        models=_named(names, refs),
        budgets=tuple(dict.fromkeys(budgets)),
        sampling=settings.sampling,
        flags=options.flags,
        default=settings.think_budget,
        repeat=options.repeat,
        seed=options.seed,
        engine={name: getattr(settings, name) for name in COMPUTES},
        run_code=options.run_code,
    )


def _named(names: Sequence[str], refs: Sequence[ModelRef]) -> tuple[tuple[str, Path], ...]:
    """Models by their names; where two have the same one, by what was typed."""
    short = [ref.name for ref in refs]
    labels = short if len(set(short)) == len(short) else names
    return tuple((label, ref.path) for label, ref in zip(labels, refs, strict=True))


def _run(
    wanted: Wanted, settings: config.Settings, paths: config.Paths, book: Journal, screen: Screen
) -> list[Outcome]:
    """Ask, with a line for each reply on stderr and a live row below on a terminal."""
    from qwqcli.engine.process import open_engine
    from qwqcli.suite import draw
    from qwqcli.suite.run import run

    files = dict(wanted.models)
    known = len(book.outcomes())
    if known:
        screen.err.write(f"Goes on with the run {book.name}: {known} of {wanted.total} are known\n")

    def open_model(name: str) -> Engine:
        return open_engine(files[name], settings, paths.cache, repeatable=True)

    outcomes: list[Outcome] = []
    status = StatusLine(screen.err, screen.clock)
    began = screen.clock()
    with interruptible(twice_leaves=True) as pressed:

        def control() -> Order:
            status.show(_progress(wanted, outcomes, known, screen.clock() - began))
            return pressed()

        steps = run(wanted, open_model, book, control)
        with contextlib.closing(steps):  # type: ignore[type-var]  # run is a generator
            for outcome in steps:
                outcomes.append(outcome)
                status.clear(draw.line(outcome) + "\n" if len(outcomes) > known else "")
    status.clear()
    return outcomes


def _progress(wanted: Wanted, outcomes: list[Outcome], known: int, seconds: float) -> list[str]:
    """`12 of 48`, `11 right`, `about 40 s left`."""
    parts = [
        f"{len(outcomes)} of {wanted.total}",
        f"{sum(o.right is True for o in outcomes)} right",
    ]
    fresh = len(outcomes) - known
    if fresh > 2:
        left = seconds / fresh * (wanted.total - len(outcomes))
        parts.append(f"about {left:.0f} s left")
    return parts


@prompts_app.command(name="show-run")
def show_run(
    ctx: typer.Context,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Its name, or last; all if absent.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Its replies in full, with traces.")
    ] = None,
    wrong: Annotated[bool, typer.Option("--wrong", help="Replies in full that are wrong.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show what `qwq bench --suite NAME --save` kept: runs, figures, replies with their traces."""
    from qwqcli.suite import draw, journal

    env: Env = ctx.obj
    out = Output(env.stdout, env.environ)
    data = config.paths(env.environ).data
    if run is None:
        draw.show_runs(journal.saved(data), out)
        return
    book = journal.find(data, run)
    outcomes = book.outcomes()
    if prompt or wrong:
        chosen = [
            o
            for o in outcomes
            if (prompt is None or o.prompt == prompt) and not (wrong and o.right is not False)
        ]
        if not chosen:
            raise UsageError(
                "No reply of the run is like that.", f"qwq prompts show-run {book.name}"
            )
        draw.show_replies(chosen, out)
    elif json:
        draw.write_json(draw.scores_object(book.about()["asked"], outcomes), out)
    else:
        draw.show_scores(outcomes, out, details=True)
