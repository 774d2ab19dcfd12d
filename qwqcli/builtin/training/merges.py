"""Learn the tokenizer's merges from generated conversations: `python -m ...training.merges`.

The shipped list was learned before the generator drew words from its beginnings, and weights
fit one list only: a new list means a new training.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from . import data
from .tokenizer import MERGES, MERGES_FILE, SPECIAL_PATTERN, split_words
from .traces import strip_marks


def _units(word: str) -> list[str]:
    """Split a pre-token into what may become one token: CJK characters, marked words, marks."""
    if any(ord(c) > 0x2E7F for c in word):
        return [c for c in word if ord(c) > 0x2E7F]
    starts_plain = word[0].islower() or word[0].isdigit() or word[0] in "'\""
    return [] if len(word) < 2 or starts_plain else [word]


def learn_merges(texts: list[str]) -> list[tuple[bytes, bytes]]:
    """Choose the units that save the most tokens and return the merges that build them."""
    counts: Counter[str] = Counter()
    for text in texts:
        for piece in SPECIAL_PATTERN.split(text)[::2]:
            for word in split_words(piece):
                counts.update(_units(word))
    saved = sorted(counts, key=lambda u: (-counts[u] * (len(u.encode()) - 1), u))
    merges: dict[tuple[bytes, bytes], None] = {}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        merges[(b" ", letter.encode())] = None
    for unit in saved:
        raw = unit.encode()
        chain = [(raw[:i], raw[i : i + 1]) for i in range(1, len(raw))]
        fresh = [pair for pair in chain if pair not in merges]
        if counts[unit] > 1 and len(merges) + len(fresh) <= MERGES:
            merges.update(dict.fromkeys(fresh))
    return list(merges)


def texts(rng: Random, size: int) -> list[str]:
    """Return conversations to learn from, without system messages and long pastes."""
    items = (data.training_item(rng, data.MIX) for _ in range(size))
    return [
        strip_marks(data.render_prompt(replace(item, system="")) + data.render_target(item))
        for item in items
        if len(item.user) < 300
    ]


def main(seed: int = 1, size: int = 30_000) -> None:
    """Learn the merges and write `merges.txt`."""
    merges = learn_merges(texts(Random(seed), size))
    MERGES_FILE.write_text("".join(f"{a.hex()} {b.hex()}\n" for a, b in merges))
    print(f"{len(merges)} merges of {MERGES}")


if __name__ == "__main__":
    main()
