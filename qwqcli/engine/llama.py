"""The decode loop: a conversation in, thought and answer out, on a model in this process.

Contract: `Engine` of qwqcli.engine. The KV cache always holds exactly the tokens in `_cached`; each
call reuses the longest common prefix of those and the new prompt. What the next prompt begins with
whatever is asked is brought there while the person reads (`prepare`).
Not here: how tokens become events (telling.py), what happens when native code dies (process.py),
and which settings are safe (selfcheck.py).
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from qwqcli.engine import (
    NO_GPU,
    UNLIMITED,
    Control,
    EngineInfo,
    EngineSpec,
    Keep,
    never,
    prompt_room,
)
from qwqcli.engine.native import Model, Placement, Sampler, buffer_owners, build, log
from qwqcli.engine.pages import PAGE, Pages, maker_of
from qwqcli.engine.steering import (
    LOOP_NOTICE,
    PRESENCE_PENALTY,
    SENTENCES,
    STRETCH,
    Steering,
    bare_closing,
    limits,
)
from qwqcli.engine.telling import Instants, Telling
from qwqcli.engine.twin import Contexts, opened
from qwqcli.errors import BadFile, ContextFull, QwqError
from qwqcli.hardware import device_of, listed
from qwqcli.layout import Larger
from qwqcli.messages import (
    Budget,
    Done,
    Event,
    Message,
    Notice,
    Order,
    Prompting,
    Room,
    Sampling,
    Stop,
)
from qwqcli.reasoning import OPEN, Splitter
from qwqcli.template import DEFAULT, ChatTemplate, starts_in_thought

# Inserted into a control token's text where a message contains one: the prompt is tokenized in
# the pieces between these marks, so what a person pastes stays text. A Unicode noncharacter, which
# "may be used internally, but should never be interchanged" (The Unicode Standard, 23.7).
_BREAK = "\ufdd0"

# Questions so unlike each other that what their prompts have in common, every prompt has. A first
# letter, digit, blank or line end may each merge with what the template writes before it.
_PROBES = ("a", "1", " x", "\n\ny", "你", "_")
IDLE_BATCH = 64  # tokens; a question waits for no more than these where a GPU can't be interrupted


class LlamaEngine:
    """A loaded model that answers conversations in this process; see `Engine`."""

    def __init__(
        self,
        spec: EngineSpec,
        progress: Callable[[float], bool] = lambda done: True,
        placement: Placement | None = None,
    ) -> None:
        """`placement` is what a plan made of the wishes in `spec`; without one they are taken as
        they are, on the CPU. Devices of `spec.rpc` must be there (native.add_rpc_devices).
        """
        began = time.perf_counter()
        placement = placement or _as_wished(spec)
        self._model = Model(Path(spec.path), placement, spec.extra_bufts, progress)
        n_ctx = placement.n_ctx or min(self._model.n_ctx_train, DEFAULT_CONTEXT)
        placement = replace(placement, n_ctx=n_ctx)
        pages = not self._model.forgets
        self._context = opened(self._model, placement, spec.threads, copies=pages)
        self._cached: list[int] = []
        self._path, self._placement = (
            Path(spec.path),
            {
                **asdict(placement),
                "extra_bufts": spec.extra_bufts,
            },
        )
        self._maker = ""  # see `Pages`
        self._closing = max(len(self._closing_tokens(text)) for text in SENTENCES.values())
        notices = self._read_template()
        self._info = EngineInfo(
            name=self._model.metadata("general.name") or Path(spec.path).stem,
            n_ctx=self._context.n_ctx,
            n_ctx_train=self._model.n_ctx_train,
            n_params=self._model.n_params,
            size_bytes=self._model.size_bytes,
            threads=spec.threads,
            thinks=self._thinks(),
            load_s=time.perf_counter() - began,
            placement=self._placement_line(),
            notices=notices,
        )

    def _placement_line(self) -> str:
        layers = layers_line(log.text(), buffer_owners())
        return f"{layers} · {self._context.n_ctx:,} tokens of context"

    def info(self) -> EngineInfo:
        return self._info

    def count_tokens(self, messages: Sequence[Message], *, thinking: bool = True) -> int:
        return len(self._tokenize("".join(self._render(messages, thinking))))

    def larger(self, n_ctx: int) -> Larger | None:
        return None  # without a plan nothing is known of the memory

    def abort(self) -> None:
        """Wake a decode that is under way in another thread, so that `control` is asked again."""
        if not self._model.forgets:  # half a batch could not be cut off
            self._context.abort()

    def prepare(
        self, messages: Sequence[Message], keep: Keep | None = None, control: Control = never
    ) -> bool:
        """See `Engine`. Returns when all is done, or False when `control` stopped it."""
        lasting = self._lasting(messages)
        if len(lasting) >= self._context.n_ctx:
            return True  # no question will fit, and the next one is told so
        pages = self._pages(keep)
        if pages:
            self._fetch(lasting, pages)
        # what follows them stays, for a stopped thought may be asked for its answer
        if self._cached[: len(lasting)] != lasting or self._model.forgets:
            self._reuse(lasting)
            for tokens in _evenly(lasting[len(self._cached) :], IDLE_BATCH):
                if control() == Order.STOP or not self._decode(tokens, control):
                    return False
        return not pages or self._store(lasting, pages, control)

    def fetch(self, messages: Sequence[Message], keep: Keep | None) -> None:
        """What `prepare` would take from disk, where a question came before it could begin."""
        pages = None if self._cached else self._pages(keep)
        if pages and len(lasting := self._lasting(messages)) < self._context.n_ctx:
            self._fetch(lasting, pages)

    def keep(self, messages: Sequence[Message], keep: Keep) -> None:
        """Put to disk what the cache has of the whole pages that `prepare` would."""
        lasting = self._lasting(messages)
        pages = self._pages(keep)
        if pages:
            shared = _common_prefix(self._cached, lasting)
            self._store(lasting[: shared // PAGE * PAGE], pages, never)

    def _pages(self, keep: Keep | None) -> Pages | None:
        if keep is None or self._model.forgets:
            return None
        try:
            self._maker = self._maker or maker_of(self._path, build(), self._placement)
        except OSError:  # the model file is gone; it goes on in memory
            return None
        return Pages(keep, self._maker)

    def _fetch(self, lasting: list[int], pages: Pages) -> None:
        """Take from disk what the cache lacks of `lasting`, where that is worth it."""
        shared = _common_prefix(self._cached, lasting)
        first = shared // PAGE
        found = list(itertools.takewhile(pages.has, pages.of(lasting)[first:]))
        if not found or found[-1].end - shared < IDLE_BATCH:
            return
        self._reuse(lasting[: found[0].start])
        for page in found:
            state = pages.read(page)
            if state is None or not self._context.add_page(state, page.end):
                return
            self._cached += lasting[page.start : page.end]

    def _store(self, lasting: list[int], pages: Pages, control: Control) -> bool:
        """Put to disk what it lacks of `lasting`, a page at a time; False if stopped."""
        wanted = pages.of(lasting)
        for page in wanted:
            if pages.has(page):
                continue
            if control() == Order.STOP:
                return False
            if not pages.write(page, self._context.page(page.start, page.end)):
                break  # there is no room; what is there is a beginning all the same
        pages.touch(wanted)
        return True

    def _lasting(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that a prompt after `messages` begins with, whatever is asked."""
        prompts = (
            self._tokenize("".join(self._render([*messages, Message("user", probe)], True)))
            for probe in _PROBES
        )
        lasting = next(prompts)
        for prompt in prompts:
            del lasting[_common_prefix(lasting, prompt) :]
        return lasting

    def close(self) -> None:
        self._context.close()
        self._model.close()

    def stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        control: Control = never,
        *,
        thinking: bool = True,
        budget: Budget = UNLIMITED,
        apart_s: float = 0.0,
    ) -> Iterator[Event]:
        """See `Engine`. Pieces that come closer than `apart_s` to the last one are joined."""
        instants = Instants()
        rendered, begun = self._render(messages, thinking)
        prompt = self._tokenize(rendered + begun)
        self._check_room(len(prompt), 0 if begun else budget.reserve)
        # The last token's logits are where the reply starts, and one alone would round otherwise
        # (see `_evenly`): the same question would be answered in other words the second time.
        reused = self._reuse(prompt[:-2])
        complete = yield from self._process(prompt, control)
        self._context.synchronize()  # what it takes is the prompt's time, not the reply's
        instants.prompt_done()
        telling = Telling(_splitter(rendered, begun.replace(_BREAK, "")), instants, apart_s)
        seed = secrets.randbelow(2**32 - 1) if sampling.seed is None else sampling.seed
        stop: Stop = "interrupted"
        if complete:
            limit = limits(budget, self._context.n_ctx - len(prompt), self._closing)
            yield Room(self._context.n_ctx, len(prompt), limit.tokens, budget.seconds)
            sampling = replace(sampling, seed=seed)
            thought = Steering(budget, limit)
            thought.note(begun)
            try:
                stop = yield from self._generate(telling, sampling, control, thought)
            except QwqError:
                yield from telling.flush()
                raise
        yield from telling.flush()
        yield Done(stop, telling.stats(len(prompt), reused, seed), telling.thought_end)

    def _generate(
        self, telling: Telling, sampling: Sampling, control: Control, thought: Steering
    ) -> Generator[Event, None, Stop]:
        """Sample and decode until the turn ends; returns why it did."""
        draw = _Draw(sampling)
        try:
            while (order := control()) != Order.STOP:
                end = thought.over(order, telling.reasoning_tokens) if telling.closable else None
                tokens = self._words_to_close(thought, sampling, telling) if end else []
                if not tokens:
                    tokens, end = [draw.sample(self._context)], None
                    if self._model.ends(tokens[0]):
                        return "end"
                for token in tokens:
                    yield from telling.token(self._model.piece(token), end)
                if telling.inside and (notice := thought.note(telling.text)):
                    yield from telling.held()
                    yield Notice(notice)
                    if notice == LOOP_NOTICE:
                        draw.penalise(self._cached[-STRETCH:])
                if telling.tokens == sampling.max_tokens:
                    return "length"
                if len(self._cached) == self._context.n_ctx:
                    return "context"
                if not self._decode(tokens, control):
                    break
            return "interrupted"
        finally:
            draw.close()

    def _words_to_close(self, thought: Steering, sampling: Sampling, telling: Telling) -> list[int]:
        """What to feed so that the thought ends, as much as there is room for; maybe nothing."""
        room = self._context.n_ctx - len(self._cached) - 1  # one token of answer at least
        tokens = self._closing_tokens(thought.close())
        if len(tokens) > room:
            tokens = self._closing_tokens(bare_closing())
        if len(tokens) > room:
            return []
        allowed = None if sampling.max_tokens is None else sampling.max_tokens - telling.tokens
        return tokens[:allowed]

    def _closing_tokens(self, text: str) -> list[int]:
        return self._model.tokenize(text, start_of_text=False)

    def _process(self, prompt: list[int], control: Control) -> Generator[Event, None, bool]:
        """Bring the rest of `prompt` into the cache, a batch at a time; False if stopped."""
        for tokens in _evenly(prompt[len(self._cached) :], self._context.n_batch):
            if control() == Order.STOP or not self._decode(tokens, control):
                return False
            yield Prompting(len(self._cached), len(prompt))
        return True

    def _decode(self, tokens: list[int], control: Control) -> bool:
        """Append `tokens` to the cache; False if the person stopped it meanwhile."""
        while not self._context.decode(tokens):
            self._context.cut(len(self._cached))  # an aborted batch may have left a part of itself
            self._context.abort(False)
            if control() == Order.STOP:
                return False
        self._cached += tokens
        return True

    def _reuse(self, tokens: list[int]) -> int:
        """Cut the cache to what it shares with `tokens`; returns the number of tokens kept."""
        shared = _common_prefix(self._cached, tokens)
        if shared < len(self._cached) and (self._model.forgets or not self._context.cut(shared)):
            self._context.clear()
            shared = 0
        del self._cached[shared:]
        return shared

    def _check_room(self, length: int, reserve: int) -> None:
        """Raise ContextFull where a prompt leaves less than `reserve` for the reply."""
        n_ctx = self._context.n_ctx
        room = prompt_room(n_ctx, reserve)
        if length > room:
            raise ContextFull(
                f"The prompt has {length:,} tokens and a context of {n_ctx:,} has room for {room:,}"
                f" of them beside the reply: {length - room:,} too many.",
                "Shorten it, or take a larger --ctx",
            )

    def _render(self, messages: Sequence[Message], thinking: bool) -> tuple[str, str]:
        """The prompt, and the beginning of the reply where the last message is one."""
        guarded = [replace(m, content=self._guard(m.content), reasoning="") for m in messages]
        if not messages or messages[-1].role != "assistant":
            return self._template.render(guarded, thinking=thinking), ""
        prompt = self._template.render(guarded[:-1], thinking=thinking)
        thought = self._guard(messages[-1].reasoning)
        return prompt, _begun(thought, guarded[-1].content, starts_in_thought(prompt))

    def _guard(self, content: str) -> str:
        """Break control tokens in a person's text, so that they are read as text."""
        # half of a surrogate pair is no text; a terminal can send one
        content = content.encode("utf-8", "replace").decode().replace(_BREAK, "\ufffd")
        for special in self._model.specials:
            if special in content:
                content = content.replace(special, special[0] + _BREAK + special[1:])
        return content

    def _tokenize(self, rendered: str) -> list[int]:
        first, *others = rendered.split(_BREAK)
        # most templates write BOS themselves; the tokenizer must not add a second one
        bos = self._model.bos_text()
        tokens = self._model.tokenize(first, start_of_text=not (bos and first.startswith(bos)))
        for piece in others:
            tokens += self._model.tokenize(piece, start_of_text=False)
        return tokens

    def _read_template(self) -> tuple[str, ...]:
        source = self._model.chat_template()
        self._template = ChatTemplate(
            source or DEFAULT, bos=self._model.bos_text(), eos=self._model.eos_text()
        )
        if source:
            return ()
        return ("The file has no chat template; plain ChatML is used, which may not suit it.",)

    def _thinks(self) -> bool:
        """Whether a reply starts inside a thought, by the prompt that would really be sent."""
        try:
            return starts_in_thought(self._render([Message("user", "?")], thinking=True)[0])
        except BadFile:  # a template that refuses this is asked again with the real conversation
            return False


DEFAULT_CONTEXT = 16_384  # where no plan says how much fits


def _begun(thought: str, answer: str, inside: bool) -> str:
    """The beginning of a reply as the model would have written it."""
    if not (inside or thought):
        return answer
    opened = thought if inside else f"{OPEN}\n{thought}"
    return f"{opened}\n{bare_closing()}{answer}" if answer else opened


def _splitter(prompt: str, begun: str) -> Splitter:
    """A splitter for what follows; what has begun is known to it and comes out no more."""
    splitter = Splitter(inside=starts_in_thought(prompt))
    splitter.feed(begun)
    splitter.flush()
    return splitter


class _Draw:
    """The sampler of a reply, and for a stretch a presence penalty on what was said lately."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampler = Sampler(sampling, sampling.seed or 0)
        self._recent: deque[int] = deque(maxlen=STRETCH)
        self._left = 0  # tokens to draw with the penalty

    def sample(self, context: Contexts) -> int:
        if not self._left:
            return self._sampler.sample(context.logits())
        self._left -= 1
        context.penalise(list(set(self._recent)), PRESENCE_PENALTY)
        token = self._sampler.sample(context.logits())
        self._recent.append(token)
        return token

    def penalise(self, recent: Sequence[int]) -> None:
        """Make the tokens in `recent`, and those drawn now, less likely for STRETCH tokens."""
        self._left = STRETCH
        self._recent.extend(recent)

    def close(self) -> None:
        self._sampler.close()


def _as_wished(spec: EngineSpec) -> Placement:
    return Placement(
        n_ctx=spec.n_ctx or 0,
        gpu_layers=spec.gpu_layers or 0,
        type_k=spec.kv or "f16",
        type_v=spec.kv or "f16",
        flash_attn=spec.flash_attn or "off",
    )


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))


def _evenly(tokens: list[int], most: int) -> Iterator[list[int]]:
    """`tokens` in pieces of about one size.

    One token left alone would be decoded by other code of llama.cpp, whose sums round otherwise:
    on a CPU two tokens or more give the same logits in whatever batches, one does not.
    """
    pieces = -(-len(tokens) // most)
    size = -(-len(tokens) // max(pieces, 1))
    for at in range(0, len(tokens), max(size, 1)):
        yield tokens[at : at + size]


def layers_line(load_log: str, owners: Mapping[str, str]) -> str:
    """Where the layers really went, from llama.cpp's own words after a load.

    `owners`: device by the name of its buffers, see native.buffer_owners.
    """
    offloaded = load_log.partition("offloaded ")[2].partition(" layers to GPU")[0]
    if not offloaded or offloaded.startswith("0/"):
        return NO_GPU
    buffers = re.findall(r"load_tensors: +(\S+) model buffer size", load_log)
    used = {device_of(owners.get(buffer, buffer), owners.values()) for buffer in buffers}
    devices = [name for name in owners.values() if name in used - {"CPU"}]
    return f"{offloaded.replace('/', ' of ')} layers on {listed(devices) or 'the GPU'}"
