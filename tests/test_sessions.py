"""Conversations on disk: written, killed, shared, searched, migrated, removed."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwqcli.conversation import Conversation, Turn
from qwqcli.errors import StoreError, UsageError
from qwqcli.inputs import Attachment
from qwqcli.messages import Sampling, Stats
from qwqcli.sessions import STEPS, Session, Store, new_session, new_turn_id

ROOT = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store(path)) as store:
        yield store


def turn(question: str, answer: str = "", reasoning: str = "", parent: int | None = None) -> Turn:
    return Turn(new_turn_id(), parent, question, (), reasoning, answer, "end", asked=1.5)


def write(store: Store, *turns: Turn, name: str = "") -> Session:
    """A session in which these turns follow each other."""
    session = replace(new_session("tiny"), name=name)
    talk = Conversation()
    for one in turns:
        talk = talk.add(replace(one, parent=talk.head))
    store.save(session, talk.head, talk.turns)
    return session


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(
    question=TEXT,
    reasoning=TEXT,
    answer=TEXT,
    files=st.lists(st.builds(Attachment, TEXT, TEXT), max_size=3),
    stop=st.sampled_from(["end", "length", "context", "interrupted", "died", None]),
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_saved_is_loaded(store: Store, **parts: object) -> None:
    """Every part of a turn comes back as it was."""
    said = Turn(
        id=new_turn_id(),
        parent=None,
        question=str(parts["question"]),
        attachments=tuple(parts["files"]),  # type: ignore[arg-type]
        reasoning=str(parts["reasoning"]),
        answer=str(parts["answer"]),
        stop=parts["stop"],  # type: ignore[arg-type]
        stats=Stats(31, 12, 5, 7, 0.2, None, 0.1, 1.5, 42),
        sampling=Sampling(0.7, seed=42),
        model="tiny",
        asked=1.25,
    )
    session = write(store, said)
    assert store.load(session.id) == (session, Conversation((said,), said.id))


def test_a_tree_comes_back_in_order(store: Store) -> None:
    """Alternatives, the order of asking and the place of the person are kept."""
    first, other = turn("one", "1"), turn("one", "2")
    later = turn("two", "3", parent=first.id)
    talk = Conversation().add(first).add(other).add(later)
    session = new_session("tiny")
    store.save(session, talk.head, talk.turns)
    store.save(session, other.id)
    assert store.load(session.id)[1] == talk.at(other.id)


def test_a_reply_grows_by_pieces(store: Store) -> None:
    """Pieces are there as soon as they are appended; the whole turn replaces them."""
    asked = replace(turn("one"), stop=None)
    session = write(store, asked)
    store.append(asked.id, "I th", "")
    store.append(asked.id, "ink", "Fo")
    (loaded,) = store.load(session.id)[1].turns
    assert (loaded.reasoning, loaded.answer, loaded.stop) == ("I think", "Fo", None)
    whole = replace(asked, reasoning="I think", answer="Four", stop="end")
    store.save(session, asked.id, [whole])
    assert store.load(session.id)[1].turns == (whole,)


def test_half_a_character_does_not_stop_a_turn_from_being_saved(store: Store) -> None:
    """A lone surrogate, which no database takes, is replaced."""
    session = write(store, turn("a\udc80b"))
    assert store.load(session.id)[1].turns[0].question == "a?b"


# --- finding -----------------------------------------------------------------------------------


def test_sessions_are_found_by_name_and_id(store: Store) -> None:
    """By name in any case, by id, by the beginning of an id that only one has."""
    session = write(store, turn("one"), name="Sums")
    for word in ("Sums", "sums", session.id, session.id[:4]):
        assert store.find(word) == session.id
    for word in ("", "Sum", "absent"):
        with pytest.raises(UsageError, match="There is no session"):
            store.find(word)
    write(store, turn("two"))
    with pytest.raises(StoreError, match="has that name"):
        write(store, turn("three"), name="sUMS")
    with pytest.raises(UsageError):
        store.load("absent")


def test_no_word_is_no_session(store: Store) -> None:
    """An unset variable of a script must not name the one session without a name."""
    write(store, turn("one"))
    with pytest.raises(UsageError, match="no session ''"):
        store.find("")


def test_a_name_is_one_whatever_its_capitals(store: Store) -> None:
    """Beyond ASCII too, so that what can be saved can be found."""
    first, second = write(store, turn("one"), name="Ärger"), write(store, turn("two"))
    assert store.taken("ärger", second.id)
    assert not store.taken("ärger", first.id)
    assert store.find("ÄRGER") == first.id


def test_a_tree_that_lost_a_turn_is_read(store: Store) -> None:
    """A parent that is not there, a turn that is its own, and figures that are none."""
    session = write(store, turn("one"), turn("two"), turn("three"))
    first, second, third = store.load(session.id)[1].turns
    with closing(sqlite3.connect(str(store.path))) as db, db:
        db.execute("DELETE FROM turn WHERE id = ?", (first.id,))
        db.execute("UPDATE turn SET stats = '{', sampling = '[1]' WHERE id = ?", (second.id,))
    talk = store.load(session.id)[1]
    assert [one.question for one in talk.path()] == ["two", "three"]
    assert (talk.turns[0].stats, talk.turns[0].sampling) == (Stats(), Sampling())
    with closing(sqlite3.connect(str(store.path))) as db, db:
        db.execute("UPDATE turn SET parent = id WHERE id = ?", (third.id,))
    assert [one.question for one in store.load(session.id)[1].path()] == ["three"]


def test_what_was_removed_is_not_written_again(store: Store) -> None:
    """Who knows the session from before is told; nothing is left of what was to be written."""
    session = write(store, turn("one"))
    store.remove(session.id)
    with pytest.raises(StoreError, match="removed"):
        store.save(session, None, [turn("two")], session)
    assert store.summaries() == []


def test_the_list_begins_with_what_was_changed_last(store: Store) -> None:
    """With the number of turns and the beginning of the first question."""
    old, new = write(store, turn("one " * 100), turn("two")), write(store, turn("three"))
    assert [s.session for s in store.summaries()] == [new, old]
    store.save(old, None)
    first, second = store.summaries()
    assert (first.session, first.turns, first.first) == (old, 2, ("one " * 100)[:200])
    assert second.session == new
    assert store.latest() == old.id
    assert [s.session for s in store.summaries(limit=1)] == [old]


def test_search_looks_into_questions_thoughts_and_answers(store: Store) -> None:
    """The newest turn comes first, with where it was found and the text around it."""
    write(store, turn("How many r's?", "Three.", "Let me count: strawberry"), name="fruit")
    write(store, turn("strawberry?", "A fruit."), turn("这个苹果呢？", "很好吃。", "想一想"))
    hits = store.search("strawberry")
    assert [(hit.name, hit.where) for hit in hits] == [("", "question"), ("fruit", "thought")]
    assert hits[1].excerpt == "Let me count: strawberry"
    assert [hit.where for hit in store.search("苹果")] == ["question"]
    assert [hit.where for hit in store.search("一想")] == ["thought"]
    assert [hit.where for hit in store.search("好吃")] == ["answer"]
    assert store.search("absent") == store.search("'\"*") == []


def test_search_finds_a_reply_as_it_is_now(store: Store) -> None:
    """A turn that was written again is found by its new words only; an unfinished one as well."""
    asked = replace(turn("one", "apple"), stop=None)
    session = write(store, asked)
    store.append(asked.id, "pear", " plum")
    assert store.search("pear")
    assert store.search('"apple plum"')
    store.append(asked.id, "", " fig")
    store.save(session, asked.id, [replace(asked, answer="cherry", stop="end")])
    assert [bool(store.search(word)) for word in ("cherry", "apple", "pear")] == [1, 0, 0]
    index_is_sound(store.path)


def index_is_sound(path: Path | None) -> None:
    """SQLite's own checks of the database and of the index find nothing."""
    assert path is not None
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        db.execute("INSERT INTO found(found) VALUES ('integrity-check')")


# --- removing ----------------------------------------------------------------------------------


def test_what_is_removed_is_gone_from_every_file(store: Store, path: Path) -> None:
    """Neither database, log, index, backup nor the session's folder holds its words any more."""
    words = [f"zebra{number}" for number in range(300)]
    kept = write(store, turn("kept", "lion"))
    gone = write(store, turn("q " + " ".join(words), " ".join(words), "长颈鹿" * 2000))
    folder = store.files(gone.id)
    assert folder is not None
    folder.mkdir(parents=True)
    (folder / "cache").write_text("zebra")
    path.with_name("sessions.db.v0.bak").write_text("zebra")
    assert b"zebra250" in b"".join(file.read_bytes() for file in path.parent.glob("*db*"))
    assert store.remove(gone.id)
    left = b"".join(file.read_bytes() for file in path.parent.rglob("*") if file.is_file())
    assert b"zebra" not in left
    assert "颈鹿".encode() not in left
    assert b"lion" in left
    assert not folder.exists()
    assert [s.session for s in store.summaries()] == [kept]
    assert store.search("lion")
    assert not store.search("zebra1")
    index_is_sound(path)


def test_only_its_owner_reads_the_store(store: Store, path: Path) -> None:
    """The database and its log are private, whatever the umask."""
    write(store, turn("one"))
    for file in path.parent.glob("sessions.db*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


# --- versions ----------------------------------------------------------------------------------


def test_a_newer_store_is_refused_and_not_touched(path: Path) -> None:
    """A qwq that does not know it leaves it as it is and says what to do."""
    with closing(Store(path, (*STEPS, ("CREATE TABLE future (x)",)))) as newer:
        write(newer, turn("one"))
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer qwq") as caught:
        Store(path)
    assert "--no-save" in caught.value.hint
    assert path.read_bytes() == before


def test_an_older_store_is_migrated_after_a_copy(store: Store, path: Path) -> None:
    """The new version holds what the old one held, and the copy is the old one."""
    session = write(store, turn("one", "1"))
    step = ("ALTER TABLE turn ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'",)
    with closing(Store(path, (*STEPS, step))) as newer:
        assert newer.load(session.id) == store.load(session.id)
    backup = path.with_name("sessions.db.v1.bak")
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    with closing(Store(backup)) as old:
        assert [s.session for s in old.summaries()] == [session]


def test_a_migration_that_fails_changes_nothing(store: Store, path: Path) -> None:
    """The old version goes on working."""
    session = write(store, turn("one", "1"))
    with pytest.raises(StoreError):
        Store(path, (*STEPS, ("CREATE TABLE new (x)", "CREATE TABLE turn (x)")))
    assert store.load(session.id)[1].turns
    with closing(Store(path)) as again:
        assert again.search("one")


# --- what can go wrong -------------------------------------------------------------------------


def test_a_damaged_store_is_told(path: Path) -> None:
    """A file that is no database is left as it is; an empty one becomes a store."""
    path.parent.mkdir()
    path.write_bytes(b"no database" * 500)
    with pytest.raises(StoreError, match="damaged"):
        Store(path)
    assert path.read_bytes() == b"no database" * 500
    path.write_bytes(b"")
    Store(path).close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_loses_nothing(small_disk: Path) -> None:
    """What was saved before stays whole; when there is room again, saving goes on."""
    path = small_disk / "sessions.db"
    with closing(Store(path)) as store:
        session = write(store, turn("one", "1"))
        big = turn("two", "x" * 3_000_000)
        with pytest.raises(StoreError, match="full"):
            store.save(session, big.id, [big])
        assert [t.question for t in store.load(session.id)[1].turns] == ["one"]
        store.save(session, big.id, [replace(big, answer="small")])
        assert len(store.load(session.id)[1].turns) == 2
    index_is_sound(path)


def test_a_folder_that_cannot_be_written_is_told(small_disk: Path) -> None:
    """A read-only disk, or a file where the folder should be."""
    (small_disk / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        Store(small_disk / "file" / "sessions.db")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match="cannot be used"):
        Store(small_disk / "sessions.db")


def test_another_writer_is_waited_for(store: Store, path: Path) -> None:
    """While another process writes, saving waits; a lock that stays is told."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, lambda: other.execute("COMMIT"))
        release.start()
        session = write(store, turn("one"))
        release.join()
        other.execute("BEGIN IMMEDIATE")
        store._db.execute("PRAGMA busy_timeout = 50")
        with pytest.raises(StoreError, match="locked"):
            store.save(session, None)


WRITER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from qwqcli.conversation import Turn
from qwqcli.sessions import Store, new_session, new_turn_id
store = Store(Path(sys.argv[1]))
session = new_session("tiny")
parent = None
print("begin", session.id, flush=True)
for number in range(int(sys.argv[2])):
    asked = Turn(new_turn_id(), parent, f"question {number}")
    store.save(session, asked.id, [asked])
    print("asked", asked.id, flush=True)
    for piece in range(3):
        store.append(asked.id, "thought ", "")
        print("piece", asked.id, flush=True)
    whole = replace(asked, reasoning="thought " * 3, answer="x", stop="end")
    store.save(session, asked.id, [whole])
    print("ended", asked.id, flush=True)
    parent = asked.id
"""


def writer(path: Path, turns: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(turns)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_two_processes_write_at_once(path: Path) -> None:
    """Each finds all that it saved, from the creation of the store on."""
    writers = [writer(path, 20) for _ in range(2)]
    told = [process.communicate(timeout=60)[0] for process in writers]
    assert [process.returncode for process in writers] == [0, 0]
    with closing(Store(path)) as store:
        for lines in told:
            _, talk = store.load(lines.split()[1])
            assert [t.answer for t in talk.path()] == ["x"] * 20
        assert len(store.search("question 7", limit=100)) == 2
    index_is_sound(path)


def check_killed(path: Path, told: str) -> None:
    """All that was reported as saved before the kill is there, whole."""
    whole, _, _ = told.rpartition("\n")  # the last line may be cut where the pipe was full
    lines = [line.split() for line in whole.splitlines()]
    with closing(Store(path)) as store:
        if len(lines) < 2:
            return
        _, talk = store.load(lines[0][1])
        there = {str(t.id): t for t in talk.turns}
        for event, id in lines[1:]:
            assert id in there
            if event == "ended":
                assert (there[id].stop, there[id].answer) == ("end", "x")
        pieces = sum(event == "piece" and id == lines[-1][1] for event, id in lines[1:])
        assert there[lines[-1][1]].reasoning.count("thought") >= pieces
        assert len(store.search("question", limit=10_000)) >= len(there)


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_loses_nothing_that_was_saved(path: Path, kills: int) -> None:
    """kill -9, again and again on one store: never corrupt, and all that had returned is there."""
    chance = random.Random(kills)
    for _ in range(kills):
        process = writer(path, 10_000)
        assert process.stdout is not None
        begin = process.stdout.readline()
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        check_killed(path, begin + process.communicate()[0])
        index_is_sound(path)
