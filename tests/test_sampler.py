"""The sampler: only the likeliest tokens are looked at, and the one drawn is llama.cpp's own."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwqcli.engine.native import Context, Model, Placement, Sampler, _Candidates, lib
from qwqcli.messages import Sampling

QWQ, SMOLLM = 152_064, 49_152  # tokens in their vocabularies


def listed(array: Any) -> dict[int, float]:
    return {array.data[at].id: array.data[at].logit for at in range(array.size)}


def random_logits(seed: int, size: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from((QWQ, SMOLLM, 32_000, 20_001)),
    top_k=st.integers(1, 78),
    digits=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_none_of_the_likeliest_is_left_out(seed: int, size: int, top_k: int, digits: int) -> None:
    """Every token that is as likely as the top-k-th is there, however many are alike."""
    logits = random_logits(seed, size).round(digits)
    candidates = _Candidates(top_k)  # its memory is what a list is in
    few = candidates.of(logits)
    least = np.partition(logits, size - top_k)[size - top_k]
    wanted = {int(token): float(logits[token]) for token in (logits >= least).nonzero()[0]}
    found = listed(few)
    assert wanted.items() <= found.items()
    assert all(found[token] == logits[token] for token in found)
    assert len(found) < 40 * top_k + 2000


def test_a_list_is_of_the_logits_that_were_given_last() -> None:
    """The memory is the same; nothing of the list before is left."""
    candidates, logits = _Candidates(5), random_logits(1, QWQ)
    candidates.of(logits)
    logits[:] = 0  # where llama.cpp writes the next ones
    logits[[7, 71, 703, 7004, 70_000, 150_000]] = (6, 5, 4, 3, 2, 1)  # one in each of 5 groups
    found = listed(candidates.of(logits))
    assert found == {7: 6.0, 71: 5.0, 703: 4.0, 7004: 3.0, 70_000: 2.0}


@pytest.mark.parametrize(
    ("top_k", "logits"),
    [
        (0, random_logits(1, QWQ)),
        (595, random_logits(1, QWQ)),
        (40, random_logits(1, 300)),
        (1, random_logits(1, 20)),
        (40, np.zeros(QWQ, np.float32)),
        (40, np.full(QWQ, -np.inf, np.float32)),
        (40, np.full(QWQ, np.nan, np.float32)),
    ],
    ids=["no top-k", "a large one", "few tokens", "a handful", "alike", "impossible", "no numbers"],
)
def test_where_all_must_be_looked_at(top_k: int, logits: NDArray[np.float32]) -> None:
    """Then every token is a candidate."""
    candidates = _Candidates(top_k)
    array = candidates.of(logits)
    rows = np.ctypeslib.as_array(array.data, (array.size,))
    assert (rows["id"] == np.arange(len(logits))).all()
    assert np.array_equal(rows["logit"], logits, equal_nan=True)


def test_another_vocabulary_may_follow() -> None:
    """Logits from elsewhere are looked at there, also fewer or more of them."""
    candidates = _Candidates(3)
    for seed, size in enumerate((SMOLLM, QWQ, 1000, SMOLLM)):
        logits = random_logits(seed, size)
        found = listed(candidates.of(logits))
        assert int(logits.argmax()) in found
        assert all(found[token] == logits[token] for token in found)


def test_a_candidate_is_laid_out_as_llama_cpp_has_it() -> None:
    """llama_token_data is of 12 bytes: id, logit, probability."""
    candidates, logits = _Candidates(1), random_logits(3, QWQ)
    assert ctypes.sizeof(lib.llama_token_data) == 12
    assert listed(candidates.of(logits)) == {int(logits.argmax()): float(logits.max())}


@pytest.fixture(scope="module")
def context(smollm: Path) -> Iterator[tuple[Model, Context]]:
    placement = Placement(n_ctx=512)
    model = Model(smollm, placement, False, lambda done: True)
    opened = Context(model, placement, 1)
    yield model, opened
    opened.close()
    model.close()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.5, top_k=100, top_p=1.0),
        Sampling(temperature=0.9, top_k=0),
        Sampling(temperature=0.0),
    ],
    ids=["QwQ's settings", "wild", "no top-k", "greedy"],
)
def test_the_same_token_as_from_all_candidates(
    context: tuple[Model, Context], sampling: Sampling
) -> None:
    """In each step of a reply of SmolLM2, with one seed."""
    model, cache = context
    cache.clear()
    ours, whole = Sampler(sampling, 7), Sampler(sampling, 7)
    cache.decode(model.tokenize("Once upon a time", start_of_text=True))
    drawn = []
    for _ in range(60):
        token = int(lib.llama_sampler_sample(whole._chain, cache._context, -1))
        assert ours.sample(cache.logits()) == token
        drawn.append(token)
        cache.decode([token])
    assert len(set(drawn)) > 10
    ours.close()
    whole.close()
