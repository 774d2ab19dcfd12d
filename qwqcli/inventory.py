"""The models of this machine, drawn: the list of all, and one of them in full; both also as JSON.

Contract: `survey` and `describe` read headers and plan for this machine as it is now; the others
draw what they found and decide nothing. A file that cannot be used is in the list, with the reason.
Non-goals: finding, downloading and removing (hub), the arithmetic of a plan (plan.py).
"""

from __future__ import annotations

import datetime
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwqcli import hardware, planning
from qwqcli.catalog import ModelRef
from qwqcli.errors import NoRoom, QwqError
from qwqcli.gguf import ModelInfo, read_file_header
from qwqcli.hardware import Machine
from qwqcli.hub import Model, Unfinished
from qwqcli.layout import Want
from qwqcli.plan import Plan, make_plan
from qwqcli.progress import percent, size
from qwqcli.tables import fits_width, make_table, plan_object, print_table, where_shortly
from qwqcli.terminal import Output, visible

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
HEADS = ("Name", "Quant", "Size", "Where", "Last used", "Fits here")


@dataclass(frozen=True, slots=True)
class Row:
    """A model and what this machine makes of it: a plan, or why there is none."""

    model: Model
    plan: Plan | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """All that is known of one model."""

    ref: ModelRef
    info: ModelInfo
    machine: Machine
    plan: Plan | None
    problem: str = ""

    @property
    def license(self) -> str:
        """As its publisher announced it, else as the file says."""
        said = self.ref.model.license if self.ref.model else ""
        return said or str(self.info.metadata.get("general.license", ""))


def survey(models: Iterable[Model]) -> list[Row]:
    """Which of the models fit on this machine."""
    models = list(models)
    if not models:
        return []
    machine = hardware.probe()
    return [_row(model, machine) for model in models]


def _row(model: Model, machine: Machine) -> Row:
    try:
        return Row(model, make_plan(read_file_header(model.paths[0]), machine, Want()))
    except NoRoom:
        return Row(model, None, "no")
    except QwqError as error:
        return Row(model, None, error.message)


def describe(ref: ModelRef) -> Card:
    """The card of one model, with a plan that llama.cpp itself has looked at."""
    info = read_file_header(ref.path)
    try:
        machine, plan = planning.answer(planning.Asked(str(ref.path), Want()))
    except NoRoom as error:
        return Card(ref, info, hardware.probe(), None, error.message)
    assert isinstance(plan, Plan)
    return Card(ref, info, machine, plan)


# --- the list ----------------------------------------------------------------------------------


def show_list(rows: Sequence[Row], left: Sequence[Unfinished], home: Path, out: Output) -> None:
    """A table where the window has room for it, else a few lines for each model."""
    table = make_table(out, HEADS)
    lines = [_cells(row, home) for row in rows]
    for line in lines:
        table.add_row(*map(visible, line))
    if lines and fits_width(table, out):
        print_table(table, out)
    else:
        for name, *facts in lines:
            out.write(f"{visible(name)}\n")
            for text in filter(None, facts):
                out.write(f"  {visible(text)}\n")
    for item in left:
        amount = f"{percent(item.done, item.size)} of {size(item.size)}"
        again = ["qwq", "pull", item.label, *(["--to", str(item.to)] if item.to else [])]
        out.write(f"Unfinished, {amount}. Go on: {visible(shlex.join(again))}\n")


def list_object(rows: Sequence[Row], left: Sequence[Unfinished]) -> dict[str, Any]:
    """The keys that scripts may rely on. `fits` is null where the file cannot be read."""
    return {
        "models": [_row_object(row) for row in rows],
        "unfinished": [
            {
                "name": item.label,
                "to": str(item.to) if item.to else None,
                "size_bytes": item.size,
                "done_bytes": item.done,
            }
            for item in left
        ],
    }


def _cells(row: Row, home: Path) -> tuple[str, ...]:
    model = row.model
    return (
        model.name,
        model.quantization,
        size(model.size),
        _place(model, home),
        ago(time.time() - model.used_s) if model.used_s else "never",
        where_shortly(row.plan) if row.plan else row.problem,
    )


def _place(model: Model, home: Path) -> str:
    """Whose folder it is in, else the folder."""
    folder = model.paths[0].parent
    if any(part.startswith("models--") for part in folder.parts):
        return "HF cache"
    if not model.ours:
        return model.owner
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def ago(seconds: float) -> str:
    """`now`, `5 min ago`, `3 h ago`, `12 days ago`."""
    if seconds < MINUTE_S:
        return "now"
    if seconds < HOUR_S:
        return f"{seconds // MINUTE_S:.0f} min ago"
    if seconds < DAY_S:
        return f"{seconds // HOUR_S:.0f} h ago"
    days = int(seconds // DAY_S)
    return f"{days} day{'s' if days > 1 else ''} ago"


def _row_object(row: Row) -> dict[str, Any]:
    return {
        **_model_object(row.model),
        "fits": True if row.plan else False if row.problem == "no" else None,
        "problem": row.problem or None,
        "gpu_layers": row.plan.whole_layers if row.plan else None,
        "n_ctx": row.plan.n_ctx if row.plan else None,
    }


def _model_object(model: Model) -> dict[str, Any]:
    used = datetime.datetime.fromtimestamp(model.used_s, datetime.timezone.utc)
    return {
        "name": model.name,
        "quantization": model.quantization or None,
        "size_bytes": model.size,
        "paths": [str(path) for path in model.paths],
        "owner": model.owner,
        "last_used": used.isoformat(timespec="seconds") if model.used_s else None,
    }


# --- one model ---------------------------------------------------------------------------------


def show_card(card: Card, out: Output) -> None:
    """One line a fact; what is not known is left out."""
    facts = [(name, text) for name, text in _facts(card) if text]
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        out.write(f"{name:{width}}  {visible(text)}\n")


def card_object(card: Card) -> dict[str, Any]:
    """The keys that scripts may rely on."""
    info, model = card.info, card.ref.model
    return {
        "name": card.ref.name,
        "path": str(card.ref.path),
        "architecture": info.architecture,
        "quantization": info.quantization,
        "parameters": info.n_params,
        "layers": info.n_layers,
        "file_bytes": info.file_bytes,
        "n_ctx_train": info.n_ctx_train,
        "vocabulary": info.n_vocab,
        "chat_template": info.chat_template,
        "license": card.license or None,
        "origin": _origin_object(model) if model else None,
        "plan": plan_object(card.plan) if card.plan else None,
        "problem": card.problem or None,
    }


def _origin_object(model: Model) -> dict[str, Any]:
    names = ("repo", "revision", "commit", "source", "pulled")
    return {
        **_model_object(model),
        **{name: getattr(model, name) or None for name in names},
        "how": list(model.how),
        "sha256": list(model.sha256),
    }


def _facts(card: Card) -> list[tuple[str, str]]:
    info, model = card.info, card.ref.model
    heads = f"{info.n_head} heads, {max(info.n_head_kv, default=0)} of them for keys and values"
    return [
        ("Model", info.name or info.basename),
        ("Name here", card.ref.name),
        ("Architecture", f"{info.architecture}, {info.n_params / 1e9:,.2f} billion parameters"),
        ("Layers", f"{info.n_layers} of width {info.n_embd:,}; {heads}"),
        ("Quantization", f"{info.quantization}, {size(info.file_bytes)}"),
        ("Context", f"trained for {info.n_ctx_train:,} tokens"),
        ("Vocabulary", f"{info.n_vocab:,} tokens, {info.tokenizer} {info.tokenizer_pre}".rstrip()),
        ("Template", _template(info)),
        ("Licence", card.license or "the file does not say"),
        *(_origin(model) if model else []),
        ("File", str(card.ref.path)),
        ("On this machine", _fit(card)),
    ]


def _origin(model: Model) -> list[tuple[str, str]]:
    commit = f" at {model.commit[:12]}" if model.commit else ""
    came = f", {model.how[0]} {model.pulled[:10]}".rstrip() if model.how else ""
    return [
        ("From", f"{model.repo}{commit}, {model.source}" if model.repo and model.source else ""),
        ("Kept by", f"{model.owner}{came}"),
        ("sha256", " ".join(model.sha256)),
        ("Last used", ago(time.time() - model.used_s) if model.used_s else "never"),
    ]


def _template(info: ModelInfo) -> str:
    if info.chat_template is None:
        return "none: it was not made to talk"
    thinks = ", knows <think>" if "<think>" in info.chat_template else ""
    return f"{len(info.chat_template):,} characters{thinks}; see: qwq show --template"


def _fit(card: Card) -> str:
    if card.plan is None:
        return card.problem
    speed = card.plan.predicted.generation_tps
    said = f", {speed:.1f} t/s predicted" if speed else ""
    return f"{where_shortly(card.plan)}, {card.plan.n_ctx:,} tokens of context{said}"
