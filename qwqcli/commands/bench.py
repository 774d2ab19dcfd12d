"""`qwq bench` and `qwq tune`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwqcli import config
from qwqcli.commands import (
    Ctx,
    Device,
    Env,
    Flash,
    GpuLayers,
    Kv,
    MaxTokens,
    Model,
    NoGpu,
    Rpc,
    Temperature,
    Threads,
    app,
    settings_of,
    suites,
)
from qwqcli.commands.prompts import RunCode
from qwqcli.errors import INTERRUPTED, UsageError
from qwqcli.interrupt import interruptible
from qwqcli.terminal import Screen, StatusLine, visible

if TYPE_CHECKING:
    from qwqcli.bench import tune as tuning
    from qwqcli.bench.measure import Job, Step, Wanted
    from qwqcli.bench.report import Report
    from qwqcli.catalog import ModelRef
    from qwqcli.engine import Control


@app.command()
def bench(
    ctx: typer.Context,
    model: Model = None,
    quant: Annotated[
        str | None, typer.Option("--quant", help="Quantizations of QwQ-32B: q4_k_m, or a,b,c.")
    ] = None,
    n_prompt: Annotated[
        str | None, typer.Option("-p", "--n-prompt", help="Tokens of prompt (512); 0 for none.")
    ] = None,
    n_gen: Annotated[
        str | None, typer.Option("-n", "--n-gen", help="Tokens to generate (128); 0 for none.")
    ] = None,
    n_depth: Annotated[
        str | None, typer.Option("-d", "--n-depth", help="Tokens before both (0,8192).")
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option("-r", "--repetitions", help="Of each test (5).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Less of all, in under a minute.")] = False,
    no_tune: Annotated[
        bool, typer.Option("--no-tune", help="Without what qwq tune has found.")
    ] = False,
    no_chat: Annotated[
        bool, typer.Option("--no-chat", help="Only what llama-bench measures.")
    ] = False,
    ctx_tokens: Ctx = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    no_gpu: NoGpu = False,
    kv: Kv = None,
    flash_attn: Flash = None,
    rpc: Rpc = None,
    device: Device = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a run, in a line.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="A line a test, with a header.")] = False,
    md: Annotated[bool, typer.Option("--md", help="One line to paste in a forum.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw speed over depth.")] = False,
    save_plot: Annotated[
        Path | None, typer.Option("--save-plot", help="The same as FILE.svg or FILE.png.")
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="List the runs so far.")] = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option("--compare", help="Two runs of the history: A B, or last~1 last."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare runs that are not alike.")
    ] = False,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            help="Ask prompts and check the answers: tiny, claims, gym:TASK."
            " Or speed: quick, reasoner, FILE.yaml.",
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="For a suite: budgets of thought, 1k,4k,off.")
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", help="For a suite: how often.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="For a suite: repeats it.")] = 0,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    save: Annotated[
        bool, typer.Option("--save", help="For a suite: keep each reply with its trace.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="For a suite: do not go on with one that was stopped.")
    ] = False,
    run_code: RunCode = False,
    perplexity: Annotated[
        Path | None, typer.Option("--perplexity", help="How well a text file is predicted.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="KL divergence from this model, with it.")
    ] = None,
    windows: Annotated[
        int | None, typer.Option("--windows", min=1, help="Of the text, at most.")
    ] = None,
) -> None:
    """Measure how fast a model is here, as llama-bench does, and as a person feels it.

    Results go to stdout, all else to stderr; every run is kept. With --suite: is the answer right,
    and how long did one wait for it?
    """
    from qwqcli.bench import draw, measure, presets
    from qwqcli.bench import history as kept

    env: Env = ctx.obj
    paths = config.paths(env.environ)
    screen = Screen(env.stdout, env.stderr, env.environ)
    if suite and not presets.is_suite(suite):
        flags = {"temperature": temperature, "max_tokens": max_tokens}
        options = suites.Options(
            suite, quant, budget, repeat, seed, flags, save, fresh, run_code, json
        )
        raise typer.Exit(suites.bench_suite(env, settings_of(ctx), options))
    if history:
        draw.show_history(*kept.listed(paths.data), screen.out)
        return
    if compare:
        from qwqcli.bench.compare import compare as sides

        first, second = (kept.find(paths.data, name) for name in compare)
        draw.show_comparison(first, second, sides(first, second, force=force), screen.out)
        return
    settings = settings_of(ctx)
    if perplexity:
        code = suites.bench_perplexity(env, settings, perplexity, against, windows, as_json=json)
        raise typer.Exit(code)
    speed = suite or ("quick" if quick else "default")
    wanted = _wanted(speed, n_prompt, n_gen, n_depth, repetitions, no_chat)
    measure.check(wanted)
    if save_plot:
        draw.check_plot(save_plot)
    reports = []
    with interruptible(twice_leaves=True) as pressed:
        for ref in _models(settings.model, quant, env.environ):
            steps = measure.prepare(ref.path, settings, paths.cache, wanted, tune=not no_tune)
            job = _prepare(steps, pressed, screen)
            reports.append(_run(job, pressed, screen))
            problem = kept.keep(reports[-1], paths.data) if reports[-1].tests else ""
            if problem:
                screen.err.write(f"{problem}\n")
            if pressed():
                break
    _show(reports, screen, json=json, csv=csv, md=md)
    for report in reports:
        if plot and report.tests:
            draw.plot(report, screen.err if json or csv or md else screen.out)
        if save_plot and report.tests:
            draw.save_plot(report, draw.plot_path(save_plot, report, len(reports)))
    if pressed():
        raise typer.Exit(INTERRUPTED)


@app.command()
def tune(
    ctx: typer.Context,
    model: Model = None,
    budget: Annotated[float | None, typer.Option(help="Seconds that it may take (180).")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Forget what was found.")] = False,
    ctx_tokens: Ctx = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    no_gpu: NoGpu = False,
    kv: Kv = None,
    flash_attn: Flash = None,
    rpc: Rpc = None,
    device: Device = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Find the fastest settings for a model on this machine, prove it, and keep them.

    chat, ask and bench use them from then on, until --reset.
    """
    from qwqcli import catalog
    from qwqcli.bench import draw
    from qwqcli.bench import tune as tuning
    from qwqcli.engine import tuned
    from qwqcli.engine.process import stock_spec

    env: Env = ctx.obj
    cache = config.paths(env.environ).cache
    screen = Screen(env.stdout, env.stderr, env.environ)
    settings = settings_of(ctx)
    ref = catalog.resolve(settings.model, env.environ)
    if reset:
        forgotten = tuned.forget(ref.path, cache)
        said = "qwq's own settings are back" if forgotten else "Nothing was kept"
        screen.out.write(f"{said} for {visible(ref.name)}.\n")
        return
    with interruptible(twice_leaves=True) as pressed:
        events = tuning.tune(
            ref.path, settings, cache, pressed, tuning.BUDGET_S if budget is None else budget
        )
        outcome = _tune(events, screen)
    if outcome.kept:
        tuned.keep(stock_spec(ref.path, settings), cache, outcome.kept)
    out = screen.err if json else screen.out
    for line in draw.outcome_lines(outcome):
        out.write(f"{line}\n")
    if outcome.kept:
        out.write("chat, ask and bench use it from now on. Undo: qwq tune --reset\n")
    if json:
        screen.out.write(draw.outcome_json(outcome, ref.name) + "\n")
    if not outcome.complete:
        raise typer.Exit(INTERRUPTED)


def _tune(events: Iterator[tuning.Event], screen: Screen) -> tuning.Outcome:
    """Draw what is tried; returns the end."""
    from qwqcli.bench import draw
    from qwqcli.bench import tune as tuning

    status = StatusLine(screen.err, screen.clock)
    for event in events:
        if isinstance(event, tuning.Outcome):
            status.clear()
            return event
        if isinstance(event, tuning.Tried):
            mark = " (the best so far)" if event.best else ""
            status.clear(f"{draw.tried_line(event)}{mark}\n")
        elif isinstance(event, tuning.Comparing):
            status.clear("The best and the others take turns, to prove the difference.\n")
        else:
            shown = ", ".join(f"{depth:,}" for depth in event.depths)
            prompt = f"a prompt of {event.n_prompt} tokens"
            status.clear(f"Measures {prompt}, and {event.n_gen} at depth {shown}.\n")
    raise AssertionError("tuning ends with an outcome")


def _wanted(
    suite: str,
    n_prompt: str | None,
    n_gen: str | None,
    n_depth: str | None,
    repetitions: int | None,
    no_chat: bool,
) -> Wanted:
    """What to measure: a speed suite, and what was typed over it. Raises UsageError."""
    from qwqcli.bench import presets
    from qwqcli.bench.measure import Wanted

    default = presets.load(suite)
    typed = any(value is not None for value in (n_prompt, n_gen, n_depth, repetitions))
    return Wanted(
        _counts(n_prompt, "-p") or default.n_prompt,
        _counts(n_gen, "-n") or default.n_gen,
        _counts(n_depth, "-d") or default.n_depth,
        default.repetitions if repetitions is None else repetitions,
        0 if no_chat else default.chat_tokens,
        None if typed else default.seconds,
    )


def _counts(text: str | None, option: str) -> tuple[int, ...]:
    """`512` or `0,2048,8192` as numbers; nothing if it was not given."""
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", word) for word in words):
        raise UsageError(f"{option} {text!r} is no list of numbers of tokens.", f"{option} 0,2048")
    return tuple(dict.fromkeys(int(word) for word in words))


def _models(model: str, quant: str | None, environ: Mapping[str, str]) -> Iterator[ModelRef]:
    """The models to measure, in the order they were named. Raises UsageError, with the pull."""
    from qwqcli import catalog, quants

    if quant is None:
        yield catalog.resolve(model, environ)
        return
    names = [name.strip().lower() for name in quant.split(",") if name.strip()]
    for name in names:
        if name not in quants.BY_NAME:
            near = config.nearest(name, quants.BY_NAME)
            hint = f"--quant {near}" if near in quants.BY_NAME else near
            raise UsageError(f"There is no quantization called '{name}'.", hint)
    if not names:
        raise UsageError(f"--quant {quant!r} names no quantization.", "--quant q4_k_m")
    yield from [_on_disk(name, environ) for name in names]


def _on_disk(name: str, environ: Mapping[str, str]) -> ModelRef:
    from qwqcli import catalog

    try:
        return catalog.resolve(name, environ)
    except UsageError as error:
        raise UsageError(error.message, f"qwq pull {name}") from error


def _prepare(steps: Generator[Step, None, Job], pressed: Control, screen: Screen) -> Job:
    """Say what will be measured."""
    from qwqcli.bench import draw

    status = StatusLine(screen.err, screen.clock)
    with contextlib.closing(steps):
        while True:
            try:
                status.show([next(steps).what])
            except StopIteration as end:
                job: Job = end.value
                break
            finally:
                status.clear()
            if pressed():
                raise typer.Exit(INTERRUPTED)
    for line in (*draw.announcement(job), *job.notices):
        screen.err.write(f"{line}\n")
    return job


def _run(job: Job, pressed: Control, screen: Screen) -> Report:
    """Measure, with a live row on a terminal and a line for each test."""
    from qwqcli.bench import measure
    from qwqcli.bench.report import plus_minus
    from qwqcli.plan import minutes

    status = StatusLine(screen.err, screen.clock)
    for event in measure.measure(job, pressed):
        if isinstance(event, measure.Step):
            left = [f"about {minutes(event.eta_s)} left"] if event.eta_s else []
            status.show([event.what, *left])
        elif isinstance(event, measure.Loaded):
            status.clear(f"Loaded: {event.placement}\n")
        elif isinstance(event, measure.Measured):
            row = event.row
            status.clear(f"{row.test.name}: {plus_minus(row.speed)} tokens/s\n")
        else:
            status.clear()
            return event.report
    raise AssertionError("a run ends with Finished")


def _show(reports: list[Report], screen: Screen, *, json: bool, csv: bool, md: bool) -> None:
    from qwqcli.bench import draw, reference, report

    if json:
        for one in reports:
            screen.out.write(report.to_json(one) + "\n")
    elif csv:
        screen.out.write(report.to_csv(reports))
    for one in reports if not (json or csv) else []:
        if md:
            screen.out.write(report.to_line(one) + "\n")
        else:
            draw.show_report(one, list(reference.lines(one)), screen.out)
