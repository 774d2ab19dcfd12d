"""Texts that are too long: the oldest lines go, and what went is told."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwqcli.trim import oldest
from tests.command_line import qwq


def words(texts: Sequence[str]) -> int:
    """A prompt of a question of 3 tokens and the words of `texts`."""
    return 3 + sum(len(text.split()) for text in texts)


LINES = "\n".join(f"line {at}" for at in range(50))  # 100 tokens
MARK = r"\[([\d,]+) tokens left out here\]"  # 5 words


def test_what_fits_stays() -> None:
    """Nothing is cut where there is room."""
    cuts = oldest([LINES], words, 103)
    assert cuts
    assert [(cut.text, cut.left_out) for cut in cuts] == [(LINES, 0)]


def test_the_end_stays() -> None:
    """As few whole lines as possible go, the first ones."""
    (cut,) = oldest([LINES], words, 48) or []
    assert cut.text.split("\n")[0] == "[60 tokens left out here]"
    assert cut.text.split("\n")[1:] == [f"line {at}" for at in range(30, 50)]
    assert cut.left_out == 60
    assert words([cut.text]) == 48


def test_the_first_text_goes_first() -> None:
    """A later text is cut only when nothing of the earlier is left; empty ones are passed by."""
    empty, gone, cut = oldest(["", LINES, LINES], words, 58) or []
    assert gone.text == "[100 tokens left out here]"
    assert (gone.gone, gone.left_out) == (True, 100)
    assert cut.text.endswith("line 48\nline 49")
    assert (empty.text, cut.gone) == ("", False)


def test_a_short_text_is_not_replaced_by_a_longer_line() -> None:
    """What takes less than the line that would stand for it stays."""
    short, cut = oldest(["two words", LINES], words, 60) or []
    assert short.left_out == 0
    assert cut.left_out


def test_a_line_that_is_too_long_is_cut_itself() -> None:
    """Of the last text the end stays, though it be one line."""
    (cut,) = oldest(["x " * 500 + "END"], words, 40) or []
    assert cut.text.endswith("x END")
    assert words([cut.text]) == 40


def test_no_cut_is_enough() -> None:
    """A question that fills the context alone cannot be helped."""
    assert oldest([LINES], words, 3) is None
    assert oldest([], words, 2) is None


@given(
    st.lists(st.text(alphabet="ab \n", max_size=60), max_size=5),
    st.integers(min_value=0, max_value=60),
)
def test_any_texts(texts: list[str], room: int) -> None:
    """Whatever is cut fits, ends as it did, and says how much is missing."""
    cuts = oldest(texts, words, room)
    if cuts is None:
        assert words(texts) > room
        return
    assert words([cut.text for cut in cuts]) <= room
    for text, cut in zip(texts, cuts, strict=True):
        mark = re.match(MARK + r"\n?", cut.text)
        assert bool(mark) == bool(cut.left_out)
        assert text.rstrip("\n").endswith(cut.text[mark.end() if mark else 0 :].rstrip("\n"))


# --- qwq ask --------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "long.log"
    path.write_text("".join(f"it is {at} o'clock\n" for at in range(190)))
    return path


def ask(log: Path, environ: dict[str, str], *options: str) -> tuple[int, str, str]:
    run = qwq(
        *("ask", "-m", "tiny", "--ctx", "1024", "--temperature", "0", "--max-tokens", "8"),
        *(*options, "-f", str(log), "What is 47 + 86?"),
        environ=environ,
    )
    return run.code, run.out, run.err


def test_ask_tells_what_is_missing(log: Path, environ: dict[str, str]) -> None:
    """Too long is an error with all numbers, and with what would help; nothing is on stdout."""
    for options in ([], ["--json"]):
        code, out, err = ask(log, environ, *options)
        assert (code, out) == (7, "")
        found = re.search(
            r"has ([\d,]+) tokens .* 1,024 has room for 768 .*: ([\d,]+) too many", err
        )
        assert found
        needed, over = (int(number.replace(",", "")) for number in found.groups())
        assert needed - over == 768
        assert re.search(r"try: --trim oldest, or --ctx 4096 \([\d.]+ MiB more: fits\)", err)


def test_ask_trims(log: Path, environ: dict[str, str]) -> None:
    """With --trim oldest the end is asked about, and what was left out is said on stderr."""
    _, _, err = ask(log, environ, "--trim", "oldest", "--no-think")  # its prompt is longer
    assert "too many" not in err
    code, out, err = ask(log, environ, "--trim", "oldest", "--json")
    assert re.search(r"\[--trim oldest left out the beginning of long.log, [\d,]+ tokens\]", err)
    prompt = json.loads(out)["stats"]["prompt_tokens"]
    assert 740 < prompt <= 768
    assert code in (0, 7)  # a model this small may think on


def test_a_question_is_never_trimmed(environ: dict[str, str]) -> None:
    """Nor is cutting advised where it would not help."""
    question = "What is 47 + 86? " * 200
    run = qwq(
        *("ask", "-m", "tiny", "--ctx", "1024", "--trim", "oldest"),
        question,
        environ=environ,
    )
    assert run.code == 7
    assert "try: a shorter question" in run.err


def test_trim_takes_one_word(environ: dict[str, str]) -> None:
    """Anything else is refused with it, before the model is loaded."""
    run = qwq("ask", "--trim", "newest", "x", environ=environ)
    assert run.code == 2
    assert "--trim oldest" in run.err
