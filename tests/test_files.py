"""`qwq pull`, `list`, `show`, `rm` and `import` against a hub on loopback."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Result, qwq
from gguf_files import write_qwq_shaped
from hub_server import Fault, HubServer
from hub_world import FILE, QWEN, World, interrupted_pull

from qwqcli import catalog, hardware, progress
from qwqcli.cli import Env, main
from qwqcli.errors import UsageError
from qwqcli.hub import Checking, Chosen, Event, Notice, Progress, Pulled, Retrying, Waiting
from qwqcli.terminal import Screen

NAME = f"{QWEN}:Q4_K_M"


class Typed(io.StringIO):
    """A person at the keyboard, and a terminal to read on."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def world(tmp_path: Path, tiny: Path) -> Iterator[World]:
    """A hub that has the built-in model under QwQ-32B's name, so that what is pulled runs."""
    with HubServer() as server:
        yield World(server, tmp_path, tiny.read_bytes())


@pytest.fixture
def person(world: World, environ: dict[str, str]) -> dict[str, str]:
    """The environment of one person with an empty home."""
    known = {"QWQ_CACHE_DIR": environ["QWQ_CACHE_DIR"]}  # the engine's self-check is done there
    home = {name: value for name, value in environ.items() if not name.startswith("HF_")}
    return {**home, **world.environ, **known}


@pytest.fixture
def big_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits does not depend on what else runs on this machine now."""
    monkeypatch.setattr(hardware, "probe", lambda *_: hardware.known_machine("cpu-64"))


def typed(*argv: str, environ: dict[str, str], answers: str) -> Result:
    """One command line with a person who answers."""
    out, err = io.StringIO(), io.StringIO()
    env = Env(Typed(answers), out, err, environ)
    return Result(main(argv, env), out.getvalue(), err.getvalue())


def events(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.out.splitlines()]


# --- pull --------------------------------------------------------------------------------------


def test_pull_prints_the_path_and_nothing_else_on_stdout(
    world: World, person: dict[str, str]
) -> None:
    """What was pulled is at the path that stdout names; all that people read is on stderr."""
    result = qwq("pull", "q4_k_m", environ=person)
    assert result.code == 0
    assert Path(result.out.strip()).read_bytes() == world.data
    assert NAME in result.err
    assert "verified" in result.err
    assert "\x1b" not in result.out + result.err


@pytest.mark.parametrize(
    "what",
    ["Q4_K_M", QWEN, NAME, f"{QWEN}:{FILE}", f"{{url}}/{QWEN}/blob/main/{FILE}"],
)
def test_a_model_can_be_named_in_many_ways(what: str, world: World, person: dict[str, str]) -> None:
    """A quantization, a repository, a file in it, or the URL of either."""
    result = qwq("pull", what.format(url=world.server.url), environ=person)
    assert result.code == 0, result.err
    assert Path(result.out.strip()).name == FILE


def test_quiet_says_only_the_path(person: dict[str, str]) -> None:
    """`--quiet` leaves stderr empty."""
    result = qwq("pull", "q4_k_m", "--quiet", environ=person)
    assert (result.code, result.err) == (0, "")
    assert Path(result.out.strip()).exists()


def test_json_is_one_object_a_line(world: World, person: dict[str, str]) -> None:
    """From `chosen` to `pulled`, which has the paths and the bytes that came."""
    first, *_, last = events(qwq("pull", "q4_k_m", "--json", environ=person))
    assert (first["type"], first["repo"], first["size"]) == ("chosen", QWEN, len(world.data))
    assert (last["type"], last["how"], last["received"]) == (
        "pulled",
        "downloaded",
        len(world.data),
    )
    assert [Path(path).name for path in last["paths"]] == [FILE]  # type: ignore[attr-defined]
    again = events(qwq("pull", "q4_k_m", "--json", environ=person))
    assert (again[-1]["how"], again[-1]["received"]) == ("kept", 0)


def test_without_a_name_somebody_must_be_there(world: World, person: dict[str, str]) -> None:
    """In a pipe nothing of 20 GB is begun by itself; --yes or a name is the way."""
    result = qwq("pull", environ=person)
    assert result.code == 2
    assert "qwq pull --yes" in result.err
    assert world.server.log == []


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [("\n", 0, "verified"), ("y\n", 0, "verified"), ("n\n", 1, "Nothing was downloaded"),
     ("", 1, "Nothing was downloaded"), ("what?\nq4_k_m\n", 0, "verified")],
)  # fmt: skip
@pytest.mark.usefixtures("big_machine")
def test_without_a_name_the_table_comes_and_one_question(
    answers: str, code: int, said: str, world: World, person: dict[str, str]
) -> None:
    """Only what the hub has is in the table; Enter takes the recommended one, a name another."""
    result = typed("pull", environ=person, answers=answers)
    assert result.code == code, result.err
    assert said in result.err
    assert re.search(r"^> +q4_k_m ", result.err, re.MULTILINE)
    assert "q6_k" not in result.err
    assert "Download Q4_K_M from Qwen/QwQ-32B-GGUF" in result.err
    assert (world.server.sent > 0) == (code == 0)


@pytest.mark.usefixtures("big_machine")
def test_yes_asks_nothing(person: dict[str, str]) -> None:
    """With --yes the recommended one is pulled, also in a script."""
    result = qwq("pull", "--yes", environ=person)
    assert result.code == 0, result.err
    assert "[Y/n" not in result.err
    assert Path(result.out.strip()).name == FILE


def test_to_source_and_reuse(world: World, person: dict[str, str], tmp_path: Path) -> None:
    """A folder, ModelScope, and bytes that are here already unless they are not wanted."""
    folder = tmp_path / "models"
    qwq("pull", "q4_k_m", "--to", str(folder), "--source", "modelscope", environ=person)
    assert (folder / FILE).read_bytes() == world.data
    before = world.server.sent
    other = tmp_path / ".lmstudio/models/a/b/m.gguf"
    other.parent.mkdir(parents=True)
    (folder / FILE).rename(other)
    linked = events(qwq("pull", "q4_k_m", "--json", environ=person))
    assert (linked[-1]["how"], world.server.sent) == ("linked", before)
    third = str(tmp_path / "third")
    again = events(qwq("pull", "q4_k_m", "--no-reuse", "--to", third, "--json", environ=person))
    assert again[-1]["how"] == "downloaded"
    assert world.server.sent >= before + len(world.data)


def test_offline_takes_what_is_here(world: World, person: dict[str, str]) -> None:
    """Without the network a pull finds what was pulled, or says what it would have asked."""
    refused = qwq("pull", "q4_k_m", "--offline", environ=person)
    assert (refused.code, refused.out) == (4, "")
    path = qwq("pull", "q4_k_m", environ=person).out
    asked = len(world.server.log)
    assert qwq("pull", "q4_k_m", "--offline", environ=person).out == path
    assert qwq("pull", "--yes", environ={**person, "HF_HUB_OFFLINE": "1"}).out == path
    assert len(world.server.log) == asked


def test_an_error_has_its_code_and_a_hint(world: World, person: dict[str, str]) -> None:
    """What the hub refuses is said in a sentence, with what to type next."""
    missing = qwq("pull", "nobody/nothing:Q4_K_M", environ=person)
    assert (missing.code, missing.out) == (2, "")
    assert "try: " in missing.err
    world.server.faults = [Fault(html=True, on="any")]
    assert qwq("pull", "q4_k_m", environ=person).code == 4


def start(world: World, person: dict[str, str], *argv: str) -> subprocess.Popen[str]:
    """`qwq pull` in a process of its own, begun: its first bytes are on the way."""
    before = world.server.sent
    process = subprocess.Popen(
        [sys.executable, "-m", "qwqcli", "pull", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=person,
    )
    while world.server.sent < before + 200_000 and process.poll() is None:
        time.sleep(0.01)
    return process


def test_ctrl_c_keeps_the_bytes_and_says_how_to_go_on(world: World, person: dict[str, str]) -> None:
    """It stops at once with 130; the command that it names brings the rest."""
    world.server.rate = 300_000
    process = start(world, person, "q4_k_m", "--source", world.server.url)
    time.sleep(0.5)
    stopped = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - stopped < 3
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    command = re.search(r"Go on: qwq (.*)", err)
    assert command is not None
    assert "Unfinished" in qwq("list", environ=person).out
    world.server.rate = 0
    before = world.server.sent
    assert qwq(*command[1].split(), environ=person).code == 0
    assert world.server.sent - before < len(world.data) - 100_000


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(30))
def test_ctrl_c_at_any_moment_is_no_accident(
    world: World, person: dict[str, str], round_: int
) -> None:
    """From the start of the program to its end: 130 or done, no traceback, and nothing lost."""
    world.server.rate = 2_000_000
    process = subprocess.Popen(
        [sys.executable, "-m", "qwqcli", "pull", "q4_k_m"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=person,
    )
    time.sleep(0.2 + round_ * 0.07)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    by_signal = -signal.SIGINT  # while Python starts or ends; a shell says 130 for it as well
    assert process.returncode in (0, 130, by_signal), err
    assert "Traceback" not in err
    world.server.rate = 0
    result = qwq("pull", "q4_k_m", environ=person)
    assert Path(result.out.strip()).read_bytes() == world.data
    assert world.leftovers() == []


def test_kill_minus_nine_loses_next_to_nothing(world: World, person: dict[str, str]) -> None:
    """After SIGKILL the same command goes on; it says so, and the file is right."""
    world.server.rate = 300_000
    process = start(world, person, "q4_k_m")
    time.sleep(1.2)
    process.kill()
    process.communicate()
    world.server.rate = 0
    result = qwq("pull", "q4_k_m", environ=person)
    assert "Going on" in result.err
    assert Path(result.out.strip()).read_bytes() == world.data


# --- the drawing of a pull ---------------------------------------------------------------------


class Window(io.StringIO):
    """A terminal that holds what was written to it."""

    def isatty(self) -> bool:
        return True


def moved(done: int, **more: object) -> Progress:
    """A download of 20 GB at 25 MB/s that has come so far."""
    total = 20 * 10**9
    event = Progress("a.gguf", 1, 1, done, total, done, total, 25e6, 480.0, 0, 4)
    return replace(event, **more)  # type: ignore[arg-type]


def drawn(*shown: Event, columns: int = 80, seconds: float = 1.0, live: bool = True) -> list[str]:
    """What stands on a terminal, or in a log, for events that come `seconds` apart."""
    now = iter(range(10_000))
    err = Window() if live else io.StringIO()
    screen = Screen(
        io.StringIO(), err, {"NO_COLOR": "1"}, lambda: next(now) * seconds, lambda: (columns, 24)
    )
    view = progress.view_of(screen, as_json=False, quiet=False)
    for event in shown:
        view.show(event)
    view.close()
    return re.sub(r"\x1b\[[?\d]*[a-zA-Z]", "", err.getvalue()).replace("\r", "\n").splitlines()


def test_a_row_tells_the_most_wanted_first() -> None:
    """Percent, rate, time left and bytes; as many as fit."""
    (row,) = [line for line in drawn(moved(5 * 10**9)) if "%" in line]
    assert row[2:] == "25 % · 25.0 MB/s · 8 min 0 s left · 5.00 GB of 20.00 GB"
    (row,) = [line for line in drawn(moved(5 * 10**9), columns=20) if "%" in line]
    assert row[2:] == "25 % · 25.0 MB/s"


def test_parts_are_counted_and_the_whole_as_well() -> None:
    """A split model shows the progress of the whole first, then that of the part."""
    event = moved(12 * 10**9, number=3, count=17, file_done=10**9, file_total=2 * 10**9)
    assert "60 % · " in "\n".join(drawn(event, columns=100))
    assert "part 3 of 17: 50 %" in "\n".join(drawn(event, columns=100))


def test_what_is_no_download_is_said() -> None:
    """Verifying, waiting for another process, comparing, and why nothing comes."""
    end = 20 * 10**9
    assert "verifying 50 %" in "\n".join(drawn(moved(end, hashed=end // 2)))
    assert "another process downloads it" in "\n".join(drawn(Waiting("a.gguf", 1, 2)))
    assert "50 % · verifying · a.gguf" in "\n".join(drawn(Checking("a.gguf", 1, 2)))
    assert "comparing 10 %" in "\n".join(drawn(moved(end // 10, mending=True)))
    trouble = drawn(Retrying("hub answers HTTP 503", 9.0), moved(0, connections=0, rate=0.0))
    assert "hub answers HTTP 503, again in 8 s" in "\n".join(trouble)


def test_a_log_gets_a_plain_line_now_and_then() -> None:
    """Where no row can be redrawn, a line every half minute, and every line that is for good."""
    chosen = Chosen(QWEN, "Q4_K_M", "huggingface.co", "5" * 40, (FILE,), 20 * 10**9)
    moves = [moved(count * 10**8) for count in range(100)]
    end = Pulled(NAME, (Path(FILE),), "downloaded", 20 * 10**9, 20 * 10**9)
    lines = drawn(chosen, *moves, Notice("One connection."), end, live=False)
    assert lines[0] == f"{QWEN} Q4_K_M: 20.00 GB from huggingface.co"
    assert 3 <= len([line for line in lines if "%" in line]) <= 8
    assert lines[-2] == "One connection."
    assert "verified" in lines[-1]


def test_names_of_strangers_cannot_act_on_the_terminal() -> None:
    """A file name is shown, never obeyed."""
    text = "\n".join(drawn(Notice("\x1b[2Jevil"), Checking("\x1b]0;x\x07", 1, 2)))
    assert "␛[2Jevil" in text
    assert "\x07" not in text


# --- list, show, rm, import --------------------------------------------------------------------


def test_an_empty_list_says_what_to_type(person: dict[str, str]) -> None:
    """Nothing on stdout, and the next command on stderr."""
    result = qwq("list", environ=person)
    assert (result.code, result.out) == (0, "")
    assert "qwq pull" in result.err


def test_the_list_has_models_and_what_is_unfinished(
    world: World, person: dict[str, str], tmp_path: Path
) -> None:
    """Name, quantization, size, place, last use and whether it fits; also as JSON."""
    (tmp_path / ".cache/llama.cpp").mkdir(parents=True)
    write_qwq_shaped(tmp_path / ".cache/llama.cpp/QwQ-32B-Q8_0.gguf", "q8_0")
    qwq("pull", "q4_k_m", environ=person)
    world.server.add("some/other", {"x-Q8_0.gguf": world.data[:-1]})
    world.server.faults = [Fault(cut=1 << 20, times=1), Fault(status=416)]
    qwq("pull", "some/other:Q8_0", environ=person)
    value = json.loads(qwq("list", "--json", environ=person).out)
    mine, other = value["models"]
    assert (mine["name"], mine["quantization"], mine["owner"]) == (NAME, "Q4_K_M", "qwq")
    assert (mine["size_bytes"], mine["fits"], mine["last_used"]) == (len(world.data), True, None)
    assert (other["name"], other["owner"]) == ("QwQ-32B-Q8_0.gguf", "llama.cpp")
    assert other["fits"] in (True, False)
    text = qwq("list", environ=person).out
    assert re.search(rf"^{NAME} +Q4_K_M .* never +CPU$", text, re.MULTILINE)
    assert re.search(r"^QwQ-32B-Q8_0.gguf +Q8_0 .*llama.cpp", text, re.MULTILINE)


def test_a_file_that_cannot_be_read_does_not_break_the_list(
    person: dict[str, str], tmp_path: Path
) -> None:
    """It is in the list, with the reason."""
    path = tmp_path / ".cache/llama.cpp/broken-Q8_0.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no model")
    (model,) = json.loads(qwq("list", "--json", environ=person).out)["models"]
    assert model["fits"] is None
    assert model["problem"]


def test_show_tells_what_where_from_and_how_it_runs(person: dict[str, str]) -> None:
    """Header, template, licence, provenance and plan; the template in full if asked for."""
    qwq("pull", "q4_k_m", environ=person)
    text = qwq("show", "q4_k_m", environ=person).out
    for fact in (NAME, "qwen2", "apache-2.0", "sha256", "<think>", "tokens of context", QWEN):
        assert fact in text, fact
    value = json.loads(qwq("show", NAME, "--json", environ=person).out)
    assert (value["origin"]["repo"], value["license"]) == (QWEN, "apache-2.0")
    assert value["plan"]["n_ctx"] > 0
    assert qwq("show", "q4_k_m", "--template", environ=person).out == value["chat_template"]


def test_show_knows_the_built_in_and_any_file(person: dict[str, str], tiny: Path) -> None:
    """A model without a receipt has no origin, and no less of the rest."""
    assert "Name here" in qwq("show", "tiny", environ=person).out
    assert json.loads(qwq("show", str(tiny), "--json", environ=person).out)["origin"] is None


def test_rm_asks_and_says_what_was_freed(world: World, person: dict[str, str]) -> None:
    """No is no; nobody there is an error that names -y; yes frees the disk."""
    qwq("pull", "q4_k_m", environ=person)
    assert qwq("rm", "q4_k_m", environ=person).code == 2
    assert typed("rm", "q4_k_m", environ=person, answers="\n").code == 1
    assert world.hub().find("q4_k_m") is not None
    result = typed("rm", "Q4_K_M", environ=person, answers="y\n")
    assert result.code == 0
    assert re.search(r"Removed .*: \d.* freed", result.out)
    assert not list(world.cache.glob("models--*"))


def test_rm_takes_what_a_stopped_pull_left(world: World, person: dict[str, str]) -> None:
    """By quantization, by repository and by file."""
    for name in ("q4_k_m", QWEN, f"{QWEN}:{FILE}"):
        interrupted_pull(world, after=300_000)
        result = qwq("rm", name, "--yes", environ=person)
        assert "unfinished" in result.out, result.err
        assert world.leftovers() == []


def test_a_pull_to_a_folder_that_stopped_is_listed_and_goes_on(
    world: World, person: dict[str, str], tmp_path: Path
) -> None:
    """The command of the list brings the rest; `rm` takes away what another one left."""
    folder = tmp_path / "a disk"
    interrupted_pull(world, after=300_000, to=folder)
    (left,) = json.loads(qwq("list", "--json", environ=person).out)["unfinished"]
    assert (left["to"], left["size_bytes"]) == (str(folder), len(world.data))
    command = re.search(r"Unfinished, .* Go on: qwq (.*)", qwq("list", environ=person).out)
    assert command is not None
    assert qwq(*shlex.split(command[1]), environ=person).out == f"{folder / FILE}\n"
    assert "Unfinished" not in qwq("list", environ=person).out
    qwq("rm", "q4_k_m", "--yes", environ=person)
    interrupted_pull(world, after=300_000, to=folder)
    assert "unfinished" in qwq("rm", "q4_k_m", "--yes", environ=person).out
    assert list(folder.iterdir()) == []


def test_rm_takes_what_was_named_and_nothing_else(
    world: World, person: dict[str, str], tmp_path: Path
) -> None:
    """No name is no model; the label of a leftover is not the model that came another way."""
    qwq("pull", "q4_k_m", environ=person)
    for name in ("", " "):
        assert qwq("rm", name, "--yes", environ=person).code == 2
    interrupted_pull(world, after=300_000, to=tmp_path / "else", reuse=False)
    assert "unfinished" in qwq("rm", f"{QWEN}:{FILE}", "--yes", environ=person).out
    assert world.hub().unfinished() == ()
    assert world.hub().find("q4_k_m") is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", None), ("name", 5), ("paths", []), ("size", "x"), ("license", 7), ("how", [])],
)
def test_a_damaged_receipt_hides_one_model_only(
    world: World, person: dict[str, str], key: str, value: object
) -> None:
    """The others are listed, also as JSON."""
    qwq("pull", "q4_k_m", environ=person)
    world.server.add("some/other", {"x-Q8_0.gguf": world.data})
    qwq("pull", "some/other:Q8_0", environ=person)
    (receipt,) = (world.home / "qwq-data" / "models").glob("Qwen*.json")
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), key: value}))
    assert "some/other" in qwq("list", environ=person).out
    models = json.loads(qwq("list", "--json", environ=person).out)["models"]
    assert ("some/other:Q8_0", "qwq") in [(model["name"], model["owner"]) for model in models]


def test_a_login_in_a_source_is_kept_nowhere(
    world: World, person: dict[str, str], tmp_path: Path
) -> None:
    """Neither on the screen nor in a receipt."""
    source = world.server.url.replace("://", "://bob:hunter2@")
    done = qwq("pull", "q4_k_m", "--source", source, environ=person)
    assert done.code == 0, done.err
    assert "hunter2" not in done.out + done.err + qwq("show", "q4_k_m", environ=person).out
    kept = [path.read_bytes() for path in world.home.rglob("*") if path.is_file()]
    assert not any(b"hunter2" in content for content in kept)


@pytest.mark.parametrize("what", ["https://[bad/", "http://[x"])
def test_what_is_no_address_is_told(person: dict[str, str], what: str) -> None:
    """An error in one line, whatever is done with it."""
    for command in (("pull", what), ("rm", what, "-y"), ("show", what), ("plan", what)):
        assert qwq(*command, environ=person).code == 2


def test_offline_brings_nothing_elsewhere(person: dict[str, str], tmp_path: Path) -> None:
    """What is in the cache is not what was asked for with --to or --revision."""
    qwq("pull", "q4_k_m", environ=person)
    assert qwq("pull", "q4_k_m", "--offline", environ=person).code == 0
    for more in (("--to", str(tmp_path / "x")), ("--revision", "other")):
        done = qwq("pull", f"{QWEN}:Q4_K_M", "--offline", *more, environ=person)
        assert (done.code, "offline" in done.err.lower()) == (4, True), done.err


def test_rm_leaves_what_is_not_ours(person: dict[str, str], tmp_path: Path) -> None:
    """Another tool's model, the built-in one and a name of nobody are errors."""
    path = tmp_path / ".cache/llama.cpp/other-Q8_0.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    for name in ("other-Q8_0.gguf", "tiny", "nobody"):
        assert qwq("rm", name, "--yes", environ=person).code == 2
    assert path.exists()


def test_an_imported_model_answers_by_its_name(
    person: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    """It is in the list, can be asked, and can be forgotten without harm."""
    path = tmp_path / "my model.gguf"
    path.write_bytes(tiny.read_bytes())
    assert "--model 'my model'" in qwq("import", str(path), environ=person).out
    asked = qwq("ask", "-m", "my model", "--temperature", "0", "What is 47 + 86?", environ=person)
    assert "133" in asked.out
    assert qwq("rm", "my model", "-y", environ=person).code == 0
    assert path.exists()


# --- names -------------------------------------------------------------------------------------


def test_the_default_is_the_qwq_that_was_pulled(world: World, person: dict[str, str]) -> None:
    """Until one is pulled it is the built-in model; `qwq` alone never is."""
    assert catalog.resolve("auto", person).name == "tiny"
    with pytest.raises(UsageError) as error:
        catalog.resolve("qwq", person)
    assert error.value.hint == "qwq pull"
    qwq("pull", "q4_k_m", environ=person)
    assert catalog.resolve("auto", person).name == NAME
    assert catalog.resolve("qwq-32b", person).name == NAME
    asked = qwq("ask", "--json", "--temperature", "0", "What is 47 + 86?", environ=person)
    assert json.loads(asked.out)["model"] == NAME
    assert json.loads(qwq("list", "--json", environ=person).out)["models"][0]["last_used"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Q4_K_M", "qwq pull q4_k_m"),
        (f"{QWEN}:Q8_0", f"qwq pull {QWEN}:Q8_0"),
        ("tinny", "tiny"),
        ("q6_kk", "q6_k"),
    ],
)
def test_a_name_that_is_not_here_says_how_to_get_it(
    name: str, hint: str, person: dict[str, str]
) -> None:
    """A quantization or a repository is pulled, a slip is corrected."""
    with pytest.raises(UsageError) as error:
        catalog.resolve(name, person)
    assert hint in error.value.hint


def test_a_path_is_a_path(
    person: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file wins over a name, and a folder that is called like a model does not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwq").mkdir()
    with pytest.raises(UsageError):
        catalog.resolve("qwq", person)
    (tmp_path / "q4_k_m").write_bytes(b"GGUF")
    assert catalog.resolve("q4_k_m", person).path == Path("q4_k_m")
    assert catalog.resolve("./gone.gguf", person).path == Path("gone.gguf")
