"""Closing a thought from outside: when, with which words, and what the cache then holds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from replies import after, answer, done, thought

from qwqcli.engine import Engine, EngineSpec
from qwqcli.engine.llama import LlamaEngine, _Draw
from qwqcli.engine.process import ProcessEngine
from qwqcli.engine.steering import LOOP_NOTICE, LOOP_OVER, SENTENCES, Steering, closing, limits
from qwqcli.engine.telling import Instants, Telling
from qwqcli.messages import (
    Budget,
    Done,
    Message,
    Notice,
    Order,
    Reasoning,
    Room,
    Sampling,
    Stop,
    ThoughtEnd,
)
from qwqcli.reasoning import Splitter
from qwqcli.template import DEFAULT, ChatTemplate

GREEDY = Sampling(temperature=0, max_tokens=400)
SUM = [Message("user", "What is 47 + 86?")]
COUNT = [Message("user", "How many r's are in strawberry?")]


@pytest.fixture(scope="module")
def tiny_engine(tiny_spec: EngineSpec) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(tiny_spec)
    yield engine
    engine.close()


def test_thought_that_closes_itself(either: Engine) -> None:
    """Left alone, a thought ends as closed, and the event that ends it says so."""
    events = list(either.stream(SUM, GREEDY))
    assert done(events).thought_end == "closed"
    assert [e.end for e in events if isinstance(e, Reasoning) and e.end] == ["closed"]


@pytest.mark.parametrize("seed", range(8))
def test_answer_now_at_any_moment(tiny_engine: LlamaEngine, seed: int) -> None:
    """Asked for at a random moment, an answer comes, from what was thought until then."""
    whole = list(tiny_engine.stream(COUNT, GREEDY))
    asked = random.Random(seed).randrange(2, done(whole).stats.reasoning_tokens)
    events = list(tiny_engine.stream(COUNT, GREEDY, after(asked, Order.ANSWER)))
    assert done(events).thought_end == "answer_now"
    assert answer(events).strip()
    said, _, words = thought(events).partition(SENTENCES["en"])
    assert thought(whole).startswith(said.rstrip())
    assert not words.strip()
    assert SENTENCES["en"] in thought(events)


def test_answer_now_within_one_token(tiny_engine: LlamaEngine) -> None:
    """Not one more token is drawn for the thought after the order."""
    whole = thought(list(tiny_engine.stream(COUNT, GREEDY)))
    for asked in (12, 13, 14):
        events = list(tiny_engine.stream(COUNT, GREEDY, after(asked, Order.ANSWER)))
        drawn = asked - 2  # it was first asked before the prompt, and then before each token
        own = done(events).stats.reasoning_tokens - len(
            tiny_engine._closing_tokens(f"\n\n{SENTENCES['en']}\n</think>")
        )
        assert own == drawn
        assert whole.startswith(thought(events).partition(SENTENCES["en"])[0].rstrip())


@pytest.mark.parametrize("asked", [2, 9, 33])
def test_cache_holds_exactly_what_was_said(tiny_engine: LlamaEngine, asked: int) -> None:
    """After an answer-now the cache is the prompt, the thought, the closing words and the answer,
    and a fresh prompt with the same closed thought is answered with the same words."""
    model = tiny_engine._model
    events = list(tiny_engine.stream(COUNT, GREEDY, after(asked, Order.ANSWER)))
    rendered, _ = tiny_engine._render(COUNT, True)
    prompt = tiny_engine._tokenize(rendered)
    cached = list(tiny_engine._cached)
    assert cached[: len(prompt)] == prompt
    text = b"".join(model.piece(token) for token in cached[len(prompt) :]).decode()
    inside, _, outside = text.partition("</think>")
    assert inside.strip() == thought(events).strip()
    assert outside.strip() == answer(events).strip()
    stats = done(events).stats
    assert len(cached) == len(prompt) + stats.generated_tokens
    # the same closed thought as a prompt of its own, in a cache that knows nothing
    close = model.tokenize("</think>", start_of_text=False)
    ends = next(at for at in range(len(cached)) if cached[at : at + len(close)] == close)
    closed = cached[: ends + len(close) + 1]
    tiny_engine._context.clear()
    tiny_engine._cached.clear()
    assert all(not isinstance(e, Done) for e in tiny_engine._process(closed, lambda: Order.GO_ON))
    telling = Telling(Splitter(inside=False), Instants())
    steering = Steering(Budget(), limits(Budget(), 1000, 0))
    again = list(tiny_engine._generate(telling, GREEDY, lambda: Order.GO_ON, steering))
    assert answer([*again, *telling.flush()]).strip() == answer(events).strip()


def test_answer_now_before_the_first_token(either: Engine) -> None:
    """Asked for while the prompt is processed, the thought is closed empty, without a sentence."""
    events = list(either.stream(COUNT, GREEDY, after(1, Order.ANSWER)))
    assert done(events).thought_end == "answer_now"
    assert not thought(events).strip()
    assert answer(events).strip()


def test_answer_now_while_answering_changes_nothing(tiny_engine: LlamaEngine) -> None:
    """In the answer, or where a reply has no thought, the order means nothing."""
    whole = list(tiny_engine.stream(SUM, GREEDY))
    late = after(done(whole).stats.reasoning_tokens + 4, Order.ANSWER)
    assert answer(list(tiny_engine.stream(SUM, GREEDY, late))) == answer(whole)
    plain = list(tiny_engine.stream(SUM, GREEDY, thinking=False))
    ordered = list(tiny_engine.stream(SUM, GREEDY, after(1, Order.ANSWER), thinking=False))
    assert answer(plain) == answer(ordered)
    assert done(ordered).thought_end is None


def test_no_thought_nothing_happens(smollm_spec: EngineSpec) -> None:
    """A model that doesn't think says with every budget what it says without one."""
    engine = LlamaEngine(smollm_spec)
    sampling = replace(GREEDY, max_tokens=20)
    plain = list(engine.stream(SUM, sampling))
    steered = list(
        engine.stream(SUM, sampling, after(3, Order.ANSWER), budget=Budget(1, 0.0, 1500, True))
    )
    assert answer(plain) == answer(steered)
    assert done(steered).thought_end is None
    engine.close()


@pytest.fixture(scope="module")
def thinking_smol(smollm_spec: EngineSpec) -> Iterator[LlamaEngine]:
    """SmolLM2 with a template that opens a thought, in a vocabulary that knows no such tags."""
    engine = LlamaEngine(smollm_spec)
    engine._template = ChatTemplate(DEFAULT + "<think>\n")
    yield engine
    engine.close()


@pytest.mark.parametrize("seed", range(3))
def test_any_vocabulary_will_do(thinking_smol: LlamaEngine, seed: int) -> None:
    """Where `</think>` is many tokens, an answer comes all the same, from a cache that is right."""
    chosen = random.Random(seed)
    order = after(chosen.randrange(2, 60), Order.ANSWER)
    sampling = Sampling(seed=seed, max_tokens=220)
    question = [Message("user", chosen.choice(["Tell me of the sea.", "你好，介绍一下你自己。"]))]
    events = list(thinking_smol.stream(question, sampling, order))
    assert done(events).thought_end == "answer_now"
    assert answer(events).strip()
    assert "think>" not in thought(events) + answer(events)
    again = list(thinking_smol.stream(question, replace(sampling, max_tokens=1)))
    assert done(again).stats.reused_tokens >= done(again).stats.prompt_tokens - 2
    cached = thinking_smol._cached
    said = thinking_smol._tokenize("".join(thinking_smol._render(question, True)))
    assert cached[: len(said)] == said


@pytest.mark.slow
def test_a_real_loop_is_ended(thinking_smol: LlamaEngine) -> None:
    """SmolLM2 really loops when it is decoded greedily; the guard brings it to an answer."""
    story = [Message("user", "Tell me a very long story about a lighthouse.")]
    budget = Budget(reserve=200, guard=True)
    events = list(thinking_smol.stream(story, replace(GREEDY, max_tokens=None), budget=budget))
    assert any(isinstance(e, Notice) for e in events)
    assert done(events).thought_end in ("loop", "context")
    assert answer(events).strip()


def test_budget_of_tokens(either: Engine) -> None:
    """A thought has exactly as many tokens of its own as the budget says, then the answer comes."""
    whole = list(either.stream(COUNT, GREEDY))
    events = list(either.stream(COUNT, GREEDY, budget=Budget(tokens=12)))
    room = next(e for e in events if isinstance(e, Room))
    assert (room.thought, room.seconds) == (12, None)
    assert room.prompt == done(events).stats.prompt_tokens
    assert done(events).thought_end == "budget"
    assert answer(events).strip()
    own = thought(events).partition(SENTENCES["en"])[0].rstrip()
    assert thought(whole).startswith(own)
    large = list(either.stream(COUNT, GREEDY, budget=Budget(tokens=4000, reserve=1500, guard=True)))
    assert thought(large) == thought(whole)


def test_budget_of_seconds(tiny_engine: LlamaEngine) -> None:
    """No time to think: the first token is the last of the thought."""
    events = list(tiny_engine.stream(COUNT, GREEDY, budget=Budget(seconds=0.0)))
    assert done(events).thought_end == "budget"
    assert answer(events).strip()


def test_thought_never_eats_the_answer(tiny_spec: EngineSpec) -> None:
    """Near the end of the context the thought is closed while there is room for an answer."""
    engine = LlamaEngine(replace(tiny_spec, n_ctx=256))
    sampling = replace(GREEDY, max_tokens=None)
    long = [Message("user", "How many e's are in nevertheless? " * 4)]
    events = list(engine.stream(long, sampling, budget=Budget(reserve=1500)))
    stats = done(events).stats
    assert done(events).thought_end in ("context", "closed")
    assert stats.prompt_tokens + stats.reasoning_tokens < 256
    assert answer(events).strip()
    engine.close()


def test_no_room_for_words(tiny_spec: EngineSpec) -> None:
    """With a full context a thought is closed by its tag alone, or runs into the end; no error."""
    engine = LlamaEngine(replace(tiny_spec, n_ctx=256))
    stops: set[tuple[Stop, ThoughtEnd | None]] = set()
    for words in range(150, 260, 4):
        filler = [Message("user", "a" * words)]
        if engine.count_tokens(filler) >= 256:
            break
        events = list(engine.stream(filler, Sampling(seed=3), after(1, Order.ANSWER)))
        stats = done(events).stats
        stops.add((done(events).stop, done(events).thought_end))
        assert stats.prompt_tokens + stats.generated_tokens <= 256 + 1
    assert any(end == "answer_now" for _, end in stops)
    engine.close()


def test_max_tokens_holds_over_closing_words(tiny_engine: LlamaEngine) -> None:
    """The words that close a thought count, so a reply never has more tokens than were allowed."""
    for most in (5, 12, 30):
        limited = replace(GREEDY, max_tokens=most)
        events = list(tiny_engine.stream(COUNT, limited, budget=Budget(tokens=4)))
        assert done(events).stats.generated_tokens == most
        assert done(events).stop == "length"


def test_answer_now_survives_a_death(tiny_spec: EngineSpec, cache: Path) -> None:
    """The child dies before it says anything: its successor still gets the order."""
    import os
    import signal

    engine = ProcessEngine(tiny_spec, cache)
    engine.info()
    os.kill(engine.pid, signal.SIGKILL)
    events = list(engine.stream(COUNT, GREEDY, after(1, Order.ANSWER)))
    assert any(isinstance(e, Notice) for e in events)
    assert done(events).thought_end == "answer_now"
    engine.close()


class Scripted:
    """A stand-in for drawing: the tokens of a text, over and over."""

    def __init__(self, engine: LlamaEngine, text: str) -> None:
        self._tokens = engine._tokenize(text)
        self._at = 0
        self.shunned: list[int] = []

    def sample(self, context: object) -> int:
        self._at += 1
        return self._tokens[self._at % len(self._tokens)]

    def penalise(self, recent: list[int]) -> None:
        self.shunned = recent

    def close(self) -> None:
        pass


def test_loop_is_said_penalised_then_closed(
    tiny_engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thought that goes in circles is said, gets a penalty, and is closed if that is no help."""
    draw = Scripted(tiny_engine, "Wait, let me add the digits again from right to left. ")
    monkeypatch.setattr("qwqcli.engine.llama._Draw", lambda sampling: draw)
    sampling = replace(GREEDY, max_tokens=3000)
    events = list(tiny_engine.stream(COUNT, sampling, budget=Budget(guard=True)))
    assert [e.text for e in events if isinstance(e, Notice)] == [LOOP_NOTICE, LOOP_OVER]
    assert draw.shunned
    assert done(events).thought_end == "loop"


def test_penalty_changes_what_is_drawn(tiny_engine: LlamaEngine) -> None:
    """The penalty lowers the logits of what was said lately, for a stretch."""
    list(tiny_engine.stream(SUM, replace(GREEDY, max_tokens=3)))
    draw = _Draw(GREEDY)
    first = draw.sample(tiny_engine._context)
    draw.penalise([first])
    drawn = [draw.sample(tiny_engine._context) for _ in range(40)]
    draw.close()
    # nothing is decoded in between, so the same logits sink further with each draw
    assert drawn[0] == first or len(set(drawn)) > 1
    assert len(set(drawn)) > 1


LANGUAGES = [
    ("an English thought", "So the answer is 4. Wait, ", "en"),
    ("a Chinese thought", "先算个位，再算十位，7加6等于13。", "zh"),
    ("Chinese with some formulas", "所以我们有 f(x) = 2x + 1，然后代入计算结果。", "zh"),
    ("English about a Chinese word", "The word 你好 means hello in English, I think", "en"),
    ("Japanese has no sentence of its own", "これは日本語の文章です。計算します。", "en"),
    ("digits alone", "12 + 34 = 46", "en"),
]


@pytest.mark.parametrize(("what", "text", "wanted"), LANGUAGES, ids=[row[0] for row in LANGUAGES])
def test_language_of_the_closing_words(what: str, text: str, wanted: str) -> None:
    """A thought is closed in its own language, on a line of its own, with one tag."""
    words = closing(text)
    assert SENTENCES[wanted] in words
    assert words.startswith("\n\n")
    assert words.endswith("\n</think>\n\n")
    assert closing(text + "\n\n").startswith(SENTENCES[wanted])


LIMITS = [
    ("nothing is steered", Budget(), 1000, (None, "budget")),
    ("the budget ends it", Budget(100, reserve=1500), 10_000, (100, "budget")),
    ("the context ends it", Budget(9000, reserve=1500), 10_000, (8470, "context")),
    ("a small context keeps a quarter", Budget(None, reserve=1500), 400, (270, "context")),
    ("no room at all", Budget(None, reserve=1500), 20, (0, "context")),
]


@pytest.mark.parametrize(("what", "budget", "room", "wanted"), LIMITS, ids=[r[0] for r in LIMITS])
def test_limits(
    what: str, budget: Budget, room: int, wanted: tuple[int | None, ThoughtEnd]
) -> None:
    """A thought ends at its budget, or where the answer's reserve begins, whichever is first."""
    limit = limits(budget, room, 30)
    assert (limit.tokens, limit.why) == wanted


def test_thought_opened_again_and_again() -> None:
    """A model that opens a thought after each closing is closed with the tag alone, then let go."""
    steering = Steering(Budget(tokens=1), limits(Budget(tokens=1), 1000, 0))
    steering.note("So")
    words = []
    while steering.over(Order.GO_ON, 5):
        words.append(steering.close())
    assert [len(text) > 20 for text in words] == [True, False, False]
