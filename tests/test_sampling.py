"""Drawing a token: what is left out before llama.cpp samples must change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwqcli.engine import EngineSpec, native
from qwqcli.engine.native import Context, Model, Placement, Sampler, likeliest
from qwqcli.messages import Sampling


@given(
    size=st.integers(1, 700),
    count=st.integers(0, 12),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_the_greatest_are_always_among_them(size: int, count: int, seed: int, levels: int) -> None:
    """The values of the `count` greatest logits are kept, ties and odd sizes included."""
    logits = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    ids = likeliest(logits, count)
    assert len(set(ids)) == len(ids)
    wanted = np.sort(logits)[::-1][: count or size]
    assert np.array_equal(np.sort(logits[ids])[::-1][: count or size], wanted)


def test_few_are_left_of_many() -> None:
    """Of a vocabulary of QwQ's size hardly more than top_k are left to sort."""
    logits = np.random.default_rng(1).normal(0, 4, 152_064).astype(np.float32)
    assert 40 <= len(likeliest(logits, 40)) <= 100


@pytest.fixture(scope="module")
def context(smollm_spec: EngineSpec) -> Iterator[Context]:
    placement = Placement(n_ctx=256)
    model = Model(
        path=native.Path(smollm_spec.path),
        placement=placement,
        extra_bufts=smollm_spec.extra_bufts,
        progress=lambda done: True,
    )
    context = Context(model, placement, threads=1)
    context.decode(model.tokenize("The capital of France is", start_of_text=True))
    yield context
    context.close()
    model.close()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.5, top_p=1.0),
        Sampling(temperature=3.0, min_p=0.01),
        Sampling(temperature=0),
        Sampling(top_k=0),
        Sampling(top_k=1),
        Sampling(top_k=1_000_000),
    ],
)
def test_draws_what_llama_cpp_alone_would_draw(context: Context, sampling: Sampling) -> None:
    """With the same seed, 50 draws are those of llama.cpp's chain over the whole vocabulary."""
    sampler, alone = Sampler(sampling, seed=7), Sampler(sampling, seed=7)
    sample = native.lib.llama_sampler_sample
    ours = [sampler.sample(context) for _ in range(50)]
    theirs = [int(sample(alone._chain, context._context, -1)) for _ in range(50)]
    sampler.close()
    alone.close()
    assert ours == theirs
    assert sampling.greedy or len(set(ours)) > 1


def test_logits_that_are_no_numbers(context: Context) -> None:
    """A broken model's NaNs end in some token, not in an error of ours."""
    context.logits()[:] = np.nan
    sampler = Sampler(Sampling(temperature=0), seed=1)
    assert sampler.sample(context) >= 0
    sampler.close()
