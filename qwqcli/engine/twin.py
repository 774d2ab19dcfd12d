"""One conversation in two KV caches, so that prompts and generation each have their attention.

On a CPU flash attention is the faster way through a prompt and through the first tokens of a
context; deeper, generation is up to twice as fast without it (benchmarks/LOG.md). llama.cpp fixes
it, and how V lies in memory with it, when a context is made: who wants both keeps two of them.

Contract: `Twin` stands for a `Context`. Each of its caches holds a beginning of the conversation,
one of them all of it; what the other lacks is copied when it is needed, which takes a hundredth of
the time that computing it took. The two sum up in another order, so the last digits of a logit
depend on how much of the prompt was new, as they do with flash attention alone.
Limits: KV cache in f16 and a plain attention, all on the CPU (`plan` sees to it); memory for two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from qwqcli.costs import TILE
from qwqcli.engine.native import Context, Model, Placement, Pool
from qwqcli.errors import EngineError

# Depth to which flash attention generates no slower. On two cores with AVX-512: even at 170 tokens
# with SmolLM2-135M; with QwQ-32B's shape 1 % slower from the first token on.
SHALLOW = 192
PIECE = 64  # tokens that are copied at a time: 16 MiB of QwQ's cache
_F16 = 1  # enum ggml_type


class Twin:
    """Two contexts that decode in turns. The methods are those of `Context`."""

    def __init__(self, model: Model, placement: Placement, threads: int) -> None:
        pool = Pool(threads)
        opened = [
            Context(model, part, threads, copies=True, pool=pool) for part in placement.contexts
        ]
        self._prompts, self._generating = self._both = opened
        self._held = dict.fromkeys(opened, 0)  # tokens of the conversation in each
        self._latest = self._prompts  # the one that decoded last
        self._room = bytearray()  # for what is copied: new memory would take longer than the copy
        self.n_batch, self.n_ctx = self._prompts.n_batch, self._prompts.n_ctx

    @property
    def length(self) -> int:
        return max(self._held.values())

    def abort(self, on: bool = True) -> None:
        for context in self._both:
            context.abort(on)

    def decode(self, tokens: Sequence[int]) -> bool:
        context = self._suited(len(tokens))
        self._bring(context)
        if not context.decode(tokens):
            return False
        self._latest = context
        self._held[context] += len(tokens)
        return True

    def _suited(self, count: int) -> Context:
        """The faster one for the next `count` tokens."""
        flash = count >= TILE or self.length + count <= SHALLOW
        return self._prompts if flash else self._generating

    def _bring(self, context: Context) -> None:
        """Copy to `context` what it lacks of the conversation."""
        other = self._generating if context is self._prompts else self._prompts
        for start in range(self._held[context], self.length, PIECE):
            end = min(start + PIECE, self.length)
            state = other.page(start, end, self._room)
            self._room = cast(bytearray, state.obj)
            turn(state)
            if not context.add_page(state, end):
                raise _other_layout()
            self._held[context] = end

    def synchronize(self) -> None:
        """Make all ready for the next token."""
        self._bring(self._suited(1))

    def logits(self) -> NDArray[np.float32]:
        return self._latest.logits()

    def penalise(self, tokens: list[int], penalty: float) -> None:
        self._latest.penalise(tokens, penalty)

    def cut(self, length: int) -> bool:
        self._held = {context: min(held, length) for context, held in self._held.items()}
        cuts = [context.cut(held) for context, held in self._held.items()]
        return all(cuts)

    def clear(self) -> None:
        for context in self._both:
            context.clear()
        self._held = dict.fromkeys(self._both, 0)

    def page(self, start: int, end: int) -> memoryview:
        self._bring(self._prompts)
        return self._prompts.page(start, end)

    def add_page(self, state: bytearray | memoryview, end: int) -> bool:
        self._bring(self._prompts)
        added = self._prompts.add_page(state, end)
        self._held[self._prompts] = self._prompts.length
        return added

    @property
    def state_bytes(self) -> int:
        return sum(context.state_bytes for context in self._both)

    def saved(self) -> Any:
        for context in self._both:
            self._bring(context)
        return [context.saved() for context in self._both]

    def restore(self, state: Any) -> bool:
        restored = [context.restore(part) for context, part in zip(self._both, state, strict=True)]
        self._held = {context: context.length for context in self._both}
        return all(restored)

    def append(self, state: Any, length: int) -> bool:
        parts = zip(self._both, state, strict=True)
        appended = [context.append(part, length) for context, part in parts]
        self._held = {context: context.length for context in self._both}
        return all(appended)

    def close(self) -> None:
        for context in self._both:
            context.close()


Contexts: TypeAlias = Context | Twin


def opened(model: Model, placement: Placement, threads: int, *, copies: bool = False) -> Contexts:
    """The context, or the two of them, that `placement` is for; see `Context`."""
    if len(placement.contexts) > 1:
        return Twin(model, placement, threads)
    return Context(model, placement, threads, copies=copies)


def turn(state: memoryview) -> None:
    """Transpose the V of each layer in a state of `Context.page`, which keeps its size.

    V is (tokens, width) where flash attention reads it, else (width, tokens). A state is a header
    (magic, sequence, streams, tokens), position, number of sequences and sequence of each token,
    which layout of V it is, the number of layers, K of each layer and V of each layer, as
    llama_kv_cache::state_write has it. Raises EngineError if this build has it otherwise.
    """
    try:
        _turn(state)
    except ValueError as error:  # numpy's too, of a part that would be outside
        raise _other_layout() from error


def _turn(state: memoryview) -> None:
    _, _, streams, tokens = (int(word) for word in np.frombuffer(state, np.uint32, 4))
    sequences = np.frombuffer(state, np.uint32, 3 * tokens, 16)[1::3]
    at = 16 + 12 * tokens
    layout = np.frombuffer(state, np.uint32, 2, at)
    transposed, layers = (int(word) for word in layout)
    if streams != 1 or any(sequences != 1) or transposed > 1:
        raise ValueError
    layout[0] = 1 - transposed
    at += 8
    for _ in range(layers):
        row = int(np.frombuffer(state, np.uint64, 1, at + 4)[0])
        at += 12 + row * tokens
    for _ in range(layers):
        at = _turn_layer(state, at, tokens, bool(transposed))
    if at != len(state):
        raise ValueError


def _turn_layer(state: memoryview, at: int, tokens: int, transposed: bool) -> int:
    """Transpose the V that begins at `at`; returns where it ends."""
    head = np.frombuffer(state, np.uint32, 3, at)  # its type; bytes of a value and width, or of a
    kind, first, second = (int(word) for word in head)  # row in 64 bits
    width = second if transposed else first // 2
    if kind != _F16 or (first != 2 if transposed else second):
        raise ValueError
    head[1:] = (2 * width, 0) if transposed else (2, width)
    values = np.frombuffer(state, np.uint16, width * tokens, at + 12)
    shape = (width, tokens) if transposed else (tokens, width)
    values[:] = values.reshape(shape).T.ravel()  # ravel copies
    return at + 12 + values.nbytes


def _other_layout() -> EngineError:
    return EngineError(
        "This build of llama.cpp keeps its KV cache in a way that qwq does not know.",
        "--flash-attn off",
    )
