"""Suites: figures, the journal, how a run goes, and what the built-in model scores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import qwq
from fakes import ScriptedEngine

from qwqcli import checkers
from qwqcli.engine import Engine
from qwqcli.errors import ContextFull, UsageError
from qwqcli.messages import Answer, Done, Order, Sampling, Stats
from qwqcli.suite import Outcome, Setup, Task, gym, journal, score
from qwqcli.suite.run import Wanted, run

HERE = Setup("scripted", "auto")


def outcome(prompt: str = "a", right: bool | None = True, **changes: object) -> Outcome:
    """An outcome of a reply that took two seconds."""
    made = Outcome(HERE, prompt, 1, 7, right, "4", "", "end", "closed")
    timed = replace(made, time_to_first_token_s=0.5, time_to_answer_s=1.0, generation_s=1.5)
    known = replace(timed, total_s=2.0, reasoning_tokens=10, answer_tokens=6)
    return replace(known, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("right", "trials", "low", "high"),
    [  # worked out by hand from Wilson's formula with z = 1.96
        (0, 0, 0.0, 1.0),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (95, 100, 0.8882, 0.9785),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson(right: int, trials: int, low: float, high: float) -> None:
    """The interval of a share is Wilson's, within 0 and 1."""
    assert score.wilson(right, trials) == pytest.approx((low, high), abs=5e-5)


def test_score() -> None:
    """Only judged replies count for the share, only asked ones for times; skipped are told."""
    found = score.score(
        [
            outcome("a"),
            outcome("b", False, time_to_answer_s=None, answer_tokens=0, thought_end=None),
            outcome("c", None),
            replace(outcome("d", None), stop="skipped", total_s=0.0),
        ]
    )
    assert (found.asked, found.judged, found.right, found.skipped) == (3, 2, 1, 1)
    assert found.share == 0.5
    assert found.unanswered == 1
    assert found.answer_s == 1.0
    assert dict(found.thoughts) == {"closed": 2, "cut": 1}
    assert found.tokens_per_s == pytest.approx((15 + 9 + 15) / 4.5)
    assert score.score([]).share is None


def test_change() -> None:
    """A setup is compared reply by reply; what only one of them was judged on is left out."""
    other = Setup("scripted", "1k")
    before = [outcome("a"), outcome("b", False), outcome("c"), outcome("e", None)]
    after = [
        outcome("a", False, setup=other, total_s=1.0),
        outcome("b", True, setup=other, total_s=1.0),
        outcome("c", True, setup=other, total_s=1.0),
        outcome("e", True, setup=other),
        outcome("f", True, setup=other),
    ]
    found = score.change(before, after)
    assert (found.pairs, found.gained, found.lost, found.seconds) == (3, 1, 1, -3.0)
    assert found.p_value == 1.0
    assert score.sign_test(0, 6) == pytest.approx(2 / 64)
    assert score.sign_test(0, 0) == 1.0


# --- the journal -------------------------------------------------------------------------------


def test_journal_goes_on(tmp_path: Path) -> None:
    """A run that was not finished is found again by what it asks, and half a line is dropped."""
    asked = {"suite": "x", "models": [["m", 1]]}
    book = journal.start(tmp_path, asked, 0.0)
    book.add(outcome("a"))
    with (book.folder / "outcomes.jsonl").open("a") as file:
        file.write('{"setup": {"mod')
    again = journal.start(tmp_path, asked, 100.0)
    assert again.folder == book.folder
    assert again.outcomes() == [outcome("a")]
    again.add(outcome("b"))
    assert [o.prompt for o in again.outcomes()] == ["a", "b"]
    assert journal.start(tmp_path, {**asked, "seed": 1}, 100.0).folder != book.folder
    assert journal.start(tmp_path, asked, 200.0, fresh=True).folder != book.folder


def test_journal_of_a_finished_run(tmp_path: Path) -> None:
    """What is done is not gone on with, is found by its name, and can be forgotten."""
    asked = {"suite": "x", "models": [["m", 1]]}
    book = journal.start(tmp_path, asked, 0.0)
    book.finish()
    assert journal.start(tmp_path, asked, 100.0).folder != book.folder
    assert journal.find(tmp_path, book.name) == book
    with pytest.raises(UsageError):
        journal.find(tmp_path, "nope")
    for each in journal.saved(tmp_path):
        each.remove()
    with pytest.raises(UsageError, match="No run is saved"):
        journal.find(tmp_path, "last")


# --- runs --------------------------------------------------------------------------------------

FOUR = checkers.make("number", "4", {})
TASKS = tuple(Task(name, f"{name}: 2 + 2?", FOUR, max_tokens=9) for name in "abc")


def wanted(**changes: object) -> Wanted:
    """A run of three tasks on a scripted engine."""
    base = Wanted("x", TASKS, (("scripted", Path(__file__)),), ("",), Sampling(), {})
    return replace(base, **changes)  # type: ignore[arg-type]


def test_run_judges_and_counts(tmp_path: Path) -> None:
    """Each reply is judged; what does not fit is skipped, an answer that is missing is wrong."""
    engine = ScriptedEngine([("Two and two.", "4"), ContextFull("too long"), ("Hm.", "")])
    book = journal.start(tmp_path, {}, 0.0)
    a, b, c = run(wanted(), lambda name: engine, book)
    assert (a.right, a.thought, a.reasoning, a.answer) == (True, "closed", "Two and two.", "4")
    assert (b.right, b.stop) == (None, "skipped")
    assert (c.right, c.why) == (False, "there is no number in the answer")
    assert book.outcomes() == [a, b, c]
    assert engine.closed == 1


def test_run_settings(tmp_path: Path) -> None:
    """A flag goes before what the prompt recommends, and that before the person's settings."""
    engine = ScriptedEngine([("", "4")])
    list(run(wanted(), lambda name: engine, journal.start(tmp_path, {}, 0.0)))
    assert {s.max_tokens for s in engine.sampling} == {9}
    engine = ScriptedEngine([("", "4")])
    flags = {"temperature": 2.0, "max_tokens": 5}
    list(run(wanted(flags=flags), lambda name: engine, journal.start(tmp_path, {"b": 1}, 0.0)))
    assert {(s.temperature, s.max_tokens) for s in engine.sampling} == {(2.0, 5)}


def test_seeds_follow_from_the_run(tmp_path: Path) -> None:
    """Each reply has a seed of its own, the same in the next run with the same seed."""

    def seeds(seed: int) -> list[int | None]:
        engine = ScriptedEngine([("", "4")])
        book = journal.start(tmp_path, {}, float(seed), fresh=True)
        list(run(wanted(seed=seed, repeat=2), lambda name: engine, book))
        return [s.seed for s in engine.sampling]

    assert len(set(seeds(1))) == 6
    assert seeds(2) == seeds(2)
    assert not set(seeds(3)) & set(seeds(4))


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """After a stop only what is not known is asked; a reply that was cut by it is asked again."""
    first = ScriptedEngine([("", "4")])
    book = journal.start(tmp_path, {}, 0.0)
    seen: list[str] = []
    for each in run(wanted(), lambda name: first, book, lambda: Order(len(seen) == 2)):
        seen.append(each.prompt)
    assert seen == ["a", "b"]
    second = ScriptedEngine([("", "4")])
    again = list(run(wanted(), lambda name: second, book))
    assert [o.prompt for o in again] == ["a", "b", "c"]
    assert [messages[-1].content for messages in second.sent] == ["c: 2 + 2?"]
    known = list(run(wanted(), _no_engine, book))
    assert len(known) == 3


def _no_engine(name: str) -> Engine:
    raise AssertionError("nothing is left to ask")


# --- the whole command -------------------------------------------------------------------------

OWN = """\
schema: 1
defaults: {language: en, checker: number}
prompts:
  - {id: own-a, title: A, text: 'What is 47 + 86?', expected: 133}
  - {id: own-b, title: B, text: 'What is 12 * 7?', expected: 84}
  - {id: own-c, title: C, text: 'What is 96 / 8?', expected: 12}
"""


@pytest.fixture
def own(environ: dict[str, str]) -> dict[str, str]:
    """A suite of a person's own: two that the built-in model can, one that it can't."""
    folder = Path(environ["QWQ_CONFIG_DIR"]) / "prompts"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(OWN)
    long = "    text: 'What is 1 + 1? " + "x " * 600 + "'\n"
    item = f"  - id: own-long\n    title: L\n{long}    expected: 2\n"
    head = "schema: 1\ndefaults: {language: en, checker: number}\nprompts:\n"
    (folder / "long.yaml").write_text(head + item)
    return environ


def test_bench_suite(own: dict[str, str]) -> None:
    """Two of three are right, the same seed gives the same replies, and saved ones can be read."""
    line = ("bench", "--suite", "mine", "--seed", "3", "--save", "--json")
    first, second = (json.loads(qwq(*line, environ=own).out) for _ in range(2))
    (figures,) = first["setups"]
    assert (figures["right"], figures["judged"]) == (2, 3)
    assert figures["low"] < 2 / 3 < figures["high"]
    assert figures["thoughts"] == {"closed": 3}
    replies = [(r["prompt"], r["right"], r["reasoning_tokens"]) for r in first["replies"]]
    assert replies == [(r["prompt"], r["right"], r["reasoning_tokens"]) for r in second["replies"]]
    listed = qwq("prompts", "show-run", environ=own).out.splitlines()
    assert len(listed) == 2
    name = listed[0].split()[0]
    assert "2/3" in qwq("prompts", "show-run", name, environ=own).out
    shown = qwq("prompts", "show-run", name, "own-a", environ=own).out
    assert "**133**" in shown
    assert "seed" in shown
    assert "own-c" in qwq("prompts", "show-run", name, "--wrong", environ=own).out


def test_bench_suite_compares_budgets(own: dict[str, str]) -> None:
    """Each budget is a row, beside the first, and no run is kept unless asked for."""
    result = qwq("bench", "--suite", "mine", "--budget", "off,8", environ=own)
    assert result.code == 0
    assert "tiny 8: thoughts ended 3 budget" in result.out
    assert "Beside tiny off" in result.out
    assert qwq("prompts", "show-run", environ=own).out == ""


def test_a_small_context_skips_and_is_worse(own: dict[str, str]) -> None:
    """A prompt that is longer than the context is skipped and counted, never failed."""
    result = qwq("bench", "--suite", "own-long", "--ctx", "256", "--json", environ=own)
    assert result.code == 0, result.err
    (figures,) = json.loads(result.out)["setups"]
    assert (figures["skipped"], figures["judged"]) == (1, 0)


@pytest.mark.parametrize(
    "words",
    [
        ("--suite", "nope"),
        ("--suite", "frames"),
        ("--suite", "mine", "--budget", "soon"),
        ("--suite", "mine", "--repeat", "0"),
        ("--suite", "mine", "--quant", "nope"),
    ],
)
def test_bad_suite_options(words: tuple[str, ...], own: dict[str, str]) -> None:
    """What makes no sense is said before anything is loaded, with what to type."""
    result = qwq("bench", *words, environ=own)
    assert result.code == 2
    assert "try:" in result.err


def test_a_killed_suite_goes_on(own: dict[str, str]) -> None:
    """After kill -9 the same command asks only what is left."""
    line = ("bench", "--suite", "mine", "--repeat", "4", "--save")
    words = [sys.executable, "-m", "qwqcli", *line]
    environ = {**own, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    assert child.stderr.readline().startswith(b"right")  # the first reply is known
    child.send_signal(signal.SIGKILL)
    child.communicate()
    (book,) = journal.saved(Path(own["QWQ_DATA_DIR"]))
    known = len(book.outcomes())
    assert 0 < known < 12
    result = qwq(*line, "--json", environ=own)
    assert f"{known} of 12 are known" in result.err
    (figures,) = json.loads(result.out)["setups"]
    assert (figures["right"], figures["judged"]) == (8, 12)


@pytest.mark.slow
def test_what_the_built_in_model_scores(environ: dict[str, str]) -> None:
    """Nearly all of its own kind of task is right, next to nothing else, and less when broken."""

    def share(suite: str, *words: str, **variables: str) -> float:
        line = ("bench", "--suite", suite, "--max-tokens", "1536", "--json", *words)
        (figures,) = json.loads(qwq(*line, environ={**environ, **variables}).out)["setups"]
        return float(figures["share"])

    assert share("tiny") >= 0.95
    assert share("arithmetic") <= 0.1
    assert share("logic") <= 0.1
    assert share("tiny", "--temperature", "2", QWQ_TOP_P="1") <= 0.8
    assert share("tiny", "--ctx", "256") <= 0.8


def test_gym_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without reasoning-gym the error says how to install it."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UsageError) as caught:
        gym.tasks("gym:chain_sum", 1)
    assert caught.value.hint == "pip install 'qwq[gym]'"


def test_gym_tasks() -> None:
    """With it, the seed makes the tasks and the generator's verifier judges them."""
    pytest.importorskip("reasoning_gym")
    tasks = gym.tasks("gym:chain_sum", 1)
    assert len(tasks) == gym.SIZE
    assert [t.text for t in tasks] == [t.text for t in gym.tasks("gym:chain_sum", 1)]
    right = tasks[0].judge.entry["answer"]
    assert tasks[0].judge.judge(f"\\boxed{{{right}}}").right is True
    assert tasks[0].judge.judge("\\boxed{nothing}").right is False
    with pytest.raises(UsageError) as caught:
        gym.tasks("gym:chain_sums", 1)
    assert caught.value.hint == "--suite gym:chain_sum"


def test_models_of_one_name(own: dict[str, str], tiny: Path, tmp_path: Path) -> None:
    """Two files of the same name are told apart by what was typed."""
    paths = [tmp_path / side / "same.gguf" for side in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.symlink_to(tiny)
    both = ",".join(map(str, paths))
    line = ("bench", "--suite", "own-a", "--quant", both, "--json")
    setups = json.loads(qwq(*line, environ=own).out)["setups"]
    assert [(s["model"], s["right"]) for s in setups] == [(str(path), 1) for path in paths]


def test_a_reply_that_died_is_not_judged(tmp_path: Path) -> None:
    """What the engine could not finish says nothing about the model."""
    engine = ScriptedEngine([[Answer("5", 1), Done("died", Stats())]])
    book = journal.start(tmp_path, {}, 0.0)
    assert {o.right for o in run(wanted(), lambda name: engine, book)} == {None}
