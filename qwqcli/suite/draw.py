"""Draws what a suite found: a line a reply, tables, a comparison, bars, JSON, and a saved run.

Contract: results go to the `Output` they are given; text of models is made visible first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from qwqcli.engine.perplexity import Result
from qwqcli.suite import Outcome, Setup
from qwqcli.suite.journal import Journal
from qwqcli.suite.score import Score, by_prompt, by_setup, change, score
from qwqcli.tables import PIPE_WIDTH, make_table, print_table
from qwqcli.terminal import ASCII, Output, clip, visible

BAR = 24  # cells of a bar for a whole
FIGURES_WIDTH = 66  # cells of a table of setups without their names
WORDS = {True: "right", False: "wrong", None: "-"}


def line(outcome: Outcome) -> str:
    """One reply in a line: verdict, prompt, how long, how much, and what was wrong."""
    if outcome.stop == "skipped":
        return f"skip  {outcome.prompt}: {outcome.why}"
    tokens = f"{outcome.reasoning_tokens:,}+{outcome.answer_tokens:,} tokens"
    found = clip(outcome.found, 60) or "nothing"
    why = f": {found}; {outcome.why}" if outcome.right is not True else ""
    text = f"{WORDS[outcome.right]:5} {outcome.prompt} ({outcome.total_s:.1f} s, {tokens}){why}"
    return " ".join(visible(text).split("\n"))


def show_scores(outcomes: Sequence[Outcome], out: Output, *, details: bool) -> None:
    """The table of setups, of prompts if `details`, and what each setup changes over the first."""
    groups = by_setup(outcomes)
    if details:
        _show_prompts(groups, out)
    heads = ("Right", "Share", "95 %", "First", "Answer", "Tokens", "t/s", "Total")
    table = make_table(out, ("Setup", *heads), right=heads)
    for setup, group in groups.items():
        table.add_row(*_cells(setup, score(group), _room(out)))
    print_table(table, out)
    out.write("First token, answer: median time until then. Tokens: mean thought + answer.\n")
    for setup, group in groups.items():
        for note in _notes(setup, score(group)):
            out.write(f"{note}\n")
    _show_changes(groups, out)


def _room(out: Output) -> int:
    """Cells that the name of a setup may take beside its figures."""
    width = out.size()[0] if out.terminal else PIPE_WIDTH
    return max(8, width - FIGURES_WIDTH)


def _cells(setup: Setup, found: Score, room: int) -> list[str]:
    share = "-" if found.share is None else f"{found.share:.0%}"
    return [
        clip(visible(setup.label), room),
        f"{found.right}/{found.judged}",
        share,
        f"{found.low:.0%}-{found.high:.0%}" if found.judged else "-",
        _seconds(found.first_token_s),
        _seconds(found.answer_s),
        f"{found.reasoning_tokens:,.0f}+{found.answer_tokens:,.0f}",
        "-" if found.tokens_per_s is None else f"{found.tokens_per_s:.1f}",
        _seconds(found.total_s),
    ]


def _notes(setup: Setup, found: Score) -> list[str]:
    """How thoughts ended, and what was not asked or not judged."""
    ends = ", ".join(f"{count} {name}" for name, count in found.thoughts)
    notes = [f"{visible(setup.label)}: thoughts ended {ends}"] if found.asked else []
    if found.unanswered:
        notes.append(f"  {found.unanswered} of {found.asked} replies had no answer")
    if found.skipped:
        notes.append(f"  {found.skipped} skipped: longer than the context")
    if found.asked > found.judged:
        notes.append(f"  {found.asked - found.judged} not judged; --run-code tries code, too")
    return notes


def _show_prompts(groups: Mapping[Setup, Sequence[Outcome]], out: Output) -> None:
    room = max(6, (_room(out) + FIGURES_WIDTH // 3) // len(groups))
    heads = ("Prompt", *(clip(visible(g.label), room) for g in groups), "Answer", "Thought")
    table = make_table(out, heads, right=heads[1:])
    per_setup = {setup: by_prompt(group) for setup, group in groups.items()}
    names = dict.fromkeys(name for prompts in per_setup.values() for name in prompts)
    for name in names:
        here = [prompts.get(name, []) for prompts in per_setup.values()]
        found = [score(outcomes) for outcomes in here]
        shares = [f"{s.right}/{s.judged}" if s.judged else "-" for s in found]
        whole = score([outcome for outcomes in here for outcome in outcomes])
        thought = f"{whole.reasoning_tokens:,.0f}"
        table.add_row(visible(name), *shares, _seconds(whole.answer_s), thought)
    print_table(table, out)
    out.write("\n")


def _show_changes(groups: Mapping[Setup, Sequence[Outcome]], out: Output) -> None:
    """What each setup gains and costs over the first, and bars of both."""
    if len(groups) < 2:
        return
    (first, before), *others = groups.items()
    out.write(f"\nBeside {visible(first.label)}:\n")
    for setup, group in others:
        found = change(before, group)
        words = "less" if found.seconds < 0 else "more"
        out.write(
            f"  {visible(setup.label)}: {found.gained} gained, {found.lost} lost of {found.pairs}"
            f" (p = {found.p_value:.2f}), {_seconds(abs(found.seconds))} {words}\n"
        )
    show_bars(groups, out)


def show_bars(groups: Mapping[Setup, Sequence[Outcome]], out: Output) -> None:
    """Share of right answers and time of all replies, a bar each."""
    scores = {setup: score(group) for setup, group in groups.items()}
    longest = max((s.total_s for s in scores.values()), default=0) or 1
    labels = {setup: clip(visible(setup.label), _room(out) + 20) for setup in scores}
    wide = max(map(len, labels.values()))
    mark = "#" if out.symbols is ASCII else "█"
    out.write("\n")
    for setup, found in scores.items():
        label = f"{labels[setup]:{wide}}"
        share = found.share or 0.0
        out.write(f"{label}  right {mark * round(share * BAR):{BAR}} {share:.0%}\n")
        bar = mark * round(found.total_s / longest * BAR)
        out.write(f"{' ' * wide}  time  {bar:{BAR}} {_seconds(found.total_s)}\n")


def scores_object(about: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The run as JSON: what was asked, figures a setup, and each reply without its text."""
    groups = by_setup(outcomes)
    replies = []
    for outcome in outcomes:
        plain = asdict(outcome)
        replies.append({k: v for k, v in plain.items() if k not in ("reasoning", "answer")})
    return {
        "asked": dict(about),
        "setups": [{**asdict(setup), **_plain(score(group))} for setup, group in groups.items()],
        "replies": replies,
    }


def _plain(found: Score) -> dict[str, Any]:
    return {**asdict(found), "share": found.share, "thoughts": dict(found.thoughts)}


def show_perplexity(
    names: Sequence[str], text: str, result: Result, out: Output, *, as_json: bool
) -> None:
    """Perplexity of the model, and beside the base its KL divergence, with standard errors."""
    model, base = result.model, result.base
    if as_json:
        about = {"model": names[0], "against": names[1] if base else None, "text": text}
        known = {"perplexity": asdict(model), "against_perplexity": asdict(base) if base else None}
        write_json({**about, **known}, out)
        return
    windows = f"{model.windows} window{'' if model.windows == 1 else 's'}"
    out.write(f"{model.scored:,} tokens scored in {windows} of {visible(text)}\n")
    for name, sums in zip(names, (model, base), strict=False):
        if sums:
            ppl = f"{sums.perplexity:.4f} ± {sums.perplexity_plus_minus:.4f}"
            out.write(f"Perplexity of {visible(name)}: {ppl}\n")
    if model.kl_divergence is not None and base:
        out.write(f"KL divergence from {visible(names[1])}: {model.kl_divergence:.6f}")
        out.write(f" ± {model.kl_plus_minus:.6f}\n")
        out.write(f"Same likeliest token: {model.same_top:.2%}\n")


def show_runs(journals: Sequence[Journal], out: Output) -> None:
    """A line a saved run, the newest last."""
    for journal in journals:
        about = journal.about()
        outcomes = journal.outcomes()
        state = "" if about.get("done") else " (stopped)"
        right = sum(o.right is True for o in outcomes)
        asked = about["asked"]
        models = ", ".join(visible(str(name)) for name, _ in asked["models"])
        text = f"{journal.name}  {visible(asked['suite'])} on {models}: {right} right of"
        out.write(f"{text} {len(outcomes)}{state}\n")


def show_replies(outcomes: Sequence[Outcome], out: Output) -> None:
    """Replies in full: the thought, the answer, the verdict."""
    for outcome in outcomes:
        title = f"{outcome.prompt}, {outcome.setup.label}, repetition {outcome.repeat}"
        out.write(f"== {visible(title)}, seed {outcome.seed}\n")
        if outcome.reasoning:
            out.write(out.dim(visible(outcome.reasoning.rstrip())) + "\n--\n")
        out.write(f"{visible(outcome.answer.strip())}\n-- {line(outcome)}\n\n")


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.0f} s"


def write_json(value: Mapping[str, Any], out: Output) -> None:
    """One object in a line."""
    out.write(json.dumps(value, ensure_ascii=False) + "\n")
