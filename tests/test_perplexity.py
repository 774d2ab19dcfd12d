"""Perplexity and KL divergence: the arithmetic, the windows, and two real quantizations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from command_line import qwq

from qwqcli.engine import EngineSpec, perplexity
from qwqcli.engine.native import quantize
from qwqcli.errors import EngineError, UsageError

SUMS = [(n, n * 7 % 90) for n in range(99)]
TEXT = "".join(f"What is {a} + {b}? {a} + {b} = {a + b}. " for a, b in SUMS)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of some thousand tokens for the built-in model's vocabulary."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def result(
    spec: EngineSpec, text: Path, cache: Path, base: EngineSpec | None = None, windows: int = 2
) -> perplexity.Result:
    """What a measurement returns."""
    steps = perplexity.measure(spec, text, cache, n_ctx=256, windows=windows, base=base)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: perplexity.Result = end.value
            return found


def test_log_softmax() -> None:
    """Probabilities add up to one, also of logits that would overflow."""
    logs = perplexity.log_softmax(np.array([[0.0, 0.0], [1000.0, 0.0], [-3.0, 5.0]], np.float32))
    assert np.exp(logs).sum(axis=1) == pytest.approx([1, 1, 1])
    assert logs[0] == pytest.approx([-math.log(2)] * 2)


def test_sums_are_those_of_the_definition() -> None:
    """Two positions over two tokens, worked out by hand."""
    tally = perplexity._Tally()
    p = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    q = np.log(np.array([[0.25, 0.75], [0.9, 0.1]]))
    tally.add(q, [0, 1], p)
    sums = tally.sums(1)
    assert sums.scored == 2
    assert sums.perplexity == pytest.approx(math.exp(-(math.log(0.25) + math.log(0.1)) / 2))
    assert sums.kl_divergence == pytest.approx(0.5 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3)))
    assert sums.same_top == 0.5


def test_of_the_built_in_model(tiny_spec: EngineSpec, text: Path, cache: Path) -> None:
    """Each window scores its second half less one; a model is no way from itself."""
    found = result(tiny_spec, text, cache, base=tiny_spec)
    assert found.base is not None
    assert found.base.scored == 2 * 127
    assert 1 < found.base.perplexity < 1024
    assert found.model.perplexity == found.base.perplexity
    assert found.model.kl_divergence == pytest.approx(0, abs=1e-6)
    assert found.model.same_top is not None
    assert found.model.same_top > 0.99  # rounding can swap two that are nearly alike


def test_stopping_waits_for_no_window(tiny_spec: EngineSpec, text: Path, cache: Path) -> None:
    """A stop is seen while the model is still being loaded, and nothing is measured then."""
    steps = perplexity.measure(tiny_spec, text, cache, stop=lambda: True)
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value is None


def test_a_death_is_told(tiny_spec: EngineSpec, text: Path, cache: Path) -> None:
    """A child that dies is an error with the last thing that it said."""
    text.write_bytes(b"\xff")
    with pytest.raises(EngineError, match="ended with code 1: UnicodeDecodeError"):
        result(tiny_spec, text, cache)


def test_a_coarser_quantization_is_further_away(
    tiny_spec: EngineSpec, text: Path, cache: Path, tmp_path: Path
) -> None:
    """Q4_0 predicts in another way than Q8_0, and Q6_K is nearer to it."""
    away = []
    for name, ftype in (("q4_0", 2), ("q6_k", 18)):
        path = tmp_path / f"{name}.gguf"
        quantize(Path(tiny_spec.path), path, ftype, threads=1)
        spec = EngineSpec(str(path), threads=1, extra_bufts=tiny_spec.extra_bufts)
        away.append(result(spec, text, cache, base=tiny_spec).model.kl_divergence)
    coarse, fine = away
    assert coarse is not None
    assert fine is not None
    assert coarse > 2 * fine > 0


def test_of_another_vocabulary(
    tiny_spec: EngineSpec, smollm_spec: EngineSpec, text: Path, cache: Path
) -> None:
    """Two models that cut the text differently cannot be compared, and that is said."""
    with pytest.raises(UsageError, match="other tokens"):
        result(tiny_spec, text, cache, base=smollm_spec, windows=1)


def test_command(text: Path, environ: dict[str, str]) -> None:
    """`qwq bench --perplexity` prints figures with their errors, or one object."""
    line = ("bench", "--perplexity", str(text), "--ctx", "256", "--windows", "1")
    shown = qwq(*line, environ=environ)
    assert shown.code == 0, shown.err
    assert "127 tokens scored in 1 window of" in shown.out
    found = json.loads(qwq(*line, "--against", "tiny", "--json", environ=environ).out)
    assert found["perplexity"]["scored"] == 127
    assert found["perplexity"]["kl_divergence"] == pytest.approx(0, abs=1e-6)


def test_bad_texts(tmp_path: Path, environ: dict[str, str]) -> None:
    """A text that is missing, no text, or shorter than two windows is an error that says so."""
    short = tmp_path / "short.txt"
    short.write_text("What is 1 + 1?")
    told = qwq("bench", "--perplexity", str(short), environ=environ)
    assert told.code == 2
    assert "two windows of 512" in told.err
    assert qwq("bench", "--perplexity", str(tmp_path / "none"), environ=environ).code == 2
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert qwq("bench", "--perplexity", str(tmp_path / "bytes"), environ=environ).code == 2
