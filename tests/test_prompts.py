"""Prompts in YAML: what is read, what is refused and where, and how one is rendered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import qwq

from qwqcli import prompts, yaml_file
from qwqcli.config import paths
from qwqcli.errors import UsageError
from tests.chat_table import Table

HEAD = "schema: 1\nprompts:\n"
GOOD = """\
  - id: one
    title: One
    language: en
    text: What is 1 + 1?
    expected: 2
    checker: number
"""


def written(folder: Path, text: str, name: str = "own.yaml") -> Path:
    """A file of prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path) -> str:
    """The message that the file is refused with."""
    with pytest.raises(UsageError) as caught:
        prompts.read_file(path)
    assert str(path) in caught.value.message
    return caught.value.message


def item(**changes: str) -> str:
    """A good prompt with some of its lines changed, added, or (as an empty text) left out."""
    lines = dict(line.strip(" -").split(": ", 1) for line in GOOD.splitlines())
    lines.update(changes)
    rows = [f"    {key}: {value}" for key, value in lines.items() if value]
    return HEAD + "\n".join(["  -", *rows]) + "\n"


def test_a_prompt_is_read(tmp_path: Path) -> None:
    """Every key arrives, and shared ones come from the defaults of the file."""
    text = f"schema: 1\ndefaults: {{source: me, licence: CC0-1.0, tags: [a]}}\nprompts:\n{GOOD}"
    (prompt,) = prompts.read_file(written(tmp_path, text))
    assert (prompt.id, prompt.suite, prompt.source, prompt.tags) == ("one", "own", "me", ("a",))
    assert prompt.judged
    rendered = prompts.render(prompt)
    assert rendered.text == "What is 1 + 1?"
    assert rendered.checker is not None
    assert rendered.checker.judge("2").right


BAD = {  # what is wrong: (the file, the line that is told, what is told)
    "no schema": ("prompts: []", 1, "schema"),
    "newer schema": ("schema: 2\nprompts: []", 1, "schema 1"),
    "no prompts": ("schema: 1", 1, "list of prompts"),
    "unknown key on top": ("schema: 1\nprompt: []", 2, "prompt"),
    "a tab": (HEAD + "\t- id: a", 3, "tab"),
    "cut": (HEAD + "  - id: 'a", 3, "not valid YAML"),
    "cut list": (item(tags="[a, b"), 11, "not valid YAML"),
    "an alias": ("a: &a [x, x]\nb: [*a, *a]", 1, "anchors"),
    "nested": (HEAD + "[" * 1000, 3, "nested"),
    "a key twice": (HEAD + GOOD + "    title: Two\n", 9, "twice"),
    "no mapping": (HEAD + "  - one\n", 3, "name: value"),
    "unknown key": (item(expect="2"), 10, "expected"),
    "no id": (item(id=""), 4, "id"),
    "bad id": (item(id="One two"), 4, "id"),
    "no title": (item(title=""), 4, "title"),
    "bad language": (item(language="english"), 6, "language"),
    "no text": (item(text=""), 4, "one of"),
    "two texts": (item(template="x"), 4, "has 2"),
    "text of a list": (item(text="[a]"), 7, "text"),
    "unknown checker": (item(checker="numbr"), 9, "number"),
    "checker of a list": (item(checker="[number]"), 9, "checker"),
    "no checker": (item(checker=""), 8, "needs a checker"),
    "no expected": (item(expected=""), 8, "needs an expected"),
    "bad expected": (item(expected="two or 3"), 8, "must be a number"),
    "unknown option": (item(checker="{number: {tolerant: 1}}"), 9, "tolerant"),
    "tags of a text": (item(tags="a"), 10, "tags"),
    "unknown variable": (item(text="", template="'{{a}}'", variables="{b: x}"), 9, "{{a}}"),
    "variable unused": (item(text="", template="x", variables="{b: x}"), 10, "not used"),
    "variable bad": (item(text="", template="'{{A}}'", variables="{A: x}"), 10, "small letters"),
    "file outside": (item(files="[../secret.txt]"), 10, "outside"),
    "file absolute": (item(files="[/etc/hosts]"), 10, "outside"),
    "file missing": (item(files="[none.txt]"), 10, "no file"),
    "expected twice": (item(expected_file="own.yaml"), 10, "expected"),
    "unknown setting": (item(settings="{temprature: 1}"), 10, "temperature"),
    "bad setting": (item(settings="{max_tokens: 0}"), 10, "max_tokens"),
    "bad budget": (item(settings="{budget: soon}"), 10, "budget"),
    "half a token": (item(settings="{max_tokens: 1.5}"), 10, "max_tokens"),
    "recall too short": (
        item(text="", expected="", checker="", recall="{tokens: 1, needles: 1}"),
        7,
        "recall",
    ),
    "an option absent": (item(expected="x == 1", checker="code"), 9, "entry"),
    "without of nothing": (
        item(expected="[a]", checker="{contains: {without: ['']}}"),
        9,
        "without must be",
    ),
    "recall in another language": (
        item(
            language="de",
            text="",
            expected="",
            checker="",
            recall="{tokens: 500, needles: 1}",
        ),
        6,
        "en and zh",
    ),
    "recall with expected": (item(text="", recall="{tokens: 500, needles: 1}"), 9, "recall"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(case: str, tmp_path: Path) -> None:
    """An error names the file, the line and the key, or what was probably meant."""
    text, line, told = BAD[case]
    message = refused(written(tmp_path, text))
    assert told in message or case in ("unknown key", "unknown setting")
    assert f"line {line}:" in message


def test_an_id_is_given_once(tmp_path: Path) -> None:
    """Within one file as well as between two, also when they are only checked."""
    one, other = written(tmp_path, item(), "one.yaml"), written(tmp_path, item(), "two.yaml")
    assert len(prompts.load_files([one])) == 1
    with pytest.raises(UsageError, match="already the id"):
        prompts.load_files([one, other])
    with pytest.raises(UsageError, match="already the id"):
        prompts.load([tmp_path])


def test_not_utf8_and_too_large(tmp_path: Path) -> None:
    """Bytes that are no text, and a file of megabytes, are refused without reading on."""
    path = tmp_path / "own.yaml"
    path.write_bytes(b"schema: 1\nprompts: \xff")
    assert "line 2" in refused(path)
    path.write_bytes(b"#" * (yaml_file.MAX_BYTES + 1))
    assert "MiB" in refused(path)


def test_link_to_the_outside_is_refused(tmp_path: Path) -> None:
    """A link beside the prompt does not lead out of its folder."""
    (tmp_path / "secret.txt").write_text("mine")
    path = written(tmp_path / "own", item(files="[link.txt]"))
    (path.parent / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert "outside" in refused(path)


def test_files_are_added(tmp_path: Path) -> None:
    """A file beside the prompt follows its text, under its name."""
    path = written(tmp_path, item(files="[data/a.txt]"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("1\n2\n")
    (prompt,) = prompts.read_file(path)
    assert prompts.render(prompt).text == "What is 1 + 1?\n\na.txt:\n```\n1\n2\n```"


def test_the_same_id_twice(tmp_path: Path) -> None:
    """Two prompts of one id are refused, and both places are told."""
    first, second = tmp_path / "a", tmp_path / "b"
    written(first, HEAD + GOOD)
    written(second, HEAD + GOOD)
    with pytest.raises(UsageError) as caught:
        prompts.load([first, second])
    assert str(first) in caught.value.message
    assert str(second) in caught.value.message


def test_template(tmp_path: Path) -> None:
    """Variables are put in once: a value that looks like one stays as it is."""
    text = item(text="", template="'{{ a }} and {{b}} and { {b}}'", variables="{a: null, b: x}")
    (prompt,) = prompts.read_file(written(tmp_path, text))
    assert not prompt.judged
    assert prompts.render(prompt, {"a": "{{b}}"}).text == "{{b}} and x and { {b}}"
    with pytest.raises(UsageError, match="'a'"):
        prompts.render(prompt)
    with pytest.raises(UsageError, match="'c'"):
        prompts.render(prompt, {"c": "1"})


def test_library_is_found_and_whole() -> None:
    """The prompts that come with qwq load; each says where it is from and under which licence."""
    library = prompts.library(paths({"QWQ_CONFIG_DIR": "nowhere"}))
    assert len(library) >= 80
    assert {prompt.language for prompt in library} == {"en", "zh"}
    for prompt in library:
        assert prompt.source, prompt.id
        assert prompt.licence, prompt.id
        assert prompt.title, prompt.id


def test_suites() -> None:
    """A suite is a file, a tag, a language, an id or all."""
    library = prompts.library(paths({"QWQ_CONFIG_DIR": "nowhere"}))
    assert {p.suite for p in library.suite("claims")} == {"claims"}
    assert all("letters" in p.tags for p in library.suite("letters"))
    assert len(library.suite("zh")) + len(library.suite("en")) == len(library.suite("all"))
    with pytest.raises(UsageError, match="can be checked"):
        library.suite("frames")


@pytest.mark.parametrize(
    ("command", "typed", "hint"),
    [
        ("bench --suite", "claim", "--suite claims"),
        ("bench --suite", "quik", "--suite quick"),
        ("bench --suite", "strawbery-en", "--suite strawberry-en"),
        ("bench --suite", "framess", "--suite one of arithmetic, claims"),  # frames: no answers
        ("bench --suite", "xyzzy", "quick, reasoner, tiny"),
        ("prompts list", "framess", "qwq prompts list frames"),
        ("prompts list", "quik", "qwq prompts list one of arithmetic, claims"),
    ],
)
def test_a_wrong_suite(command: str, typed: str, hint: str, environ: dict[str, str]) -> None:
    """The nearest is named of those that the command takes, else the files and speed suites."""
    done = qwq(*command.split(), typed, environ={**environ, "QWQ_MODEL": "tiny"})
    assert done.code == 2
    assert f"'{typed}'" in done.err
    assert hint in done.err.partition("try: ")[2]


def test_own_prompts_join_the_library(environ: dict[str, str]) -> None:
    """A file in the configuration folder is read with the same checks."""
    folder = Path(environ["QWQ_CONFIG_DIR"]) / "prompts"
    written(folder, HEAD + GOOD.replace("id: one", "id: mine-alone"))
    assert "mine-alone" in qwq("prompts", "list", "own", environ=environ).out
    written(folder, HEAD + "  - id: [", "broken.yaml")
    result = qwq("prompts", "list", environ=environ)
    assert result.code == 2
    assert "broken.yaml, line 3" in result.err


def test_list_show_and_check(environ: dict[str, str]) -> None:
    """The commands print data to stdout, as text and as JSON."""
    listed = json.loads(qwq("prompts", "list", "claims", "--json", environ=environ).out)
    assert {"strawberry-en", "holiday-shift-zh"} <= {p["id"] for p in listed["prompts"]}
    shown = qwq("prompts", "show", "strawberry-en", environ=environ)
    assert 'How many r\'s are in the word "strawberry"?' in shown.out
    framed = qwq("prompts", "show", "frame-math", "--var", "question=1 + 1?", environ=environ)
    assert "1 + 1?\n\nReason" in framed.out
    assert "{{question}}" in qwq("prompts", "show", "frame-math", environ=environ).out
    assert "are sound" in qwq("prompts", "check", environ=environ).out
    wrong = qwq("prompts", "show", "strawbery-en", environ=environ)
    assert wrong.code == 2
    assert "strawberry-en" in wrong.err
    assert qwq("prompts", "show", "frame-math", "--var", "question", environ=environ).code == 2


def test_run_asks_and_judges(environ: dict[str, str]) -> None:
    """The answer goes to stdout, the verdict to stderr, right or wrong."""
    right = qwq("prompts", "run", "tiny-sum-1", "--seed", "1", environ=environ)
    assert right.code == 0
    assert "97" in right.out
    assert "right: found 97" in right.err
    wrong = qwq("prompts", "run", "two-dice", "--seed", "1", environ=environ)
    assert wrong.code == 0
    assert "wrong:" in wrong.err


def test_prompt_in_the_chat() -> None:
    """On a terminal it waits in the next line, with what is missing; no model is asked yet."""
    table = Table()
    table.chat.library = lambda: prompts.library(paths({"QWQ_CONFIG_DIR": "nowhere"}))
    typed = table.type("/prompt frame-math What is 2 + 2?", "/prompt frame-math", "/prompt nope")
    _, first, second, third = typed.drafts[:4]
    assert first.startswith("What is 2 + 2?\n")
    assert second.startswith("{{question}}\n")
    assert third == ""
    assert table.sent == []
    assert "no prompt" in table.tty.getvalue()


def test_prompt_through_a_pipe(environ: dict[str, str]) -> None:
    """Where no line can be changed the prompt is asked at once."""
    result = qwq("chat", environ=environ, stdin=b"/prompt tiny-sum-1\n")
    assert result.code == 0
    assert "97" in result.out
