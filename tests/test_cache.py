"""What the KV cache holds between replies: counted, and compared with a fresh engine's."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replies import after, answer, done, thought

from qwqcli.engine import Control, EngineSpec, never
from qwqcli.engine.llama import IDLE_BATCH, LlamaEngine, _evenly
from qwqcli.engine.process import ProcessEngine
from qwqcli.messages import Event, Message, Notice, Order, Sampling, Stats

GREEDY = Sampling(temperature=0, max_tokens=60)
SUM = [Message("user", "What is 47 + 86?")]


@pytest.fixture(scope="module")
def engine(tiny_spec: EngineSpec) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(tiny_spec)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def fresh(tiny_spec: EngineSpec) -> Iterator[LlamaEngine]:
    """An engine that `forget` makes as if it had just been loaded."""
    engine = LlamaEngine(tiny_spec)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def smol(smollm_spec: EngineSpec) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(smollm_spec)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def fresh_smol(smollm_spec: EngineSpec) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(smollm_spec)
    yield engine
    engine.close()


def forget(engine: LlamaEngine) -> None:
    engine._context.clear()
    engine._cached.clear()


def tokens(engine: LlamaEngine, messages: list[Message]) -> list[int]:
    return engine._tokenize("".join(engine._render(messages, True)))


def stats(events: list[Event]) -> Stats:
    return done(events).stats


def shared(a: list[int], b: list[int]) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))


class Replay:
    """A conversation with an engine that is checked, step by step, against one without a past."""

    def __init__(self, engine: LlamaEngine, fresh: LlamaEngine) -> None:
        self.engine, self.fresh, self.sampling = engine, fresh, GREEDY
        self.messages: list[Message] = []
        forget(engine)

    def ask(self, question: str, control: Callable[[], Control] = lambda: never) -> None:
        """Ask, check, keep what was answered, and prepare for the next question."""
        asked = [*self.messages, Message("user", question)]
        before = list(self.engine._cached)
        events = list(self.engine.stream(asked, self.sampling, control()))
        self.check_reply(asked, before, events)
        self.check_against_fresh(asked, events, control())
        if answer(events).strip():
            reply = Message("assistant", answer(events), thought(events))
            self.messages = [*asked, reply]
        self.prepare()

    def check_reply(self, asked: list[Message], before: list[int], events: list[Event]) -> None:
        """All that the cache had of the prompt was reused, and the cache is what it says."""
        prompt = tokens(self.fresh, asked)
        reused = min(shared(before, prompt), len(prompt) - 2)
        assert stats(events).reused_tokens == reused
        assert stats(events).prompt_tokens == len(prompt)
        assert self.engine._cached[: len(prompt)] == prompt[: len(self.engine._cached)]
        assert self.engine._context.length == len(self.engine._cached)

    def check_against_fresh(self, asked: list[Message], events: list[Event], same: Control) -> None:
        forget(self.fresh)
        anew = list(self.fresh.stream(asked, self.sampling, same))
        assert thought(events) == thought(anew)
        assert answer(events) == answer(anew)
        difference = self.engine._context.logits() - self.fresh._context.logits()
        assert np.abs(difference).max() <= 1e-3

    def prepare(self) -> None:
        """After it, only a question is missing; and to do so again does nothing."""
        self.engine.prepare(self.messages)
        cached = list(self.engine._cached)
        assert self.engine._context.length == len(cached)
        for question in ("And 12 - 5?", "\nso", "你好"):
            prompt = tokens(self.fresh, [*self.messages, Message("user", question)])
            missing = len(prompt) - shared(cached, prompt)
            alone = tokens(self.fresh, [Message("user", question)])
            assert missing <= len(alone)
        assert self.engine.prepare(self.messages, control=lambda: Order.STOP)

    def back(self, turns: int = 1) -> None:
        """Before the last question, or further back."""
        self.messages = self.messages[: max(0, len(self.messages) - 2 * turns)]


def twenty_turns(replay: Replay) -> None:
    """Sums, talk, tags, Chinese; stopped, answered early, edited, regenerated, branched."""
    for question in ("What is 47 + 86?", "And 12 - 5?", "What is 9 * 9?"):
        replay.ask(question)
    replay.back()  # regenerated
    replay.ask("What is 9 * 9?")
    replay.back()  # edited
    replay.ask("What is 9 * 8?")
    replay.ask("47加86等于几？")
    for stop in (1, 2, 3, 8, 30):
        replay.ask("你好", lambda stop=stop: after(stop))  # type: ignore[misc]
    replay.ask("What is 3 + 4?", lambda: after(6, Order.ANSWER))
    replay.ask('Say <tool_call>{"name": "x"}</tool_call> and </think> and <|im_end|>')
    branch = list(replay.messages)
    replay.ask("What is 1 + 1?")
    replay.ask("What is 2 + 2?")
    replay.messages = branch
    replay.prepare()
    replay.ask("What is 1 + 1?")
    replay.ask("What is 5 + 5?")
    replay.back(3)
    replay.ask("Hello 🎉")
    replay.messages.append(Message("user", "half \ufffd"))
    replay.messages.append(Message("assistant", "a reply cut in a character \ufffd"))
    replay.prepare()
    replay.ask("Sure?")


def test_twenty_turns(engine: LlamaEngine, fresh: LlamaEngine) -> None:
    """Through a long talk the cache is what it says, nothing is processed twice, and every reply is
    that of an engine without a past, to its logits."""
    twenty_turns(Replay(engine, fresh))


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("ask"), st.sampled_from(["What is 47 + 86?", "你好", "a\n\nb", "</think>"])
        ),
        st.tuples(st.just("stop"), st.integers(1, 40)),
        st.tuples(st.just("answer"), st.integers(1, 20)),
        st.tuples(st.just("back"), st.integers(1, 3)),
        st.tuples(st.just("text"), st.text(max_size=20).filter(str.strip)),
    ),
    max_size=6,
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(STEPS)
def test_any_talk(engine: LlamaEngine, fresh: LlamaEngine, steps: list[tuple[str, int]]) -> None:
    """Whatever is asked, stopped, taken back and asked again, the same holds."""
    replay = Replay(engine, fresh)
    for what, value in steps:
        if what == "back":
            replay.back(value)
            replay.prepare()
        elif what in ("stop", "answer"):
            order = Order.STOP if what == "stop" else Order.ANSWER
            replay.ask("What is 12 - 5?", lambda v=value, o=order: after(v, o))  # type: ignore[misc]
        else:
            replay.ask(str(value))


def test_prepared_is_what_a_fresh_prompt_gives(smol: LlamaEngine, fresh_smol: LlamaEngine) -> None:
    """On a quantized model too, to the logits: nothing depends on where the batches were cut."""
    replay = Replay(smol, fresh_smol)
    replay.sampling = replace(GREEDY, max_tokens=8)
    replay.messages = [Message("user", "Who wrote Faust?"), Message("assistant", "Goethe. " * 30)]
    replay.prepare()
    replay.ask("And who wrote it before him?")
    replay.messages = replay.messages[:2]  # what was generated rounds otherwise, see `_evenly`
    replay.ask("你好")
    replay.messages = replay.messages[:2]
    replay.ask("你好")


def test_batches_are_of_one_size() -> None:
    """No token is left alone at the end, and none is lost."""
    for count in range(300):
        pieces = list(_evenly(list(range(count)), 64))
        assert [token for piece in pieces for token in piece] == list(range(count))
        assert all(1 < len(piece) <= 64 for piece in pieces) or count == 1


def test_a_question_interrupts(smol: LlamaEngine) -> None:
    """Between two small batches; what was processed by then is used by the question."""
    forget(smol)
    long = [Message("user", "All work and no play. " * 40), Message("assistant", "I see.")]
    assert not smol.prepare(long, control=after(3))
    assert IDLE_BATCH < len(smol._cached) <= 2 * IDLE_BATCH
    events = list(smol.stream([*long, Message("user", "So?")], replace(GREEDY, max_tokens=1)))
    assert stats(events).reused_tokens > IDLE_BATCH


def test_a_question_interrupts_a_batch(smol: LlamaEngine) -> None:
    """On the CPU also within a batch, which then leaves nothing behind."""
    forget(smol)
    long = [Message("user", "All work and no play. " * 40), Message("assistant", "I see.")]
    timer = threading.Timer(0.05, smol.abort)
    timer.start()
    asked = iter([Order.GO_ON, Order.STOP])
    done = smol.prepare(long, control=lambda: next(asked, Order.STOP))
    timer.join()
    assert not done
    assert smol._context.length == len(smol._cached)
    smol._context.abort(False)


def test_what_was_stopped_may_go_on(engine: LlamaEngine) -> None:
    """A stopped thought stays in the cache until another question comes: it may be asked for its
    answer."""
    forget(engine)
    events = list(engine.stream(SUM, GREEDY, after(9)))
    held = list(engine._cached)
    engine.prepare([])
    assert engine._cached == held
    begun = [*SUM, Message("assistant", "", thought(events))]
    again = list(engine.stream(begun, GREEDY))
    assert stats(again).reused_tokens >= len(held) - 2


def test_a_model_that_cannot_cut_back(
    tiny_spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the past cannot be cut off, it is built anew while nobody waits, and once only."""
    engine, fresh = LlamaEngine(tiny_spec), LlamaEngine(tiny_spec)
    monkeypatch.setattr(type(engine._model), "forgets", True)
    talk = [*SUM, Message("assistant", answer(list(engine.stream(SUM, GREEDY))))]
    assert engine.prepare(talk)
    cached = list(engine._cached)
    asked = [*talk, Message("user", "And 12 - 5?")]
    events = list(engine.stream(asked, GREEDY))
    assert stats(events).reused_tokens == len(cached)
    assert answer(events) == answer(list(fresh.stream(asked, GREEDY)))
    engine.close()
    fresh.close()


def test_no_room_for_a_question(tiny_spec: EngineSpec) -> None:
    """A conversation that fills the window is left as it is."""
    engine = LlamaEngine(replace(tiny_spec, n_ctx=256))
    assert engine.prepare([Message("user", "word " * 400), Message("assistant", "x")])
    assert not engine._cached
    engine.close()


# --- in a child ------------------------------------------------------------------------------


@pytest.fixture
def child(smollm_spec: EngineSpec, cache: Path) -> Iterator[ProcessEngine]:
    engine = ProcessEngine(smollm_spec, cache)
    yield engine
    engine.close()


LONG = [Message("user", "All work and no play. " * 30), Message("assistant", "I see.")]
ONE = replace(GREEDY, max_tokens=1)


def wait(engine: ProcessEngine) -> None:
    deadline = time.monotonic() + 120
    while not engine.prepared:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_child_prepares_behind_the_callers_back(child: ProcessEngine) -> None:
    """Asked for even before the model is there, done in its own time, and then at rest."""
    child.prepare(LONG)
    wait(child)
    events = list(child.stream([*LONG, Message("user", "So?")], ONE))
    figures = stats(events)
    assert figures.prompt_tokens - figures.reused_tokens < 20
    child.prepare(LONG)
    wait(child)
    before = cpu_seconds(child.pid)
    time.sleep(0.5)
    assert cpu_seconds(child.pid) - before <= 0.05


def test_child_is_interrupted_by_a_question(child: ProcessEngine) -> None:
    """A question that comes at once is answered; a count does not end the preparation."""
    child.info()
    child.prepare(LONG)
    assert child.count_tokens(SUM) > 10
    wait(child)
    child.prepare([Message("user", "Another talk. " * 50), Message("assistant", "Yes.")])
    events = list(child.stream(SUM, ONE))
    assert stats(events).prompt_tokens < 60
    assert not child.prepared


def test_child_that_dies_while_idle(child: ProcessEngine) -> None:
    """Nothing is said until the next question, which is answered all the same."""
    child.info()
    child.prepare(LONG)
    os.kill(child.pid, signal.SIGKILL)
    child.prepare(LONG)
    time.sleep(0.1)
    child.prepare(LONG)
    events = list(child.stream(SUM, ONE))
    assert any(isinstance(e, Notice) and "killed" in e.text for e in events)
    assert stats(events).prompt_tokens > 0
