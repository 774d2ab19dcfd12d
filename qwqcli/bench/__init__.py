"""Measuring a model: what llama-bench measures, what the person feels, and the best settings.

Contract: `measure.measure` yields progress and results, ends with a `Report`, and never draws.
Native code runs in a child process. Times are taken there, around the work alone.
Inside, each knowing only those before it: drill (one test) · worker (the child) · child (the
parent's side of it) · ceiling · watch (noise, memory, energy) · report · identity · history ·
compare · reference · measure · tune · draw.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Test:
    """Prompt processing or token generation (the other count is 0) behind `n_depth` tokens."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def kind(self) -> str:
        return f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"

    @property
    def name(self) -> str:
        """As llama-bench's tables say it: pp512, tg128 @ d8192."""
        return f"{self.kind} @ d{self.n_depth}" if self.n_depth else self.kind

    @property
    def n_ctx(self) -> int:
        """Tokens of context, as llama-bench takes them for this test."""
        return self.n_prompt + self.n_gen + self.n_depth


def tests(
    n_prompt: tuple[int, ...], n_gen: tuple[int, ...], n_depth: tuple[int, ...]
) -> tuple[Test, ...]:
    """Every combination, depth by depth, in llama-bench's order; a count of 0 is left out."""
    return tuple(
        test
        for depth in n_depth
        for test in (
            *(Test(count, 0, depth) for count in n_prompt if count),
            *(Test(0, count, depth) for count in n_gen if count),
        )
    )
