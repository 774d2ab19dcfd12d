"""`/prompt`: a prompt of the library as the next question."""

from __future__ import annotations

from qwqcli.errors import UsageError
from qwqcli.repl.chat import Chat


def insert(chat: Chat, argument: str) -> None:
    """Put a prompt into the next line; what follows its name is its first variable.

    On a terminal it can be changed before it is sent, and variables that are still missing stand
    there as `{{name}}`. Through a pipe it is asked at once.
    """
    from qwqcli import prompts

    name, _, rest = argument.partition(" ")
    if not name:
        raise UsageError("/prompt needs the name of a prompt.", "qwq prompts list")
    prompt = chat.library().find(name)
    given = dict.fromkeys(prompt.missing[:1], rest.strip()) if rest.strip() else {}
    if rest.strip() and not given:
        raise UsageError(f"The prompt {name} takes nothing more.", f"/prompt {name}")
    if chat.screen.out.live:
        given = {**{missing: f"{{{{{missing}}}}}" for missing in prompt.missing}, **given}
        chat.draft = prompts.render(prompt, given).text
        chat.say("[Enter sends it; change it first if you like]")
    else:
        chat.ask(prompts.render(prompt, given).text)
