"""Each checker, on right answers, wrong ones, and those that are easily taken for the other."""

from __future__ import annotations

import time
from typing import Any

import pytest

from qwqcli import checkers
from qwqcli.checkers import numbers, recall, structured, texts
from qwqcli.checkers.code import find_code
from qwqcli.checkers.verdict import boxed, code_blocks

RIGHT_NUMBERS = [  # expected, answer
    ("4", "The answer is 4."),
    ("4", "共休 14 天，减去 10 天周末，所以多休了 **4** 天（14 - 10）。"),
    ("4", "**Answer:** 4 days, since 14 - 10 = 4"),
    ("42", "The answer is 6 * 7 = 42"),
    ("6", "The maximum is $\\boxed{6}$ at $x = 3$, f(0) = 0"),
    ("17", "The final answer is:\n\n**17**"),
    ("100", "**Step 3: total**\nThe total is 100."),
    ("7", "1. count\n2. add\n**7** apples"),
    ("3", 'There are **three** r\'s in "strawberry".'),
    ("3", "5 - 2 = 3"),
    ("-3", "2-5=-3"),
    ("-3", "负三"),
    ("-0.385", "about \u22120.385"),
    ("1234567", "It is 1,234,567."),
    ("1234567", "It is 1\u202f234\u202f567."),
    ("1234567", "$1{,}234{,}567$"),
    ("10000", "1,0000"),
    ("149279832", "149,279,832"),
    ("3/4", "So the result is \\(\\dfrac34\\)."),
    ("0.75", "\\boxed{\\frac{3}{4}}"),
    ("0.75", "¾"),
    ("1.5", "\\boxed{1\\frac{1}{2}}"),
    ("2.5", "2½ hours"),
    ("2.5", "2 1/2"),
    ("1/3", "1/3"),
    ("120000", "1.2 × 10^5"),
    ("120000", "1.2 \\times 10^{5}"),
    ("120000", "1.2e5"),
    ("120000", "12万"),
    ("10000000000", "10 billion"),
    ("50%", "百分之五十"),
    ("50%", "It is 50"),
    ("50%", "0.5"),
    ("25%", "25 percent"),
    ("12.5", "$12.50"),
    ("5", "5 m²"),
    ("5", "5 cm^2"),
    ("90", "90 km/h"),
    ("123", "答案是一百二十三。"),
    ("823", "八百二十三"),
    ("2005", "两千零五"),
    ("120", "一百二"),
    ("35000", "三万五"),
    ("15", "十五"),
    ("2024", "二〇二四"),
    ("3.14", "三点一四"),
    ("21", "twenty-one"),
    ("105", "one hundred and five"),
    ("1", "这一共只有一个"),
    ("123", "１２３"),
]
WRONG_NUMBERS = [
    ("4", "The answer is 14."),
    ("4", "-4"),
    ("4", "I cannot tell."),
    ("4", ""),
    ("4", "There are 4 candidates, but the answer is 5."),
    ("0.385", "\\boxed{6}"),
    ("1234", "1,234,567"),
    ("3", "1/3"),
    ("3", "x_3"),
    ("2", "H2"),
    ("1", "第一"),
    ("5", "50%"),
    ("25%", "2500%"),
    ("25%", "25 hundred percent of nothing, so 2500 percent"),
]


@pytest.mark.parametrize(("expected", "answer"), RIGHT_NUMBERS)
def test_right_numbers(expected: str, answer: str) -> None:
    """A number is right however it is written, and wherever an answer puts its result."""
    assert numbers.Number(expected).judge(answer).right is True


@pytest.mark.parametrize(("expected", "answer"), WRONG_NUMBERS)
def test_wrong_numbers(expected: str, answer: str) -> None:
    """Another number, none, or one that is part of a name, is wrong."""
    verdict = numbers.Number(expected).judge(answer)
    assert verdict.right is False
    assert verdict.why


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("3 km", True),
        ("3000 m", True),
        ("3,000 m away", True),
        ("3", True),
        ("3 min", False),  # m is not the unit of min
        ("2999 m", False),
        ("30 km", False),
    ],
)
def test_units(answer: str, right: bool) -> None:
    """A number with a known unit is converted; without one it counts as the first unit."""
    checker = numbers.Number("3", units={"km": "1", "m": "1/1000", "min": "100"})
    assert checker.judge(answer).right is right


def test_tolerance() -> None:
    """A tolerance is a number or a share, and its edge is inside."""
    assert numbers.Number("10", tolerance="0.5").judge("10.5").right
    assert not numbers.Number("10", tolerance="0.5").judge("10.51").right
    assert numbers.Number("10", tolerance="1%").judge("9.9").right
    assert not numbers.Number("10", tolerance="1%").judge("9.89").right


RIGHT_CHOICES = [
    "C",
    "(C)",
    "C) it never does",
    "The answer is C.",
    "The correct option is **C**",
    "答案是 C",
    "应选C。",
    '{"answer": "C"}',
    "\\boxed{C}",
    "\\boxed{\\text{C}}",
    "A is wrong, B is wrong, so I choose C",
    "Option A fails. Answer: C",
    "A) no\nB) no\nC) yes\n\nC",
]
WRONG_CHOICES = [
    "The answer is A.",
    "A and not C? The answer is A",
    "It is a hard one.",
    "",
    "CAT",
    "\\boxed{B}, though some would say C",
    "c",
]


@pytest.mark.parametrize("answer", RIGHT_CHOICES)
def test_right_choices(answer: str) -> None:
    """The chosen letter is found in all the ways in which it is given."""
    assert texts.Choice("C").judge(answer).right is True


@pytest.mark.parametrize("answer", WRONG_CHOICES)
def test_wrong_choices(answer: str) -> None:
    """Another letter, a letter inside a word, or none is wrong."""
    assert texts.Choice("C").judge(answer).right is False


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("Paris", "paris.", True),
        ("Paris", "**Paris**", True),
        ("Paris", "  Paris \n", True),
        ("Paris", "\\boxed{\\text{Paris}}", True),
        ("Paris", "It is Paris.", False),
        ("Paris", "Parisian", False),
        ("收到", "收到。", True),
        ("收到", "好的，收到", False),
        ("a, b", "a,  b", True),
        ("OK", "", False),
        ("42", "```\n42\n```", True),
    ],
)
def test_exact(expected: str, answer: str, right: bool) -> None:
    """Case, blanks and Markdown do not count; any other word does."""
    assert texts.Exact(expected).judge(answer).right is right


def test_exact_with_case() -> None:
    """Case counts where the prompt says so."""
    assert texts.Exact("Paris", case=True).judge("Paris").right
    assert not texts.Exact("Paris", case=True).judge("paris").right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Use ZRANGEBYLEX inside a Lua script.", True),
        ("use zrangebylex with   multi", True),
        ("RediSearch and MULTI", True),
        ("RediSearch", False),
        ("multiple RediSearch calls", False),  # MULTI must be a whole word
        ("RediSearch, MULTI, and MySQL", False),
    ],
)
def test_contains(answer: str, right: bool) -> None:
    """Each point must be named in one of its wordings, and nothing that is ruled out."""
    points = [["ZRANGEBYLEX", "RediSearch"], ["Lua", "MULTI"]]
    assert texts.Contains(points, without=["MySQL"]).judge(answer).right is right


SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["n"],
    "properties": {"n": {"type": "integer", "minimum": 3}},
}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"n": 3}', True),
        ('Here it is:\n```json\n{"n": 4}\n```\nDone.', True),
        ('First {"n": 1}, or better {"n": 5}', True),
        ('{"n": 5} and not {"n": 1}', False),
        ('{"n": "3"}', False),
        ('{"n": 3', False),
        ("none", False),
        ('{"m": {"n": 3}}', False),
    ],
)
def test_json(answer: str, right: bool) -> None:
    """The last JSON of an answer is held against the schema."""
    assert structured.JsonSchema(SCHEMA).judge(answer).right is right


def test_regex() -> None:
    """A pattern is found over lines and whatever the case, unless its flags say otherwise."""
    assert texts.Regex(r"\A\W*2027-03-09\W*\Z").judge("**2027-03-09**").right
    assert not texts.Regex(r"\A\W*2027-03-09\W*\Z").judge("On 2027-03-09").right
    assert texts.Regex("^b$").judge("a\nB").right
    assert not texts.Regex("^b$", flags="m").judge("a\nB").right


def test_checker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that would take for ever ends in a verdict that says so."""
    monkeypatch.setattr(checkers, "TIME_LIMIT_S", 1.0)
    checker = checkers.make("regex", "(a+)+$", {})
    began = time.monotonic()
    verdict = checkers.check(checker, "a" * 60 + "b")
    assert verdict.right is False
    assert "did not end" in verdict.why
    assert time.monotonic() - began < 30


def test_checker_in_a_child_judges() -> None:
    """A pattern and a schema are judged the same in the child as here."""
    assert checkers.check(checkers.make("regex", "b+", {}), "abb").found == "bb"
    assert checkers.check(checkers.make("json", SCHEMA, {}), '{"n": 3}').right is True
    assert checkers.check(checkers.make("json", SCHEMA, {}), '{"n": 2}').right is False


HOSTILE = ["1" * 50_000, "1," * 20_000, "\\frac{" * 9_000, "**" * 20_000, "一" * 50_000]
HOSTILE += ["one " * 9_000, "\\boxed{" * 9_000, "answer is " * 9_000, "{" * 30_000, "[" * 30_000]


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda text: text[:8])
def test_long_nonsense_is_judged(answer: str) -> None:
    """An answer that goes in circles is judged like any other."""
    for checker in (
        numbers.Number("4"),
        texts.Choice("A"),
        texts.Exact("x"),
        texts.Contains(["x y"]),
        structured.JsonSchema({"const": 0}),
    ):
        assert checker.judge(answer).right in (True, False)


@pytest.mark.parametrize(
    ("kind", "expected", "options", "told"),
    [
        ("nmber", "1", {}, "number"),
        ("number", "1 or 2", {}, "expected"),
        ("number", "1", {"tolerence": 1}, "tolerence"),
        ("number", "1", {"units": "km"}, "units"),
        ("number", None, {}, "expected"),
        ("choice", "E", {}, "ABCD"),
        ("choice", "A", {"options": "abc"}, "options"),
        ("exact", "a", {"case": "yes"}, "case"),
        ("contains", "a", {}, "list"),
        ("contains", [], {}, "list"),
        ("regex", "(", {}, "regular expression"),
        ("regex", "a", {"flags": "q"}, "flags"),
        ("json", {"type": "objekt"}, {}, "JSON Schema"),
        ("code", "assert (", {"entry": "f"}, "Python"),
        ("code", "assert f()", {"entry": "not a name"}, "entry"),
    ],
)
def test_bad_options(kind: str, expected: Any, options: dict[str, Any], told: str) -> None:
    """A checker that makes no sense is refused with the option that is wrong."""
    with pytest.raises(ValueError, match=told):
        checkers.make(kind, expected, options)


def test_boxed_content() -> None:
    """The last box counts, with its inner braces; one that is cut off is none."""
    assert boxed("\\boxed{1} then \\boxed{\\frac{3}{4}}") == "\\frac{3}{4}"
    assert boxed("\\boxed{\\frac{3}{4}") is None
    assert boxed("none") is None


def test_code_blocks() -> None:
    """Fences of either kind, with or without a language, also when the last is cut off."""
    answer = "a\n```python\nx = 1\n```\n~~~\ny\n```\n~~~\n```py\nz"
    assert code_blocks(answer) == [("python", "x = 1"), ("", "y\n```"), ("py", "z")]


def test_code_is_found() -> None:
    """The last block that defines the wanted name is the code; bare code is code too."""
    answer = "```python\ndef f(): return 1\n```\nBetter:\n```python\ndef f(): return 2\n```\n"
    assert find_code(answer + "```python\nprint(f())\n```", "f") == "def f(): return 2"
    assert find_code("def f():\n    return 3", "f") == "def f():\n    return 3"
    assert find_code("  ```py\n  class F: pass\n  ```", "F") == "class F: pass"
    assert find_code("```js\nfunction f() {}\n```", "f") is None
    assert find_code("I would write f.", "f") is None


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("tokens", [300, 2000, 40_000])
def test_recall_documents(tokens: int, language: str) -> None:
    """A made document is as long as asked for, the same each time, and holds just its facts."""
    made = recall.make(tokens, 5, 7, language)
    assert made == recall.make(tokens, 5, 7, language)
    assert made != recall.make(tokens, 5, 8, language)
    assert abs(len(made.text) / recall.CHARS_PER_TOKEN / tokens - 1) < (
        0.6 if tokens < 999 else 0.1
    )
    told = [s for s in made.text.replace("\n\n", " ").split(". ") if " E" in s or "code" in s]
    causes = {c for c in made.expected if any(c in s and "422" in s for s in told)}
    assert causes == set(made.expected)
    assert all(code in made.text for code in made.without)
    assert not any(code in s and "422" in s for s in told for code in made.without)
    checker = checkers.make("contains", list(made.expected), {"without": list(made.without)})
    assert checker.judge(", ".join(made.expected)).right
    assert not checker.judge(", ".join(made.expected[1:])).right
    assert not checker.judge(", ".join((*made.expected, made.without[0]))).right
