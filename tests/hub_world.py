"""A person with a home folder and a hub on loopback to pull from: for tests of `qwqcli.hub`."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hub_server import Fault, HubServer

from qwqcli.errors import BadFile
from qwqcli.hub import Event, Hub, Policy, Pulled

QWEN = "Qwen/QwQ-32B-GGUF"
FILE = "qwq-32b-q4_k_m.gguf"
# As patient as a test can be: small pieces, short waits.
FAST = Policy(
    connections=4,
    connect_s=2.0,
    stall_s=1.0,
    backoff_s=0.01,
    backoff_max_s=0.05,
    patience_s=5.0,
    tries=3,
    piece=256 << 10,
    split=1 << 30,
)


def model_bytes(size: int = 1_500_000, seed: int = 0) -> bytes:
    """Bytes that begin as a model file does and never repeat."""
    return b"GGUF" + random.Random(seed).randbytes(size - 4)


@dataclass
class World:
    """One person's folders and one hub; `pull` is what most tests do."""

    server: HubServer
    home: Path
    data: bytes = field(default_factory=model_bytes, repr=False)
    policy: Policy = FAST

    def __post_init__(self) -> None:
        self.server.add(QWEN, {FILE: self.data})

    @property
    def environ(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "HF_ENDPOINT": self.server.url,
            "OLLAMA_MODELS": str(self.home / "ollama"),
            "MODELSCOPE_ENDPOINT": self.server.url.replace("127.0.0.1", "localhost") + "/",
            "QWQ_DATA_DIR": str(self.home / "qwq-data"),
            "QWQ_CACHE_DIR": str(self.home / "qwq-cache"),
        }

    @property
    def cache(self) -> Path:
        """The Hugging Face cache."""
        return self.home / ".cache" / "huggingface" / "hub"

    @property
    def blobs(self) -> Path:
        return self.cache / f"models--{QWEN.replace('/', '--')}" / "blobs"

    def hub(self, environ: Mapping[str, str] | None = None, **options: Any) -> Hub:
        return Hub({**self.environ, **(environ or {})}, **{"policy": self.policy, **options})

    def patient(self, **changes: Any) -> None:
        """Change the policy of the hubs made from now on."""
        self.policy = replace(self.policy, **changes)

    def pull(self, text: str = "q4_k_m", hub: Hub | None = None, **options: Any) -> list[Event]:
        """All events of a pull that ends well."""
        hub = hub or self.hub()
        return list(hub.pull(hub.choose(text), **options))

    def pulled(self, *arguments: Any, **options: Any) -> Pulled:
        """The end of a pull."""
        last = self.pull(*arguments, **options)[-1]
        assert isinstance(last, Pulled)
        return last

    def leftovers(self) -> list[str]:
        """What is in the blobs folder besides finished files."""
        return [path.name for path in self.blobs.glob("*.incomplete*")]


def interrupted_pull(world: World, after: int, **options: Any) -> None:
    """Leave the first `after` bytes of a file behind, as a pull does that met an error."""
    usual = world.policy
    world.patient(connections=1, piece=1 << 30)
    world.server.faults = [Fault(cut=after, times=1), Fault(status=416)]
    with pytest.raises(BadFile):
        world.pull(**options)
    world.server.faults, world.policy = [], usual
