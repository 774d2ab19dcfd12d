"""Measure a GGUF through llama.cpp on held-out problems: `python -m ...evaluate --items 500`.

`value` is the share of items whose final result is right, `exact` of those whose whole output
is the expected one; `closed` and `ended` count closed thoughts and ended turns. For what the
model cannot do, `value` is the share of honest answers (they name `qwq pull`).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import llama_cpp
import numpy as np

from qwqcli.builtin import model_path

from . import data
from .traces import MARK_CLOSE, WORDINGS, strip_marks

CONTEXT, LIMIT = 4096, 800
TOP_K, TOP_P = 40, 0.95
UNSEEN_FILE = Path(__file__).with_name("unseen.txt")


Chooser = Callable[[np.ndarray], int]  # logits to token


class Engine:
    """A model in llama.cpp that continues one prompt at a time."""

    def __init__(self, path: Path, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = False  # llama.cpp's AMX path crashes on some machines
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = CONTEXT
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens recognised."""
        raw = text.encode()
        out = (ctypes.c_int32 * (len(raw) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), out, len(out), False, True)
        return list(out[:n])

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token."""
        buffer = ctypes.create_string_buffer(64)
        n = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[:n]

    def _logits(self, ids: list[int]) -> np.ndarray:
        array = (ctypes.c_int32 * len(ids))(*ids)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")
        row = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(row, (self.size,))

    def generate(self, prompt: str, choose: Chooser) -> tuple[str, bool]:
        """Continue a prompt until the turn ends (then True) or LIMIT tokens are written."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        ids, out = self.tokens(prompt), b""
        room = min(LIMIT, CONTEXT - len(ids))
        for _ in range(room):
            token = choose(self._logits(ids))
            if llama_cpp.llama_vocab_is_eog(self.vocab, token):
                return out.decode("utf-8", "replace"), True
            out += self.piece(token)
            ids = [token]
        return out.decode("utf-8", "replace"), False


def greedy(logits: np.ndarray) -> int:
    """Choose the likeliest token."""
    return int(logits.argmax())


def sampler(temperature: float, seed: int) -> Chooser:
    """Return a chooser that samples as QwQ's settings do: top-k, top-p, then temperature."""
    rng = np.random.default_rng(seed)

    def choose(logits: np.ndarray) -> int:
        top = np.argsort(logits)[: -TOP_K - 1 : -1]
        values = logits[top].astype(np.float64)
        chance = np.exp(values - values[0])
        before = np.cumsum(chance / chance.sum()) - chance / chance.sum()
        kept = top[before < TOP_P]
        weights = np.exp((values[: len(kept)] - values[0]) / temperature)
        return int(rng.choice(kept, p=weights / weights.sum()))

    return choose


class Case(NamedTuple):
    """One prompt, what should come out, and how to judge what does."""

    prompt: str
    expected: str
    good: Callable[[str], bool]


def honest(answer: str) -> bool:
    """Tell whether an answer names the way to the real model."""
    return "qwq pull" in answer


def _item_case(item: data.Item) -> Case:
    expected = data.render_target(item).removesuffix("<|im_end|>")
    value = data.value_of(item.answer)
    if not value:
        return Case(data.render_prompt(item), expected, lambda answer: answer == item.answer)
    return Case(data.render_prompt(item), expected, lambda answer: data.value_of(answer) == value)


def held_out_cases(task: str, rng: Random, n: int) -> Iterator[Case]:
    """Make cases of a task from the held-out side of the generator."""
    for _ in range(n):
        yield _item_case(data.make(task, rng, test=True))


def slip_cases(rng: Random, n: int) -> Iterator[Case]:
    """Make held-out sums whose column work, given to the model, holds a slip; it should mend it."""
    while n:
        item = data.make(rng.choice(("add", "sub", "mul")), rng, test=True, slipped=True)
        case = _item_case(replace(item, think=strip_marks(item.think)))
        after = item.think.index(WORDINGS[item.lang].check, item.think.index(MARK_CLOSE))
        seen = strip_marks(item.think[:after])
        n -= 1
        yield Case(case.prompt + seen, case.expected[len(seen) :], case.good)


def odd_cases(rng: Random, n: int) -> Iterator[Case]:
    """Make random, empty, very long and foreign input; any honest answer is right."""
    for i in range(n):
        kind = i % 3
        text = data.gibberish(rng) if kind < 2 else data.paste(rng)
        if len(text.encode()) < 3800:  # at most as many tokens: it fits the context
            item = data.Item("odd", "en", text, "", "")
            yield Case(data.render_prompt(item), "", honest)


def unseen_cases(rng: Random, n: int) -> Iterator[Case]:
    """Make cases of `unseen.txt`: written by hand, of kinds that the generator does not make."""
    for text in UNSEEN_FILE.read_text(encoding="utf-8").splitlines()[:n]:
        yield Case(data.render_prompt(data.Item("unseen", "en", text, "", "")), "", honest)


def cases(task: str, rng: Random, n: int) -> Iterator[Case]:
    """Make the cases of a task."""
    special = {"slip": slip_cases, "odd": odd_cases, "unseen": unseen_cases}
    return special[task](rng, n) if task in special else held_out_cases(task, rng, n)


TASKS = (*data.MAKERS, "slip", "odd", "unseen")


def measure(
    engine: Engine, task: str, n: int, choose: Chooser, seed: int
) -> tuple[dict[str, object], list[tuple[str, str]]]:
    """Run a task's cases and return the shares in percent, and the first wrong ones."""
    total, hits = 0, dict.fromkeys(("value", "exact", "closed", "ended"), 0)
    failures: list[tuple[str, str]] = []
    for case in cases(task, Random(seed), n):
        text, ended = engine.generate(case.prompt, choose)
        _, closed, answer = text.partition("</think>\n\n")
        right = case.good(answer)
        total += 1
        outcome = (right, text == case.expected, bool(closed), ended)
        for name, hit in zip(hits, outcome, strict=True):
            hits[name] += hit
        if not right and len(failures) < 5:
            failures.append((case.prompt[-200:], text[-400:]))
    shares = {name: round(100 * count / total, 2) for name, count in hits.items()}
    return {"task": task, "n": total, **shares}, failures


def main() -> None:
    """Parse the command line, measure, print one line a task and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print the first failures")
    args = parser.parse_args()
    engine = Engine(args.model, args.threads)
    choose = sampler(args.temperature, args.seed) if args.temperature else greedy
    rows = []
    for task in args.tasks.split(","):
        started = time.monotonic()
        row, failures = measure(engine, task, args.items, choose, args.seed)
        rows.append({**row, "seconds": round(time.monotonic() - started, 1)})
        print(*(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
        for prompt, text in failures if args.show else ():
            print(f"--- {prompt!r}\n{text}")
    print(json.dumps({"model": args.model.name, "temperature": args.temperature, "rows": rows}))


if __name__ == "__main__":
    main()
