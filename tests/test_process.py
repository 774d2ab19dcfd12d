"""The engine in its own process: the same contract, and what happens when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import rpc_server

from qwqcli.config import Settings
from qwqcli.engine import Engine, EngineSpec, wire
from qwqcli.engine.process import ProcessEngine, safer, stock_spec
from qwqcli.errors import BadFile, ContextFull, EngineError
from qwqcli.messages import (
    Answer,
    Budget,
    Done,
    Event,
    Loading,
    Message,
    Notice,
    Order,
    Prompting,
    Reasoning,
    Sampling,
    Stats,
)

GREEDY = Sampling(temperature=0, max_tokens=200)
SUM = [Message("user", "What is 47 + 86?")]


@pytest.fixture
def engine(tiny_spec: EngineSpec, cache: Path) -> Iterator[ProcessEngine]:
    engine = ProcessEngine(tiny_spec, cache)
    yield engine
    engine.close()


def text(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Reasoning | Answer))


def notices(events: list[Event]) -> str:
    return " ".join(e.text for e in events if isinstance(e, Notice))


def stop(events: list[Event]) -> str:
    last = events[-1]
    assert isinstance(last, Done)
    return last.stop


def test_contract_of_a_reply(either: Engine) -> None:
    """Both engines think, answer, end with one Done, and can be asked again."""
    first, second = list(either.stream(SUM, GREEDY)), list(either.stream(SUM, GREEDY))
    assert "133" in text(first)
    assert text(first) == text(second)
    assert [isinstance(e, Done) for e in first].count(True) == 1
    assert stop(first) == "end"


def test_contract_of_cancel(either: Engine) -> None:
    """Cancelled at once, a reply ends as interrupted, and the next one is whole."""
    either.info()
    assert stop(list(either.stream(SUM, GREEDY, lambda: Order.STOP))) == "interrupted"
    assert stop(list(either.stream(SUM, GREEDY))) == "end"


def test_contract_of_errors(either: Engine) -> None:
    """A conversation that doesn't fit is an error in the caller's process, and no harm is done."""
    with pytest.raises(ContextFull, match="context of 4,096"):
        list(either.stream([Message("user", "word " * 9000)], GREEDY))
    assert either.count_tokens(SUM) > 10
    assert stop(list(either.stream(SUM, GREEDY))) == "end"


def test_contract_of_a_caller_who_leaves(either: Engine) -> None:
    """A reply that is dropped half-way doesn't disturb the next."""
    for event in either.stream(SUM, GREEDY):
        if isinstance(event, Reasoning):
            break
    assert "133" in text(list(either.stream(SUM, GREEDY)))


def test_loading_is_told_and_does_not_block(smollm_spec: EngineSpec, cache: Path) -> None:
    """The engine is there at once; who asks before it is loaded sees it load."""
    engine = ProcessEngine(smollm_spec, cache)
    events = list(engine.stream(SUM, replace(GREEDY, max_tokens=3)))
    assert isinstance(events[0], Loading)
    assert stop(events) == "length"
    engine.close()


def test_cancel_while_loading(smollm_spec: EngineSpec, cache: Path) -> None:
    """Stopped before the model is there, a reply ends at once and the load goes on."""
    engine = ProcessEngine(smollm_spec, cache)
    assert stop(list(engine.stream(SUM, GREEDY, lambda: Order.STOP))) == "interrupted"
    assert stop(list(engine.stream(SUM, replace(GREEDY, max_tokens=3)))) == "length"
    engine.close()


def test_killed_while_loading(tiny_spec: EngineSpec, cache: Path) -> None:
    """A child killed while it loads is said and started again; the question is answered."""
    engine = ProcessEngine(tiny_spec, cache)
    os.kill(engine.pid, signal.SIGKILL)
    events = list(engine.stream(SUM, GREEDY))
    assert "killed by the system" in notices(events)
    assert "133" in text(events)
    engine.close()


def test_killed_while_prompting(smollm_spec: EngineSpec, cache: Path) -> None:
    """Killed within prompt processing, nothing was said yet: the question is asked again."""
    engine = ProcessEngine(smollm_spec, cache)
    long = [Message("user", "All work and no play. " * 100)]
    events: list[Event] = []
    for event in engine.stream(long, replace(GREEDY, max_tokens=3)):
        if isinstance(event, Prompting) and "killed" not in notices(events):
            os.kill(engine.pid, signal.SIGKILL)
        events.append(event)
    assert "killed" in notices(events)
    assert stop(events) == "length"
    engine.close()


DEATHS = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL]


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize(("model", "kind"), [("tiny_spec", Reasoning), ("smollm_spec", Answer)])
def test_killed_in_mid_reply(
    model: str, kind: type[Event], death: int, cache: Path, request: pytest.FixtureRequest
) -> None:
    """Killed while thinking or answering, what was said is kept and the talk goes on."""
    engine = ProcessEngine(request.getfixturevalue(model), cache)
    long = replace(GREEDY, max_tokens=1000)
    events: list[Event] = []
    for event in engine.stream([Message("user", "What is 4718 + 8661? Tell all.")], long):
        if isinstance(event, kind) and not notices(events):
            os.kill(engine.pid, death)
            time.sleep(0.05)
        events.append(event)
    assert "tokens are processed again first" in notices(events)
    assert stop(events) == "died"
    assert text(events)
    assert "The engine" in notices(events)
    assert stop(list(engine.stream(SUM, replace(GREEDY, max_tokens=2)))) == "length"
    engine.close()


def test_child_that_hangs(tiny_spec: EngineSpec, cache: Path) -> None:
    """A child that does not stop when it is told to is ended, and the talk goes on."""
    engine = ProcessEngine(tiny_spec, cache, patience_s=0.3)
    events: list[Event] = []
    hung = threading.Event()
    for event in engine.stream(SUM, GREEDY, hung.is_set):
        if isinstance(event, Reasoning) and not hung.is_set():
            os.kill(engine.pid, signal.SIGSTOP)
            hung.set()
        events.append(event)
    assert stop(events) == "died"
    assert "did not stop" in notices(events)
    assert "133" in text(list(engine.stream(SUM, GREEDY)))
    engine.close()


def test_death_between_two_turns(engine: ProcessEngine) -> None:
    """Killed while the person reads, the next question still gets its answer."""
    list(engine.stream(SUM, GREEDY))
    os.kill(engine.pid, signal.SIGKILL)
    events = list(engine.stream(SUM, GREEDY))
    assert "killed" in notices(events)
    assert "133" in text(events)


@pytest.mark.skipif(not rpc_server.available(), reason="llama.cpp was built without GGML_RPC")
def test_device_that_vanishes_in_mid_reply(tiny_spec: EngineSpec, cache: Path) -> None:
    """A device that is gone makes native code abort; the talk goes on without it."""
    with rpc_server.running() as (endpoint, server):
        spec = replace(tiny_spec, rpc=endpoint)
        engine = ProcessEngine(spec, cache)
        assert engine.info().placement.startswith("7 of 7 layers on RPC0")
        events: list[Event] = []
        for event in engine.stream(SUM, GREEDY):
            if isinstance(event, Reasoning) and server.poll() is None:
                server.kill()
                server.wait()
            events.append(event)
        assert stop(events) == "died"
        assert "SIGABRT" in notices(events)
        assert "without the RPC device" in notices(events)
        assert "133" in text(list(engine.stream(SUM, GREEDY)))
        assert engine.info().placement.startswith("all layers on the CPU")
        engine.close()


@pytest.mark.skipif(not rpc_server.available(), reason="llama.cpp was built without GGML_RPC")
def test_no_device_at_the_endpoint(tiny_spec: EngineSpec, cache: Path) -> None:
    """An RPC server that does not answer is an error with what to do, not a crash."""
    engine = ProcessEngine(replace(tiny_spec, rpc="127.0.0.1:9", gpu_layers=999), cache)
    with pytest.raises(EngineError, match="No RPC server answers at"):
        engine.info()
    engine.close()


def test_bad_model_is_an_error_here(tmp_path: Path, cache: Path) -> None:
    """A file that can't be loaded is our error in the parent, with no restart."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    engine = ProcessEngine(EngineSpec(str(path)), cache)
    with pytest.raises((BadFile, EngineError), match=r"bad\.gguf"):
        engine.info()
    engine.close()


def test_close_leaves_no_process(tiny_spec: EngineSpec, cache: Path) -> None:
    """Closing ends the child, also in the middle of a load, and can be done twice."""
    engine = ProcessEngine(tiny_spec, cache)
    pid = engine.pid
    engine.close()
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_child_leaves_when_the_parent_is_killed(tiny_spec: EngineSpec, cache: Path) -> None:
    """No engine outlives a parent that was killed without a chance to say goodbye."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from qwqcli.engine import EngineSpec\n"
        "from qwqcli.engine.process import ProcessEngine\n"
        "engine = ProcessEngine(EngineSpec(sys.argv[1]), Path(sys.argv[2]))\n"
        "engine.info()\n"
        "print(engine.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, tiny_spec.path, str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    assert _gone(child)


def _gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists():
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":  # dead, waiting for an init that may not reap
                return True
        time.sleep(0.05)
    return False


def test_settings_reach_the_plan() -> None:
    """What a person set for memory is what a load plans with."""
    settings = Settings(ctx=8192, kv="q8_0", prefer="speed", margin_gb=0.5, gpu_layers=3)
    want = stock_spec(Path("model.gguf"), settings).want()
    assert (want.n_ctx, want.kv, want.prefer, want.gpu_layers) == (8192, "q8_0", "speed", 3)
    assert want.margin_bytes == 512 << 20


def test_safer_settings_give_up_the_riskiest_first() -> None:
    """RPC first, the GPU, the second cache, repacked weights; the safest spec stays as it is."""
    spec = EngineSpec("m.gguf", extra_bufts=True, gpu_layers=9, rpc="127.0.0.1:1")
    no_rpc, _ = safer(spec, False, True)
    assert (no_rpc.rpc, no_rpc.gpu_layers, no_rpc.extra_bufts) == (None, 0, True)
    cpu, _ = safer(replace(spec, rpc=None), False, True)
    assert (cpu.gpu_layers, cpu.extra_bufts) == (0, True)
    plain, _ = safer(no_rpc, False, True)
    assert not plain.extra_bufts
    assert safer(plain, False, True)[0] == plain
    twin = replace(no_rpc, flash_attn="prompts")
    assert safer(twin, False, True)[0] == no_rpc


def test_death_for_want_of_memory_gives_up_memory_first() -> None:
    """Starved, the next plan takes less of what seemed free; after three times it is over."""
    spec = EngineSpec("m.gguf", extra_bufts=True)
    for times, said in enumerate(("1 of 3", "2 of 3", "3 of 3", "last try"), 1):
        spec, how = safer(spec, True, False)
        assert spec == EngineSpec("m.gguf", extra_bufts=True, squeeze=times)
        assert said in how
    assert not safer(spec, True, False)[0].extra_bufts


VALUES = [
    wire.Load(EngineSpec("a b.gguf", n_ctx=None), "/tmp/c"),
    wire.Ask(3, (Message("user", "你好 \ud800 \0 \u2028"),), Sampling(seed=1), True, Budget(9)),
    wire.Count(()),
    wire.Leave(),
    wire.Give(7, Order.ANSWER),
    Reasoning('"\n', 4),
    Done("end", Stats(prompt_tokens=3)),
    wire.Failed("ContextFull", "m", "h"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_wire_round_trip(value: object) -> None:
    """Every value of the protocol survives the pipe, on one line."""
    line = wire.encode(value)
    assert line.count(b"\n") == 1
    assert wire.decode(line) == value


def test_wire_builds_nothing_else() -> None:
    """A line that names anything but a value of the protocol is refused."""
    with pytest.raises(ValueError, match="not a value"):
        wire.decode(b'{"": "Path", "x": "/"}')
    error = wire.Failed("SystemExit", "m", "h").error()
    assert type(error) is EngineError


def test_errors_keep_their_kind() -> None:
    """An error of ours crosses the pipe as itself, with message and hint."""
    error = wire.Failed.of(ContextFull("full", "do this")).error()
    assert type(error) is ContextFull
    assert (error.message, error.hint) == ("full", "do this")
