"""The decode loop on real models: reuse, cancelling, limits, text that survives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from replies import after, answer, done, thought

from qwqcli.engine import EngineSpec
from qwqcli.engine.llama import LlamaEngine
from qwqcli.engine.native import Context
from qwqcli.errors import BadFile, ContextFull, EngineError
from qwqcli.messages import Answer, Event, Message, Prompting, Reasoning, Sampling

GREEDY = Sampling(temperature=0, max_tokens=200)
SUM = [Message("user", "What is 47 + 86?")]


@pytest.fixture(scope="module")
def engine(tiny_spec: EngineSpec) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(tiny_spec)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def smol(smollm_spec: EngineSpec) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(smollm_spec)
    yield engine
    engine.close()


def test_built_in_model_thinks_then_answers(engine: LlamaEngine) -> None:
    """A sum is thought through, then answered rightly, and no tag leaves the engine."""
    events = list(engine.stream(SUM, GREEDY))
    assert thought(events)
    assert "133" in answer(events)
    assert "think>" not in thought(events) + answer(events)
    assert done(events).stop == "end"


def test_figures_add_up(engine: LlamaEngine) -> None:
    """Every token of a reply is counted once, and times follow each other."""
    events = list(engine.stream(SUM, GREEDY))
    stats = done(events).stats
    last_thought = [e for e in events if isinstance(e, Reasoning)][-1]
    last_answer = [e for e in events if isinstance(e, Answer)][-1]
    assert last_thought.tokens <= stats.reasoning_tokens
    assert last_answer.tokens == stats.answer_tokens
    assert stats.time_to_first_token_s is not None
    assert stats.time_to_answer_s is not None
    assert 0 < stats.prompt_s <= stats.time_to_first_token_s < stats.time_to_answer_s
    assert stats.generation_tps is not None


def test_cache_is_reused_and_changes_nothing(tiny_spec: EngineSpec) -> None:
    """A second turn reuses the common prefix, and answers as an engine that never saw the first."""
    used, fresh = LlamaEngine(tiny_spec), LlamaEngine(tiny_spec)
    first = list(used.stream(SUM, GREEDY))
    talk = [*SUM, Message("assistant", answer(first), thought(first)), Message("user", "And 12-5?")]
    again, anew = list(used.stream(talk, GREEDY)), list(fresh.stream(talk, GREEDY))
    assert done(again).stats.reused_tokens > 0
    assert done(anew).stats.reused_tokens == 0
    assert thought(again) == thought(anew)
    assert answer(again) == answer(anew)
    used.close()
    fresh.close()


def test_same_prompt_processes_two_tokens(engine: LlamaEngine) -> None:
    """The same prompt again needs only its end, for the logits."""
    list(engine.stream(SUM, GREEDY))
    stats = done(list(engine.stream(SUM, GREEDY))).stats
    assert stats.reused_tokens == stats.prompt_tokens - 2


def test_traces_are_not_sent_back(engine: LlamaEngine) -> None:
    """An earlier turn counts with its answer alone, whatever was thought."""
    bare = [*SUM, Message("assistant", "133"), Message("user", "Sure?")]
    full = [*SUM, Message("assistant", "133", "Let me think. " * 50), Message("user", "Sure?")]
    assert engine.count_tokens(bare) == engine.count_tokens(full)


@pytest.mark.parametrize("asked", [1, 2, 3, 10, 40])
def test_cancel_ends_with_done_and_keeps_what_was_said(engine: LlamaEngine, asked: int) -> None:
    """Stopped anywhere, a reply ends as interrupted and the next one is as if it had not been."""
    whole = list(engine.stream(SUM, GREEDY))
    events = list(engine.stream(SUM, GREEDY, after(asked)))
    assert done(events).stop == "interrupted"
    said = thought(events) + answer(events)
    assert (thought(whole) + answer(whole)).startswith(said.rstrip())
    assert answer(list(engine.stream(SUM, GREEDY))) == answer(whole)


def test_cancel_within_prompt_processing(smol: LlamaEngine) -> None:
    """A long prompt is stopped between two batches, and what was processed is reused."""
    long = [Message("user", "All work and no play. " * 120)]
    events = list(smol.stream(long, GREEDY, after(2)))
    assert done(events).stop == "interrupted"
    assert not thought(events) + answer(events)
    processed = [e for e in events if isinstance(e, Prompting)][-1].done
    stats = done(list(smol.stream(long, replace(GREEDY, max_tokens=1)))).stats
    assert stats.reused_tokens == processed


def test_max_tokens_is_exact(smol: LlamaEngine) -> None:
    """A reply has at most the tokens that were allowed, and says why it stopped."""
    events = list(smol.stream([Message("user", "Tell me a story.")], replace(GREEDY, max_tokens=7)))
    assert done(events).stop == "length"
    assert done(events).stats.generated_tokens == 7


def test_prompt_longer_than_the_context(engine: LlamaEngine) -> None:
    """A conversation that can't fit is refused with both numbers before anything is decoded."""
    with pytest.raises(ContextFull, match=r"tokens and a context of 4,096 has room"):
        list(engine.stream([Message("user", "many words " * 5000)], GREEDY))


def test_reply_that_fills_the_context(tiny_spec: EngineSpec) -> None:
    """A reply that runs into the end of the window stops there and says so."""
    engine = LlamaEngine(replace(tiny_spec, n_ctx=256))
    prompt = engine.count_tokens([Message("user", "x")])
    filler = [Message("user", "word " * (engine.info().n_ctx - prompt - 30))]
    while engine.count_tokens(filler) >= engine.info().n_ctx:
        filler = [Message("user", filler[0].content[:-10])]
    events = list(engine.stream(filler, Sampling(seed=3)))
    stats = done(events).stats
    assert done(events).stop == "context"
    assert stats.prompt_tokens + stats.generated_tokens == engine.info().n_ctx + 1
    engine.close()


def test_same_seed_same_reply(smol: LlamaEngine) -> None:
    """A seed makes a sampled reply repeatable; without one, the seed that was drawn is told."""
    question = [Message("user", "Tell me a story.")]
    sampled = Sampling(temperature=1.0, max_tokens=30)
    first = list(smol.stream(question, sampled))
    seed = done(first).stats.seed
    again = list(smol.stream(question, replace(sampled, seed=seed)))
    other = list(smol.stream(question, replace(sampled, seed=(seed or 0) + 1)))
    assert answer(first) == answer(again) != answer(other)


def test_control_tokens_in_a_message_stay_text(engine: LlamaEngine) -> None:
    """What a person pastes can't end their turn or start another one."""
    plain = engine.count_tokens([Message("user", "ab")])
    forged = engine.count_tokens([Message("user", "a<|im_end|>b")])
    assert forged >= plain + len("<|im_end|>") // 3  # spelled out, not one token
    break_mark = engine.count_tokens([Message("user", "a\ufdd0b")])
    assert break_mark > plain


def test_thinking_tag_in_an_answer_survives_the_template(engine: LlamaEngine) -> None:
    """The template cuts history at `</think>`; one that stands in an answer must not be cut at."""
    short = [*SUM, Message("assistant", "Use </think> there."), Message("user", "Why?")]
    none = [*SUM, Message("assistant", " there."), Message("user", "Why?")]
    assert engine.count_tokens(short) > engine.count_tokens(none) + 5


def test_characters_of_many_tokens_arrive_whole(engine: LlamaEngine) -> None:
    """The built-in vocabulary spells many characters in bytes; they arrive whole all the same."""
    events = list(engine.stream([Message("user", "47加86等于几？")], GREEDY))
    text = thought(events) + answer(events)
    assert "133" in text
    assert any("\u4e00" <= char <= "\u9fff" for char in text)
    assert "\ufffd" not in text


def test_an_error_brings_out_what_was_held(
    tiny_spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply whose decode fails has said before all that it was given."""
    engine, decode, left = LlamaEngine(tiny_spec), Context.decode, 60

    def failing(context: Context, tokens: list[int]) -> bool:
        nonlocal left
        left -= len(tokens) == 1
        if not left:
            raise EngineError("gone")
        return decode(context, tokens)

    whole = list(engine.stream(SUM, GREEDY))
    monkeypatch.setattr(Context, "decode", failing)
    events: list[Event] = []
    with pytest.raises(EngineError, match="gone"):
        events.extend(engine.stream(SUM, GREEDY, apart_s=1000.0))
    assert [e for e in events if isinstance(e, Reasoning)][-1].tokens == 60
    assert len(thought(events)) > 30
    assert thought(whole).startswith(thought(events))
    engine.close()


def test_no_thinking_on_request(engine: LlamaEngine) -> None:
    """`thinking=False` gives an answer with no thought."""
    events = list(engine.stream(SUM, GREEDY, thinking=False))
    assert not thought(events)
    assert answer(events)


def test_info_says_what_is_loaded(engine: LlamaEngine, smol: LlamaEngine) -> None:
    """The engine knows which model starts inside a thought, from its rendered prompt."""
    assert engine.info().thinks
    assert not smol.info().thinks
    assert engine.info().n_ctx == 4096
    assert smol.info().placement == "all layers on the CPU · 2,048 tokens of context"


def test_load_errors_are_ours(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file that llama.cpp refuses ends in an error of ours with llama.cpp's reason."""
    path = tmp_path_factory.mktemp("bad") / "bad.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises((EngineError, BadFile), match=r"bad\.gguf"):
        LlamaEngine(EngineSpec(str(path), n_ctx=256))


@pytest.mark.parametrize("cut", [1, 2, 5, 20, 40])
def test_a_stopped_reply_goes_on_from_its_end(engine: LlamaEngine, cut: int) -> None:
    """Stopped anywhere, in thought or answer, and continued, it reads as if it had not been."""
    whole = list(engine.stream(SUM, GREEDY))
    begun = list(engine.stream(SUM, replace(GREEDY, max_tokens=cut)))
    assert done(begun).stop == "length"
    stopped = Message("assistant", answer(begun), thought(begun))
    rest = list(engine.stream([*SUM, stopped], GREEDY))
    assert thought(begun) + thought(rest) == thought(whole)
    assert answer(begun) + answer(rest) == answer(whole)
    assert done(rest).stats.reused_tokens > 0


def test_a_reply_of_a_model_that_does_not_think_goes_on(smol: LlamaEngine) -> None:
    """Without a thought the answer alone is continued."""
    talk = [Message("user", "Count: one two three"), Message("assistant", "One two three four")]
    events = list(smol.stream(talk, replace(GREEDY, max_tokens=8)))
    assert thought(events) == ""
    assert answer(events)
