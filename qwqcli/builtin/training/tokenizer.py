"""Byte-level BPE in the layout of Qwen2's tokenizer, small enough for a 1024-token model.

Token ids 0-255 are the raw bytes, then come the merges in order, then the special tokens.
Merges only ever lengthen a token from its left end, and only tokens that begin with a space,
a capital, a mark or a CJK character: letters inside a word stay single tokens, which is what
spelling and counting need. `merges.txt` holds the pairs, `merges.py` made it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>",
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip
VOCAB_SIZE = 1024
MERGES = VOCAB_SIZE - 256 - len(SPECIALS)
MERGES_FILE = Path(__file__).with_name("merges.txt")
_CONTRACTION = re.compile(r"'(?:[sStTmM]|[rR][eE]|[vV][eE]|[lL][lL]|[dD])")
# The "qwen2" pattern of llama.cpp (llama-vocab.cpp) over classes of characters: L letter,
# N number, n line end, s and blank white space, p all else.
_WORD = re.compile(r"[^nLN]?L+|N| ?p+n*|[ sn]*n+|[ sn]+(?![^ sn])|[ sn]+")
_SPACES = "\t\x0b\x0c\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    chr(c) for c in range(0x2000, 0x200B)
)
SPECIAL_PATTERN = re.compile("(" + "|".join(re.escape(s) for s in SPECIALS) + ")")


@lru_cache(maxsize=20_000)
def _class(char: str) -> str:
    if char in "\r\n":
        return "n"
    if char in _SPACES:
        return "s"
    kind = unicodedata.category(char)[0]
    return char if char == " " else kind if kind in "LN" else "p"


def split_words(text: str) -> list[str]:
    """Cut a text where llama.cpp's "qwen2" pre-tokenizer does."""
    classes, words, at = "".join(map(_class, text)), [], 0
    while at < len(text):
        match = _CONTRACTION.match(text, at) or _WORD.match(classes, at)
        assert match is not None, "every class of character begins some word"
        words.append(text[at : match.end()])
        at = match.end()
    return words


def byte_alphabet() -> list[str]:
    """Return GPT-2's printable stand-in for every byte value."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet, extra = [], 256
    for value in range(256):
        alphabet.append(chr(value) if value in plain else chr(extra))
        extra += value not in plain
    return alphabet


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, merges: list[tuple[bytes, bytes]]) -> None:
        self.merges = merges
        self.pieces = [bytes([b]) for b in range(256)] + [a + b for a, b in merges]
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        self.ranks = {pair: i for i, pair in enumerate(merges)}
        self.specials = {s: len(self.pieces) + i for i, s in enumerate(SPECIALS)}
        self._word = lru_cache(maxsize=50_000)(self._merge)

    @classmethod
    def load(cls, path: Path = MERGES_FILE) -> Tokenizer:
        """Read the merges that the shipped model uses."""
        pairs = (line.split() for line in path.read_text().splitlines())
        return cls([(bytes.fromhex(a), bytes.fromhex(b)) for a, b in pairs])

    def _merge(self, word: str) -> tuple[int, ...]:
        parts = [bytes([b]) for b in word.encode("utf-8", "replace")]
        while len(parts) > 1:
            pairs = enumerate(pairwise(parts))
            rank, i = min((self.ranks.get(pair, MERGES), i) for i, pair in pairs)
            if rank == MERGES:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return tuple(self.ids[part] for part in parts)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens are recognised by their names."""
        out: list[int] = []
        for piece in SPECIAL_PATTERN.split(text):
            if piece in self.specials:
                out.append(self.specials[piece])
            else:
                for word in split_words(piece):
                    out.extend(self._word(word))
        return out

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids; broken UTF-8 becomes U+FFFD."""
        names = {i: s.encode() for s, i in self.specials.items()}
        raw = b"".join(self.pieces[i] if i < len(self.pieces) else names[i] for i in ids)
        return raw.decode("utf-8", "replace")
