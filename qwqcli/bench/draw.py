"""Draws what was measured: the announcement, a table, a comparison, the history, a plot.

Contract: results go to the `Output` they are given; in a pipe they do not depend on a window.
Text from files is shown as text (`visible`). `plot` draws in the terminal, `save_plot` into a file.
Non-goals: measuring and deciding.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from qwqcli.bench import compare as sides
from qwqcli.bench import tune as tuning
from qwqcli.bench.ceiling import ceiling_tps
from qwqcli.bench.measure import Job
from qwqcli.bench.report import Felt, Report, Row, plus_minus
from qwqcli.errors import QwqError, UsageError
from qwqcli.hardware import GB, gib
from qwqcli.tables import make_table, print_table
from qwqcli.terminal import ASCII, Output, visible

WIDE, WIDEST = 64, 92  # columns that the whole table needs, and that of a comparison


def announcement(job: Job) -> Iterator[str]:
    """What will be measured and what is to be expected, a line each, before anything is timed."""
    setup, plan = job.setup, job.plan
    name = f"{setup.model_name} {setup.quantization}".strip()
    yield f"{visible(name)}, {setup.model_size / GB:.2f} GB, sha256 {setup.sha256[:12]}"
    device = f" and {setup.gpu_info}" if setup.gpu_info else ""
    yield f"on {visible(setup.cpu_info)}{visible(device)}, llama-cpp-python {setup.engine}"
    layers = f"{plan.whole_layers} of {plan.layers_total} layers on the GPU"
    where = layers if plan.gpu_layers else "all layers on the CPU"
    flash = f"flash attention {plan.flash_attn}"
    repack = "repack on" if job.spec.extra_bufts else "repack off"
    threads = "one thread" if plan.threads == 1 else f"{plan.threads} threads"
    yield f"{where}, {threads}, {flash}, {repack}, KV {plan.type_k}/{plan.type_v}"
    if setup.tuned:
        yield visible(setup.tuned)
    yield from _expectations(job)
    names = ", ".join(test.name for test in job.tests)
    yield f"Measures {names}; {job.wanted.repetitions} repetitions after a warm-up"


def _expectations(job: Job) -> Iterator[str]:
    setup = job.setup
    reads = " and ".join(
        f"{r.weights / GB:.2f} GB from {r.name} at {r.bandwidth / GB:.1f} GB/s"
        for r in job.readers
        if r.bandwidth
    )
    last = [test for test in job.tests if test.n_gen][:1]
    ceiling = ceiling_tps(job.readers, last[0]) if last else None
    if reads and ceiling:
        yield f"A token reads {reads}: at most {ceiling:.1f} tokens/s"
    if setup.predicted_gen_ts:
        prompt = setup.predicted_prompt_ts
        prompts = f", prompts at {prompt:,.0f}" if prompt else ""
        yield f"Predicted: {setup.predicted_gen_ts:.1f} tokens/s while thinking{prompts}"


def show_report(report: Report, published: Sequence[str], out: Output) -> None:
    """The table of tests, what the person feels, what disturbed it."""
    if report.tests:
        heads = ("Test", "tokens/s", "Median", "Ceiling", "Reached")
        shown = 2 if out.terminal and out.size()[0] < WIDE else len(heads)
        table = make_table(out, heads[:shown], right=heads[1:])
        for row in report.tests:
            table.add_row(*_cells(row)[:shown])
        print_table(table, out)
    if report.felt:
        for line in felt_lines(report.felt):
            out.write(f"{line}\n")
    for line in published:
        out.write(f"{out.symbols.bullet}{visible(line)}\n")
    for line in report.noise:
        out.write(f"{out.red('noise:')} {visible(line)}\n")
    if not report.complete:
        out.write("Stopped before the end: this is what was measured until then.\n")


def _cells(row: Row) -> list[str]:
    speed, ceiling = row.speed, row.ceiling_ts
    shown = [f"{ceiling:.1f}", f"{speed.mean / ceiling:.0%}"] if ceiling else ["", ""]
    return [row.test.name, plus_minus(speed), f"{speed.median:.2f}", *shown]


def felt_lines(felt: Felt) -> Iterator[str]:
    """What a person feels, in words; what the machine does not tell is left out."""
    yield f"In a chat: loaded in {felt.load_s:.2f} s"
    if felt.cold_first_token_s is not None:
        yield f"  first token after {felt.cold_first_token_s:.2f} s ({felt.prompt_tokens} tokens)"
    if felt.reused_first_token_s is not None:
        yield (
            f"  of a second question after {felt.reused_first_token_s:.2f} s"
            f" ({felt.reused_tokens} tokens reused)"
        )
    if felt.thinking_ts is not None:
        over = f"over {felt.generated_tokens} tokens"
        yield f"  then {felt.thinking_ts:.1f} tokens/s, sampled, {over}"
    yield f"  {gib(felt.peak_ram_bytes)} of RAM at most"
    if felt.peak_gpu_bytes is not None:
        yield f"  {gib(felt.peak_gpu_bytes)} of GPU memory at most"
    if felt.watts is not None and felt.tokens_per_joule is not None:
        yield f"  {felt.watts:.0f} W, {felt.tokens_per_joule:.2f} tokens per joule"


def show_history(reports: Sequence[Report], problems: Sequence[str], out: Output) -> None:
    """A line a run, the newest last."""
    table = make_table(out, ("Run", "Model", "Test", "tokens/s"), right=("tokens/s",))
    for report in reports:
        name = f"{report.setup.model_name} {report.setup.quantization}".strip()
        mark = "" if report.complete else " (stopped)"
        first = report.tests[:1]
        table.add_row(
            report.id,
            visible(name) + mark,
            "" if not first else first[0].test.name,
            "" if not first else plus_minus(first[0].speed),
        )
        for row in report.tests[1:]:
            table.add_row("", "", row.test.name, plus_minus(row.speed))
    print_table(table, out)
    for problem in problems:
        out.write(f"{out.red('warning:')} {visible(problem)}\n")


def show_comparison(
    first: Report, second: Report, found: Sequence[sides.Compared], out: Output
) -> None:
    """Ratios with their intervals, and in words what they are worth."""
    out.write(f"{first.id} -> {second.id}: {visible(second.setup.model_name)}\n\n")
    both = not out.terminal or out.size()[0] >= WIDEST
    speeds = ("First", "Second") if both else ()
    table = make_table(out, ("Test", *speeds, "Ratio", "95 % interval", ""), right=speeds)
    for pair in found:
        ratio = pair.ratio
        known = ratio.low is not None and ratio.high is not None
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}" if known else "one repetition only"
        verdict = "within noise" if ratio.within_noise else f"{ratio.value - 1:+.0%}"
        table.add_row(
            pair.first.test.name,
            *((plus_minus(pair.first.speed), plus_minus(pair.second.speed)) if both else ()),
            f"{ratio.value:.3f}",
            interval,
            verdict,
        )
    print_table(table, out)
    for line in _differences(found):
        out.write(f"{out.symbols.bullet}{line}\n")
    out.write(
        "The interval is of the noise within the runs; what changed between them is not it.\n"
    )


def _differences(found: Sequence[sides.Compared]) -> list[str]:
    """Settings that are not the same in both."""
    lines: dict[str, None] = {}
    for pair in found:
        before, after = sides.settings(pair.first), sides.settings(pair.second)
        for key in before:
            if before[key] != after[key]:
                lines[f"{key}: {before[key]} -> {after[key]}"] = None
    return list(lines)


# --- tuning ------------------------------------------------------------------------------------


def tried_line(tried: tuning.Tried) -> str:
    """A setting and its speeds, as it was tried."""
    setting = ", ".join(
        f"{tuning.NAMES[name]} {value}"
        for name, value in tuning.words(tried.setting).items()
        if name != "split" or tried.setting.split
    )
    if tried.speeds is None:
        return f"{setting}: does not work here"
    speeds = ", ".join(f"{speed:.1f}" for speed in tried.speeds.generation)
    return f"{setting}: prompt {tried.speeds.prompt:.1f}, thinking {speeds} tokens/s"


def outcome_lines(outcome: tuning.Outcome) -> Iterator[str]:
    """What was found, what it gains, and over what."""
    if not outcome.complete:
        yield "Stopped before the end: nothing was changed."
        return
    if outcome.kept:
        yield f"Kept: {'; '.join(outcome.kept.why)} over qwq's own settings."
    elif not outcome.proved:
        yield "The fastest setting found is not faster beyond doubt: qwq keeps its own."
    else:
        yield "No setting was found that is faster than qwq's own."
    if outcome.over_default:
        said = tuning.explained(outcome.best, outcome.default, outcome.over_default, outcome.depths)
        yield f"Over llama.cpp's defaults: {said}."


def outcome_json(outcome: tuning.Outcome, model: str) -> str:
    """One line for scripts."""

    def ratios(proof: tuning.Proof | None) -> dict[str, float] | None:
        if proof is None:
            return None
        found = tuning.parts(proof, outcome.depths)
        return {name: round(ratio.value, 4) for name, ratio in found.items()}

    plain = {
        "schema": 1,
        "model": model,
        "complete": outcome.complete,
        "kept": outcome.kept is not None,
        "setting": asdict(outcome.best),
        "over_own": ratios(outcome.over_own),
        "over_default": ratios(outcome.over_default),
    }
    return json.dumps(plain)


# --- plots -------------------------------------------------------------------------------------


def plot(report: Report, out: Output) -> None:
    """Speed over depth in the terminal, one figure for each kind of test."""
    import plotille

    for kind, rows in _by_kind(report.tests).items():
        depths, speeds = [row.n_depth for row in rows], [row.speed.mean for row in rows]
        figure = plotille.Figure()
        figure.width, figure.height = max(min(out.size()[0] - 24, 60), 10), 10
        figure.with_colors = False
        figure.set_x_limits(0, max(*depths, 1))
        figure.set_y_limits(0, max(speeds) * 1.1)
        figure.x_label, figure.y_label = "depth", "tokens/s"
        figure.register_label_formatter(float, _plot_number)
        figure.register_label_formatter(int, _plot_number)
        figure.plot(depths, speeds)
        figure.scatter(depths, speeds, marker="o")
        text = figure.show().replace("\u2800", " ")
        if out.symbols is ASCII:
            text = re.sub("[\u2801-\u28ff]", ".", text)
        lines = "\n".join(line.rstrip() for line in text.split("\n"))
        out.write(f"{kind}\n{lines}\n\n")


def _plot_number(value: float, chars: int, delta: float, left: bool = False) -> str:
    text = f"{value:,.0f}" if delta > 1 else f"{value:.2f}"
    return text.ljust(chars) if left else text.rjust(chars)


def check_plot(path: Path) -> None:
    """Raises UsageError, before anything is measured, where the plot could not be saved."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise UsageError(
            f"A plot is saved as SVG or PNG, not as '{path.suffix}'.",
            f"--save-plot {path.with_suffix('.svg')}",
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "Saving a plot needs matplotlib, which is not installed.", "pip install 'qwq[plot]'"
        )


def plot_path(path: Path, report: Report, runs: int) -> Path:
    """Where the plot of `report` goes: with its quantization in the name if there are several."""
    name = f"{path.stem}-{report.setup.quantization.lower()}{path.suffix}"
    return path.with_name(name) if runs > 1 else path


def save_plot(report: Report, path: Path) -> None:
    """The same with error bars as SVG or PNG; see `check_plot`."""
    from matplotlib.figure import Figure

    groups = _by_kind(report.tests)
    figure = Figure(figsize=(4.5 * max(len(groups), 1), 3.2), layout="constrained")
    for at, (kind, rows) in enumerate(groups.items(), 1):
        axes = figure.add_subplot(1, len(groups), at)
        speeds = [row.speed for row in rows]
        errors = [speed.sd for speed in speeds]
        axes.errorbar(
            [r.n_depth for r in rows], [s.mean for s in speeds], errors, marker="o", capsize=3
        )
        axes.set(xlabel="depth (tokens)", ylabel="tokens/s", title=kind, ylim=(0, None))
    name = f"{report.setup.model_name} {report.setup.quantization}".strip()
    figure.suptitle(f"{name}, {report.setup.placement}", fontsize=9)
    try:
        figure.savefig(path)
    except OSError as error:
        raise QwqError(
            f"{path} cannot be written: {error.strerror}.", "--save-plot FILE"
        ) from error


def _by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.n_depth):
        found.setdefault(row.test.kind, []).append(row)
    return found
