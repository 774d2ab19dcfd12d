"""The values that flow between the engine and whoever draws, stores or times a reply.

All of them are small, frozen and free of behaviour beyond arithmetic on their own fields.
A reply is an iterator of events: Loading*, Loaded once, Prompting*, Room, Reasoning*, Answer*, one
Done at the end, and a Notice wherever something had to be said. Done also comes after a stop.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, TypeAlias

Role = Literal["system", "user", "assistant"]

# end: the model ended its turn · length: --max-tokens · context: the window is full ·
# interrupted: the person stopped it · died: the engine's process died in mid-reply
Stop = Literal["end", "length", "context", "interrupted", "died"]

# closed: by the model itself · budget: of tokens or seconds · answer_now: the person asked ·
# loop: it went in circles · context: only the answer's reserve was left
ThoughtEnd = Literal["closed", "budget", "answer_now", "loop", "context"]


class Order(enum.IntEnum):
    """What a person wants of the reply that is being given."""

    GO_ON = 0
    STOP = 1
    ANSWER = 2  # think no further and answer from what was thought so far


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `reasoning` is sent back only to go on with that very reply."""

    role: Role
    content: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. The defaults are QwQ's official ones.

    Source: the model card of Qwen/QwQ-32B (temperature 0.6, top_p 0.95, top_k 20-40, min_p 0,
    no repetition penalty). `seed=None` draws a new seed for every reply.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature <= 0 or self.top_k == 1


@dataclass(frozen=True, slots=True)
class Budget:
    """When a thought is closed from outside. The default never does.

    `tokens` and `seconds` count the thought alone. `reserve` tokens of the context are kept for
    the answer, of a small one at most a quarter. `guard` ends thoughts that go in circles.
    """

    tokens: int | None = None
    seconds: float | None = None
    reserve: int = 0
    guard: bool = False


@dataclass(frozen=True, slots=True)
class Stats:
    """What a reply cost. Times are seconds since the request reached the engine.

    `reasoning_tokens` counts the thought with its closing tag, `answer_tokens` what follows, the
    end-of-turn token excluded. `prompt_s` is spent on prompt processing, `generation_s` from the
    first token to the last.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0
    time_to_first_token_s: float | None = None
    time_to_answer_s: float | None = None
    prompt_s: float = 0.0
    generation_s: float = 0.0
    seed: int | None = None

    @property
    def generated_tokens(self) -> int:
        return self.reasoning_tokens + self.answer_tokens

    @property
    def prompt_tps(self) -> float | None:
        """Tokens per second of prompt processing; reused tokens are not processed."""
        processed = self.prompt_tokens - self.reused_tokens
        return processed / self.prompt_s if self.prompt_s > 0 and processed > 0 else None

    @property
    def generation_tps(self) -> float | None:
        """Tokens per second after the first token, which belongs to prompt processing."""
        following = self.generated_tokens - 1
        return following / self.generation_s if self.generation_s > 0 and following > 0 else None


@dataclass(frozen=True, slots=True)
class Loading:
    """The model is being loaded; `fraction` goes from 0 to 1."""

    fraction: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is there; `placement` says where its layers went, in one line."""

    placement: str


@dataclass(frozen=True, slots=True)
class Prompting:
    """Prompt processing: `done` of `total` tokens are in the KV cache."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Room:
    """What this reply has room for, told once before its first token.

    `context` tokens in all, of which the prompt takes `prompt`; a thought is closed after `thought`
    tokens or `seconds`, None where nothing but the context limits it.
    """

    context: int
    prompt: int
    thought: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the thought; `tokens` is the number of tokens of thought so far.

    `end` is set on the piece that closes the thought, and says why it ended.
    """

    text: str
    tokens: int
    end: ThoughtEnd | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A piece of the answer; `tokens` is the number of tokens of answer so far."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Notice:
    """One sentence that the person should see, such as a restart of the engine."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a reply, however it ended; `thought_end` is None without a closed thought."""

    stop: Stop
    stats: Stats
    thought_end: ThoughtEnd | None = None


Event: TypeAlias = Loading | Loaded | Prompting | Room | Reasoning | Answer | Notice | Done
