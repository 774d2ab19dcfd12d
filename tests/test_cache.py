"""What the KV cache holds between replies: counted, and compared with a fresh engine's."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replies import after, answer, done, thought

from qwqcli.engine import EngineSpec
from qwqcli.engine.llama import IDLE_BATCH, LlamaEngine, _Draw, _evenly
from qwqcli.engine.process import ProcessEngine
from qwqcli.messages import Event, Message, Notice, Order, Room, Sampling, Stats

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


@contextmanager
def drawn(tokens: Sequence[int]) -> Iterator[None]:
    """Every reply is drawn as these tokens, whatever the model would have said."""

    def sample(draw: Any, context: object) -> int:
        draw.left = getattr(draw, "left", iter(tokens))
        return next(draw.left)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Draw, "sample", sample)
        yield


@dataclass(frozen=True)
class When:
    """An order given before the `count`-th token of a reply; 0: before the prompt is processed."""

    count: int
    order: Order = Order.STOP


def play(
    engine: LlamaEngine, sent: Sequence[Message], sampling: Sampling, when: When | None
) -> list[Event]:
    """A reply, with an order that comes at one place in however many batches the prompt goes."""
    events: list[Event] = []
    asked = itertools.count(1)

    def control() -> Order:
        generating = any(isinstance(event, Room) for event in events)
        due = when and (not when.count or (generating and next(asked) >= when.count))
        return when.order if when and due else Order.GO_ON

    for event in engine.stream(sent, sampling, control):
        events.append(event)
    return events


class Replay:
    """A conversation with an engine that is checked, step by step, against one without a past."""

    def __init__(self, engine: LlamaEngine, fresh: LlamaEngine) -> None:
        self.engine, self.fresh, self.sampling = engine, fresh, GREEDY
        self.system: list[Message] = []
        self.messages: list[Message] = []
        self.stopped: list[Message] = []  # a question and its reply as far as it came
        forget(engine)

    def ask(self, question: str, when: When | None = None) -> None:
        """Ask, check, keep what was answered, and prepare for the next question."""
        self.reply([Message("user", question)], when)

    def go_on(self) -> None:
        """Let the last reply go on where it was stopped. What was generated stays as it is, a token
        at a time, which rounds otherwise (see `_evenly`): only what follows is that of a fresh one.
        """
        stopped = self.stopped
        if stopped:
            if self.messages[-2:] == stopped:
                self.back()
            self.reply(stopped)

    def half(self, text: str) -> None:
        """A reply that is stopped inside the last character of `text`."""
        model = self.engine._model
        said = model.tokenize(f"Hm.\n</think>\n\n{text}", start_of_text=False)
        sampling = self.sampling
        with drawn(said):
            self.sampling = replace(sampling, max_tokens=len(said) - 1)
            self.ask("Say it.")
        self.sampling = sampling

    def reply(self, asked: list[Message], when: When | None = None) -> None:
        sent = [*self.system, *self.messages, *asked]
        before = list(self.engine._cached)
        events = play(self.engine, sent, self.sampling, when)
        self.check_reply(sent, before, events)
        if len(asked) == 1:
            self.check_against_fresh(sent, events, when)
        begun = asked[1] if len(asked) > 1 else Message("assistant", "")
        said = begun.content + answer(events), begun.reasoning + thought(events)
        reply = [asked[0], Message("assistant", *said)]
        self.stopped = [] if done(events).stop == "end" else reply
        if said[0].strip():
            self.messages = [*self.messages, *reply]
        self.prepare()

    def check_reply(self, asked: list[Message], before: list[int], events: list[Event]) -> None:
        """All that the cache had of the prompt was reused, and the cache is what it says."""
        prompt = tokens(self.fresh, asked)
        reused = min(shared(before, prompt), len(prompt) - 2)
        assert stats(events).reused_tokens == reused
        assert stats(events).prompt_tokens == len(prompt)
        assert self.engine._cached[: len(prompt)] == prompt[: len(self.engine._cached)]
        assert self.engine._context.length == len(self.engine._cached)

    def check_against_fresh(
        self, asked: list[Message], events: list[Event], when: When | None
    ) -> None:
        forget(self.fresh)
        anew = play(self.fresh, asked, self.sampling, when)
        assert thought(events) == thought(anew)
        assert answer(events) == answer(anew)
        if any(isinstance(event, Room) for event in events):  # else no batch has given any
            difference = self.engine._context.logits() - self.fresh._context.logits()
            assert np.abs(difference).max() <= 1e-3

    def prepare(self) -> None:
        """After it, only a question is missing; and to do so again does nothing."""
        history = [*self.system, *self.messages]
        self.engine.prepare(history)
        cached = list(self.engine._cached)
        assert self.engine._context.length == len(cached)
        for question in ("And 12 - 5?", "\nso", "你好"):
            prompt = tokens(self.fresh, [*history, Message("user", question)])
            missing = len(prompt) - shared(cached, prompt)
            alone = tokens(self.fresh, [Message("user", question)])
            assert missing <= len(alone)
        assert self.engine.prepare(history, control=lambda: Order.STOP)

    def back(self, turns: int = 1) -> None:
        """Before the last question, or further back."""
        self.messages = self.messages[: max(0, len(self.messages) - 2 * turns)]
        self.stopped = []


def twenty_turns(replay: Replay) -> None:
    """Sums, talk, tags, Chinese; stopped, answered early, edited, regenerated, branched."""
    for question in ("What is 47 + 86?", "And 12 - 5?", "What is 9 * 9?"):
        replay.ask(question)
    replay.back()  # regenerated
    replay.ask("What is 9 * 9?")
    replay.back()  # edited
    replay.ask("What is 9 * 8?")
    replay.ask("47加86等于几？")
    for count in (0, 1, 2, 8, 30):
        replay.ask("你好", When(count))
    replay.ask("What is 3 + 4?", When(6, Order.ANSWER))
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
    for tags in ("<|im_start|>user\nhi<|im_end|>", "<think>\nis it?", "</think>\n\n<tool_call>"):
        replay.ask(tags)
    for text in ("答案是七", "Done 🎉"):
        replay.half(text)
        assert replay.messages[-1].content == text[:-1] + "\ufffd"
        replay.go_on()
        replay.ask("What is 6 + 1?")
    replay.ask("What is 3 + 5?", When(20))
    replay.go_on()
    replay.system = [Message("system", "Be brief.")]
    replay.prepare()
    replay.ask("Sure?")


def test_twenty_turns(engine: LlamaEngine, fresh: LlamaEngine) -> None:
    """Through a long talk the cache is what it says, nothing is processed twice, and every reply is
    that of an engine without a past, to its logits."""
    twenty_turns(Replay(engine, fresh))


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("ask"),
            st.sampled_from(
                [
                    *("What is 47 + 86?", "你好", "a\n\nb", "</think>", "<think>"),
                    *("<|im_start|>assistant\n", '<tool_call>{"a": 1}</tool_call>', "<|im_end|>"),
                ]
            ),
        ),
        st.tuples(st.just("half"), st.sampled_from(["你好", "🎉", "é👍🏽"])),
        st.tuples(st.just("go on"), st.none()),
        st.tuples(st.just("branch"), st.integers(0, 5)),
        st.tuples(st.just("system"), st.sampled_from(["", "Be brief.", "用中文"])),
        st.tuples(st.just("stop"), st.integers(0, 40)),
        st.tuples(st.just("answer"), st.integers(0, 20)),
        st.tuples(st.just("back"), st.integers(1, 3)),
        st.tuples(st.just("text"), st.text(max_size=20).filter(str.strip)),
    ),
    max_size=8,
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(STEPS)
def test_any_talk(engine: LlamaEngine, fresh: LlamaEngine, steps: list[tuple[str, Any]]) -> None:
    """Whatever is asked, stopped, gone on with, taken back, branched and asked again, the same
    holds."""
    replay = Replay(engine, fresh)
    branches = [list(replay.messages)]
    for what, value in steps:
        branches.append(list(replay.messages))
        if what == "back":
            replay.back(value)
            replay.prepare()
        elif what == "branch":
            replay.messages, replay.stopped = list(branches[value % len(branches)]), []
            replay.prepare()
        elif what == "system":
            replay.system = [Message("system", value)] if value else []
            replay.prepare()
        elif what == "half":
            replay.half(value)
        elif what == "go on":
            replay.go_on()
        elif what in ("stop", "answer"):
            order = Order.STOP if what == "stop" else Order.ANSWER
            replay.ask("What is 12 - 5?", When(value, order))
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
    """Nothing is said until the next question, which is answered all the same; then also how long
    it takes to process again what was said, however short the prompts were."""
    list(child.stream(SUM, ONE))
    child.prepare(LONG)
    os.kill(child.pid, signal.SIGKILL)
    child.prepare(LONG)
    time.sleep(0.1)
    child.prepare(LONG)
    assert child.count_tokens(SUM) > 10  # nor does a count, which finds it out first, end a chat
    assert (larger := child.larger(4096))
    assert larger.more_bytes > 0
    events = list(child.stream(SUM, ONE))
    told = [e.text for e in events if isinstance(e, Notice) and "killed" in e.text]
    assert re.search(r"[\d,]+ tokens are processed again first: [\d,]+ s\.", told[0])
    assert stats(events).prompt_tokens > 0
