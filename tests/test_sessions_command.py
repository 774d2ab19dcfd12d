"""`qwq sessions` and `qwq config`, and what the shell completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from qwqcli import config
from qwqcli.commands import complete
from qwqcli.conversation import Turn
from qwqcli.repl.prompt import forget
from qwqcli.sessions import Session, Store, new_session, new_turn_id
from tests.command_line import Result, qwq

Run = Callable[..., Result]


@pytest.fixture
def run(environ: dict[str, str]) -> Run:
    return lambda *argv, **kw: qwq(*argv, environ={**environ, **kw})


@pytest.fixture
def session(environ: dict[str, str]) -> Session:
    """A session called sums, with one turn."""
    session = new_session("tiny")
    session = Session(session.id, "sums", "tiny", created=session.created)
    turn = Turn(
        new_turn_id(),
        None,
        "What is \x1b]0;x\x07 2+2?",
        (),
        "草莓 hmm",
        "It is 4.",
        "end",
        asked=1.0,
    )
    with closing(Store(config.paths(environ).sessions)) as store:
        store.save(session, turn.id, [turn])
    return session


def test_without_sessions_nothing_is_created(run: Run, environ: dict[str, str]) -> None:
    """Looking at what is not there says so, and makes no database."""
    assert run("sessions", "list") == (0, "", "There are no sessions yet. Begin one: qwq chat\n")
    assert run("sessions", "search", "x").code == 1
    assert run("sessions", "show", "x").code == 2
    assert not config.paths(environ).sessions.exists()


def test_list_and_show(run: Run, session: Session) -> None:
    """A line a session; the whole as Markdown, or as JSON."""
    assert "sums" in run("sessions", "list").out
    listed = json.loads(run("sessions", "list", "--json").out)["sessions"]
    assert [entry["session"]["name"] for entry in listed] == ["sums"]
    assert "It is 4." in run("sessions", "show", "SUMS").out
    shown = json.loads(run("sessions", "show", session.id[:3], "--json").out)
    assert shown["turns"][0]["reasoning"] == "草莓 hmm"


def test_search(run: Run, session: Session) -> None:
    """Words in any part, thoughts and Chinese among them; quotes hold words together."""
    assert "thought: 草莓 hmm" in run("sessions", "search", "草莓").out
    assert "answer: It is 4." in run("sessions", "search", "it is").out
    assert run("sessions", "search", "4 it").code == 1
    assert run("sessions", "search", "4", "it").code == 0
    assert json.loads(run("sessions", "search", "--json", "草").out)["hits"][0]["name"] == "sums"


def test_export(run: Run, session: Session, tmp_path: Path) -> None:
    """By the extension; a file that is there is not written over."""
    file = tmp_path / "talk.html"
    assert run("sessions", "export", "sums", str(file)).code == 0
    assert "It is 4." in file.read_text()
    again = run("sessions", "export", "sums", str(file))
    assert (again.code, "exists" in again.err) == (2, True)
    assert run("sessions", "export", "sums", str(file), "--force").code == 0
    assert run("sessions", "export", "sums", str(tmp_path / "x.doc")).code == 2


def test_rm_asks_and_leaves_nothing(run: Run, session: Session, environ: dict[str, str]) -> None:
    """Nobody to ask: nothing is removed. Its questions leave the prompt's history as well."""
    paths = config.paths(environ)
    paths.input_history.write_text(
        "\n# 2026-01-01\n+kept\n\n# 2026-01-02\n+What is \x1b]0;x\x07 2+2?\n\n# 2026\n+a\n+b\n"
    )
    assert run("sessions", "rm", "sums").code == 2
    assert run("sessions", "rm", "sums", "absent", "--yes").code == 2
    assert run("sessions", "rm", "sums", "sums", "--yes").code == 0
    assert run("sessions", "list").out == ""
    assert paths.input_history.read_text() == "\n# 2026-01-01\n+kept\n\n# 2026\n+a\n+b\n"


def test_rm_forgets_what_was_typed_in_another_form(
    run: Run, session: Session, environ: dict[str, str]
) -> None:
    """Quoted, with two slashes, as a prompt of the library, and as name or system prompt."""
    paths = config.paths(environ)
    asked = ("in quotes\nof two lines", "/help me", "Step by step: my text. Go on.")
    turns = [Turn(new_turn_id(), None, question, stop="end") for question in asked]
    with closing(Store(paths.sessions)) as store:
        store.save(replace(session, system="Be brief."), turns[-1].id, turns)
    typed = (
        '"""in quotes\nof two lines"""', "//help me", "/prompt frame-steps my text.",
        "/name sums", "/system Be brief.", "kept", "/prompt frame-steps", "/set top_k 4",
    )  # fmt: skip
    entries = ["".join(f"+{line}\n" for line in text.split("\n")) for text in typed]
    paths.input_history.write_text("".join(f"\n# 2026\n{entry}" for entry in entries))
    assert run("sessions", "rm", "sums", "-y").code == 0
    assert paths.input_history.read_text() == (
        "\n# 2026\n+kept\n\n# 2026\n+/prompt frame-steps\n\n# 2026\n+/set top_k 4\n"
    )


def test_the_history_that_is_left_is_read_as_before(tmp_path: Path) -> None:
    """prompt_toolkit reads what is left of its own file."""
    from prompt_toolkit.history import FileHistory

    path = tmp_path / "history"
    for text in ("one", "two\nlines", "# three", "四"):
        FileHistory(path).store_string(text)
    forget(path, ["one", "four"].__contains__)
    forget(path, ["# three"].__contains__)
    assert list(FileHistory(path).load_history_strings()) == ["四", "two\nlines"]
    forget(tmp_path / "absent", ["x"].__contains__)


# --- config ------------------------------------------------------------------------------------


def test_config_shows_where_each_value_comes_from(run: Run, environ: dict[str, str]) -> None:
    """A variable over the file, the file over the defaults."""
    file = config.paths(environ).settings_file
    run("config", "set", "temperature", "0.9")
    run("config", "set", "top_k", "30")
    rows = json.loads(run("config", "show", "--json", QWQ_TOP_K="50").out)["settings"]
    assert rows["temperature"] == {"value": 0.9, "from": str(file)}
    assert rows["top_k"] == {"value": 50, "from": "QWQ_TOP_K"}
    assert rows["top_p"]["from"] == "default"
    assert "temperature    0.9" in run("config", "show").out
    assert run("config", "path").out == f"{file}\n"


def test_config_set_keeps_the_rest_of_the_file(run: Run, environ: dict[str, str]) -> None:
    """Comments and other lines stay; a bad name or value changes nothing."""
    file = config.paths(environ).settings_file
    file.parent.mkdir(parents=True)
    file.write_text("# mine\nthinking: show  # for now\nsystem: |\n  be\n  brief")
    assert run("config", "set", "thinking", "fold").code == 0
    assert run("config", "set", "seed", "7").code == 0
    assert run("config", "set", "seed", "none").code == 0
    expected = '# mine\nthinking: "fold"  # for now\nsystem: |\n  be\n  brief\nseed: null\n'
    assert file.read_text() == expected
    for name, value, says in (
        ("thinkin", "fold", "thinking"),
        ("thinking", "loud", "show, fold, hide"),
        ("temperature", "9", "between 0 and 5"),
        ("system", "other", "qwq config edit"),
    ):
        refused = run("config", "set", name, value)
        assert (refused.code, says in refused.err) == (2, True), refused.err
    assert file.read_text() == expected


def test_config_set_changes_a_line_and_nothing_else(
    run: Run, environ: dict[str, str], tmp_path: Path
) -> None:
    """A # within the text, line ends of Windows, who may read the file, and a link to it stay."""
    file, real = config.paths(environ).settings_file, tmp_path / "dotfiles" / "qwq.yaml"
    file.parent.mkdir(parents=True)
    real.parent.mkdir()
    real.write_bytes(b"# mine\r\nseed: 7   # lucky\r\n")
    real.chmod(0o600)
    file.symlink_to(real)
    for text in ("a: b # c", "I like C#", 'it\'s "quoted" #1', "x"):
        assert run("config", "set", "system", text).code == 0
        assert config.read_file(file)["system"] == text
    assert real.read_bytes() == b'# mine\r\nseed: 7   # lucky\r\nsystem: "x"\r\n'
    assert file.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    for plain in ("system: I like C# # and more\n", "system: 'it''s # 1' # and more\n"):
        file.write_text(plain)
        assert run("config", "set", "system", "x").code == 0
        assert file.read_text() == 'system: "x" # and more\n'


@pytest.mark.parametrize("line", ["system:", "model:", "system: [a, b]", "device: {a: b}"])
def test_a_text_that_is_none_is_refused(run: Run, environ: dict[str, str], line: str) -> None:
    """An empty line of the file must not become the word None in a prompt."""
    file = config.paths(environ).settings_file
    file.parent.mkdir(parents=True)
    file.write_text(f"{line}\n")
    shown = run("config", "show")
    assert (shown.code, "which is not a text" in shown.err) == (2, True)
    file.write_text('system: ""\n')
    assert run("config", "show").code == 0


def test_config_edit_begins_with_every_default(
    run: Run, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file changes nothing; what comes back from the editor is checked."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "true")
    assert run("config", "edit").code == 0
    file = config.paths(environ).settings_file
    assert "# temperature: 0.6\n" in file.read_text()
    assert config.read_file(file) == {}
    uncommented = file.read_text().replace("# ", "").partition("\n")[2]
    file.write_text(uncommented)
    assert config.load({**environ, "QWQ_THREADS": ""}) == config.Settings()
    file.write_text("temprature: 1\n")
    refused = run("config", "edit")
    assert (refused.code, "try: temperature" in refused.err) == (2, True)


# --- the shell ---------------------------------------------------------------------------------


def test_the_shell_completes(
    session: Session, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    """Sessions, models, quantizations and settings, by what is there."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert complete.session_names("su") == ["sums"]
    with closing(Store(config.paths(environ).sessions)) as store:
        store.save(replace(session, name="数学"), None, [])
        assert complete.session_names("数") == ["数学"]
        store.save(replace(session, name="my sums"), None, [])
        assert complete.session_names("") == [session.id]  # a shell would see two words
    models = config.paths(environ).data / "models"
    models.mkdir()
    (models / "x-1.json").write_text('{"name": "team/QwQ:Q4_K_M"}')
    (models / "y-2.json").write_text("[")
    assert complete.model_names("t") == ["tiny", "team/QwQ:Q4_K_M"]
    assert "q4_k_m" in [name.lower() for name in complete.quant_names("q4")]
    assert complete.setting_names("temp") == ["temperature"]
    config.paths(environ).sessions.write_bytes(b"damaged" * 1000)
    assert complete.session_names("") == []


def test_completion_loads_nothing_heavy(environ: dict[str, str], session: Session) -> None:
    """Asked as bash asks, it answers without the engine, the editor or the hub."""
    code = (
        "import sys; sys.argv = ['qwq']\nfrom qwqcli.__main__ import run\n"
        "try: run()\nexcept SystemExit: pass\n"
        "heavy = ('llama_cpp', 'rich', 'prompt_toolkit', 'jinja2', 'numpy', 'huggingface_hub')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    asked = {
        "_QWQ_COMPLETE": "complete_bash",
        "COMP_WORDS": "qwq sessions show s",
        "COMP_CWORD": "3",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ, **asked},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split("\n")[:2] == ["sums", "[]"], done
