"""For each prompt that asks for code: a program that is right, and some that are nearly so.

They prove that the tests in prompts/ can be passed, and that they notice what they should.
"""

SUDOKU = """
def solve_sudoku(board):
    def options(r, c):
        used = set(board[r]) | {board[i][c] for i in range(9)}
        used |= {board[r // 3 * 3 + i][c // 3 * 3 + j] for i in range(3) for j in range(3)}
        return [d for d in "123456789" if d not in used]

    def fill():
        empty = [(r, c) for r in range(9) for c in range(9) if board[r][c] == "."]
        if not empty:
            return True
        r, c = min(empty, key=lambda cell: len(options(*cell)))
        for digit in options(r, c):
            board[r][c] = digit
            if fill():
                return True
        board[r][c] = "."
        return False

    fill()
"""
RETRY = """
def fetch_retry(send, *, attempts, timeout, delay, sleep):
    for attempt in range(attempts):
        last = attempt == attempts - 1
        try:
            response = send(timeout)
        except TimeoutError:
            if last:
                raise
        else:
            if response[0] < 500 or last:
                return response
        sleep(delay * 2**attempt)
"""
RETRY_ASYNC = """
import asyncio

async def fetch_retry_async(send, *, attempts, timeout, delay, sleep):
    for attempt in range(attempts):
        last = attempt == attempts - 1
        try:
            response = await asyncio.wait_for(send(), timeout)
        except asyncio.TimeoutError:
            if last:
                raise
        else:
            if response[0] < 500 or last:
                return response
        await sleep(delay * 2**attempt)
"""
RING = """
class RingBuffer:
    def __init__(self, capacity):
        if capacity < 1:
            raise ValueError(capacity)
        self._items, self._start, self._size = [None] * capacity, 0, 0

    def __len__(self):
        return self._size

    def append(self, item):
        at = (self._start + self._size) % len(self._items)
        self._items[at] = item
        if self._size == len(self._items):
            self._start = (self._start + 1) % len(self._items)
        else:
            self._size += 1

    def __getitem__(self, index):
        if not -self._size <= index < self._size:
            raise IndexError(index)
        return self._items[(self._start + index % self._size) % len(self._items)]

    def __iter__(self):
        return (self[at] for at in range(self._size))
"""
MERGE = """
def merge(intervals):
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
"""
ROMAN = """
class Roman:
    SIGNS = [(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"),
             (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]

    @staticmethod
    def write(n):
        if not 1 <= n <= 3999:
            raise ValueError(n)
        text = ""
        for value, sign in Roman.SIGNS:
            text += sign * (n // value)
            n %= value
        return text

    @staticmethod
    def read(text):
        rest, n = text, 0
        for value, sign in Roman.SIGNS:
            while rest.startswith(sign):
                rest, n = rest[len(sign):], n + value
        if rest or Roman.write(n) != text:
            raise ValueError(text)
        return n
"""
DURATION = r"""
import re

def seconds(text):
    if re.fullmatch(r"\d+", text):
        return int(text)
    match = re.fullmatch(r"\s*(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m)?\s*(?:(\d+)s)?\s*", text)
    if not match or not any(match.groups()):
        raise ValueError(text)
    return sum(int(n or 0) * unit for n, unit in zip(match.groups(), (86400, 3600, 60, 1)))
"""
DISTANCE = """
def distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]
"""
CACHE = """
from collections import OrderedDict  # the first key of a plain dict is not found in O(1) time

class Cache:
    def __init__(self, size):
        self._size, self._items = size, OrderedDict()

    def get(self, key, default=None):
        if key not in self._items:
            return default
        value = self._items.pop(key)
        self._items[key] = value
        return value

    def put(self, key, value):
        self._items.pop(key, None)
        self._items[key] = value
        if len(self._items) > self._size:
            self._items.popitem(last=False)
"""
BALANCED = """
def balanced(text):
    closing, stack = {")": "(", "]": "[", "}": "{"}, []
    for char in text:
        if char in "([{":
            stack.append(char)
        elif char in closing and (not stack or stack.pop() != closing[char]):
            return False
    return not stack
"""

# prompt: (right, nearly right ones as a change to it)
SOLUTIONS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "sudoku-solver-en": (SUDOKU, [("    fill()\n", "    pass\n"), ("def fill", "def not_fill")]),
    "sudoku-solver-zh": (SUDOKU, [("    fill()\n", "    return board\n")]),
    "http-retry-en": (
        RETRY,
        [
            ("2**attempt", "1"),
            ("< 500 or last", "< 400 or last"),
            ("except TimeoutError", "except Exception"),
            ("< 500 or last", "< 500"),
        ],
    ),
    "http-retry-async-en": (
        RETRY_ASYNC,
        [("asyncio.wait_for(send(), timeout)", "send()"), ("2**attempt", "1")],
    ),
    "ring-buffer-en": (
        RING,
        [("-self._size <= index", "0 <= index"), ("index % self._size", "index")],
    ),
    "ring-buffer-zh": (RING, [("raise ValueError(capacity)", "pass")]),
    "merge-intervals": (MERGE, [("start <= merged", "start < merged"), ("sorted(", "list(")]),
    "roman-numerals": (ROMAN, [(" or Roman.write(n) != text", ""), ("1 <= n", "0 <= n")]),
    "parse-duration": (DURATION, [(" or not any(match.groups())", ""), ("86400", "8640")]),
    "edit-distance": (DISTANCE, [("+ (x != y)", "+ 2 * (x != y)")]),
    "least-recently-used": (
        CACHE,
        [("        self._items[key] = value\n        return", "        return")],
    ),
    "bracket-check-zh": (BALANCED, [("return not stack", "return True")]),
}
