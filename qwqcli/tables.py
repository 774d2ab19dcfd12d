"""Draws plans, quantizations and checks as tables, or as the values of a JSON object.

Contract: a table goes to the `Output` it is given, with colour only on a terminal; names that come
from files or drivers are shown as text (`visible`). In a pipe the width does not depend on a
window, so that the output can be compared.
Non-goals: deciding anything; replies and errors (render.py).
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qwqcli.costs import THOUGHT
from qwqcli.doctor import Check
from qwqcli.hardware import GiB, Machine, gib
from qwqcli.plan import ACCEPTABLE_KLD, Option, Plan, minutes, recommended
from qwqcli.terminal import ASCII, Output, visible

if TYPE_CHECKING:
    from rich.table import Table

GB = 10**9
PIPE_WIDTH = 110
LEAST_WIDTH = 20  # columns of text; a narrower window breaks it where it ends


def show_answer(
    machine: Machine, found: Plan | Sequence[Option], out: Output, *, as_json: bool
) -> None:
    """The answer of `planning.answer`, drawn or as JSON."""
    if isinstance(found, Plan):
        if as_json:
            _write_json(plan_object(found), out)
        else:
            show_plan(found, machine, out)
        return
    chosen = recommended(found)
    if as_json:
        _write_json({"quantizations": [option_object(o, chosen) for o in found]}, out)
    else:
        show_options(found, chosen, machine, out)


def plan_object(plan: Plan) -> dict[str, Any]:
    """The keys that scripts may rely on.

    `gpu_layers` counts layers that are wholly on GPUs. `ffn_in_ram_layers` more have attention and
    KV cache there and only their feed-forward weights in RAM; the two are llama.cpp's n_gpu_layers.
    """
    keys = ("name", "weights_bytes", "kv_bytes", "compute_bytes", "free_bytes")
    tps = plan.predicted
    return {
        "gpu_layers": plan.whole_layers,
        "ffn_in_ram_layers": len(plan.cpu_ffn),
        "layers_total": plan.layers_total,
        "n_ctx": plan.n_ctx,
        "type_k": plan.type_k,
        "type_v": plan.type_v,
        "flash_attn": plan.flash_attn,
        "devices": [{key: getattr(share, key) for key in keys} for share in plan.devices],
        "predicted": {
            "prompt_tps": _rounded(tps.prompt_tps),
            "generation_tps": _rounded(tps.generation_tps),
            "measured": tps.measured,
        },
        "reasons": [*plan.reasons, *plan.warnings],
    }


def option_object(option: Option, chosen: str | None) -> dict[str, Any]:
    """One quantization; `plan` is null if it does not fit."""
    quant = option.quant
    return {
        "quantization": quant.name,
        "file_bytes": quant.file_bytes,
        "approximate": quant.approximate,
        "kl_divergence": quant.kld,
        "recommended": quant.name == chosen,
        "plan": plan_object(option.plan) if option.plan else None,
    }


def show_plan(plan: Plan, machine: Machine, out: Output) -> None:
    """The memory table, the reasons and the warnings."""
    context = f"{plan.n_ctx:,} tokens of context"
    out.write(f"{visible(plan.model)} on {visible(machine.name)}: {_where(plan)}, {context}\n\n")
    table = make_table(
        out, ("Device", "Layers", "Weights", "KV cache", "Compute", "Margin", "Free")
    )
    for share in plan.devices:
        sizes = (share.weights_bytes, share.kv_bytes, share.compute_bytes, share.margin_bytes)
        cells = [_size(size) for size in (*sizes, share.free_bytes)]
        in_ram = share.name == "CPU" and plan.cpu_ffn
        layers = f"FFN of {len(plan.cpu_ffn)}" if in_ram else str(share.layers)
        table.add_row(visible(share.name), layers, *cells)
    print_table(table, out)
    for reason in plan.reasons:
        _write_text(out.symbols.bullet, reason, out)
    for warning in plan.warnings:
        _write_warning(warning, out)


def show_options(
    found: Sequence[Option], chosen: str | None, machine: Machine, out: Output
) -> None:
    """Every quantization of QwQ-32B, the recommended one marked and why."""
    out.write(f"QwQ-32B on {visible(machine.name)}{_devices(machine)}\n\n")
    thought = f"{THOUGHT // 1000}k tokens"
    heads = ("", "Quant", "Size", "Where", "Context", "KV", "t/s", thought, "Loss")
    table = make_table(out, heads)
    for option in found:
        table.add_row(*_option_cells(option, chosen))
    print_table(table, out)
    notes = [
        f"{_sizes_note(found)} t/s are predicted. What is not on the GPU is in RAM.",
        "Loss is the KL divergence from f16, measured on Llama-3-8B: good for the order alone.",
    ]
    for note in [*notes, why_recommended(found, chosen)]:
        _write_text("", note, out)
    for unused in machine.unused:
        said = f"{unused.name} is here, but this build cannot use it: {unused.install}"
        _write_warning(said, out)


def _sizes_note(found: Sequence[Option]) -> str:
    if any(option.quant.approximate for option in found):
        return "Sizes with ~ are rounded, for the hub has not said them."
    return "Sizes are the hub's."


def why_recommended(found: Sequence[Option], chosen: str | None) -> str:
    """One sentence, and what to type next."""
    option = next((o for o in found if o.quant.name == chosen), None)
    if option is None or option.plan is None:
        return "No quantization of QwQ-32B fits here: it needs 10 GB of free memory at least."
    if option.whole:
        reason = "the best that is wholly on the GPU with room to think"
    elif (option.quant.kld or 1) > ACCEPTABLE_KLD:
        reason = "nothing better fits, but so small a quantization often errs"
    elif option.plan.gpu_layers == 0:
        reason = "on the CPU, a better one would be much slower"
    else:
        reason = "nothing good fits the GPU whole, and a better one would be much slower"
    return f"> {chosen}: {reason}. See: qwq plan {chosen}"


def show_checks(checks: Sequence[Check], out: Output, *, as_json: bool) -> None:
    """What `qwq doctor` found: one line a check, and below it what to type."""
    if as_json:
        _write_json({"checks": [asdict(check) for check in checks]}, out)
        return
    width = max(len(check.name) for check in checks)
    for check in checks:
        word = out.red(check.status) if check.status == "fail" else check.status
        _write_text(f"{check.status}  {check.name:<{width}} ", check.detail, out, word)
        if check.fix:
            out.write(f"       {' ' * width}fix: {visible(check.fix)}\n")


def _option_cells(option: Option, chosen: str | None) -> list[str]:
    quant, plan = option.quant, option.plan
    size = f"{'~' if quant.approximate else ''}{quant.file_bytes / GB:.1f} GB"
    loss = f"{quant.kld:.3f}" if quant.kld is not None else "-"
    mark = ">" if quant.name == chosen else ""
    if plan is None:
        return [mark, quant.name, size, "does not fit", "", "", "", "", loss]
    thought = plan.predicted.thought_s
    return [
        mark,
        quant.name,
        size,
        where_shortly(plan),
        f"{plan.n_ctx:,}",
        plan.type_k,
        f"{plan.predicted.generation_tps:.1f}" if plan.predicted.generation_tps else "-",
        minutes(thought) if thought else "-",
        loss,
    ]


def where_shortly(plan: Plan) -> str:
    if plan.gpu_layers == 0:
        return "CPU"
    if plan.whole_layers == plan.layers_total:
        return "all on GPU"
    return f"{plan.whole_layers}/{plan.layers_total} on GPU"


def _where(plan: Plan) -> str:
    if plan.gpu_layers == 0:
        return "CPU"
    if plan.whole_layers == plan.layers_total:
        return f"GPU, all {plan.layers_total} layers"
    if plan.cpu_ffn:
        return f"GPU, FFN of {len(plan.cpu_ffn)} in RAM"
    return f"GPU, {plan.gpu_layers} of {plan.layers_total} layers"


def _devices(machine: Machine) -> str:
    parts = [f"{visible(d.description)} ({gib(d.free_bytes)} free)" for d in machine.devices]
    parts.append(f"RAM ({gib(machine.ram_free_bytes)} free)")
    return ": " + ", ".join(parts)


def make_table(out: Output, heads: Sequence[str], right: Sequence[str] = ()) -> Table:
    """A table with these heads; `right` are columns of numbers beside those that always are."""
    from rich import box
    from rich.table import Table

    style = box.ASCII if out.symbols is ASCII else box.SIMPLE_HEAD
    table = Table(
        box=style,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
        header_style="bold",
    )
    numbers = ("Size", "Layers", "Weights", "KV cache", "Compute", "Margin", "Free", "Context")
    for head in heads:
        number = head in (*numbers, *right, "t/s", "Loss") or "tokens" in head
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    return table


def fits_width(table: Table, out: Output) -> bool:
    """Whether the window is wide enough for all columns."""
    from rich.measure import Measurement

    console = out.console()
    return (
        not out.terminal
        or Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        <= console.width
    )


def print_table(table: Table, out: Output) -> None:
    """Draw it; in a pipe as wide as `PIPE_WIDTH`."""
    console = out.console()
    if not out.terminal:
        console.width = PIPE_WIDTH
    with console.capture() as capture:
        console.print(table)
    rows = capture.get().split("\n")
    out.write("\n".join(row.rstrip() for row in rows) + "\n")


def _size(n_bytes: int) -> str:
    return gib(n_bytes) if n_bytes >= GiB // 10 else f"{n_bytes / 2**20:.1f} MiB"


def _write_warning(text: str, out: Output) -> None:
    _write_text("warning: ", text, out, out.red("warning:"))


def _write_text(lead: str, text: str, out: Output, shown: str = "") -> None:
    """`lead` and a sentence; on a terminal broken between words and set in under it.

    `shown` stands for the first word of `lead`: the same in colour.
    """
    line = lead + visible(text)
    if out.terminal:
        width = max(out.size()[0] - 1, LEAST_WIDTH)
        indent = " " * (len(lead) if len(lead) <= width - LEAST_WIDTH else 2)
        line = textwrap.fill(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    first = lead.split(" ")[0]
    out.write((shown or first) + line[len(first) :] + "\n")


def _write_json(value: Mapping[str, Any], out: Output) -> None:
    out.write(json.dumps(value, ensure_ascii=False) + "\n")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
