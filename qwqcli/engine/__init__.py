"""The one interface between qwq and llama.cpp: send a whole conversation, get a reply as events.

Prefix reuse, templates, UTF-8 assembly, splitting thought from answer, cancelling and timing stay
behind it; `<think>` never leaves it. This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from qwqcli.messages import Event, Message, Sampling

FlashAttn = Literal["auto", "on", "off"]
Cancel = Callable[[], bool]  # asked between tokens and prompt batches; True stops the reply


def never() -> bool:
    """The `Cancel` of those who never stop a reply."""
    return False


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded model is, as the engine sees it."""

    name: str  # general.name of the file, else its file name
    n_ctx: int  # tokens that the KV cache holds
    n_ctx_train: int  # tokens that the model was trained for
    n_params: int
    size_bytes: int
    threads: int
    thinks: bool  # a rendered prompt starts the reply inside a thought
    load_s: float
    placement: str  # one line: where the layers went
    notices: tuple[str, ...] = ()  # such as: no chat template in the file, ChatML is used


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Which model to load and how; small enough to send to another process."""

    path: str
    n_ctx: int | None = None  # None: what the model was trained for, up to a default cap
    threads: int = 1
    flash_attn: FlashAttn = "off"
    extra_bufts: bool = False  # weights repacked for this CPU; kills some builds (selfcheck.py)
    gpu_layers: int = 0
    rpc: str | None = None  # HOST:PORT of an RPC server whose devices are used as GPUs


class Engine(Protocol):
    """A model that answers conversations, one reply at a time."""

    def info(self) -> EngineInfo:
        """Wait until the model is loaded and say what it is. Raises BadFile, EngineError."""
        ...

    def stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        cancel: Cancel = never,
        *,
        thinking: bool = True,
    ) -> Iterator[Event]:
        """Yield the reply to `messages`, which always hold the whole conversation.

        Ends with exactly one `Done`, also when `cancel` stopped it or the engine died after it
        had said something. Raises ContextFull before the first piece, EngineError when the engine
        cannot be brought back. `thinking=False` asks the template for an empty thought.
        """
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered prompt of `messages`."""
        ...

    def close(self) -> None:
        """Free the model; safe to call twice."""
        ...
