"""The one table of the chat's commands: it drives dispatch, /help and completion."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import qwqcli.repl.actions as actions
import qwqcli.repl.files as files
import qwqcli.repl.room as room
import qwqcli.repl.thoughts as thoughts
import qwqcli.repl.turns as turns
import qwqcli.repl.window as window
from qwqcli.config import closest
from qwqcli.conversation import Conversation
from qwqcli.errors import ContextFull, QwqError
from qwqcli.repl.chat import Chat
from qwqcli.repl.completion import Values, models, paths, prompts, sessions, settings, values
from qwqcli.repl.insert import insert
from qwqcli.repl.prompt import last_word
from qwqcli.sessions import Session

# what the hint of an error says on the command line, and what is typed here in its place
HINTS = {
    "--model ": "/model ",
    "qwq prompts show ": "/prompt ",
    "qwq sessions list": "/resume",
}


@dataclass(frozen=True, slots=True)
class Command:
    """A line of the one table that drives dispatch, /help and completion."""

    name: str
    argument: str  # as /help shows it
    help: str
    run: Callable[[Chat, str], None]
    values: Values = ()  # what completion offers for the argument
    aliases: tuple[str, ...] = ()


def parse(line: str) -> tuple[str, str, str]:
    """Split a submitted text into (command, argument, "") or ("", "", text for the model).

    A command is a slash and letters, so `/etc/hosts is what?` is text. `//help` is the text
    `/help`; a `//` before anything else, as in a comment, stays as it is. What stands between
    triple quotes is text without them.
    """
    quoted = re.fullmatch(r'\s*"""\n?((?:(?!""").)*?)\n?"""\s*', line, re.DOTALL)
    if quoted:
        return "", "", quoted[1]
    match = re.match(r"\s*(/{1,2})([A-Za-z]+)(?=\s|$)\s*(.*)", line, re.DOTALL)
    if match is None:
        return "", "", line
    slashes, name, argument = match.groups()
    if slashes == "//":
        return "", "", line.replace("//", "/", 1)
    return name.lower(), argument.strip(), ""


def typed_in(session: Session, talk: Conversation) -> Callable[[str], bool]:
    """Tells of a line of the prompt's history whether it became a part of this session."""
    questions = {turn.question.strip() for turn in talk.turns}

    def became(line: str) -> bool:
        name, argument, text = parse(line)
        if name == "prompt":  # what follows the name of the prompt stands in its text
            rest = argument.partition(" ")[2].strip()
            return bool(rest) and any(rest in question for question in questions)
        if name:
            return name in ("name", "system") and argument in (session.name, session.system)
        return text.strip() in questions

    return became


def obey(chat: Chat, line: str) -> None:
    """Do what one submitted text asks for; an error of ours is shown and the chat goes on."""
    try:
        name, argument, text = parse(line)
        if name:
            if chat.edited and name != "file":  # the edit is given up
                chat.edited, chat.attached = None, []
            find_command(name).run(chat, argument)
        elif text.strip():
            files.ask(chat, text)
    except ContextFull as error:
        chat.complain(ContextFull(error.message))  # the choices are its hint
        _show_choices(chat)
    except QwqError as error:
        for there, here in HINTS.items():
            error.hint = error.hint.replace(there, here)
        chat.complain(error)


def _show_choices(chat: Chat) -> None:
    try:
        room.choices(chat)
    except QwqError as error:  # the engine died meanwhile, and did not come back
        chat.complain(error)


def find_command(name: str) -> Command:
    """The command of this name. Raises QwqError with what was probably meant."""
    known = {word: command for command in COMMANDS for word in (command.name, *command.aliases)}
    if name in known:
        return known[name]
    meant = f"/{closest(name, known) or 'help'}"
    raise QwqError(
        f"There is no command /{name}.",
        f"{meant}, or //{name} ... to send the line to the model (arrow-up brings it back)",
    )


def _help(chat: Chat, argument: str) -> None:
    rows = [(f"/{c.name} {c.argument}".rstrip(), c.help) for c in COMMANDS]
    rows += KEYS
    width = chat.screen.out.size()[0] - 1
    wide = max(len(left) for left, _ in rows)
    beside = width - wide >= 24
    for left, right in rows:
        lines = textwrap.wrap(right, max(width - (wide + 4 if beside else 4), 8))
        lines = [f"{'':{wide + 4 if beside else 4}}{line}" for line in lines]
        if beside:
            lines[0] = f"  {left:{wide}}  {lines[0].lstrip()}"
        else:  # below one another where the window has no room for two columns
            lines.insert(0, f"  {left}")
        chat.screen.out.write("".join(f"{line}\n" for line in lines))


COMMANDS = (
    Command("help", "", "show this", _help),
    Command("clear", "", "forget the conversation", actions.clear),
    Command(
        "think",
        "[N|show|fold|hide|on|off]",
        "the last or N-th thought; how they are drawn; none",
        thoughts.think,
        thoughts.THINK_VALUES,
    ),
    Command(
        "budget",
        "[auto|off|4k|90s]",
        "how long a reply may think",
        thoughts.set_budget,
        thoughts.BUDGET_VALUES,
    ),
    Command("answer", "", "answer from what was thought so far", thoughts.answer),
    Command("stats", "", "figures after each reply: on or off", actions.stats),
    Command("model", "[NAME]", "show or change the model", actions.model, models),
    Command("system", "[TEXT]", "show or set the system prompt; 'none' removes it", actions.system),
    Command(
        "prompt", "NAME [TEXT]", "a prompt of the library as the next question", insert, prompts
    ),
    Command("regen", "", "another answer; earlier ones are kept", turns.regenerate),
    Command("continue", "", "let a stopped reply go on", turns.go_on),
    Command("alt", "[N]", "list the answers, or go to the N-th", turns.alternatives),
    Command("edit", "", "change the last question, ask again", turns.edit),
    Command("undo", "", "take back the last question", turns.undo),
    Command("branch", "[NAME]", "go on in a copy of this session", turns.branch_off),
    Command("name", "[NAME]", "name this session", turns.name),
    Command("resume", "[NAME|ID]", "go on with another session", turns.resume, sessions),
    Command(
        "file", "[PATH...|none]", "attach text files to the next question", files.attach, paths
    ),
    Command("save", "FILE", "write the talk as .md, .html or .json", files.save, paths),
    Command("copy", "[answer|code|thought]", "copy the last one", files.copy, files.WHAT),
    Command("editor", "[last]", "write the question in your editor", files.editor, ("last",)),
    Command("set", "[NAME [VALUE]]", "show or change a setting", window.change, settings),
    Command("context", "", "what fills the context window", window.context),
    Command("drop", "N", "go on without the oldest N turns, in a new session", room.drop),
    Command("shorten", "", "cut attached files until the question has room", room.shorten),
    Command("compact", "", "go on with a summary, in a new session", room.compact),
    Command("exit", "", "leave", actions.leave, aliases=("quit", "bye")),
)
KEYS = [
    ("Alt+Enter, Ctrl+J", "a new line; so does a \\ before Enter"),
    ("Ctrl+N", "while it thinks: answer now"),
    ("Ctrl+O", "unfold or fold thoughts; at the prompt: the last one"),
    ('"""', "begins and ends a text of many lines"),
    ("@path", "in a question: attaches that file"),
    ("Tab", "completes commands, values and paths"),
    ("Ctrl+R", "search what was typed before"),
    ("Right", "takes the suggestion"),
    ("Ctrl+X Ctrl+E", "edit the line in your editor"),
    ("Ctrl+Z", "suspend; `fg` comes back"),
    ("Ctrl+C", "stop the reply; clear the line; twice on an empty line: leave"),
    ("//word ...", "send a line that begins with /word to the model"),
]


def manual() -> str:
    """Every command and key as a Markdown table, for CHAT.md."""
    rows = [(f"/{c.name} {c.argument}".rstrip(), c.help) for c in COMMANDS] + KEYS
    escaped = [(left.replace("|", "\\|"), right.replace("|", "\\|")) for left, right in rows]
    lines = [f"| `{left}` | {right} |" for left, right in escaped]
    return "\n".join(["| command or key | what it does |", "|---|---|", *lines])


def completions(chat: Chat, text: str) -> list[tuple[str, str]]:
    """What may follow `text`: (the word that ends it, complete; what that does)."""
    word = last_word(text)
    if word.startswith("@"):
        return [(f"@{path}", "") for path in values(paths, chat, word[1:])]
    match = re.fullmatch(r"/([a-z]*)([ ]*)(.*)", text)
    if match is None:
        return []
    name, blank, argument = match.groups()
    if not blank:
        offers = [(f"/{command.name}", command.help) for command in COMMANDS]
        return [offer for offer in offers if offer[0].startswith(text)]
    offered = next((c.values for c in COMMANDS if c.name == name), ())
    return [(value, "") for value in values(offered, chat, argument)]
