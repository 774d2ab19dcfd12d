"""The generator, the tokenizer and the template behind the built-in model."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from random import Random

import jinja2
import pytest

from qwqcli.builtin import model_path
from qwqcli.builtin.training import data, traces
from qwqcli.builtin.training.data import Item
from qwqcli.builtin.training.tokenizer import SPECIALS, Tokenizer

ARITHMETIC = ("add", "sub", "mul", "chain", "follow")
TEMPLATE = Path(data.__file__).with_name("template.jinja").read_text(encoding="utf-8")
# One equation of a trace: 8+5+1=14, 16-7-1=8, 2×7+2=14+2=16.
EQUATION = re.compile(r"\d+(?:[-+×]\d+)+(?:=\d+(?:[-+×]\d+)*)+")
WRITTEN = re.compile(r"(?:-> |Carry: |进位：)(\d+)")


def items(task: str, n: int, *, test: bool = True, slipped: bool = False) -> list[Item]:
    rng = Random(5)
    return [data.make(task, rng, test=test, slipped=slipped) for _ in range(n)]


def training_items(n: int) -> list[Item]:
    rng = Random(6)
    return [data.training_item(rng, data.MIX) for _ in range(n)]


def figure(expression: str) -> int:
    """Work out 16-7-1 or 2×7+2: products bind tighter, all else goes left to right."""
    return int(eval(expression.replace("×", "*")))


def random_text(rng: Random) -> str:
    planes = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
    return "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(0, 40)))


def test_training_never_sees_a_held_out_problem() -> None:
    """No key of any training item is held out, in sub-steps and follow-ups too."""
    assert not [k for item in training_items(2000) for k in item.keys if data.held_out(k)]


@pytest.mark.parametrize("task", ["add", "sub", "mul", "chain", "cmp", "count", "spell", "follow"])
def test_test_problems_are_held_out(task: str) -> None:
    """Every test item asks a problem that training cannot contain."""
    assert all(data.held_out(item.keys[0]) for item in items(task, 100))


def test_the_generator_is_deterministic() -> None:
    """One seed gives one stream of items."""
    assert training_items(300) == training_items(300)


@pytest.mark.parametrize("task", ARITHMETIC)
def test_every_equation_of_a_trace_holds(task: str) -> None:
    """Both sides of every equals sign agree, in the columns and in the check."""
    for item in items(task, 150):
        for equation in EQUATION.findall(item.think):
            assert len({figure(side) for side in equation.split("=")}) == 1, item.think


@pytest.mark.parametrize("task", ["add", "sub", "mul"])
def test_slips_are_wrong_and_mended(task: str) -> None:
    """A planted figure spoils the columns; after the check all is right and leads to the answer."""
    for item in items(task, 200, slipped=True):
        word = traces.WORDINGS[item.lang].redo
        before, redo, after = item.think.rpartition(word)
        assert redo
        assert traces.MARK_OPEN in before
        for equation in EQUATION.findall(after):
            assert len({figure(side) for side in equation.split("=")}) == 1, item.think


@pytest.mark.parametrize("slipped", [False, True])
@pytest.mark.parametrize("task", ["add", "sub", "mul"])
def test_the_answer_is_right_and_stands_in_the_trace(task: str, slipped: bool) -> None:
    """The answer is what Python computes, and its digits are the last ones written."""
    for item in items(task, 200, slipped=slipped):
        op, a, b = item.keys[0]
        right = {"add": a + b, "sub": a - b, "mul": a * b}[op]  # type: ignore[operator]
        assert data.value_of(item.answer) == str(right)
        assert int(WRITTEN.findall(item.think)[-1]) == abs(right)


def test_chains_add_up() -> None:
    """A sum of three numbers answers with what Python computes from it."""
    for item in items("chain", 200):
        expression, _, rest = item.answer.partition(" = ")
        assert data.value_of(rest.join(("= ", ""))) == str(figure(expression.replace(" ", "")))


def test_comparisons_are_right() -> None:
    """The signs in the answer and in both passes of the trace agree with Python."""
    for item in items("cmp", 500):
        x, y = (str(n) for n in item.keys[0][1:])
        sign = "=" if float(x) == float(y) else "<" if float(x) < float(y) else ">"
        last = re.findall(r"\d([<=>])\d", item.think.splitlines()[1])[-1]
        assert last == sign
        if re.search(r" [<=>] ", item.answer):
            assert f"{x} {sign} {y}" in item.answer


def test_letters_are_counted_right() -> None:
    """The running count of the trace ends at the answer, which is right."""
    for item in items("count", 500):
        word = str(item.keys[0][1])
        value = int(data.value_of(item.answer))
        assert int(re.findall(r"\d+", item.think)[-1]) == value
        letter = re.match(r"(?:Count|数) ?(\w?)[:：]", item.think)
        assert letter is not None
        assert value == (word.count(letter[1]) if letter[1] else len(word))


def test_follow_ups_see_answers_only() -> None:
    """History holds no reasoning, and the number a follow-up starts from stands in it."""
    for item in items("follow", 300):
        assert item.history
        assert "think" not in str(item.history)
        if found := re.search(r"(?:Last result: |上次结果：)(\d+)", item.think):
            assert data.value_of(item.history[-1][1]) == found[1]


@pytest.mark.parametrize("lang", data.LANGS)
def test_requests_beyond_the_model_get_the_honest_sentence(lang: str) -> None:
    """What it cannot do is answered in the language of the question, naming `qwq pull`."""
    rng = Random(1)
    answers = {data.make("unknown", rng, test=True, lang=lang).answer for _ in range(50)}
    assert answers == {data.HONEST[lang]}
    assert "qwq pull" in data.HONEST[lang]


def test_no_marks_reach_the_model() -> None:
    """The marks around planted slips are stripped completely."""
    for item in training_items(1000):
        text = traces.strip_marks(data.render_target(item))
        assert not set(text) & {traces.MARK_OPEN, traces.MARK_CLOSE}


def test_any_utf8_survives_the_tokenizer() -> None:
    """Encoding and decoding gives any text back."""
    rng, tokenizer = Random(2), Tokenizer.load()
    for text in [random_text(rng) for _ in range(300)] + ["", " ", "\r\n", "I'm  it's\t"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_letters_within_words_are_single_tokens() -> None:
    """Past its beginning a word is a row of letters: spelling is copying."""
    tokenizer = Tokenizer.load()
    tail = tokenizer.encode(" strawberry")[-6:]
    assert [tokenizer.decode([i]) for i in tail] == list("wberry")


def test_the_template_renders_what_the_model_was_trained_on() -> None:
    """The chat template and the generator write the same prompt, thinking on or off."""
    template = jinja2.Template(TEMPLATE)
    for item in training_items(500):
        turns = [{"role": "system", "content": item.system}] if item.system else []
        for question, answer in item.history:
            turns.append({"role": "user", "content": question})
            turns.append({"role": "assistant", "content": f"Hm.\n</think>\n\n{answer}"})
        turns.append({"role": "user", "content": item.user})
        options = {} if item.thinking else {"enable_thinking": False}
        prompt = template.render(messages=turns, add_generation_prompt=True, **options)
        assert prompt == data.render_prompt(item)


def test_the_shipped_file_is_small() -> None:
    """The wheel carries at most six megabytes of model."""
    assert model_path().stat().st_size <= 6_000_000


def test_llama_cpp_tokenizes_alike() -> None:
    """On the shipped file llama.cpp and our tokenizer give the same ids for any text."""
    llama_cpp = pytest.importorskip("llama_cpp")
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(model_path()).encode(), params)
    vocab = llama_cpp.llama_model_get_vocab(model)
    rng, tokenizer = Random(3), Tokenizer.load()
    texts = [data.render_prompt(item) + item.answer for item in training_items(300)]
    texts += [random_text(rng) for _ in range(300)] + ["".join(SPECIALS), "Straße's 'LL \n\n x"]
    for text in texts:
        raw = text.encode()
        out = (ctypes.c_int32 * (len(raw) + 8))()
        n = llama_cpp.llama_tokenize(vocab, raw, len(raw), out, len(out), False, True)
        assert list(out[:n]) == tokenizer.encode(text)
    llama_cpp.llama_model_free(model)
