"""Budgets for thinking, as a person writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import qwq

from qwqcli import budget, config
from qwqcli.errors import UsageError
from qwqcli.messages import Budget

WORDS = [
    ("auto", Budget(31_268, None, 1_500, True)),
    ("off", Budget(None, None, 1_500, False)),
    ("0", Budget(0, None, 1_500, True)),
    ("4k", Budget(4_096, None, 1_500, True)),
    ("1.5K", Budget(1_536, None, 1_500, True)),
    ("4000", Budget(4_000, None, 1_500, True)),
    ("90s", Budget(None, 90.0, 1_500, True)),
    (" 10 min ", Budget(None, 600.0, 1_500, True)),
    ("2m", Budget(None, 120.0, 1_500, True)),
    ("1h", Budget(None, 3_600.0, 1_500, True)),
]


@pytest.mark.parametrize(("text", "wanted"), WORDS, ids=[text for text, _ in WORDS])
def test_words(text: str, wanted: Budget) -> None:
    """A number of tokens, k for 1,024 of them, or a time with its unit; and three words."""
    assert budget.parse(text) == wanted
    assert budget.describe(text).endswith(".")


@pytest.mark.parametrize(
    "text", ["", "lots", "-1", "4kk", "k", "1e9", "9999999999", "9999h", "4 2"]
)
def test_slips(text: str) -> None:
    """What is no budget is refused with those that are."""
    with pytest.raises(UsageError, match=r"budget|more than") as error:
        budget.parse(text)
    assert "90s" in error.value.hint


@pytest.mark.parametrize(
    ("line", "wanted"), [("off", "off"), ("4k", "4k"), ("0", "0"), ("3000", "3000")]
)
def test_in_the_settings_file(tmp_path: Path, line: str, wanted: str) -> None:
    """YAML reads a bare `off` as false and 3000 as a number; both are what was written."""
    (tmp_path / "config.yaml").write_text(f"think_budget: {line}\n", encoding="utf-8")
    settings = config.load({"QWQ_CONFIG_DIR": str(tmp_path)})
    assert settings.think_budget == wanted
    assert settings.thinks == (wanted != "0")


def test_a_slip_names_its_source(environ: dict[str, str]) -> None:
    """A bad budget is told before anything is loaded, with where it was set."""
    result = qwq("ask", "--think-budget", "soon", "x", environ=environ)
    assert result.code == 2
    assert "the command line sets think_budget: 'soon' is not a budget" in result.err
    result = qwq("ask", "x", environ={**environ, "QWQ_THINK_BUDGET": "soon"})
    assert "the environment sets think_budget" in result.err


ASKED = "How many r's are in strawberry?"


def test_ask_within_a_budget(environ: dict[str, str]) -> None:
    """The thought ends at its budget, the answer follows, and JSON says how it was."""
    result = qwq("ask", "--json", "--think-budget", "12", "--seed", "1", ASKED, environ=environ)
    value = json.loads(result.out)
    assert (result.code, value["thought_end"]) == (0, "budget")
    assert value["answer"].strip()
    assert value["reasoning"].endswith("thinking directly now.")


def test_ask_without_a_thought(environ: dict[str, str]) -> None:
    """--no-think answers at once, whatever budget is set elsewhere."""
    result = qwq("ask", "--json", "--no-think", "--think-budget", "4k", ASKED, environ=environ)
    value = json.loads(result.out)
    assert (value["reasoning"], value["thought_end"]) == ("", None)
    assert value["stats"]["reasoning_tokens"] == 0
    assert value["answer"].strip()
