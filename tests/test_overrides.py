"""Settings that override the plan: what they take, what they refuse, and that they reach it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from command_line import qwq

from qwqcli import config
from qwqcli.config import Settings
from qwqcli.errors import UsageError

ASK = ("ask", "--stats", "--temperature", "0", "--max-tokens", "8", "What is 47 + 86?")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("flash_attn", "off", "off"),
        ("flash_attn", False, "off"),  # how YAML reads a bare off
        ("flash_attn", True, "on"),
        ("flash_attn", "auto", "auto"),
        ("flash_attn", None, None),
        ("kv", "q8_0", "q8_0"),
        ("kv", None, None),
        ("device", "CUDA0,RPC1", "CUDA0,RPC1"),
        ("gpu_layers", "12", 12),
        ("thinking", "show", "show"),
        ("min_p", 0, 0.0),
    ],
)
def test_a_value_becomes_what_the_setting_is(name: str, value: Any, expected: Any) -> None:
    """Choices, numbers and texts, each also where it may be left out."""
    assert config.convert(name, value, "a test") == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flash_attn", "maybe"),
        ("kv", True),
        ("kv", "q5_1"),
        ("thinking", False),  # not one of on and off
        ("threads", 513),  # GGML_MAX_N_THREADS is 512
        ("threads", True),
        ("ctx", 0),
        ("gpu_layers", -1),
    ],
)
def test_a_value_that_cannot_be_meant(name: str, value: Any) -> None:
    """Refused with the name of the setting and what would do."""
    with pytest.raises(UsageError, match=name):
        config.convert(name, value, "a test")


def test_a_bare_off_in_the_settings_file(tmp_path: Path) -> None:
    """`flash_attn: off` means off, though YAML reads it as a boolean."""
    path = tmp_path / "config.yaml"
    path.write_text("flash_attn: off\n", encoding="utf-8")
    expected = dataclasses.replace(Settings(), flash_attn="off")
    assert config.apply(Settings(), config.read_file(path), str(path)) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kv-type", "q8_0"], "KV q8_0"),
        (["--flash-attn", "on"], "all layers on the CPU"),
        (["--ctx", "512"], "512 tokens of context"),
        (["--threads", "64"], "64 threads on"),  # works, slowly, and that is said
    ],
)
def test_overrides_reach_the_engine(
    environ: dict[str, str], options: list[str], words: str
) -> None:
    """Each is seen in what is said of the load."""
    result = qwq(*ASK[:-1], *options, ASK[-1], environ=environ)
    assert words in result.err


@pytest.mark.parametrize(
    "options",
    [
        ["--kv-type", "q8_0", "--flash-attn", "off"],
        ["--kv-type", "q5_1"],
        ["--flash-attn", "perhaps"],
        ["--ctx", "4097"],
        ["--threads", "0"],
        ["--gpu-layers", "3"],
        ["--gpu-layers", "-3"],
        ["--no-gpu", "--gpu-layers", "3"],
        ["--device", "CUDA0"],
    ],
)
def test_an_override_that_cannot_work(environ: dict[str, str], options: list[str]) -> None:
    """On a machine without a GPU: one error and one line to type, before anything is loaded."""
    result = qwq("ask", "--stream-json", *options, "hi", environ=environ)
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 2
