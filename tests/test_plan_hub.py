"""`qwq plan` and the hub: exact sizes, headers by range, pulled models; and without a hub."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Result, qwq
from gguf_files import write_qwq_shaped
from hub_server import Body, Fault, HubServer
from hub_world import World

from qwqcli import quants, sizes
from qwqcli.gguf import read_file_header
from qwqcli.hardware import known_machine
from qwqcli.hub.sources import QWQ_REPOS
from qwqcli.plan import make_plan

PLAN = ("plan", "--machine", "3090", "--json")
SUM = "0" * 64


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A hub with IQ4_XS in its second repository and Q4_K_M in the first, without the bytes."""
    with HubServer() as server:
        world = World(server, tmp_path)
        publish(world, QWQ_REPOS[0], tmp_path, {"qwq-32b-q4_k_m.gguf": 19_851_336_512})
        publish(world, QWQ_REPOS[1], tmp_path, {"Qwen_QwQ-32B-IQ4_XS.gguf": 17_691_234_567})
        publish(world, QWQ_REPOS[2], tmp_path, {"QwQ-32B-IQ4_XS.gguf": 17_700_000_001})
        yield world


def publish(world: World, repo: str, folder: Path, files: dict[str, int]) -> None:
    bodies = {}
    for name, size in files.items():
        path = folder / f"{repo.replace('/', '-')}-{name}"
        with path.open("wb") as file:
            file.truncate(size)
        bodies[name] = Body(path, SUM)
    world.server.repos.pop(repo, None)
    world.server.add(repo, {}).files.update(bodies)


def asked(world: World) -> int:
    """Requests that the hub has seen."""
    return len(world.server.log)


def rows(result: Result) -> dict[str, Any]:
    return {row["quantization"]: row for row in json.loads(result.out)["quantizations"]}


def test_sizes_are_the_hubs(world: World) -> None:
    """What the hub offers has its exact size, from the repository that a pull would take."""
    found = rows(qwq(*PLAN, environ=world.environ))
    assert (found["iq4_xs"]["file_bytes"], found["iq4_xs"]["approximate"]) == (
        17_691_234_567,
        False,
    )
    assert found["q4_k_m"]["file_bytes"] == 19_851_336_512
    assert found["iq4_nl"]["approximate"]
    assert asked(world) == len(QWQ_REPOS)


def test_sizes_are_asked_for_once_a_day(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second plan asks nobody; a day later it asks again; another source is another answer."""
    first = qwq(*PLAN, environ=world.environ)
    requests = asked(world)
    assert qwq(*PLAN, environ=world.environ) == first
    assert asked(world) == requests
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    qwq(*PLAN, environ=world.environ)
    assert asked(world) == 2 * requests
    mirror = world.server.url.replace("127.0.0.1", "localhost")
    qwq(*PLAN, "--source", mirror, environ=world.environ)
    assert asked(world) == 3 * requests


def test_a_quantization_by_name_has_the_hubs_size(world: World) -> None:
    """One that is no mix of llama.cpp's own is scaled to its size; of the others all is known."""
    plan = json.loads(qwq(*PLAN, "iq4_xs", environ=world.environ).out)
    held = sum(device["weights_bytes"] for device in plan["devices"])
    assert held == pytest.approx(17_691_234_567 - quants.HEADER_BYTES, abs=64)
    requests = asked(world)
    qwq(*PLAN, "q4_k_m", environ={**world.environ, "QWQ_CACHE_DIR": str(world.home / "other")})
    assert asked(world) == requests


TROUBLE = [
    Fault(on="hub", status=500),
    Fault(on="hub", html=True),
    Fault(on="hub", delay=1.0),  # longer than the time limit of this test
]


@pytest.mark.parametrize("fault", TROUBLE, ids=["500", "a login page", "too slow"])
def test_without_an_answer_the_own_sizes_do(
    world: World, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that fails or is slow is no error: rounded sizes, and a note that says so."""
    monkeypatch.setattr(sizes, "LIMIT_S", 0.4)
    world.server.faults = [fault]
    result = qwq("plan", "--machine", "3090", environ=world.environ)
    assert (result.code, result.err) == (0, "")
    assert "~17.7 GB" in result.out
    assert "the hub has not said them" in result.out


def test_offline_asks_nobody(world: World) -> None:
    """Neither with the option nor with the variable; what was kept is used however old."""
    for argv, more in [((*PLAN, "--offline"), {}), (PLAN, {"HF_HUB_OFFLINE": "1"})]:
        assert rows(qwq(*argv, environ={**world.environ, **more}))["iq4_xs"]["approximate"]
    assert asked(world) == 0
    qwq(*PLAN, environ=world.environ)
    kept = world.home / "qwq-cache" / "sizes.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "time": 0}))
    assert not rows(qwq(*PLAN, "--offline", environ=world.environ))["iq4_xs"]["approximate"]


@pytest.mark.parametrize("text", ["", "[]", '{"sizes": 3}', '{"sizes": {"q8_0": -1}}', "\0"])
def test_a_damaged_cache_is_none(world: World, text: str) -> None:
    """Whatever stands in the file, the hub is asked and the file written anew."""
    kept = world.home / "qwq-cache" / "sizes.json"
    kept.parent.mkdir()
    kept.write_text(text)
    assert not rows(qwq(*PLAN, environ=world.environ))["iq4_xs"]["approximate"]
    assert json.loads(kept.read_text())["sizes"]["iq4_xs"] == 17_691_234_567


def test_another_mix_is_not_taken_for_ours() -> None:
    """A q4_k_m that is 300 MB larger is scaled; some kilobytes of header are not."""
    near = quants.model_info(quants.sized({"q4_k_m": 19_851_400_000})[5])
    assert near.layer_bytes == quants.model_info(quants.BY_NAME["q4_k_m"]).layer_bytes
    other = quants.model_info(quants.sized({"q4_k_m": 20_150_000_000})[5])
    assert other.file_bytes == pytest.approx(20_150_000_000, abs=64)


def test_a_size_that_cannot_be_is_not_taken() -> None:
    """A hub that says 1 byte, or ten times too many, is not believed."""
    assert quants.sized({"q4_k_m": 1, "iq4_xs": 177_000_000_000}) == quants.QUANTS


# --- models by name ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["o/m:q8_0", "o/m", "o/m:sub/qwq-32b-q8_0.gguf", "URL/o/m/blob/main/sub/qwq-32b-q8_0.gguf"],
)
def test_a_model_on_the_hub(world: World, tmp_path: Path, name: str) -> None:
    """REPO, REPO:QUANT, REPO:FILE or a URL: the plan of its file, of which only the header came."""
    path = write_qwq_shaped(tmp_path / "remote.gguf", "q8_0", vocab=20_000)
    world.server.add("o/m", {}).files["sub/qwq-32b-q8_0.gguf"] = Body(path, SUM)
    argv = (*PLAN, name.replace("URL", world.server.url), "--ctx", "4096")
    result = qwq(*argv, environ=world.environ)
    assert result.code == 0, result.err
    plan = json.loads(result.out)
    held = sum(device["weights_bytes"] for device in plan["devices"])
    assert held == read_file_header(path).tensor_bytes
    assert world.server.sent < 8 << 20


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["o/none"], 2, "no repository o/none"),
        (["o/none", "--offline"], 4, "--offline"),
        (["Qwen/QwQ-32B-GGUF:q2_k"], 2, "Q4_K_M"),
        (["models/none.gguf"], 2, "no file"),
        (["--source", "nowhere", "o/m"], 2, "source"),
    ],
)
def test_a_model_that_is_not_there(world: World, argv: list[str], code: int, words: str) -> None:
    """One error and what to type, also offline and for the path of a file."""
    result = qwq(*PLAN, *argv, environ=world.environ)
    assert (result.code, result.out) == (code, "")
    assert words in result.err
    assert "  try: " in result.err


def test_a_pulled_model_by_name(world: World, tmp_path: Path) -> None:
    """A model that was pulled is planned from its own file, and nobody is asked."""
    path = write_qwq_shaped(tmp_path / "small.gguf", layers=2, vocab=1024)
    with path.open("r+b") as file:
        file.truncate(read_file_header(path).file_bytes)
    world.server.repos.clear()
    small = tmp_path / "qwq-32b-q4_k_m.gguf"
    path.rename(small)
    world.hub().adopt(small)
    requests = asked(world)
    plan = json.loads(qwq(*PLAN, "qwq-32b-q4_k_m", environ=world.environ).out)
    assert plan["layers_total"] == 3
    assert asked(world) == requests


def test_plans_are_made_of_what_is_said(world: World) -> None:
    """The sizes of the hub are what the plans in the table are made of."""
    quant = next(q for q in quants.sized({"iq4_xs": 17_691_234_567}) if q.name == "iq4_xs")
    plan = make_plan(quants.model_info(quant), known_machine("3090"))
    row = rows(qwq(*PLAN, environ=world.environ))["iq4_xs"]["plan"]
    assert row["devices"][0]["weights_bytes"] == plan.devices[0].weights_bytes
