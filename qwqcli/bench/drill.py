"""One test of llama-bench: warm up, fill the cache to the depth, time each repetition.

Contract: the same work as llama-bench does for `-p`, `-n`, `-d` and `-r`, in the same order. Prompt
processing sends random tokens in batches, token generation one random token after another (its
cost does not depend on which), and nothing is sampled. Only that is between the two looks at the
clock. The warm-up is a whole prompt or one token, and is not counted.
Source: tools/llama-bench/llama-bench.cpp of llama.cpp at 0c1e57098.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from qwqcli.bench import Test

Clock = Callable[[], int]  # nanoseconds
Fill = Callable[[int], None]  # told how many tokens of the depth are there


class Target(Protocol):
    """A context to measure. Every call returns when the work is done."""

    def prompt(self, count: int) -> None:
        """Process `count` tokens behind what is there."""
        ...

    def generate(self, count: int) -> None:
        """Decode `count` tokens, one after another."""
        ...

    def rewind(self, depth: int) -> bool:
        """Go back to the first `depth` tokens; False if they must be processed again."""
        ...


@dataclass(frozen=True, slots=True)
class Mix:
    """What a reasoner does: a prompt, and thinking at several depths. Counts are tokens."""

    n_prompt: int
    n_gen: int
    depths: tuple[int, ...]

    @property
    def n_ctx(self) -> int:
        return max(*self.depths, self.n_prompt) + self.n_gen + 1


class DeepTarget(Target, Protocol):
    """A target whose cache can be filled without processing every token."""

    def deepen(self, depth: int, prompt: int) -> None:
        """Fill the cache to `depth` from the `prompt` tokens that were processed last."""
        ...


STEP = 512  # tokens of a depth between two words of progress


def run(target: Target, test: Test, repetitions: int, clock: Clock, fill: Fill) -> Iterator[int]:
    """Nanoseconds of each repetition."""
    _warm_up(target, test)
    for _ in range(repetitions):
        if not target.rewind(test.n_depth):
            _fill(target, test.n_depth, fill)
        began = clock()
        if test.n_prompt:
            target.prompt(test.n_prompt)
        else:
            target.generate(test.n_gen)
        yield clock() - began


def run_mix(target: DeepTarget, mix: Mix, clock: Clock) -> tuple[int, tuple[int, ...]]:
    """Nanoseconds of the prompt, and of `n_gen` tokens at each depth.

    What is in the cache does not change the time, so a depth is filled with copies.
    """
    target.generate(1)
    target.rewind(0)
    began = clock()
    target.prompt(mix.n_prompt)
    prompt_ns = clock() - began
    times = []
    for depth in mix.depths:
        target.deepen(depth, mix.n_prompt)
        target.generate(1)  # positions are shifted with it
        began = clock()
        target.generate(mix.n_gen)
        times.append(clock() - began)
    return prompt_ns, tuple(times)


def _warm_up(target: Target, test: Test) -> None:
    if test.n_prompt:
        target.prompt(test.n_prompt)
    else:
        target.generate(1)


def _fill(target: Target, depth: int, fill: Fill) -> None:
    for done in range(0, depth, STEP):
        target.prompt(min(STEP, depth - done))
        fill(min(done + STEP, depth))
