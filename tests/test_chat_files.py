"""Files, settings, clipboard, completion: what goes between the chat and what is outside."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest

from qwqcli import clipboard, export
from qwqcli.config import Settings
from qwqcli.conversation import Conversation, Turn
from qwqcli.errors import UsageError
from qwqcli.repl.commands import completions
from qwqcli.repl.prompt import edit_text
from qwqcli.sessions import Session, Store
from qwqcli.terminal import Screen
from tests.chat_table import Table
from tests.fakes import Tty


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test is in a folder of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# --- attaching ---------------------------------------------------------------------------------


def test_a_file_goes_with_the_next_question(here: Path) -> None:
    """Its size in tokens is said before; it is sent once, under its name."""
    (here / "a b.txt").write_text("one two\n")
    table = Table()
    table.type("/file 'a b.txt'", "What?", "And?")
    assert "a b.txt: 7 characters" in table.text
    assert re.search(r"\d+ tokens go with the next question", table.text)
    assert table.sent[0][0].content == "What?\n\na b.txt:\n```\none two\n```"
    assert table.sent[1][0] == table.sent[0][0]
    assert table.sent[1][2].content == "And?"


def test_a_mentioned_file_is_attached(here: Path) -> None:
    """`@path` anywhere in a question; what is no file stays text, and is said if it looks so."""
    (here / "notes.txt").write_text("milk")
    (here / "a b.md").write_text("# b")
    table = Table()
    table.type("What is in @notes.txt, and @a\\ b.md?", "@user and @angular/core and a@b.c")
    assert table.sent[0][0].content.startswith(
        "What is in @notes.txt, and @a\\ b.md?\n\nnotes.txt:"
    )
    assert "a b.md:\n```\n# b\n```" in table.sent[0][0].content
    assert "[attached: notes.txt, a b.md," in table.text
    assert table.sent[1][2].content == "@user and @angular/core and a@b.c"
    assert "[@angular/core is no file: sent as text]" in table.text
    assert "@user is no file" not in table.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a\0b", "not text"),
        (b"\xff\xfea\0", "UTF-16"),
        (b"caf\xe9", "not UTF-8"),
        (b"x" * 4_000_001, "more than 4 MB"),
    ],
)
def test_what_is_no_text_is_refused(here: Path, content: bytes, says: str) -> None:
    """Neither /file nor @path sends it; the question is not asked without it."""
    (here / "data.bin").write_bytes(content)
    table = Table()
    table.type("/file data.bin", "What is @data.bin?")
    assert table.text.count("error:") == 2
    assert says in table.text
    assert table.sent == []
    assert table.chat.attached == []


@pytest.mark.parametrize("name", ["~nobody-here/x", "x" * 300, f"{'y/' * 3000}z"])
def test_a_path_that_cannot_be_is_told_and_the_chat_goes_on(name: str) -> None:
    """A home of nobody and a name that is too long: asked about, attached, saved, completed."""
    table = Table()
    table.type(f"who is @{name} then?", f"/file {name}", f"/save {name}.md", f"/model {name}")
    assert table.sent[0][0].content == f"who is @{name} then?"
    assert "Traceback" not in table.text
    table.type("next")
    assert table.sent[1][-1].content == "next"
    assert completions(table.chat, f"hello @{name}/") == []


def test_a_folder_asks(here: Path) -> None:
    """Its text files are counted first; binary and hidden ones are left out."""
    (here / "docs" / "sub").mkdir(parents=True)
    (here / "docs" / "a.txt").write_text("one")
    (here / "docs" / "sub" / "b.txt").write_text("two")
    (here / "docs" / "c.bin").write_bytes(b"\0")
    (here / "docs" / ".hidden").write_text("no")
    table = Table()
    table.type("/file docs", "n")
    assert table.chat.attached == []
    table.type("/file docs", "y", "What?")
    names = re.findall(r"^(docs/\S+):$", table.sent[0][0].content, re.MULTILINE)
    assert names == ["docs/a.txt", "docs/sub/b.txt"]
    table.type("/file absent", "/file 'open", "/file none")
    assert "There is no file absent." in table.text
    assert "not a list of files" in table.text
    for number in range(101):
        (here / "docs" / f"{number}.txt").write_text("x")
    table.type("/file docs")
    assert "more than 100 text files" in table.text


# --- saving ------------------------------------------------------------------------------------

HOSTILE = "</details><script>alert(1)</script>\n````\n\x1b]0;x\x07"


def conversation() -> tuple[Session, Conversation]:
    turn = Turn(1, None, "Why <b>?", (), HOSTILE, "Because *so*.", "interrupted")
    return Session("abcdefgh", "Sums", "tiny", "Be brief."), Conversation().add(turn)


def test_markdown_folds_the_thought() -> None:
    """Question, thought between fences that it cannot end, answer, and how it ended."""
    text = export.export(*conversation(), ".md")
    assert text.startswith("# Sums\n")
    assert "<details>\n<summary>Thought</summary>\n\n`````text\n</details><script>" in text
    assert text.endswith("## 1. Answer\n\nBecause *so*.\n\n[stopped]\n")
    assert "> Be brief." in text


def test_html_is_inert() -> None:
    """Nothing that was said is markup, and the page may load and run nothing."""
    text = export.export(*conversation(), ".html")
    assert "<script" not in text
    assert "Why &lt;b&gt;?" in text
    assert "default-src 'none'" in text
    assert text.count("</details>") == 1


def test_html_lays_answers_out() -> None:
    """Markdown is laid out; tags, scripts in links, images and LaTeX stay as they were written."""
    answer = (
        "**133**\n\n| a |\n|---|\n| 1 |\n\n```html\n<script>x</script>\n```\n\n<script>y</script>\n"
        "[z](javascript:z) ![i](http://x/i.png)\n\n$$\na < b_1\n$$\n"
    )
    turn = Turn(1, None, "Why?", (), "", answer, "end")
    text = export.export(conversation()[0], Conversation().add(turn), ".html")
    for drawn in ("<strong>133</strong>", "<td>1</td>", "&lt;script&gt;x", "a &lt; b_1"):
        assert drawn in text
    for alive in ("<script", 'href="javascript', "<img"):
        assert alive not in text


def test_json_holds_everything() -> None:
    """Every field of every turn can be read back."""
    session, talk = conversation()
    value = json.loads(export.export(session, talk, ".json"))
    assert value["session"]["name"] == "Sums"
    assert value["path"] == [1]
    assert value["turns"][0]["reasoning"] == HOSTILE
    with pytest.raises(UsageError, match="no format"):
        export.export(session, talk, ".docx")


def test_save_never_overwrites_without_asking(here: Path) -> None:
    """A file that is there stays unless the person says yes; the extension is the format."""
    table = Table()
    table.type(
        "one", "/save talk.md", "/save talk.md", "", "/save talk.txt", "/save", "/save no/x.md"
    )
    first = (here / "talk.md").read_text()
    assert "Hello." in first
    assert "Nothing was written." in table.text
    assert "'.txt' is no format" in table.text
    assert "/save needs a file." in table.text
    assert "cannot be written" in table.text
    table.type("two", "/save talk.md", "y")
    assert "two" in (here / "talk.md").read_text()


# --- the clipboard -----------------------------------------------------------------------------


def tool(folder: Path, name: str, code: int = 0) -> dict[str, str]:
    """An environment with a clipboard tool that writes what it is given to a file."""
    path = folder / name
    path.write_text(f'#!/bin/sh\ncat > "{folder}/copied"\nexit {code}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}:/bin:/usr/bin", "DISPLAY": ":0", "TERM": "xterm"}


def test_copy_goes_both_ways(here: Path) -> None:
    """To the system's tool and, as OSC 52, through the terminal."""
    tty = Tty()
    environ = tool(here, "xclip")
    assert clipboard.copy("héllo", Screen(tty, tty, environ).out, environ) == [
        "xclip",
        "the terminal",
    ]
    assert (here / "copied").read_text() == "héllo"
    assert tty.getvalue() == "\x1b]52;c;aMOpbGxv\x07"


def test_a_tool_that_fails_is_not_counted(here: Path) -> None:
    """What is too long for the terminal then has no way to go."""
    tty = Tty()
    environ = tool(here, "xclip", code=1)
    out = Screen(tty, tty, environ).out
    assert clipboard.copy("x", out, environ) == ["the terminal"]
    assert clipboard.copy("x" * 100_000, out, environ) == []


def test_copy_takes_answer_code_or_thought() -> None:
    """Alone the answer; the last block of code without its fences."""
    table = Table(("a thought", "Do:\n\n```sh\nls\n```\n\nor\n\n```\npwd\n```\n"))
    table.type("/copy", "one", "/copy", "/copy code", "/copy thought", "/copy all")
    copied = re.findall(r"\x1b]52;c;(\S+)\x07", table.text)
    assert copied[1:] == ["cHdk", "YSB0aG91Z2h0"]
    assert "There is no answer to copy." in table.text
    assert "Copied 3 characters of code with the terminal." in table.text
    assert "/copy knows no 'all'" in table.text


# --- settings and the window -------------------------------------------------------------------


def test_set_changes_what_is_sampled() -> None:
    """Within the ranges of the settings file; `none` unsets; the rest of the settings stays."""
    table = Table(settings=Settings("scripted", max_tokens=5))
    table.type("/set temperature 0.9", "/set seed 7", "/set max_tokens none", "one")
    sampling = table.engines[0].sampling[0]
    assert (sampling.temperature, sampling.seed, sampling.max_tokens) == (0.9, 7, None)
    table.type("/set temperature 9", "/set temprature 1", "/set ctx 4096", "/set top_k x")
    table.type("/set device CUDA0", "/set margin_gb 500", "/set prefer speed")
    assert table.text.count("qwq config set") == 4
    assert "outside 0 to 5" in table.text
    assert "try: /set temperature" in table.text
    assert "/set cannot change ctx in a chat." in table.text
    assert "which is not a number" in table.text
    table.type("/set", "/set top_p")
    assert "top_p: 0.95  (0 to 1)" in table.text
    assert table.chat.settings.temperature == 0.9


def test_set_refuses_what_the_model_cannot_have() -> None:
    """The same check as at the start, such as greedy decoding of QwQ."""
    table = Table()

    def check(settings: Settings) -> None:
        if settings.sampling.greedy:
            raise UsageError("QwQ must not be decoded greedily.")

    table.chat.check = check
    table.type("/set temperature 0")
    assert "must not be decoded greedily" in table.text
    assert table.chat.settings.temperature == 0.6


def test_context_tells_what_fills_the_window(here: Path) -> None:
    """System prompt, history, files that were sent and that wait, and what is free: all of it."""
    (here / "a.txt").write_text("one two three")
    table = Table(("x " * 50, "four five"), settings=Settings("scripted", system="Be brief."))
    table.type("@a.txt what?", "/file a.txt", "/context")
    rows = re.findall(r"([SHF+.]) (\w[\w ]*?)\s+([\d,]+) tokens", table.text)
    counts = {name: int(count.replace(",", "")) for _, name, count in rows}
    assert list(counts) == ["system", "history", "files", "next files", "free"]
    assert counts["system"] == 2
    assert counts["history"] == 4
    assert counts["files"] == counts["next files"] == 6
    assert sum(counts.values()) == 4096


def test_the_picture_of_the_window_fits() -> None:
    """In a narrow window it is drawn smaller, and no row of it wraps."""
    for columns in (80, 40, 20):
        table = Table(columns=columns)
        table.type("one", "/context")
        bar = re.search(r"\[[SHF+.]+ *\]", table.text)
        assert bar is not None
        assert len(bar[0]) == min(42, columns - 1)
    table = Table(columns=40)
    table.type("/context")
    assert [len(row) for row in re.findall(r"  [SHF+.] .* %", table.text)] == [39] * 5
    for columns in (39, 20):
        table = Table(columns=columns)
        table.type("/context")
        rows = re.findall(r"m([SHF+.] [a-z ]+: [\d,]+)\x1b", table.text)
        assert len(rows) == 5
        assert max(map(len, rows)) < 20


# --- the editor --------------------------------------------------------------------------------


def test_the_editor_changes_the_next_question(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leaves waits in the prompt; its file is private and removed; its failure is told."""
    script = here / "editor"
    script.write_text(f'#!/bin/sh\nstat -c %a "$2" > "{here}/mode"\nprintf " more\\n\\n" >> "$2"\n')
    script.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"{script} -x")
    monkeypatch.setenv("TMPDIR", str(here))
    assert edit_text("some") == "some more"
    assert (here / "mode").read_text() == "600\n"
    assert list(here.glob("tmp*")) == []
    table = Table()
    assert table.type("one", "/editor last").drafts == ["", "", "one edited"]
    monkeypatch.setenv("EDITOR", "false")
    with pytest.raises(UsageError, match="The editor false failed"):
        edit_text("some")


# --- completion --------------------------------------------------------------------------------


def offered(table: Table, text: str) -> list[str]:
    return [word for word, _ in completions(table.chat, text)]


def test_commands_and_their_values_are_offered() -> None:
    """For text nothing."""
    table = Table()
    assert offered(table, "/st") == ["/stats"]
    assert offered(table, "/think h") == ["hide"]
    assert offered(table, "/set tempe") == ["temperature"]
    assert "show" in offered(table, "/set thinking ")
    assert offered(table, "/copy ") == ["answer", "code", "thought"]
    assert "tiny" in offered(table, "/model t")
    assert offered(table, "what is /") == offered(table, "") == []


def test_paths_are_offered(here: Path) -> None:
    """For /file, /save and @; folders end in a slash, blanks get a backslash, dots are hidden."""
    (here / "docs").mkdir()
    (here / "docs" / "a b.txt").write_text("")
    (here / "data.txt").write_text("")
    (here / ".hidden").write_text("")
    table = Table()
    assert offered(table, "/file d") == ["data.txt", "docs/"]
    assert offered(table, "/file data.txt docs/a") == ["docs/a\\ b.txt"]
    assert offered(table, "/save docs/a\\ b") == ["docs/a\\ b.txt"]
    assert offered(table, "see @do") == ["@docs/"]
    assert offered(table, "/file .h") == [".hidden"]
    assert offered(table, "/file nowhere/") == []
    assert os.getcwd() == str(here)


def test_sessions_are_offered(tmp_path: Path) -> None:
    """By name, else by id; a name with blanks goes on after each of them."""
    store = Store(tmp_path / "s.db")
    Table(store=store).type("one", "/name my long sums")
    table = Table(store=store)
    table.type("two")
    assert offered(table, "/resume ") == [table.chat.session.id, "my long sums"]
    assert offered(table, "/resume my lo") == ["long sums"]
    assert offered(table, "/resume my long ") == ["sums"]
    assert offered(table, "/resume your lo") == []
    table.type("/resume my long sums")
    assert table.chat.session.name == "my long sums"
    store.close()


def test_a_path_that_was_completed_is_a_model(here: Path) -> None:
    """/model takes a path as it is offered."""
    (here / "a b.gguf").write_text("")
    table = Table()
    assert offered(table, "/model a") == ["auto", "a\\ b.gguf"]
    table.type("/model a\\ b.gguf")
    assert table.chat.settings.model == "a b.gguf"
