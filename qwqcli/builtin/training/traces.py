"""Reasoning traces: arithmetic and comparison written out so that every step is a local look-up.

A five-million-parameter model does in one token only what it can copy or look up. So both
numbers are first written in the same width (stated before their digits: a causal model cannot
know afterwards which column a digit was), each column gets a line, and each line carries the
result so far, so that the answer is one plain copy.

A check redoes every column with the operands the other way round. Training plants a wrong
figure now and then (`rng` given): the check meets it and the trace redoes the work from there.
Wrong figures stand between MARK_OPEN and MARK_CLOSE; no loss is taken on them, so the model
learns to notice slips without learning to make them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

MARK_OPEN, MARK_CLOSE = "\ue000", "\ue001"


def mark(wrong: object) -> str:
    """Wrap a planted wrong figure."""
    return f"{MARK_OPEN}{wrong}{MARK_CLOSE}"


def strip_marks(text: str) -> str:
    """Return a trace as the model sees it."""
    return text.replace(MARK_OPEN, "").replace(MARK_CLOSE, "")


@dataclass(frozen=True)
class Wording:
    """The words of a trace in one language."""

    columns: tuple[str, ...]
    digit: str
    digits: str
    stop: str
    comma: str
    colon: str
    carry: str
    last_carry: str
    borrow: str
    keep: str
    swap: str
    check: str
    good: str
    was: str
    should: str
    redo: str
    which: tuple[str, str]
    whether: str
    so: str
    equal: str
    mended: str
    asked: str
    larger: str
    smaller: str
    number: str
    yes: str
    no: str
    same: str
    count: str
    last: str

    def width(self, digits: int) -> str:
        """Announce how many digits the numbers have."""
        return f"{digits}{self.digit if digits == 1 else self.digits}"


EN = Wording(
    columns=("Ones", "Tens", "Hundreds", "Thousands", "Ten-thousands"),
    digit=" digit: ",
    digits=" digits: ",
    stop=".\n",
    comma=", ",
    colon=": ",
    carry=", carry ",
    last_carry="Carry: ",
    borrow=", borrow: ",
    keep=", keep.\n",
    swap=", swap: ",
    check="Wait, check: ",
    good=". Good.\n",
    was=", not ",
    should=", should end in ",
    redo=". Redo.\n",
    which=("Which is smaller", "Which is larger"),
    whether="Is it {sign}",
    so=", so ",
    equal=", so equal.\n",
    mended=". No: ",
    asked="Question: ",
    larger="larger",
    smaller="smaller",
    number=", so number ",
    yes=", so yes",
    no=", so no",
    same=", so equal",
    count="Count ",
    last="Last result: ",
)
ZH = Wording(
    columns=("个位", "十位", "百位", "千位", "万位"),
    digit=" 位：",
    digits=" 位：",
    stop="。\n",
    comma="，",
    colon="：",
    carry="，进 ",
    last_carry="进位：",
    borrow="，借位：",
    keep="，不变。\n",
    swap="，交换：",
    check="等等，检查：",
    good="。对。\n",
    was="，不是 ",
    should="，末位应是 ",
    redo="。重算。\n",
    which=("哪个小", "哪个大"),
    whether="是{sign}吗",
    so="，所以 ",
    equal="，所以相等。\n",
    mended="。不对：",
    asked="问：",
    larger="大",
    smaller="小",
    number="，是数 ",
    yes="，对",
    no="，不对",
    same="，相等",
    count="数 ",
    last="上次结果：",
)
WORDINGS = {"en": EN, "zh": ZH}


class Step(NamedTuple):
    """One column: the text of its work, the digit written, the carry, and how it is checked."""

    work: str
    digit: int
    carry: int
    check: str
    mismatch: str


StepMaker = Callable[[int, int, int, Wording, "Random | None"], Step]


def _other(rng: Random, right: int, top: int) -> int:
    """Return a likely wrong figure in 0..top: near misses and lost or invented tens."""
    near = [right + d for d in (-1, 1, -10, 10, -2, 2) if 0 <= right + d <= top]
    return rng.choice(near) if rng.random() < 0.8 else (right + rng.randint(1, top)) % (top + 1)


def _plus(*figures: object) -> str:
    return "+".join(str(f) for f in figures)


def add_step(x: int, y: int, carry: int, w: Wording, rng: Random | None) -> Step:
    """Add one column; with `rng`, plant a wrong digit or a wrong sum."""
    extra = [carry] if carry else []
    total, shown_x, shown = x + y + carry, str(x), str(x + y + carry)
    check = f"{_plus(y, x, *extra)}={total}"
    if rng is not None and rng.random() < 0.3:
        wrong = _other(rng, x, 9)
        total, shown_x, shown = wrong + y + carry, mark(wrong), str(wrong + y + carry)
    elif rng is not None:
        total = _other(rng, total, 19)
        shown = mark(total)
    work = f"{_plus(shown_x, y, *extra)}={shown}"
    return Step(work, total % 10, total // 10, check, f"{w.was}{total}")


def sub_step(x: int, y: int, borrow: int, w: Wording, rng: Random | None) -> Step:
    """Subtract one column, borrowing aloud; with `rng`, plant a wrong digit."""
    used, shown_x = x, str(x)
    if rng is not None and rng.random() < 0.3:
        used = _other(rng, x, 9)
        shown_x = mark(used)
    out = int(used < y + borrow)
    right = used + 10 * out - y - borrow
    digit, shown = right, str(right)
    if rng is not None and used == x:
        digit = _other(rng, right, 9)
        shown = mark(digit)
    tail = f"-{y}" + ("-1" if borrow else "")
    work = shown_x + tail + (f"{w.borrow}1{used}{tail}" if out else "") + f"={shown}"
    total = digit + y + borrow
    check = f"{_plus(digit, y, *([1] if borrow else []))}={total}"
    return Step(work, digit, out, check, f"{w.should}{x}")


def mul_step(x: int, y: int, carry: int, w: Wording, rng: Random | None) -> Step:
    """Multiply one column by a digit; with `rng`, plant a wrong figure."""
    middle = f"+{carry}={x * y}+{carry}" if carry else ""
    total = x * y + carry
    check = f"{y}×{x}{middle}={total}"
    shown = str(total)
    if rng is not None:
        total = _other(rng, total, 89)
        shown = mark(total)
    return Step(f"{x}×{y}{middle}={shown}", total % 10, total // 10, check, f"{w.was}{total}")


class Columns(NamedTuple):
    """The lines of a run of columns, what each checks as, and the result written."""

    lines: list[str]
    steps: list[Step]
    written: list[str]


def _columns(
    step: StepMaker,
    pairs: list[tuple[int, int]],
    w: Wording,
    slip_at: int = -1,
    rng: Random | None = None,
    before: Columns | None = None,
) -> Columns:
    """Work through columns right to left, going on from the `before` columns."""
    steps = list(before.steps) if before else []
    written = list(before.written) if before else []
    lines = []
    for i in range(len(steps), len(pairs)):
        carry = steps[-1].carry if steps else 0
        now = step(*pairs[i], carry, w, rng if i == slip_at else None)
        written.append(f"{now.digit}{written[-1] if written else ''}")
        tail = f"{w.carry}{now.carry}" if now.carry and step is not sub_step else ""
        lines.append(f"{w.columns[i]}{w.colon}{now.work} -> {written[-1]}{tail}\n")
        steps.append(now)
    if steps[-1].carry and step is not sub_step:
        written.append(f"{steps[-1].carry}{written[-1]}")
        lines.append(f"{w.last_carry}{written[-1]}\n")
    return Columns(lines, steps, written)


def _checked(
    step: StepMaker, pairs: list[tuple[int, int]], w: Wording, rng: Random | None
) -> tuple[str, str]:
    """Return the text of all columns with their check, and the (right) result's digits."""
    right = _columns(step, pairs, w)
    checks = [s.check for s in right.steps]
    if rng is None:
        text = "".join(right.lines) + w.check + w.comma.join(checks) + w.good
        return text, right.written[-1]
    at = rng.randrange(len(pairs))
    slipped = _columns(step, pairs, w, at, rng)
    wrong = slipped.steps[at]
    met = [*checks[:at], wrong.check]
    kept = Columns([], right.steps[:at], right.written[:at])
    redone = _columns(step, pairs, w, before=kept)
    text = "".join(slipped.lines) + w.check + w.comma.join(met) + wrong.mismatch + w.redo
    return text + "".join(redone.lines), right.written[-1]


def _pairs(xs: str, ys: str) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in zip(reversed(xs), reversed(ys), strict=True)]


def _padded(a: int, b: int) -> tuple[int, str, str]:
    width = max(len(str(a)), len(str(b)))
    return width, f"{a:0{width}d}", f"{b:0{width}d}"


def add(a: int, b: int, w: Wording, rng: Random | None = None) -> str:
    """Return the trace of a + b."""
    width, xs, ys = _padded(a, b)
    text, _ = _checked(add_step, _pairs(xs, ys), w, rng)
    return f"{w.width(width)}{xs} + {ys}{w.stop}{text}"


def digit_signs(xs: str, ys: str) -> list[str]:
    """Compare two numbers of equal shape digit by digit up to the first difference."""
    signs = []
    for x, y in zip(xs, ys, strict=True):
        if x == ".":
            continue
        signs.append(f"{x}{'=' if x == y else '<' if x < y else '>'}{y}")
        if x != y:
            break
    return signs


def sub(a: int, b: int, w: Wording, rng: Random | None = None) -> str:
    """Return the trace of a - b; the larger number goes first, the sign is kept in mind."""
    width, xs, ys = _padded(a, b)
    head = f"{w.width(width)}{xs} - {ys}{w.stop}{w.comma.join(digit_signs(xs, ys))}"
    if a < b:
        xs, ys = ys, xs
        head += f"{w.swap}{xs} - {ys}{w.stop}"
    else:
        head += w.keep
    text, _ = _checked(sub_step, _pairs(xs, ys), w, rng)
    return head + text


def _mul_digit(a: int, d: int, w: Wording, rng: Random | None) -> str:
    xs = str(a)
    text, _ = _checked(mul_step, [(int(x), d) for x in reversed(xs)], w, rng)
    return f"{w.width(len(xs))}{xs} × {d}{w.stop}{text}"


def mul(a: int, b: int, w: Wording, rng: Random | None = None) -> str:
    """Return the trace of a × b: up to 4 digits by 1, or 2 by 2 through partial products."""
    if len(str(a)) < len(str(b)):
        a, b = b, a
    if b < 10:
        return _mul_digit(a, b, w, rng)
    tens, ones = divmod(b, 10)
    slips: list[Random | None] = [None, None, None]
    if rng is not None:
        slips[rng.randrange(3)] = rng
    head = f"{a} × {b} = {a} × {ones} + {a} × {tens}0{w.stop}"
    parts = _mul_digit(a, ones, w, slips[0]) + _mul_digit(a, tens, w, slips[1])
    return head + parts + add(a * ones, a * tens * 10, w, slips[2])


def _same_shape(x: str, y: str) -> tuple[str, str]:
    """Pad two decimal numbers to the same number of digits before and after the point."""
    (xi, _, xf), (yi, _, yf) = x.partition("."), y.partition(".")
    whole, places = max(len(xi), len(yi)), max(len(xf), len(yf))
    point = "." if places else ""
    return (
        xi.zfill(whole) + point + xf.ljust(places, "0"),
        yi.zfill(whole) + point + yf.ljust(places, "0"),
    )


_TURNED = {"<": ">", ">": "<", "=": "="}


def _asked(sign: str, question: bool | str, w: Wording) -> str:
    """Say again what is wanted, and which number or answer that is."""
    if isinstance(question, str):
        return f"{w.asked}{question}{w.yes if question == sign else w.no}{w.stop}"
    want = w.asked + (w.larger if question else w.smaller)
    if sign == "=":
        return want + w.same + w.stop
    return f"{want}{w.number}{1 if (sign == '>') == question else 2}{w.stop}"


def compare(x: str, y: str, question: bool | str, w: Wording, rng: Random | None = None) -> str:
    """Return the trace that compares two numbers written as decimals.

    `question` is larger (True), smaller (False), or the sign that makes the answer yes. The
    trace begins with it, while the question is near, and ends with what it comes to: one token
    there decides, so that the first figure of the answer need not.
    """
    xs, ys = _same_shape(x, y)
    signs, back = digit_signs(xs, ys), digit_signs(ys, xs)
    wanted = w.which[question] if isinstance(question, bool) else w.whether.format(sign=question)
    head = f"{wanted}{w.colon}{xs}{w.comma}{ys}{w.stop}{w.comma.join(signs[:-1])}"
    head += w.comma if len(signs) > 1 else ""
    sign = signs[-1][1]
    end = _asked(sign, question, w)
    checked = w.check + w.comma.join(back)
    if sign == "=":
        return head + signs[-1] + w.equal + checked + w.good + end
    if rng is None:
        return f"{head}{signs[-1]}{w.so}{x} {sign} {y}{w.stop}{checked}{w.good}{end}"
    wrong = _TURNED[sign]
    slipped = f"{head}{signs[-1][0]}{mark(wrong)}{signs[-1][2]}{w.so}{x} {wrong} {y}{w.stop}"
    return f"{slipped}{checked}{w.mended}{x} {sign} {y}{w.stop}{end}"


def count_letter(word: str, letter: str, w: Wording) -> str:
    """Spell a word with the number of matches so far behind every letter."""
    done, seen = [], 0
    for c in word.lower():
        seen += c == letter
        done.append(f" {c}{seen}")
    return f"{w.count}{letter}{w.colon.strip()}{''.join(done)}{w.stop}"


def count_all(word: str, w: Wording) -> str:
    """Spell a word with the number of letters so far behind every letter."""
    numbered = "".join(f" {c}{i}" for i, c in enumerate(word.lower(), 1))
    return f"{w.count.strip()}{w.colon.strip()}{numbered}{w.stop}"


def spell(word: str, w: Wording) -> str:
    """Spell a word, one letter a step."""
    return "".join(f" {c}" for c in word.lower())[1:] + w.stop
