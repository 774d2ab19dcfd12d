"""Draws the library of prompts: as a table, as text, or as JSON.

Contract: data goes to the `Output` it is given; what comes from files is made visible first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from qwqcli.checkers import Verdict
from qwqcli.prompts import Prompt, Rendered
from qwqcli.terminal import Output, visible


def prompt_object(prompt: Prompt) -> dict[str, Any]:
    """One prompt as it stands in JSON."""
    recommended = {
        name: getattr(prompt.settings, name) for name in ("temperature", "max_tokens", "budget")
    }
    return {
        "id": prompt.id,
        "title": prompt.title,
        "language": prompt.language,
        "suite": prompt.suite,
        "tags": list(prompt.tags),
        "checker": prompt.kind or ("contains" if prompt.recall else None),
        "variables": dict(prompt.variables or {}),
        "files": [path.name for path in prompt.files],
        "settings": {name: value for name, value in recommended.items() if value is not None},
        "source": prompt.source,
        "licence": prompt.licence,
    }


def show_prompts(found: Iterable[Prompt], out: Output, *, as_json: bool) -> None:
    """Every prompt in a line: id, what checks it, title; under the name of its file."""
    prompts = list(found)
    if as_json:
        objects = [prompt_object(prompt) for prompt in prompts]
        out.write(json.dumps({"prompts": objects}, ensure_ascii=False) + "\n")
        return
    suite = ""
    for prompt in prompts:
        if prompt.suite != suite:
            out.write(("\n" if suite else "") + f"{visible(prompt.suite)}\n")
            suite = prompt.suite
        checker = prompt.kind or ("contains" if prompt.recall else "-")
        out.write(f"  {visible(prompt.id):24} {checker:9} {visible(prompt.title)}\n")


def show_prompt(prompt: Prompt, rendered: Rendered | None, out: Output, *, as_json: bool) -> None:
    """One prompt: where it is from, its text as it is sent, and what is right.

    `rendered` is None where variables are missing: then the template is shown.
    """
    text = rendered.text if rendered else prompt.text
    if as_json:
        value = {**prompt_object(prompt), "text": text, "expected": prompt.expected}
        out.write(json.dumps(value, ensure_ascii=False) + "\n")
        return
    facts = {
        "title": prompt.title,
        "language": prompt.language,
        "tags": ", ".join(prompt.tags),
        "needs": ", ".join(f"--var {name}=..." for name in prompt.missing),
        "checker": prompt.kind or ("contains" if prompt.recall else ""),
        "source": prompt.source,
        "licence": prompt.licence,
        "from": prompt.place,
    }
    for name, fact in facts.items():
        if fact:
            out.write(out.dim(f"{name:9}{visible(fact)}") + "\n")
    out.write(f"\n{visible(text)}\n")
    if prompt.expected is not None and prompt.kind != "code":
        right = prompt.expected if isinstance(prompt.expected, str) else json.dumps(prompt.expected)
        out.write("\n" + out.dim(f"expected {visible(right)}") + "\n")


def show_verdict(verdict: Verdict, err: Output) -> None:
    """One line: right, wrong or not judged, and why."""
    word = {True: "right", False: "wrong", None: "not judged"}[verdict.right]
    details = [f"found {verdict.found}" if verdict.found else "", verdict.why]
    said = "; ".join(detail for detail in details if detail)
    line = visible(f"{word}: {said}" if said else word)
    err.write((err.red(line) if verdict.right is False else line) + "\n")
