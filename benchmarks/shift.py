"""What cutting a thought out of the KV cache by shifting does to the next reply.

    python benchmarks/shift.py [--talks 40] [--threads N]

The exact way processes the answer again without its thought. The other way removes the thought's
cells and moves the answer's positions down (`seq_rm`, `seq_add`): instant, but the answer's keys
and values were computed with the thought in sight. Both are asked the same second question; counted
are equal greedy replies, and the perplexity of the exact way's reply under each. The built-in model
thinks for itself; SmolLM2, which does not, is given a thought to have had.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from common import smollm

from qwqcli import builtin
from qwqcli.engine import EngineSpec, never, selfcheck
from qwqcli.engine.llama import LlamaEngine, _common_prefix
from qwqcli.messages import Answer, Message, Reasoning, Sampling


def sums(count: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """Questions that the built-in model was made for; it thinks by itself."""

    def one() -> str:
        return f"What is {rng.randrange(10, 99)} + {rng.randrange(10, 99)}?"

    return [(one(), "", one()) for _ in range(count)]


THINGS = ("a lighthouse", "a bicycle", "tea", "the moon", "a bakery", "chess", "rain", "a violin")


def stories(count: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """Talk for a model that does not think, with a thought that it is given."""
    talks = []
    for _ in range(count):
        a, b = rng.sample(THINGS, 2)
        thought = f"The user asks about {a}. I could say what it is for and who uses it. " * 6
        talks.append((f"Tell me one thing about {a}.", thought, f"And now one about {b}."))
    return talks


def text(events: Sequence[object], kind: type[Answer] | type[Reasoning]) -> str:
    return "".join(e.text for e in events if isinstance(e, kind))


def first_turn(engine: LlamaEngine, question: str, thought: str) -> tuple[str, list[int]]:
    """Ask, and return the answer and what the cache then holds."""
    asked = [Message("user", question)]
    if thought:
        asked.append(Message("assistant", "Well,", thought))
    events = list(engine.stream(asked, Sampling(temperature=0, max_tokens=60)))
    return ("Well," if thought else "") + text(events, Answer), list(engine._cached)


def shift(engine: LlamaEngine, lasting: list[int]) -> bool:
    """Cut the thought out of the cache by shifting; False where the answer's tokens differ."""
    cached, memory = engine._cached, engine._context._memory
    kept = _common_prefix(cached, lasting)
    for start in range(kept + 1, len(cached)):
        tail = cached[start:]
        if lasting[kept : kept + len(tail)] == tail:
            llama_cpp.llama_memory_seq_rm(memory, 0, kept, start)
            llama_cpp.llama_memory_seq_add(memory, 0, start, -1, kept - start)
            engine._cached = cached[:kept] + tail
            return True
    return False


def reply(engine: LlamaEngine, prompt: list[int], count: int = 24) -> list[int]:
    """The greedy continuation of a prompt whose beginning may be in the cache."""
    engine._reuse(prompt[:-2])
    list(engine._process(prompt, never))
    said: list[int] = []
    while len(said) < count:
        token = int(engine._context.logits().argmax())
        if engine._model.ends(token):
            break
        said.append(token)
        engine._decode([token], never)
    return said


def surprise(engine: LlamaEngine, prompt: list[int], said: list[int]) -> float:
    """Sum of -log p of `said` after `prompt`, in nats."""
    engine._reuse(prompt[:-2])
    list(engine._process(prompt, never))
    total = 0.0
    for token in said:
        logits = engine._context.logits().astype(np.float64)
        top = logits.max()
        total += top + math.log(np.exp(logits - top).sum()) - logits[token]
        engine._decode([token], never)
    return total


def measure(spec: EngineSpec, talks: list[tuple[str, str, str]]) -> str:
    engine = LlamaEngine(spec)
    same = seen = cut = tokens = 0
    exact_nll = shifted_nll = 0.0
    for question, thought, second in talks:
        answer, _ = first_turn(engine, question, thought)
        history = [Message("user", question), Message("assistant", answer)]
        lasting = engine._lasting(history)
        prompt = engine._tokenize(
            "".join(engine._render([*history, Message("user", second)], True))
        )
        before = len(engine._cached)
        if not shift(engine, lasting):
            continue
        cut += before - len(engine._cached)
        shifted, kept = reply(engine, prompt), list(engine._cached[: len(prompt)])
        assert kept == prompt
        engine._cached.clear()
        engine._context.clear()
        exact = reply(engine, prompt)
        exact_nll += surprise(engine, prompt, exact)
        engine._cached.clear()
        engine._context.clear()
        first_turn(engine, question, thought)
        shift(engine, lasting)
        shifted_nll += surprise(engine, prompt, exact)
        seen, tokens, same = seen + 1, tokens + len(exact), same + (exact == shifted)
    engine.close()
    return (
        f"{Path(spec.path).name}: {same} of {seen} second replies equal ({len(talks) - seen} could"
        f" not be shifted), {cut / max(seen, 1):.0f} tokens cut each; perplexity of the exact reply"
        f" {math.exp(exact_nll / tokens):.4f} exact, {math.exp(shifted_nll / tokens):.4f} shifted"
    )


def main() -> None:
    """Parse, measure both models, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--talks", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rng = random.Random(1)
    models = ((builtin.model_path(), sums), (smollm(), stories))
    with tempfile.TemporaryDirectory() as folder:
        for path, make in models:
            wish = EngineSpec(str(path), n_ctx=2048, threads=args.threads)
            spec, _ = selfcheck.trusted(wish, Path(folder))
            print(measure(spec, make(args.talks, rng)), flush=True)


if __name__ == "__main__":
    main()
