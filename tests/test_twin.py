"""Two KV caches for one conversation: beside a single one, step by step."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from command_line import qwq
from replies import answer, done

from qwqcli.config import Settings
from qwqcli.costs import TILE
from qwqcli.engine import EngineSpec, Keep, tuned
from qwqcli.engine.llama import LlamaEngine
from qwqcli.engine.native import Context, Model, Placement, Pool, build
from qwqcli.engine.process import open_engine, stock_spec
from qwqcli.engine.tuned import Tuned
from qwqcli.engine.twin import SHALLOW, Twin, opened, turn
from qwqcli.errors import EngineError
from qwqcli.messages import Message, Sampling

N_CTX = 1024
BOTH = Placement(n_ctx=N_CTX, flash_attn="prompts")
# Of a logit. Flash attention sums up in f16: alone it differs by up to 0.18 from what is without
# it. One token more or less in the cache makes several units.
CLOSE = 0.3
EXACT = 1e-3


@pytest.fixture(scope="module")
def model(tiny: Path) -> Iterator[Model]:
    model = Model(tiny, BOTH, False, lambda done: True)
    yield model
    model.close()


@pytest.fixture
def twin(model: Model) -> Iterator[Twin]:
    twin = Twin(model, BOTH, 1)
    yield twin
    twin.close()


@pytest.fixture
def single(model: Model) -> Iterator[Context]:
    context = Context(model, Placement(n_ctx=N_CTX), 1)
    yield context
    context.close()


def tokens(model: Model, count: int, seed: int = 0) -> list[int]:
    """Digits and words, as the built-in model knows them."""
    draw = random.Random(seed)
    text = " ".join(
        f"What is {draw.randrange(10**4)} + {draw.randrange(99)}?" for _ in range(count)
    )
    return model.tokenize(text, start_of_text=True)[:count]


def difference(twin: Twin, other: Context | Twin) -> float:
    return float(np.abs(twin.logits() - other.logits()).max())


def test_the_wish_decides_how_many_contexts_there_are(model: Model) -> None:
    """One for on and off; two where flash attention is for prompts only."""
    for flash, kind in (("on", Context), ("off", Context), ("prompts", Twin)):
        context = opened(model, Placement(n_ctx=256, flash_attn=flash), 1)  # type: ignore[arg-type]
        assert type(context) is kind
        context.close()


@pytest.mark.parametrize("seed", range(8))
def test_it_says_what_a_single_cache_says(
    model: Model, twin: Twin, single: Context, seed: int
) -> None:
    """Whatever is decoded, in batches of any size, cut off or cleared: the same logits."""
    draw = random.Random(seed)
    sizes = (1, 1, 1, 2, TILE - 1, TILE, TILE + 1, SHALLOW, 300)
    for step in range(40):
        act = draw.random()
        if act < 0.15:
            length = draw.randrange(twin.length + 1)
            assert twin.cut(length)
            assert single.cut(length)
        elif act < 0.2:
            twin.clear()
            single.clear()
        size = draw.choice(sizes)
        if twin.length + size > N_CTX:
            continue
        new = tokens(model, size, step)
        assert twin.decode(new)
        assert single.decode(new)
        assert twin.length == single.length
        assert difference(twin, single) < CLOSE
        # the likeliest token of one is that of the other, or as good as equally likely there
        likeliest = single.logits()[twin.logits().argmax()]
        assert likeliest > single.logits().max() - CLOSE


def test_threads_live_as_long_as_the_contexts(model: Model) -> None:
    """Two contexts share them; OpenMP has threads of its own, whatever it is given."""
    count = psutil.Process().num_threads
    without = count()
    pool = Pool(3)
    assert pool._pool, "this build lays out ggml_threadpool_params in another way"
    assert count() == without + (0 if "OPENMP" in build() else 2)
    first, second = (Context(model, Placement(n_ctx=256), 3, pool=pool) for _ in range(2))
    for context in (first, second, first):
        assert context.decode(tokens(model, 20))
    together = count()
    first.close()
    assert second.decode(tokens(model, 20))
    assert count() == together
    second.close()
    assert pool._pool is None
    assert count() == together - (0 if "OPENMP" in build() else 2)


def test_each_way_goes_through_the_cache_that_is_faster(model: Model, twin: Twin) -> None:
    """Prompts and the first tokens through flash attention; deeper, single tokens and small
    batches through the other one, which has by then what it needs."""
    for size, flash in ((10, True), (1, True), (SHALLOW, True), (1, False), (TILE - 1, False)):
        assert twin.decode(tokens(model, size))
        assert (twin._latest is twin._prompts) is flash
    assert twin.decode(tokens(model, TILE))
    assert twin._latest is twin._prompts
    twin.synchronize()
    assert set(twin._held.values()) == {twin.length}


def test_a_copy_is_what_was_computed(model: Model, twin: Twin) -> None:
    """What a cache was given of the other's, it gives back to the bit."""
    assert twin.decode(tokens(model, 300))
    twin.synchronize()
    for start, end in ((0, 300), (7, 100), (256, 300)):
        here, there = (cache.page(start, end) for cache in (twin._prompts, twin._generating))
        before = bytes(there)
        turn(there)
        assert there == here
        turn(there)
        assert there == before


def test_a_stopped_batch_leaves_nothing(model: Model, twin: Twin, single: Context) -> None:
    """Stopped and cut back, it goes on as if the batch had never begun."""
    begun, rest = tokens(model, 250), tokens(model, 300, 1)
    assert twin.decode(begun)
    twin.abort()
    assert not twin.decode(rest)
    assert not twin.decode([5])
    twin.abort(False)
    assert twin.cut(twin.length)
    assert twin.length == len(begun)
    for part in (rest, [5]):
        assert twin.decode(part)
    assert single.decode(begun)
    assert single.decode([*rest, 5])
    assert difference(twin, single) < CLOSE


def test_pages_go_from_one_engine_to_another(model: Model, twin: Twin) -> None:
    """A conversation that was kept goes on elsewhere with the same numbers."""
    said = tokens(model, 300)
    for part in (said[:200], said[200:250], said[250:]):
        assert twin.decode(part)
    other = Twin(model, BOTH, 1)
    try:
        for start, end in ((0, 256), (256, 300)):
            assert other.add_page(bytearray(twin.page(start, end)), end)
        assert other.length == 300
        assert twin.decode([5])
        assert other.decode([5])
        assert difference(twin, other) < EXACT
        assert not other.add_page(bytearray(twin.page(0, 10)), 10)  # not what follows
        assert other.length == 301
    finally:
        other.close()


def test_a_state_is_restored_and_repeated(model: Model, twin: Twin) -> None:
    """What a benchmark fills a cache with: a copy of it all, or one prompt again and again."""
    assert twin.decode(tokens(model, 300))
    state = twin.saved()
    assert twin.state_bytes > 2 * 300 * 1024
    assert twin.decode([5])
    then = twin.logits().copy()
    twin.clear()
    assert twin.restore(state)
    assert twin.length == 300
    assert twin.decode([5])
    assert np.abs(twin.logits() - then).max() < EXACT
    twin.clear()
    for copy in range(3):
        assert twin.append(state, 300 * copy)
    assert twin.length == 900
    assert twin.decode([5])
    assert twin.decode(tokens(model, TILE))


def broken(state: bytearray) -> Iterator[bytearray]:
    """States that another build might write."""
    for at, byte in ((8, 2), (20, 2), (12, 77), (16 + 12 * 100, 2), (16 + 12 * 100 + 4, 99)):
        changed = bytearray(state)
        changed[at] = byte
        yield changed
    yield state[:-1]
    yield state + b"\0"
    yield bytearray(5)
    yield bytearray()


def test_a_state_of_another_build_is_refused(model: Model, twin: Twin) -> None:
    """llama.cpp would abort the process; so what is not known to the byte goes nowhere."""
    assert twin.decode(tokens(model, 100))
    for kind in (twin._prompts, twin._generating):
        twin._bring(kind)
        for state in broken(bytearray(kind.page(0, 100))):
            with pytest.raises(EngineError, match="does not know") as caught:
                turn(memoryview(state))
            assert caught.value.hint == "--flash-attn off"
    quantized = Context(model, Placement(256, flash_attn="on", type_v="q8_0"), 1, copies=True)
    assert quantized.decode(tokens(model, 100))
    with pytest.raises(EngineError, match="does not know"):
        turn(quantized.page(0, 100))
    quantized.close()


def test_an_engine_with_two_caches_talks(tiny_spec: EngineSpec) -> None:
    """Right answers, and the same reuse from turn to turn as with one cache."""
    spec = replace(tiny_spec, flash_attn="prompts")
    engines = [LlamaEngine(spec), LlamaEngine(tiny_spec)]
    talk: list[Message] = []
    for question, right in (("What is 47 + 86?", "133"), ("And minus 3?", "130")) * 4:
        talk.append(Message("user", question))
        replies = [list(engine.stream(talk, Sampling(temperature=0))) for engine in engines]
        for engine, events in zip(engines, replies, strict=True):
            assert right in answer(events)
            assert engine._context.length == len(engine._cached)
        one, other = (done(events).stats for events in replies)
        assert (one.prompt_tokens, one.reused_tokens) == (other.prompt_tokens, other.reused_tokens)
        talk.append(Message("assistant", answer(replies[0])))
        for engine in engines:
            assert engine.prepare(talk)
    for engine in engines:
        engine.close()


def test_a_talk_is_kept_on_disk(tiny_spec: EngineSpec, tmp_path: Path) -> None:
    """Another engine with two caches takes up what the first has put there."""
    spec = replace(tiny_spec, flash_attn="prompts")
    keep = Keep(str(tmp_path / "one" / "kv"), 1 << 30)
    talk = [Message("user", "Is 812 more than 799? " * 30), Message("assistant", "Yes.")]
    first, second = LlamaEngine(spec), LlamaEngine(spec)
    assert first.prepare(talk, keep)
    second.fetch(talk, keep)
    assert second._cached == first._cached
    assert second._context.length == len(first._cached) > 256
    question = [*talk, Message("user", "What is 47 + 86?")]
    for engine in (first, second):
        events = list(engine.stream(question, Sampling(temperature=0)))
        assert "133" in answer(events)
        assert done(events).stats.reused_tokens >= len(second._lasting(talk))
        engine.close()


def test_a_suite_is_repeatable_whatever_was_tuned(
    tiny: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """Two caches make the last digits depend on what was asked before, so suites have one."""
    settings = Settings(threads=1)
    tuned.keep(stock_spec(tiny, settings), tmp_path, Tuned("2026-11-22", flash_attn="prompts"))
    for repeatable, caches in ((False, True), (True, False)):
        engine = open_engine(tiny, settings, tmp_path, repeatable=repeatable)
        assert ("a second KV cache" in engine.info().placement) is caches
        engine.close()


def test_ask_and_bench_take_it(environ: dict[str, str]) -> None:
    """Asked for on the command line it answers, and a run of bench tells it from the others."""
    said = qwq("ask", "--model", "tiny", "--flash-attn", "prompts", "What is 47 + 86?")
    assert "133" in said.out
    run = qwq(
        *("bench", "--model", "tiny", "--flash-attn", "prompts", "--json", "--no-chat"),
        *("-p", "96", "-n", "8", "-d", "0,256", "-r", "1"),
    )
    tests = json.loads(run.out.splitlines()[-1])["tests"]
    assert [test["flash_attn"] for test in tests] == [2] * 4
