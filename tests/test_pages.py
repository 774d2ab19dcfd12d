"""KV states on disk: they change nothing but the time, and nothing broken reaches llama.cpp."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwqcli.conversation import Conversation, Turn
from qwqcli.engine import EngineSpec, Keep, pages
from qwqcli.engine.llama import LlamaEngine
from qwqcli.engine.pages import FOLDER, PAGE, Pages, make_room, maker_of, usage
from qwqcli.engine.process import ProcessEngine
from qwqcli.messages import Done, Message, Notice, Order, Sampling
from qwqcli.sessions import Store, new_session
from tests.command_line import qwq
from tests.test_cache import forget, wait

ONE = Sampling(temperature=0, max_tokens=1)
LONG = [Message("user", "What is 47 + 86? " * 60), Message("assistant", "133")]
QUESTION = Message("user", "And 12 - 5?")
GIB = 1 << 30


@pytest.fixture(scope="module")
def engine(tiny_spec: EngineSpec) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(tiny_spec)
    yield engine
    engine.close()


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    return Keep(str(tmp_path / "sessions" / "abc" / FOLDER), GIB)


def files(keep: Keep) -> list[Path]:
    return sorted(Path(keep.folder).glob("*.*"))


def reused(engine: LlamaEngine | ProcessEngine, messages: list[Message]) -> int:
    last = list(engine.stream([*messages, QUESTION], ONE))[-1]
    assert isinstance(last, Done)
    return last.stats.reused_tokens


@pytest.fixture
def loads(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ends of the pages that reached llama.cpp."""
    ends: list[int] = []
    add = engine._context.add_page

    def noted(state: bytearray, end: int) -> bool:
        ends.append(end)
        return add(state, end)

    monkeypatch.setattr(engine._context, "add_page", noted)
    return ends


def test_nothing_is_processed_again(engine: LlamaEngine, keep: Keep, loads: list[int]) -> None:
    """What was kept is taken from disk to its last token, and gives the very same logits."""
    forget(engine)
    engine.prepare(LONG, keep)
    cached = list(engine._cached)
    list(engine.stream([*LONG, QUESTION], ONE))
    before = engine._context.logits().copy()
    forget(engine)
    assert engine.prepare(LONG, keep, lambda: Order.STOP)  # needs no batch
    assert engine._cached == cached
    assert engine._context.length == len(cached) == loads[-1]
    list(engine.stream([*LONG, QUESTION], ONE))
    assert np.abs(engine._context.logits() - before).max() <= 1e-3


def test_what_is_in_the_cache_is_not_read(
    engine: LlamaEngine, keep: Keep, loads: list[int]
) -> None:
    """The disk is asked only for what the cache lacks, and told only what it lacks itself."""
    forget(engine)
    engine.prepare(LONG, keep)
    engine.prepare(LONG, keep)
    assert not loads
    times = {path: path.stat().st_ino for path in files(keep)}
    longer = [*LONG, QUESTION, Message("assistant", "7. " * 200)]
    engine.prepare(longer, keep)
    whole = [path for path in times if path.suffix == ".page"]
    assert all(path.stat().st_ino == times[path] for path in whole)
    assert len([path for path in files(keep) if path.suffix == ".tail"]) <= 1
    engine._reuse(engine._cached[: PAGE + 10])
    engine.prepare(longer, keep)
    assert loads[0] == 2 * PAGE


def test_only_the_owner_may_read(engine: LlamaEngine, keep: Keep) -> None:
    """A state tells what was said."""
    forget(engine)
    engine.prepare(LONG, keep)
    key = Path(keep.folder).parent.parent / "kv.key"
    if os.name == "posix":
        assert all(path.stat().st_mode & 0o077 == 0 for path in [key, *files(keep)])


def flip(path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def hostile(path: Path, other: Path) -> None:
    """A state whose count of cells makes llama.cpp abort, under a header that looks right."""
    data = path.read_bytes()
    path.write_bytes(data[:40] + b"\xff" * (len(data) - 40))


HARMS = {
    "one bit": flip,
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[:-1]),
    "cut in its head": lambda path, other: path.write_bytes(path.read_bytes()[:20]),
    "longer": lambda path, other: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path, other: path.write_bytes(b""),
    "hostile": hostile,
    "that of another place": lambda path, other: shutil.copy(other, path),
    "a folder": lambda path, other: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("harm", HARMS)
def test_broken_pages_never_reach_llama(
    engine: LlamaEngine, keep: Keep, loads: list[int], harm: str
) -> None:
    """A page that is not what was written is not used nor kept; all is as without it."""
    forget(engine)
    engine.prepare(LONG, keep)
    cached = list(engine._cached)
    chain = Pages(keep, engine._maker).of(cached)
    paths = [Path(keep.folder) / page.file for page in chain]
    HARMS[harm](paths[1], paths[0])
    forget(engine)
    assert engine.prepare(LONG, keep)
    assert engine._cached == cached
    assert loads == [PAGE]
    assert harm == "a folder" or paths[1].read_bytes()  # written anew


def test_pages_of_others_are_not_found(engine: LlamaEngine, keep: Keep, tmp_path: Path) -> None:
    """Another key, model file, build or cache type gives other names."""
    engine._pages(keep)
    tokens = list(range(600))
    own = [page.file for page in Pages(keep, engine._maker).of(tokens)]
    assert own == [page.file for page in Pages(keep, engine._maker).of(tokens)]
    assert own[:1] == [page.file for page in Pages(keep, engine._maker).of(tokens[:300])][:1]
    model, placement = tmp_path / "m.gguf", {"n_ctx": 1, "type_k": "f16"}
    shutil.copy(engine._path, model)
    maker = maker_of(model, "build", placement)
    makers = [maker_of(model, "other", placement), maker_of(model, "build", {"type_k": "q8_0"})]
    data = bytearray(model.read_bytes())
    data[len(data) // 2 + 1] ^= 1
    times = model.stat()
    model.write_bytes(data)
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
    makers.append(maker_of(model, "build", placement))  # a changed sample, same time and size
    names = [{page.file for page in Pages(keep, m).of(tokens)} for m in (maker, *makers)]
    assert all(not a & b for at, a in enumerate(names) for b in names[at + 1 :])
    assert maker_of(model, "build", {**placement, "n_ctx": 2}) == makers[-1]
    (Path(keep.folder).parent.parent / "kv.key").write_bytes(b"k" * 32)
    assert not set(own) & {page.file for page in Pages(keep, engine._maker).of(tokens)}


def test_a_key_cut_off_is_made_anew(tmp_path: Path) -> None:
    """Half a key is none."""
    keep = Keep(str(tmp_path / "a" / FOLDER), GIB)
    (tmp_path / "kv.key").write_bytes(b"half")
    assert Pages(keep, "m").of([1, 2]) == []
    assert len(Pages(keep, "m").of([1, 2])) == 1


def test_least_recently_used_go_first(tmp_path: Path) -> None:
    """Over the cap, those go that were used longest ago, and of one talk its end first."""
    state = memoryview(bytes(1000))
    used = []
    for name in ("old", "new"):
        keep = Keep(str(tmp_path / name / FOLDER), 4200)
        mine = Pages(keep, "m")
        chain = mine.of(range(2 * PAGE))
        assert all(mine.write(page, state) for page in chain)
        mine.touch(chain)
        used.append((mine, chain))
    (old, first), (new, second) = used
    third = new.of(range(3 * PAGE))[2]
    assert new.write(third, state)
    assert [old.has(page) for page in first] == [True, False]
    assert all(new.has(page) for page in (*second, third))
    assert sum(usage(tmp_path).values()) <= 4200
    assert make_room(tmp_path, 0) > 0
    assert usage(tmp_path) == {}


def test_a_cap_too_small_keeps_nothing(tmp_path: Path) -> None:
    """Nor does 0, which does not even make a key."""
    small = Keep(str(tmp_path / "a" / FOLDER), 100)
    mine = Pages(small, "m")
    assert not mine.write(mine.of([1])[0], memoryview(bytes(1000)))
    assert Pages(Keep(str(tmp_path / "b" / "c" / FOLDER), 0), "m").of([1]) == []
    assert not (tmp_path / "b").exists()


def test_a_disk_that_fails_is_no_disk(engine: LlamaEngine, tmp_path: Path) -> None:
    """Where nothing can be written the talk goes on in memory; half-written files stay not."""
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / "abc").write_text("a file, not a folder")
    forget(engine)
    assert engine.prepare(LONG, Keep(str(tmp_path / "sessions" / "abc" / FOLDER), GIB))
    assert len(engine._cached) > PAGE


def test_a_full_disk_takes_no_page(
    engine: LlamaEngine, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages leave room on the disk for what matters."""
    monkeypatch.setattr(pages, "LEAVE_FREE", 1 << 60)
    forget(engine)
    assert engine.prepare(LONG, keep)
    assert not files(keep)


def test_a_question_interrupts_writing(engine: LlamaEngine, keep: Keep) -> None:
    """Between two pages; the rest is written the next time."""
    forget(engine)
    engine.prepare(LONG)
    orders = iter([Order.GO_ON, Order.STOP])
    assert not engine.prepare(LONG, keep, lambda: next(orders))
    assert len(files(keep)) == 1
    assert engine.prepare(LONG, keep)
    assert len(files(keep)) == len(Pages(keep, engine._maker).of(engine._cached))


def test_going_on_in_another_process(tiny_spec: EngineSpec, cache: Path, keep: Keep) -> None:
    """A child that was left at once has kept the whole pages it had; the next one begins there,
    also with a larger context."""
    child = ProcessEngine(tiny_spec, cache)
    list(child.stream(LONG[:1], ONE))
    child.prepare(LONG, keep)
    child.close()
    assert any(path.suffix == ".page" for path in files(keep))
    again = ProcessEngine(replace(tiny_spec, n_ctx=2048), cache)
    again.prepare(LONG, keep)
    wait(again)
    assert reused(again, LONG) > PAGE
    again.close()
    assert any(path.suffix == ".tail" for path in files(keep))


def test_a_dead_child_is_rebuilt_from_disk(tiny_spec: EngineSpec, cache: Path, keep: Keep) -> None:
    """After a death the next question finds what was kept, and how long the rest takes is told."""
    child = ProcessEngine(tiny_spec, cache)
    list(child.stream(LONG[:1], ONE))
    child.prepare(LONG, keep)
    wait(child)
    os.kill(child.pid, signal.SIGKILL)
    events = list(child.stream([*LONG, QUESTION], ONE))
    notice = next(event.text for event in events if isinstance(event, Notice))
    assert re.search(r"[\d,]+ tokens .* on disk: [\d,]+ s\.", notice)
    done = events[-1]
    assert isinstance(done, Done)
    assert done.stats.prompt_tokens - done.stats.reused_tokens < 40
    child.close()


def test_removed_with_its_session(tmp_path: Path, engine: LlamaEngine) -> None:
    """When a session is removed, nothing of its state stays."""
    with closing(Store(tmp_path / "sessions.db")) as store:
        session = new_session("tiny")
        store.save(session, 1, Conversation((Turn(1, None, "q", answer="a"),), 1).turns)
        folder = store.files(session.id)
        assert folder is not None
        forget(engine)
        engine.prepare(LONG, Keep(str(folder / FOLDER), GIB))
        assert usage(folder.parent)[session.id] > 0
        store.remove(session.id)
        assert usage(folder.parent) == {}


def test_cache_command(environ: dict[str, str], engine: LlamaEngine) -> None:
    """`qwq cache` shows what each session takes and the cap, and clears it."""
    root = Path(environ["QWQ_DATA_DIR"]) / "sessions"
    forget(engine)
    engine.prepare(LONG, Keep(str(root / "abcdefgh" / FOLDER), GIB))
    shown = qwq("cache", environ={**environ, "QWQ_SNAPSHOTS_GB": "0.5"})
    assert "abcdefgh" in shown.out
    assert "512.0 MiB" in shown.out
    plain = json.loads(qwq("cache", "--json", environ=environ).out)
    assert plain["sessions"]["abcdefgh"] > 0
    assert plain["cap_bytes"] == 8 * GIB
    assert "removed" in qwq("cache", "--clear", environ=environ).err
    assert json.loads(qwq("cache", "--json", environ=environ).out)["sessions"] == {}
