"""`qwq ask` and the command line as a person or a pipe meets them, on the built-in model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from command_line import qwq
from gguf_files import write_gguf

from qwqcli import __version__

QUESTION = "What is 47 + 86?"
GREEDY = ["--temperature", "0"]


def spawn(*argv: str, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The same in a process of its own, with pipes."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "qwqcli", *argv]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environ)


def test_answer_alone_is_on_stdout(environ: dict[str, str]) -> None:
    """stdout holds the answer and nothing else; the folded thought is one line on stderr."""
    result = qwq("ask", *GREEDY, *QUESTION.split(), environ=environ)
    assert result.code == 0
    assert "133" in result.out
    assert "Thought for" not in result.out
    assert [line for line in result.err.splitlines() if line.startswith("Thought for")]
    assert "\x1b" not in result.out + result.err


@pytest.mark.parametrize(("thinking", "shown"), [("show", True), ("fold", False), ("hide", False)])
def test_thinking_option(thinking: str, shown: bool, environ: dict[str, str]) -> None:
    """`show` writes the trace to stderr, `fold` and `hide` don't."""
    result = qwq("ask", *GREEDY, "--thinking", thinking, QUESTION, environ=environ)
    thought = json.loads(qwq("ask", *GREEDY, "--json", QUESTION, environ=environ).out)["reasoning"]
    assert (thought.splitlines()[0] in result.err) == shown
    assert ("Thought for" in result.err) == (thinking == "fold")


def test_words_and_stdin_make_one_prompt(environ: dict[str, str]) -> None:
    """Words alone, stdin alone, or both: the question first, then what was piped in."""
    alone = qwq("ask", *GREEDY, QUESTION, environ=environ).out
    piped = qwq("ask", *GREEDY, environ=environ, stdin=QUESTION.encode() + b"\n").out
    assert alone == piped
    both = qwq("ask", "--json", *GREEDY, "Sum up", environ=environ, stdin=b"a log").out
    apart = qwq("ask", "--json", *GREEDY, "Sum up\n\na log", environ=environ).out
    assert json.loads(both)["stats"]["prompt_tokens"] == json.loads(apart)["stats"]["prompt_tokens"]


def test_json_object(environ: dict[str, str]) -> None:
    """`--json` prints one object with the documented keys, and nothing else on stdout."""
    result = qwq("ask", "--json", *GREEDY, QUESTION, environ=environ)
    value = json.loads(result.out)
    assert set(value) == {"model", "reasoning", "answer", "stop", "thought_end", "stats"}
    assert value["model"] == "tiny"
    assert value["stop"] == "end"
    assert "133" in value["answer"]
    assert value["reasoning"]
    assert set(value["stats"]) >= {
        *("prompt_tokens", "reused_tokens", "reasoning_tokens", "answer_tokens"),
        *("time_to_first_token_s", "time_to_answer_s", "prompt_tps", "generation_tps"),
    }


def test_stream_json_adds_up_to_json(environ: dict[str, str]) -> None:
    """`--stream-json` prints one event a line; together they are what `--json` says at once."""
    whole = json.loads(qwq("ask", "--json", *GREEDY, QUESTION, environ=environ).out)
    lines = qwq("ask", "--stream-json", *GREEDY, QUESTION, environ=environ).out.splitlines()
    events = [json.loads(line) for line in lines]
    for kind in ("reasoning", "answer"):
        assert "".join(e["text"] for e in events if e["type"] == kind) == whole[kind]
    assert events[-1]["type"] == "done"
    assert events[-1]["stop"] == "end"


def test_stats_line(environ: dict[str, str]) -> None:
    """`--stats` ends stderr with a line of figures and one of where the layers are."""
    result = qwq("ask", "--stats", *GREEDY, QUESTION, environ=environ)
    figures, placement = result.err.splitlines()[-2:]
    assert "prompt" in figures
    assert "t/s" in figures
    assert placement == "all layers on the CPU · 4,096 tokens of context"


def test_seed_repeats_a_reply(environ: dict[str, str]) -> None:
    """The same seed gives the same reply in another process."""
    first, second = (qwq("ask", "--seed", "7", QUESTION, environ=environ) for _ in range(2))
    assert first.out == second.out


def test_settings_come_from_flag_then_variable_then_file(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """A flag wins over a variable, which wins over the file."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text("max_tokens: 3\n")

    def generated(*flags: str, **more: str) -> int:
        result = qwq("ask", "--json", *flags, QUESTION, environ={**environ, **more})
        stats = json.loads(result.out)["stats"]
        return int(stats["reasoning_tokens"] + stats["answer_tokens"])

    assert generated() == 3
    assert generated(QWQ_MAX_TOKENS="4") == 4
    assert generated("--max-tokens", "5", QWQ_MAX_TOKENS="4") == 5


def test_cut_thought_is_no_success(environ: dict[str, str]) -> None:
    """A reply that ends inside its thought is no answer: empty stdout, and its exit code."""
    result = qwq("ask", "--max-tokens", "3", QUESTION, environ=environ)
    assert result.code == 7
    assert result.out == ""
    assert "--max-tokens" in result.err


def test_thought_that_is_never_closed(tiny: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    """A model that never closes its thought ends without an answer, and the person is told."""
    path = tmp_path / "open.gguf"
    path.write_bytes(tiny.read_bytes().replace(b"</think>", b"<-think>"))
    result = qwq("ask", "-m", str(path), "--ctx", "256", QUESTION, environ=environ)
    assert result.code == 7
    assert result.out == ""
    assert "no answer" in result.err


def test_no_chat_template(tiny: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    """A file without a chat template works with plain ChatML, and that is said."""
    path = tmp_path / "bare.gguf"
    path.write_bytes(
        tiny.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX")
    )
    result = qwq("ask", "-m", str(path), "--max-tokens", "40", QUESTION, environ=environ)
    assert "no chat template" in result.err


BAD_INPUT = {
    "unknown command": (["aks"], 2, "ask"),
    "unknown option": (["ask", "--modle", "x"], 2, "--model"),
    "option without its value": (["ask", "--seed"], 2, "--help"),
    "word for a number": (["ask", "--seed", "x", "hi"], 2, "--help"),
    "unknown model": (["ask", "-m", "q4km", "hi"], 2, "q4_k_m"),
    "model that is not here": (["ask", "-m", "q4_k_m", "hi"], 2, "--model tiny"),
    "no such file": (["ask", "-m", "./no.gguf", "hi"], 2, "no.gguf"),
    "folder as a model": (["ask", "-m", "{tmp}", "hi"], 2, "folder"),
    "empty file": (["ask", "-m", "{tmp}/empty.gguf", "hi"], 5, "empty"),
    "not a GGUF": (["ask", "-m", "{tmp}/text.gguf", "hi"], 5, "text.gguf"),
    "unknown architecture": (["ask", "-m", "{tmp}/odd.gguf", "hi"], 5, "'mystery'"),
    "out of range": (["ask", "--temperature", "9", "hi"], 2, "between 0 and 5"),
    "not a choice": (["ask", "--thinking", "maybe", "hi"], 2, "show, fold, hide"),
    "context over the model's": (["ask", "--ctx", "99999", "hi"], 2, "--ctx 4096"),
    "nothing to ask": (["ask"], 2, "qwq ask"),
    "file that is missing": (["ask", "-f", "{tmp}/none.txt", "hi"], 2, "none.txt"),
    "prompt over the context": (["ask", "word " * 9000], 7, "4,096"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case: str, tmp_path: Path, environ: dict[str, str]) -> None:
    """Each slip ends in its exit code, one message and a hint, with stdout empty."""
    argv, code, told = BAD_INPUT[case]
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("<html>not a model</html>" * 10)
    write_gguf(tmp_path / "odd.gguf", {"general.architecture": "mystery", "mystery.block_count": 1})
    result = qwq(*(word.replace("{tmp}", str(tmp_path)) for word in argv), environ=environ)
    assert result.code == code, result.err
    assert told in result.err
    assert "error: " in result.err
    assert "  try: " in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"caf\xe9 log", "byte 0xe9 at position 3"),
        (b"a\0b", "NUL byte at position 1"),
        ("hi".encode("utf-16"), "UTF-16"),
        (b"   \n", "nothing to ask"),
    ],
)
def test_stdin_that_is_no_text(data: bytes, told: str, environ: dict[str, str]) -> None:
    """What can't be a prompt is refused with where it stops being text."""
    result = qwq("ask", environ=environ, stdin=data)
    assert result.code == 2
    assert told in result.err


def test_file_cut_anywhere_is_refused(tiny: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    """A model file cut in the header or in the weights never reaches the engine."""
    data, path = tiny.read_bytes(), tmp_path / "cut.gguf"
    for length in (1, 4, 10, 1000, 20_000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        result = qwq("ask", "-m", str(path), "hi", environ=environ)
        assert result.code == 5, length
        assert "cut.gguf" in result.err


def test_greedy_is_refused_for_qwq_alone(tmp_path: Path, environ: dict[str, str]) -> None:
    """Greedy decoding of QwQ-32B needs --force; the reason is given before anything is loaded."""
    from gguf_files import write_qwq_shaped

    path = write_qwq_shaped(tmp_path / "qwq-32b-q4_k_m.gguf", layers=1, vocab=1024)
    result = qwq("ask", *GREEDY, "-m", str(path), "hi", environ=environ)
    assert result.code == 2
    assert "greedily" in result.err
    assert "--force" in result.err


def test_unwritable_folders_do_not_stop_an_answer(environ: dict[str, str], tmp_path: Path) -> None:
    """With a cache that can't be written the engine is checked again, and that is said."""
    blocked = tmp_path / "file"
    blocked.touch()
    folders = {f"QWQ_{name}_DIR": str(blocked / "x") for name in ("CONFIG", "CACHE", "DATA")}
    result = qwq("ask", *GREEDY, QUESTION, environ={**environ, **folders})
    assert result.code == 0
    assert "133" in result.out
    assert "cannot be written" in result.err


def test_broken_settings_file(environ: dict[str, str], tmp_path: Path) -> None:
    """A settings file with an unknown name or bad YAML is an error that names it."""
    (tmp_path / "config").mkdir()
    file = tmp_path / "config" / "config.yaml"
    for text, told in [("thinkin: fold\n", "thinking"), ("a: [", "YAML"), ("- 1\n", "thinking")]:
        file.write_text(text)
        result = qwq("ask", "hi", environ=environ)
        assert result.code == 2
        assert str(file) in result.err
        assert told in result.err


@pytest.mark.parametrize("more", [{"TERM": "dumb"}, {"COLUMNS": "20"}, {"NO_COLOR": "1"}])
def test_odd_terminals(more: dict[str, str], environ: dict[str, str]) -> None:
    """A dumb terminal, a window of 20 columns and NO_COLOR change nothing in a pipe."""
    result = qwq("ask", *GREEDY, QUESTION, environ={**environ, **more})
    assert result.code == 0
    assert "133" in result.out


def test_version_and_help(environ: dict[str, str]) -> None:
    """`--version` prints one line; no arguments at all print the help."""
    assert qwq("--version", environ=environ).out == f"qwq {__version__}\n"


def test_help_imports_nothing_heavy(environ: dict[str, str]) -> None:
    """`qwq --help` imports none of the libraries that take long."""
    heavy = ("llama_cpp", "rich", "prompt_toolkit", "jinja2", "yaml", "numpy", "huggingface_hub")
    script = (
        "import sys\nfrom qwqcli.cli import main\n"
        f"main(['--help']); print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environ)
    assert done.stderr.decode().strip() == "[]"


def test_ctrl_c_keeps_what_was_said(environ: dict[str, str], smollm: Path) -> None:
    """Ctrl-C ends the reply, keeps what was said on stdout and leaves with 130."""
    # the built-in model would have ended its reply by then
    model = ("--model", str(smollm), "--seed", "1")
    child = spawn("ask", "--stream-json", *model, "Tell a long story.", environ=environ)
    assert child.stdin is not None
    child.stdin.close()
    assert child.stdout is not None
    lines = []
    for line in child.stdout:
        lines.append(json.loads(line))
        if lines[-1]["type"] == "answer":
            child.send_signal(signal.SIGINT)
            break
    rest = [json.loads(line) for line in child.stdout]
    assert child.wait() == 130
    assert rest[-1]["type"] == "done"
    assert rest[-1]["stop"] == "interrupted"
    child.stdout.close()
    assert child.stderr is not None
    assert b"Traceback" not in child.stderr.read()
    child.stderr.close()


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_at_any_moment(delay: float, environ: dict[str, str]) -> None:
    """Pressed while starting, loading or thinking, Ctrl-C ends quickly and without a traceback."""
    child = spawn("ask", QUESTION, environ=environ)
    time.sleep(delay + 0.15)  # the interpreter itself needs this long before it listens to us
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=10)
    # before the interpreter has set up its own handler, the system ends it: quiet as well
    assert child.returncode in (0, 130, -signal.SIGINT)
    assert b"Traceback" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "command",
    ["ask --model tiny --json 2+2", "ask --model tiny 2+2", "--version", "sessions list --json"],
)
def test_a_full_disk_is_told(environ: dict[str, str], command: str) -> None:
    """The output that cannot be written is an error in one line, also if Python still held it."""
    child = subprocess.run(
        f"{sys.executable} -m qwqcli {command} >/dev/full",
        shell=True, capture_output=True, text=True, env=environ, check=False,
    )  # fmt: skip
    assert child.returncode == 1
    assert "The output cannot be written: No space left on device." in child.stderr
    assert "Traceback" not in child.stderr
    assert "Exception ignored" not in child.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no such shell")
@pytest.mark.parametrize(
    ("closed", "out"), [("<&-", "4"), (">&-", ""), ("2>&-", "4"), ("<&- 2>&-", "4")]
)
def test_streams_that_are_closed(environ: dict[str, str], closed: str, out: str) -> None:
    """A stream that was closed before we began is one that nothing comes from or goes to."""
    child = subprocess.run(
        f"{sys.executable} -m qwqcli ask --model tiny 'What is 2 + 2?' {closed}",
        shell=True, capture_output=True, text=True, env=environ, check=False,
    )  # fmt: skip
    assert child.returncode == 0
    assert out in child.stdout
    assert "Traceback" not in child.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no such shell")
def test_a_reader_of_errors_that_leaves(environ: dict[str, str]) -> None:
    """141 as well, and no word about it."""
    child = subprocess.run(
        "bash", text=True, capture_output=True, env=environ, check=False,
        input=f"{sys.executable} -m qwqcli ask --model tiny --thinking show 'What is 2 + 3?'"
        " 2>&1 >/dev/null </dev/null | true; echo ${PIPESTATUS[0]}",
    )  # fmt: skip
    assert (child.stdout, child.stderr) == ("141\n", "")


def test_closed_pipe_is_quiet(environ: dict[str, str]) -> None:
    """A reader that leaves (`| head -c 1`) ends the command without a word."""
    child = spawn("ask", "--stream-json", QUESTION, environ=environ)
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stderr is not None
    child.stdin.close()
    child.stdout.read(1)
    child.stdout.close()
    assert child.wait(timeout=20) == 141
    assert child.stderr.read() == b""
    child.stderr.close()
