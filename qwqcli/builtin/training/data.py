"""Training and test items for the built-in model, made on the fly from a seeded generator.

An item is a conversation whose last turn is to be answered: earlier turns hold answers without
their reasoning, as QwQ's template leaves them. Given the prompt, trace and answer are fixed;
only phrasings vary. Every problem has keys (operation and operands, or a word); a key whose
CRC-32 is 0 modulo 16 is held out: training never sees it, tests use only such.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from . import phrases as p
from . import traces
from .tokenizer import Tokenizer
from .traces import WORDINGS

LANGS = ("en", "zh")
SLIP_RATE = 0.18
_CHINESE = re.compile("[\u4e00-\u9fff]")
Key = tuple[object, ...]


@dataclass(frozen=True)
class Item:
    """One conversation to be continued: `history` holds (question, answer) turns."""

    task: str
    lang: str
    user: str
    think: str
    answer: str
    keys: tuple[Key, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    system: str = ""
    thinking: bool = True


def held_out(key: Key) -> bool:
    """Tell whether a problem belongs to the tests. Sums of two single digits never do."""
    if key[0] in ("add", "sub", "mul") and all(isinstance(n, int) and n < 10 for n in key[1:]):
        return False
    return zlib.crc32(repr(key).encode()) % 16 == 0


def value_of(answer: str) -> str:
    """Return the result in an answer, the text between the first pair of `**`."""
    parts = answer.split("**")
    return parts[1] if len(parts) > 2 else ""


# --- rendering -----------------------------------------------------------------------------------


def render_prompt(item: Item) -> str:
    """Return the ChatML prompt of an item, up to and including the opening of the thought."""
    out = [f"<|im_start|>system\n{item.system}<|im_end|>\n"] if item.system else []
    for question, answer in item.history:
        out.append(f"<|im_start|>user\n{question}<|im_end|>\n")
        out.append(f"<|im_start|>assistant\n{answer}<|im_end|>\n")
    out.append(f"<|im_start|>user\n{item.user}<|im_end|>\n<|im_start|>assistant\n")
    out.append("<think>\n" if item.thinking else "<think>\n\n</think>\n\n")
    return "".join(out)


def render_target(item: Item) -> str:
    """Return what the model is to write: the thought, its closing, the answer, the end."""
    thought = f"{item.think}</think>\n\n" if item.thinking else ""
    return f"{thought}{item.answer}<|im_end|>"


# --- phrasing ------------------------------------------------------------------------------------

_OPENERS = {
    "en": (
        "Please: ",
        "Hey, ",
        "Hi! ",
        "Question: ",
        "OK, ",
        "Quick question: ",
        "So, ",
        "Please ",
    ),
    "zh": ("请问，", "你好，", "问题：", "那么，", "麻烦你，"),
}
_CLOSERS = {
    "en": (" Thanks!", " please", " Please.", "\n", " ", "??", "!"),
    "zh": ("谢谢", "\n", " ", "？？", "！"),
}


def vary(text: str, lang: str, rng: Random) -> str:
    """Disturb the outside of a question: case of its start, its last mark, a few polite words."""
    if rng.random() < 0.2:
        text = text[:1].lower() + text[1:]
    if rng.random() < 0.15:
        text = text.rstrip("?.？。")
    if rng.random() < 0.06:
        text = rng.choice(_OPENERS[lang]) + text
    if rng.random() < 0.06:
        text += rng.choice(_CLOSERS[lang])
    return text


def _ask(templates: dict[str, tuple[str, ...]], lang: str, rng: Random, **fields: object) -> str:
    return vary(rng.choice(templates[lang]).format(**fields), lang, rng)


def _slip(rng: Random) -> Random | None:
    return rng if rng.random() < SLIP_RATE else None


# --- arithmetic ----------------------------------------------------------------------------------

_OPS = {"add": ("+", p.ADD), "sub": ("-", p.SUB), "mul": ("×", p.MUL)}
_TRACES = {"add": traces.add, "sub": traces.sub, "mul": traces.mul}


def number(rng: Random, digits: int) -> int:
    """Return a number of that many digits; zeros and nines come more often than by chance."""
    if digits == 1:
        return rng.randint(0, 9)
    value = rng.randint(10 ** (digits - 1), 10**digits - 1)
    if rng.random() < 0.2:
        figures = list(str(value))
        figures[rng.randrange(1, digits)] = rng.choice("0099")
        value = int("".join(figures))
    return value


def _digits(rng: Random, short: bool) -> int:
    return rng.choices((1, 2, 3, 4), (30, 60, 10, 0) if short else (8, 27, 29, 36))[0]


def operands(op: str, rng: Random, short: bool) -> tuple[int, int]:
    """Choose operands within what the model is taught, hard ones more often."""
    if op == "mul":
        kinds = ((1, 1), (2, 1), (3, 1), (4, 1), (2, 2))
        shape = rng.choices(kinds, (15, 60, 25, 0, 0) if short else (8, 20, 22, 10, 40))[0]
        a, b = (number(rng, n) for n in shape)
        return (b, a) if rng.random() < 0.3 else (a, b)
    wide = _digits(rng, short)
    narrow = wide if rng.random() < 0.5 else rng.randint(1, wide)
    a, b = number(rng, wide), number(rng, narrow)
    if wide > 1 and rng.random() < 0.06:  # the same leading digits: the order is decided late
        b = max(0, a + rng.randint(-30, 30)) % 10**wide
    if (op == "sub" and a < b and rng.random() < 0.7) or (op == "add" and rng.random() < 0.3):
        a, b = b, a
    if op == "sub" and a > b and rng.random() < 0.08:
        a, b = b, a
    return a, b


def solve(op: str, a: int, b: int) -> int:
    """Work out a problem."""
    return a + b if op == "add" else a - b if op == "sub" else a * b


def sub_problems(op: str, a: int, b: int) -> tuple[Key, ...]:
    """Return the key of a problem and of the problems that its trace goes through."""
    keys: list[Key] = [(op, a, b)]
    if op == "mul" and min(a, b) > 9:
        big, (tens, ones) = a, divmod(b, 10)
        keys.append(("add", big * ones, big * tens * 10))
    return tuple(keys)


def _equation(op: str, a: int, b: int, lang: str) -> str:
    stop = "。" if lang == "zh" else "."
    return f"{a} {_OPS[op][0]} {b} = **{solve(op, a, b)}**{stop}"


def arithmetic(op: str) -> Callable[[Random, str, bool], Item]:
    """Return the maker of one-operation problems."""

    def make(rng: Random, lang: str, short: bool) -> Item:
        a, b = operands(op, rng, short)
        template = rng.choice(_OPS[op][1][lang])
        shown_a, shown_b = _shown(a, b, template, lang, rng)
        user = vary(template.format(a=shown_a, b=shown_b), lang, rng)
        think = _TRACES[op](a, b, WORDINGS[lang], _slip(rng))
        return Item(op, lang, user, think, _equation(op, a, b, lang), sub_problems(op, a, b))

    return make


def _shown(a: int, b: int, template: str, lang: str, rng: Random) -> tuple[str, str]:
    """Write the operands: digits, now and then thousands commas or (small ones) words."""
    apart = lang == "zh" or " {b}" in template
    if apart and max(a, b) <= 20 and rng.random() < 0.12:
        return p.NUMBER_WORDS[lang][a], p.NUMBER_WORDS[lang][b]
    if max(a, b) > 999 and rng.random() < 0.05:
        return f"{a:,}", f"{b:,}"
    return str(a), str(b)


def chain(rng: Random, lang: str, short: bool) -> Item:
    """Make a sum of three numbers, worked out as two sums."""
    width = 2 if short else rng.choices((1, 2, 3, 4), (2, 5, 4, 1))[0]
    a, b, c = (number(rng, rng.randint(1, width)) for _ in range(3))
    ops = [rng.choice(("add", "add", "sub")) for _ in range(2)]
    first = solve(ops[0], a, b)
    if not 0 <= first <= 9999:
        return chain(rng, lang, short)
    last = solve(ops[1], first, c)
    plus, minus = rng.choice(p.CHAIN_SIGNS[lang])
    s1, s2 = (plus if op == "add" else minus for op in ops)
    w, slips = WORDINGS[lang], [_slip(rng), None]
    rng.shuffle(slips)
    think = _TRACES[ops[0]](a, b, w, slips[0]) + _TRACES[ops[1]](first, c, w, slips[1])
    stop = "。" if lang == "zh" else "."
    answer = f"{a} {_OPS[ops[0]][0]} {b} {_OPS[ops[1]][0]} {c} = **{last}**{stop}"
    keys: tuple[Key, ...] = (("chain", a, b, c, *ops), (ops[0], a, b), (ops[1], first, c))
    user = _ask(p.CHAIN, lang, rng, e=f"{a}{s1}{b}{s2}{c}")
    return Item("chain", lang, user, think, answer, keys)


# --- comparison ----------------------------------------------------------------------------------


def _decimal(rng: Random, whole: int, places: int) -> str:
    text = str(number(rng, whole))
    return text + ("." + "".join(rng.choice("0123456789") for _ in range(places)) if places else "")


def _compared(rng: Random, short: bool) -> tuple[str, str]:
    """Choose two numbers to compare; equal beginnings and unequal lengths come often."""
    decimal = rng.random() < 0.55
    whole = rng.choices((1, 2, 3), (6, 3, 1))[0] if decimal else rng.randint(1, 3 if short else 6)
    places = [rng.randint(0, 3), rng.randint(1, 3)] if decimal else [0, 0]
    x = _decimal(rng, whole, places[0])
    other = whole if rng.random() < 0.7 else rng.randint(1, 3 if decimal else 6)
    y = _decimal(rng, other, places[1])
    kind = rng.random()
    if kind < 0.35:  # the same beginning
        keep = rng.randint(1, len(x))
        rest = "".join(rng.choice("0123456789") for _ in range(rng.randint(0, 2)))
        y = (x[:keep] + rest).rstrip(".")
        y = y if decimal or len(y) <= 6 else y[:6]
    elif kind < 0.39:
        y = x
    if "." in y and len(y.partition(".")[2]) > 3:
        y = y[: y.index(".") + 4]
    return (x, y) if rng.random() < 0.5 else (y, x)


def _sign(x: str, y: str) -> str:
    a, b = float(x), float(y)
    return "<" if a < b else ">" if a > b else "="


def compared_answer(x: str, y: str, asked: bool | str, lang: str) -> str:
    """Answer a comparison: `asked` is larger (True), smaller (False), or the sign in question."""
    sign = _sign(x, y)
    stop = "。" if lang == "zh" else "."
    if isinstance(asked, str):
        yes = ("Yes", "No") if lang == "en" else ("是", "不是")
        comma = ", " if lang == "en" else "，"
        return f"**{yes[asked != sign]}**{comma}{x} {sign} {y}{stop}"
    if sign == "=":
        return "They are **equal**." if lang == "en" else "两个数**相等**。"
    best, rest = (x, y) if (sign == ">") == asked else (y, x)
    if lang == "en":
        return f"**{best}** is {'larger' if asked else 'smaller'} than {rest}."
    return f"**{best}** 比 {rest} {'大' if asked else '小'}。"


def compare(rng: Random, lang: str, short: bool) -> Item:
    """Make a comparison of two integers or decimals."""
    x, y = _compared(rng, short)
    forms = p.WHICH[lang] if rng.random() < 0.7 else p.WHETHER[lang]
    wanted = rng.choice(sorted({tag for tag, _ in forms}))
    asked, template = rng.choice([form for form in forms if form[0] == wanted])
    user = vary(template.format(a=x, b=y), lang, rng)
    think, answer = _comparison(x, y, asked, lang, rng)
    return Item("cmp", lang, user, think, answer, (("cmp", x, y),))


def _comparison(x: str, y: str, asked: bool | str, lang: str, rng: Random) -> tuple[str, str]:
    """Return trace and answer of a comparison."""
    think = traces.compare(x, y, asked, WORDINGS[lang], _slip(rng))
    return think, compared_answer(x, y, asked, lang)


# --- letters -------------------------------------------------------------------------------------


@lru_cache
def _beginnings() -> list[str]:
    """Return the beginnings of words that the tokenizer has as one token of several letters.

    Held-out words begin with them, and how such a token is spelled has to be seen somewhere.
    """
    texts = (piece.decode("utf-8", "replace").strip() for piece in Tokenizer.load().pieces)
    return sorted({t.lower() for t in texts if len(t) > 1 and t.isascii() and t.isalpha()})


def a_word(rng: Random, short: bool) -> str:
    """Return an English word, a pronounceable one, or a string of letters (often repeated)."""
    kind, top = rng.random(), 6 if short else 13
    syllables = [rng.choice(p.SYLLABLES) for _ in range(rng.randint(1, 5))]
    if kind < 0.4:
        word = rng.choice(p.WORDS)
    elif kind < 0.55:
        word = "".join(syllables)
    elif kind < 0.9:
        word = rng.choice(_beginnings()) + "".join(syllables[:3])
    else:
        few = rng.sample("abcdefghijklmnopqrstuvwxyz", rng.randint(2, 26))
        word = "".join(rng.choice(few) for _ in range(rng.randint(3, 10)))
    return word if len(word) <= top else a_word(rng, short)


def _quoted(word: str, rng: Random) -> str:
    if rng.random() < 0.12:
        word = word.capitalize() if rng.random() < 0.75 else word.upper()
    marks = rng.choices(("", '""', "''", "“”", "「」", "``"), (60, 18, 12, 5, 2, 3))[0]
    return f"{marks[0]}{word}{marks[1]}" if marks else word


def _letter(word: str, rng: Random) -> str:
    repeated = [c for c in set(word) if word.count(c) > 1]
    if repeated and rng.random() < 0.55:
        return rng.choice(sorted(repeated))
    return rng.choice(word) if rng.random() < 0.7 else rng.choice("abcdefghijklmnopqrstuvwxyz")


def counted_answer(word: str, letter: str, lang: str) -> str:
    """Say how often a letter is in a word."""
    n = word.count(letter)
    if lang == "zh":
        return f'"{word}" 里有 **{n}** 个 {letter}。'
    if n == 1:
        return f'There is **1** {letter} in "{word}".'
    return f'There are **{n}** {letter}\'s in "{word}".'


def count(rng: Random, lang: str, short: bool) -> Item:
    """Make a question for the number of a letter in a word (now and then: of all letters)."""
    word = a_word(rng, short)
    w, q = WORDINGS[lang], _quoted(word, rng)
    keys: tuple[Key, ...] = (("word", word),)
    if rng.random() < 0.08:
        stop = "个字母。" if lang == "zh" else "letters."
        middle = "有" if lang == "zh" else "has"
        answer = f'"{word}" {middle} **{len(word)}** {stop}'
        user = _ask(p.COUNT_ALL, lang, rng, q=q)
        return Item("count", lang, user, traces.count_all(word, w), answer, keys)
    letter = _letter(word, rng)
    user = _ask(p.COUNT, lang, rng, q=q, l=_case(letter, rng), c=_letter_form(letter, rng))
    think, answer = traces.count_letter(word, letter, w), counted_answer(word, letter, lang)
    return Item("count", lang, user, think, answer, keys)


def _case(letter: str, rng: Random) -> str:
    return letter.upper() if rng.random() < 0.1 else letter


def _letter_form(letter: str, rng: Random) -> str:
    return rng.choice(p.LETTER_FORMS).format(l=_case(letter, rng))


def spell(rng: Random, lang: str, short: bool) -> Item:
    """Make a spelling request; it teaches copying, which counting needs."""
    word = a_word(rng, short)
    user = _ask(p.SPELL, lang, rng, q=_quoted(word, rng))
    stop = "。" if lang == "zh" else "."
    answer = f"**{' '.join(word)}**{stop}"
    return Item("spell", lang, user, traces.spell(word, WORDINGS[lang]), answer, (("word", word),))


# --- follow-ups ----------------------------------------------------------------------------------


def _result(item: Item) -> int | None:
    """Return the number an item arrives at, if a follow-up can start from it."""
    if item.task not in ("add", "sub", "mul", "chain", "follow"):
        return None
    text = value_of(item.answer)
    return int(text) if text.isdigit() and int(text) <= 9999 else None


def _follow_number(op: str, before: int, rng: Random) -> int:
    """Choose the number that a follow-up brings in."""
    if op == "mul":
        return rng.randint(0, 9) if before > 99 else number(rng, rng.randint(1, 2))
    if op == "double":
        return before
    if op == "triple":
        return 3
    if op in ("cmp", "less"):
        near = max(0, before + rng.randint(-20, 20))
        return near if rng.random() < 0.3 else number(rng, rng.randint(1, 4))
    top = number(rng, rng.choices((1, 2, 3, 4), (40, 40, 12, 8))[0])
    return min(top, before) if op == "sub" and rng.random() < 0.85 else top


def _follow_on(before: Item, rng: Random, lang: str) -> Item | None:
    start = _result(before)
    if start is None:
        return None
    op, template = rng.choice(p.FOLLOW[lang])
    n = _follow_number(op, start, rng)
    user = vary(template.format(n=n), lang, rng)
    history = (*before.history, (before.user, before.answer))
    w = WORDINGS[lang]
    said = f"{w.last}{start}{w.stop}"
    if op in ("cmp", "less"):
        x, y = str(start), str(n)
        think, answer = _comparison(x, y, ">" if op == "cmp" else "<", lang, rng)
        keys: tuple[Key, ...] = (("cmp", x, y), *before.keys)
        return Item("follow", lang, user, said + think, answer, keys, history)
    op = {"double": "add", "triple": "mul"}.get(op, op)
    think = said + _TRACES[op](start, n, w, _slip(rng))
    keys = (*sub_problems(op, start, n), *before.keys)
    return Item("follow", lang, user, think, _equation(op, start, n, lang), keys, history)


def _follow_count(rng: Random, lang: str, short: bool) -> Item:
    before = count(rng, lang, short)
    word = str(before.keys[0][1])
    letter = _letter(word, rng)
    user = _ask(
        p.FOLLOW_COUNT, lang, rng, l=letter, c=f"{letter}'s" if rng.random() < 0.7 else letter
    )
    think = traces.count_letter(word, letter, WORDINGS[lang])
    answer = counted_answer(word, letter, lang)
    return Item("follow", lang, user, think, answer, before.keys, ((before.user, before.answer),))


def follow(rng: Random, lang: str, short: bool) -> Item:
    """Make a dialogue of two to four turns whose last one leans on the answer before it."""
    if rng.random() < 0.15:
        return _follow_count(rng, lang, short)
    maker = rng.choice((MAKERS["add"], MAKERS["sub"], MAKERS["mul"], MAKERS["add"], chain))
    item: Item | None = maker(rng, lang, short)
    for _ in range(1 if short else rng.choices((1, 2, 3), (70, 20, 10))[0]):
        item = _follow_on(item, rng, lang) if item else None
    return item or follow(rng, lang, short)


# --- what it cannot do ---------------------------------------------------------------------------

HONEST = {
    "en": "I can't do that: I am only the small built-in model. `qwq pull` brings the real one.",
    "zh": "这个我不会：我只是内置的小模型。运行 `qwq pull` 可以换成真正的大模型。",
}
_HONEST_THOUGHT = {
    "en": "I was not trained for this, so I should say so.\n",
    "zh": "这个我没有学过，应该直说。\n",
}
_GREETING = {
    "en": "Hello! I am the small built-in model: I add, subtract, multiply, compare numbers "
    "and count letters. `qwq pull` brings the real one.",
    "zh": "你好！我是内置的小模型：会加减乘、比较大小、数字母。"
    "运行 `qwq pull` 可以换成真正的大模型。",
}
_GREETING_THOUGHT = {
    "en": "This is about me, so I say what I am.\n",
    "zh": "这是在问我，我来介绍自己。\n",
}
_THANKS = {"en": "You are welcome.", "zh": "不客气。"}
_THANKS_THOUGHT = {"en": "No question here, just be kind.\n", "zh": "没有问题，礼貌回答。\n"}
NEED_THOUGHT = {
    "en": "I can only work that out by thinking step by step. Please turn thinking on.",
    "zh": "这个我要一步一步想才能算。请打开思考。",
}
# Follow-ups in disguise: right to refuse only where no number came before.
_CONTEXTUAL = frozenset(
    (
        "double that",
        "and minus {n}?",
        "plus {n}",
        "triple it",
        "times {n}",
        "Is that more than {n}?",
        "add {n} to that",
        "and how many {l}?",
        "+ {n}",
        "- {n}",
        "翻倍",
        "再加 {n}",
        "再减{n}",
        "乘以{n}呢？",
        "比 {n} 大吗？",
        "那 {l} 呢？",
        "减{n}",
        "How many r?",
        "How many r are in this?",
    )
)


def _near(template: str) -> bool:
    """Tell whether a request looks like a task: two numbers, or a count of something."""
    numbers = sum(field in template for field in ("{n}", "{k}", "{d}", "{e}"))
    return numbers > 1 or template.startswith(("How many", "Count"))


_NEAR_MISSES = {lang: [t for t in p.UNKNOWN[lang] if _near(t)] for lang in LANGS}


def filling(rng: Random) -> dict[str, object]:
    """Return random fillings for the templates of phrases.py."""
    words = [rng.choice(p.WORDS) if rng.random() < 0.8 else a_word(rng, False) for _ in range(3)]
    numbers = [number(rng, rng.choices((1, 2, 3, 4, 5), (30, 35, 20, 12, 3))[0]) for _ in range(4)]
    names, places, codes = (
        rng.sample(p.NAMES, 2),
        rng.sample(p.PLACES, 2),
        rng.sample(p.CODE_LANGUAGES, 2),
    )
    return {
        "w": words[0],
        "w2": words[1],
        "w3": words[2],
        "n": numbers[0],
        "k": numbers[1],
        "j": numbers[2],
        "i": numbers[3],
        "m": names[0],
        "m2": names[1],
        "p": places[0],
        "p2": places[1],
        "L": codes[0],
        "L2": codes[1],
        "x": rng.choice(p.THINGS),
        "V": rng.choice(p.VERBS),
        "c": rng.choice("abcdefghijklmnopqrstuvwxyz"),
        "T": rng.choice(p.CODE_TASKS),
        "t": rng.choice(p.TONGUES),
        "y": rng.randint(1000, 2030),
        "d": rng.randint(1, 12),
        "e": rng.randint(1, 28),
        "l": rng.choice("abcdefghijklmnopqrstuvwxyz"),
    }


def _too_big(rng: Random, lang: str) -> str:
    """Ask a sum or product of a kind that is taught, with numbers that are too long for it."""
    if rng.random() < 0.6:
        a, b = number(rng, rng.randint(5, 9)), number(rng, rng.randint(1, 8))
        a, b = (a, b) if rng.random() < 0.6 else (b, a)
        return _ask(rng.choice((p.ADD, p.SUB)), lang, rng, a=a, b=b)
    wide, narrow = rng.choice(
        ((3, 2), (3, 3), (4, 2), (5, 1), (4, 4), (4, 3), (6, 2), (2, 3), (2, 4), (1, 5))
    )
    return _ask(
        p.MUL,
        lang,
        rng,
        a=max(10 ** (wide - 1), number(rng, wide)),
        b=max(10 ** (narrow - 1), number(rng, narrow)),
    )


_BLOCKS = (
    (0x20, 0x7E),
    (0xA1, 0x17F),
    (0x370, 0x3FF),
    (0x400, 0x4FF),
    (0x5D0, 0x5EA),
    (0x620, 0x64A),
    (0x900, 0x939),
    (0xE01, 0xE3A),
    (0x3041, 0x30FE),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1F64F),
    (0x2190, 0x22FF),
)


def gibberish(rng: Random) -> str:
    """Return random characters: keys hit at random, one script, or any characters at all."""
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(
            ("", " ", "\n", "  \n ", "\t", ".", "?", "。", "？", "-", "…", "0", "**", "\x00")
        )
    size = int(2 ** rng.uniform(0.5, 6.5))
    if kind < 0.4:
        keys = "abcdefghijklmnopqrstuvwxyz" + rng.choice(
            ("", " ", "  ;/.,", "0123456789", "ABCDEFGH ", "!@#$%^&*()")
        )
        return "".join(rng.choice(keys) for _ in range(size))
    if kind < 0.7:
        low, high = rng.choice(_BLOCKS)
        return "".join(chr(rng.randint(low, high)) for _ in range(size))
    return "".join(chr(rng.randint(*rng.choice(_BLOCKS))) for _ in range(size))


def paste(rng: Random, limit: int = 6000) -> str:
    """Return a pasted text of up to `limit` characters, short ones more often."""
    size, lines = limit * 2 ** rng.uniform(-5.5, 0), []
    while sum(map(len, lines)) < size:
        lines.append(rng.choice(p.PASTE_LINES).format(**filling(rng)))
    return rng.choice(p.PASTE_ASKS).format(**filling(rng)) + "\n" + "\n".join(lines)


def _unknown_text(rng: Random, lang: str, short: bool) -> str:
    kind = rng.random()
    if kind < 0.14:
        return _too_big(rng, lang)
    if lang == "en" and kind < 0.20:
        return gibberish(rng)
    if lang == "en" and kind < 0.24:
        return rng.choice(p.OTHER_TONGUES).format(**filling(rng))
    if lang == "en" and kind < 0.29 and not short:
        return paste(rng) if rng.random() < 0.3 else paste(rng, 500)
    templates = _NEAR_MISSES[lang] if kind < 0.45 else p.UNKNOWN[lang]
    template = rng.choice(templates)
    return vary(template.format(**filling(rng)), lang, rng)


def unknown(rng: Random, lang: str, short: bool) -> Item:
    """Make a request that is beyond the model, near misses of what it can do included."""
    user = _unknown_text(rng, lang, short)
    return Item("unknown", lang, user, _HONEST_THOUGHT[lang], HONEST[lang])


def unknown_after(rng: Random, lang: str) -> Item:
    """Make a request beyond the model in mid-conversation (never one that follows a number)."""
    if rng.random() < 0.3:
        return _unusable_result(rng, lang)
    template = rng.choice([t for t in p.UNKNOWN[lang] if t not in _CONTEXTUAL])
    user = vary(template.format(**filling(rng)), lang, rng)
    return Item("unknown", lang, user, _HONEST_THOUGHT[lang], HONEST[lang])


def _unusable_result(rng: Random, lang: str) -> Item:
    """Follow on a result that is negative or too long, or on an answer without a number."""
    task = rng.choice(("sub", "sub", "add", "unknown", "chat"))
    before = make(task, rng, test=False, lang=lang)
    while _result(before) is not None or len(before.user) > 200:
        before = make(task, rng, test=False, lang=lang)
    _, template = rng.choice(p.FOLLOW[lang])
    user = vary(template.format(n=number(rng, rng.randint(1, 3))), lang, rng)
    history = ((before.user, before.answer),)
    return Item("unknown", lang, user, _HONEST_THOUGHT[lang], HONEST[lang], history=history)


def chat(rng: Random, lang: str, short: bool) -> Item:
    """Make a greeting, a question about the model, or a word of thanks."""
    if rng.random() < 0.7:
        user = vary(rng.choice(p.GREETINGS[lang]), lang, rng)
        return Item("chat", lang, user, _GREETING_THOUGHT[lang], _GREETING[lang])
    user = vary(rng.choice(p.THANKS[lang]), lang, rng)
    return Item("chat", lang, user, _THANKS_THOUGHT[lang], _THANKS[lang])


# --- mixing --------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Random, str, bool], Item]] = {
    "add": arithmetic("add"),
    "sub": arithmetic("sub"),
    "mul": arithmetic("mul"),
    "chain": chain,
    "cmp": compare,
    "count": count,
    "spell": spell,
    "follow": follow,
    "unknown": unknown,
    "chat": chat,
}
# Shares of the tasks: while the model learns to copy, and after that.
EARLY_MIX = {
    "add": 14,
    "sub": 14,
    "mul": 9,
    "chain": 2,
    "cmp": 14,
    "count": 18,
    "spell": 12,
    "follow": 6,
    "unknown": 9,
    "chat": 2,
}
MIX = {
    "add": 8,
    "sub": 11,
    "mul": 11,
    "chain": 4,
    "cmp": 15,
    "count": 18,
    "spell": 12,
    "follow": 10,
    "unknown": 15,
    "chat": 3,
}


def make(
    task: str,
    rng: Random,
    *,
    test: bool,
    short: bool = False,
    lang: str = "",
    slipped: bool = False,
) -> Item:
    """Make one item of a task, from the held-out side (`test`) or the training side.

    Test items hold a planted slip if and only if `slipped`.
    """
    while True:
        item = MAKERS[task](rng, lang or rng.choices(LANGS, (62, 38))[0], short)
        if item.lang == "zh" and not (item.history or _CHINESE.search(item.user)):
            continue  # signs and digits alone are answered in English
        if test and (traces.MARK_OPEN in item.think) != slipped:
            continue
        if not item.keys or (held_out(item.keys[0]) if test else not any(map(held_out, item.keys))):
            return item


def _with_history(item: Item, rng: Random) -> Item:
    """Put other turns before an item; they do not bear on it."""
    turns = []
    for _ in range(rng.choices((1, 2, 3, 6, 16), (58, 25, 10, 5, 2))[0]):
        task = rng.choice(("add", "sub", "mul", "cmp", "count", "unknown", "chat"))
        lang = item.lang if rng.random() < 0.7 else ""
        other = make(task, rng, test=False, short=True, lang=lang)
        if len(other.user) < 200:
            turns.append((other.user, other.answer))
    return replace(item, history=tuple(turns) + item.history)


def _without_thought(item: Item) -> Item:
    """Turn thinking off: whatever has to be worked out is declined, not guessed."""
    idle = item.task in ("unknown", "chat")
    return replace(item, thinking=False, answer=item.answer if idle else NEED_THOUGHT[item.lang])


def training_item(rng: Random, mix: dict[str, int], *, short: bool = False) -> Item:
    """Draw one training item: a task from the mix, then a system message, history, no thought."""
    task = rng.choices(list(mix), list(mix.values()))[0]
    item = make(task, rng, test=False, short=short)
    if task != "unknown" and rng.random() < 0.08:
        item = _with_history(item, rng)
    elif task == "unknown" and rng.random() < 0.18:
        item = _with_history(unknown_after(rng, item.lang), rng)
    if rng.random() < 0.08:
        item = replace(item, system=rng.choice(p.SYSTEMS))
    return _without_thought(item) if rng.random() < 0.025 else item
