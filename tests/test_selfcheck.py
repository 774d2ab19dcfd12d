"""The first-run self-check: what is tried, what is remembered, and for what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qwqcli.engine import EngineSpec, selfcheck
from qwqcli.errors import EngineError

FAST = EngineSpec("m.gguf", extra_bufts=True)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The settings that were tried, on a machine where repacked weights kill the process."""
    settings: list[bool] = []

    def attempt(extra_bufts: bool) -> str:
        settings.append(extra_bufts)
        return "the process ended with -11: no output" if extra_bufts else ""

    monkeypatch.setattr(selfcheck, "attempt", attempt)
    return settings


def test_safe_settings_work_here() -> None:
    """On this very machine the safest setting answers the sum in every quantization."""
    assert selfcheck.attempt(False) == ""


def test_verdict_holds_here(cache: Path) -> None:
    """Whatever this machine is, the verdict of the real check is one that works."""
    spec, notices = selfcheck.trusted(FAST, cache)
    assert selfcheck.attempt(spec.extra_bufts) == ""
    assert notices == ()


def test_next_safer_setting_is_tried_and_remembered(tried: list[bool], tmp_path: Path) -> None:
    """A build that dies with repacked weights is used without them, and not tried again."""
    for _ in range(3):
        spec, _ = selfcheck.trusted(FAST, tmp_path)
        assert not spec.extra_bufts
    assert tried == [True, False]


def test_another_build_is_checked_anew(
    tried: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict holds for one build on one CPU."""
    selfcheck.trusted(FAST, tmp_path)
    monkeypatch.setattr(selfcheck, "fingerprint", lambda: "another")
    selfcheck.trusted(FAST, tmp_path)
    assert tried == [True, False] * 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"build": 1}', "\0"])
def test_torn_verdict_is_no_verdict(text: str, tried: list[bool], tmp_path: Path) -> None:
    """A file that is not ours leads to a new check, which mends it."""
    file = tmp_path / "selfcheck.json"
    file.write_text(text)
    selfcheck.trusted(FAST, tmp_path)
    assert tried
    assert json.loads(file.read_text())["extra_bufts"] is False


def test_verdict_never_adds_a_risk(tried: list[bool], tmp_path: Path) -> None:
    """Who asked for no repacked weights gets none, whatever the verdict."""
    (tmp_path / "selfcheck.json").write_text(
        json.dumps({"build": selfcheck.fingerprint(), "extra_bufts": True})
    )
    safe = replace(FAST, extra_bufts=False)
    assert selfcheck.trusted(FAST, tmp_path)[0].extra_bufts
    assert not selfcheck.trusted(safe, tmp_path)[0].extra_bufts
    assert tried == []


def test_build_that_never_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no setting works, the error says why and how to build one that does."""
    monkeypatch.setattr(selfcheck, "attempt", lambda extra_bufts: "it dies")
    with pytest.raises(EngineError, match="does not work on this machine: it dies") as caught:
        selfcheck.trusted(FAST, tmp_path)
    assert "pip install" in caught.value.hint
    assert not (tmp_path / "selfcheck.json").exists()


def test_wrong_answer_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that computes wrong numbers is as bad as one that dies."""
    monkeypatch.setattr(selfcheck, "RIGHT_ANSWER", "134")
    assert "in Q8_0 it says" in selfcheck._check(extra_bufts=False)


def test_check_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check has a time limit."""
    monkeypatch.setattr(selfcheck, "TIME_LIMIT_S", 0.01)
    assert "no answer within" in selfcheck.attempt(False)
