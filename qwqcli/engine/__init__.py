"""The one interface between qwq and llama.cpp: send a whole conversation, get a reply as events.

Prefix reuse, templates, UTF-8 assembly, splitting thought from answer, cancelling and timing stay
behind it; `<think>` never leaves it. This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from qwqcli.config import KV, FlashAttn, Prefer
from qwqcli.layout import MARGIN_BYTES, Larger, Split, Want
from qwqcli.messages import Budget, Event, Message, Order, Sampling

NO_GPU = "all layers on the CPU"  # how EngineInfo.placement begins where that is so
# what llama.cpp and its backends say when memory is refused, in lower case
MEMORY_WORDS = (
    *("out of memory", "outofmemory", "memoryerror", "bad_alloc", "memory allocation"),
    *("failed to allocate", "unable to allocate", "cannot allocate memory"),
    "mem_buffer != null",  # what ggml asserts of its own small buffers
)
RETRIES = 3  # of a load for which memory was refused, each with less

RESERVE_SHARE = 4  # of a context or of what a prompt leaves, one part in so many is reserved

UNLIMITED = Budget()

# Asked between tokens and prompt batches, from one thread. An order stands until the reply ends:
# who has said ANSWER or STOP once goes on saying it.
Control = Callable[[], Order]


def never() -> Order:
    """The `Control` of those who let a reply run to its end."""
    return Order.GO_ON


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
    placement: str  # one line: where the layers really went, and how much context there is
    notices: tuple[str, ...] = ()  # such as: no chat template in the file, ChatML is used
    reasons: tuple[str, ...] = ()  # of the plan, a sentence a choice

    @property
    def on_gpu(self) -> bool:
        """Whether any layer is on a GPU."""
        return not self.placement.startswith(NO_GPU)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Which model to load and what was wished for it; None leaves it to the plan."""

    path: str
    n_ctx: int | None = None
    threads: int = 1
    kv: KV | None = None
    flash_attn: FlashAttn | None = None
    gpu_layers: int | None = None
    extra_bufts: bool = False  # weights repacked for this CPU; kills some builds (selfcheck.py)
    rpc: str | None = None  # HOST:PORT[,HOST:PORT] of RPC servers whose devices are used as GPUs
    device: str | None = None  # names of the devices to use, such as CUDA0,RPC0; none: the CPU
    squeeze: int = 0  # how often memory that seemed free was refused; see RETRIES and plan.squeezed
    prefer: Prefer | None = None
    margin_bytes: int = MARGIN_BYTES  # to leave free on each device
    n_batch: int | None = None  # tokens of a micro-batch
    split: Split | None = None  # see Want
    tuned: str = ""  # what `qwq tune` had set of the above, in one sentence

    def want(self) -> Want:
        """What of this a plan decides on."""
        return Want(
            n_ctx=self.n_ctx,
            kv=self.kv,
            prefer=self.prefer,
            gpu_layers=self.gpu_layers,
            flash_attn=self.flash_attn,
            n_batch=self.n_batch,
            threads=self.threads,
            margin_bytes=self.margin_bytes,
            split=self.split,
        )


@dataclass(frozen=True, slots=True)
class Keep:
    """Where a conversation's KV state is kept on disk, and how much all of them may take."""

    folder: str  # FILES/SESSION/kv: see sessions.Store.files
    cap: int  # bytes of all sessions together; 0 keeps nothing


class Engine(Protocol):
    """A model that answers conversations, one reply at a time."""

    def info(self) -> EngineInfo:
        """Wait until the model is loaded and say what it is. Raises BadFile, EngineError."""
        ...

    def stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        control: Control = never,
        *,
        thinking: bool = True,
        budget: Budget = UNLIMITED,
    ) -> Iterator[Event]:
        """Yield the reply to `messages`, which always hold the whole conversation.

        If the last message is the assistant's, the reply goes on from its end, in its thought if
        it has no answer yet, and only what is new is yielded.

        Ends with exactly one `Done`, also when `control` stopped it or the engine died after it
        had said something. Raises ContextFull before the first piece, EngineError when the engine
        cannot be brought back. `thinking=False` asks the template for an empty thought. A thought
        that is closed from outside, by `control` or `budget`, ends with a sentence that says so,
        as a part of it; the answer follows from what was thought.
        """
        ...

    def prepare(self, messages: Sequence[Message], keep: Keep | None = None) -> bool:
        """Use the time until the next request: process what any question after `messages` needs.

        What `keep` has of it is taken from there, and what it lacks is put there. Changes no
        reply, only how soon it comes. False if it is not done yet, but goes on behind the caller's
        back. Whatever goes wrong is said by the next request.
        """
        ...

    def count_tokens(self, messages: Sequence[Message], *, thinking: bool = True) -> int:
        """Tokens of the prompt that `stream` makes of `messages`."""
        ...

    def larger(self, n_ctx: int) -> Larger | None:
        """What a context of `n_ctx` tokens would take, by the memory that was free at the load.

        None if nothing was planned. Raises UsageError for a context that no load would accept.
        """
        ...

    def close(self) -> None:
        """Free the model; safe to call twice."""
        ...


def prompt_room(n_ctx: int, reserve: int) -> int:
    """Tokens that a prompt may have; it leaves `reserve` to its reply, or a part of the context."""
    return n_ctx - max(1, min(reserve, n_ctx // RESERVE_SHARE))


def larger_for(engine: Engine, tokens: int) -> Larger | None:
    """The next context worth having for a prompt of so many tokens; None if the model has none.

    Twice the present one, if that holds the prompt and fits, else no more than the prompt needs.
    """
    info = engine.info()
    least = -(-tokens * 3 // 2048) * 1024  # half as much again, for the reply and what follows
    least = max(least, info.n_ctx + 1024)
    most = info.n_ctx_train or max(least, 2 * info.n_ctx)
    found = None
    for n_ctx in (min(max(least, 2 * info.n_ctx), most), min(least, most)):
        if n_ctx > info.n_ctx and tokens <= n_ctx - n_ctx // RESERVE_SHARE:
            found = engine.larger(n_ctx)
        if found and found.fits:
            break
    return found
