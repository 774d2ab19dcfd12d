"""A session as one file for people or programs: Markdown, HTML or JSON, by the file's extension.

Thoughts are folded (`<details>`). All that was said is there along the path that the person is on;
JSON holds the whole tree. In HTML an answer's Markdown is laid out; nothing that was said is a tag
or runs, and nothing is fetched.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from qwqcli import markdown
from qwqcli.conversation import Conversation, Turn
from qwqcli.errors import UsageError
from qwqcli.inputs import fence
from qwqcli.sessions import Session

ENDINGS = {
    None: "cut off when qwq was ended",
    "interrupted": "stopped",
    "length": "cut at max_tokens",
    "context": "the context was full",
    "died": "the engine died",
}


def export(session: Session, talk: Conversation, extension: str) -> str:
    """The session as text for a file with this extension. Raises UsageError for another one."""
    if extension not in FORMATS:
        known = ", ".join(FORMATS)
        raise UsageError(f"'{extension}' is no format to save as.", f"Use one of {known}")
    return FORMATS[extension](session, talk)


def as_markdown(session: Session, talk: Conversation) -> str:
    """Questions as headings' text, thoughts folded, answers as the model wrote them."""
    parts = [f"# {_title(session, talk)}", f"{_about(session)}"]
    if session.system:
        parts.append(f"System prompt:\n\n{_quoted(session.system)}")
    for at, turn in enumerate(talk.path(), 1):
        parts += [f"## {at}. Question", turn.prompt]
        if turn.reasoning.strip():
            thought = _fenced(turn.reasoning)
            parts.append(f"<details>\n<summary>Thought</summary>\n\n{thought}\n\n</details>")
        parts += [f"## {at}. Answer", turn.answer.strip() or "(none)"]
        parts += _ending(turn)
    return "\n\n".join(parts) + "\n"


def as_html(session: Session, talk: Conversation) -> str:
    """One page that needs nothing from anywhere; light and dark."""
    title = html.escape(_title(session, talk))
    parts = [f"<h1>{title}</h1>", f"<p>{html.escape(_about(session))}</p>"]
    if session.system:
        parts.append(f'<pre class="system">{html.escape(session.system)}</pre>')
    for turn in talk.path():
        parts.append(f'<pre class="question">{html.escape(turn.prompt)}</pre>')
        if turn.reasoning.strip():
            thought = html.escape(turn.reasoning)
            parts.append(f"<details><summary>Thought</summary><pre>{thought}</pre></details>")
        parts.append(f'<div class="answer" dir="auto">\n{markdown.as_html(turn.answer)}</div>')
        parts += [f"<p>{html.escape(line)}</p>" for line in _ending(turn)]
    return _PAGE.replace("TITLE", title, 1) + "\n".join(parts) + "\n"


def as_json(session: Session, talk: Conversation) -> str:
    """All turns, also those that were left; `path` lists the ids of those that count."""
    value: dict[str, Any] = {
        "session": asdict(session),
        "path": [turn.id for turn in talk.path()],
        "turns": [asdict(turn) for turn in talk.turns],
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Session, Conversation], str]] = {
    ".md": as_markdown,
    ".html": as_html,
    ".json": as_json,
}

_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; }
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font-family: sans-serif; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; unicode-bidi: plaintext; }
.question { font-weight: bold; border-top: 1px solid; padding-top: 1rem; }
.system, details { opacity: 0.7; }
.answer p, .answer li, .answer td { unicode-bidi: plaintext; overflow-wrap: anywhere; }
.answer pre { font-family: monospace; padding: 0.7rem; border: 1px solid; }
.answer table { border-collapse: collapse; }
.answer th, .answer td { border: 1px solid; padding: 0.2rem 0.6rem; }
</style>
"""


def _title(session: Session, talk: Conversation) -> str:
    first = " ".join(talk.path()[0].question.split())[:60] if talk.head is not None else ""
    return session.name or first or session.id


def _about(session: Session) -> str:
    begun = datetime.fromtimestamp(session.created, timezone.utc)
    return f"Session {session.id} with {session.model}, {begun:%Y-%m-%d %H:%M} UTC"


def _ending(turn: Turn) -> list[str]:
    """How a reply ended if not by itself."""
    return [f"[{ENDINGS[turn.stop]}]"] if turn.stop in ENDINGS else []


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _fenced(text: str) -> str:
    """As literal text."""
    around = fence(text)
    return f"{around}text\n{text.strip()}\n{around}"
