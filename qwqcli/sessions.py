"""Conversations on disk: one SQLite database (WAL, FTS5) that several processes may use at once.

Contract: what `save` and `append` were given is on disk when they return, and a process that is
killed at any moment leaves a whole database behind. Text is kept as it was said; the index sees it
through `fulltext`. `remove` leaves nothing to find: freed pages are overwritten, the index is
merged, the log is emptied, and backups go as well. A database of a newer version is refused, one of
an older version is copied and then migrated. Every failure is a StoreError, which a chat survives.

Each session has a stable id, and a folder of its own for files that belong to it (`files`).
Limits: a turn is found by search once its reply has ended, or when the next search looks.
Non-goals: what a conversation is (`conversation`), when to save (`repl`), export (`export`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from qwqcli import fulltext
from qwqcli.conversation import Conversation, Turn
from qwqcli.errors import StoreError, UsageError
from qwqcli.inputs import Attachment
from qwqcli.messages import Sampling, Stats

BUSY_S = 5.0  # how long another process may be writing before we give up
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # of an id; none that is read as another

# Each step brings the database from the version before it to its own. Never change one that was
# released: add another.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE session (
            id TEXT PRIMARY KEY, name TEXT UNIQUE COLLATE NOCASE, model TEXT NOT NULL,
            system TEXT NOT NULL, head INTEGER, origin TEXT NOT NULL,
            created REAL NOT NULL, changed REAL NOT NULL)""",
        """CREATE TABLE turn (
            row INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE,
            session TEXT NOT NULL REFERENCES session(id) ON DELETE CASCADE,
            parent INTEGER, question TEXT NOT NULL, reasoning TEXT NOT NULL, answer TEXT NOT NULL,
            stop TEXT, stats TEXT NOT NULL, sampling TEXT NOT NULL, model TEXT NOT NULL,
            asked REAL NOT NULL, indexed INTEGER NOT NULL DEFAULT 0)""",
        "CREATE INDEX turn_session ON turn(session, row)",
        "CREATE INDEX turn_unindexed ON turn(row) WHERE NOT indexed",
        """CREATE TABLE attachment (
            turn INTEGER NOT NULL REFERENCES turn(id) ON DELETE CASCADE,
            name TEXT NOT NULL, text TEXT NOT NULL)""",
        "CREATE INDEX attachment_turn ON attachment(turn)",
        # what came of a reply since its turn was written; so a long one costs as it grows
        """CREATE TABLE piece (
            turn INTEGER NOT NULL REFERENCES turn(id) ON DELETE CASCADE,
            reasoning TEXT NOT NULL, answer TEXT NOT NULL)""",
        "CREATE INDEX piece_turn ON piece(turn)",
        # holds no copy of the text: an entry is deleted by giving the same text again
        """CREATE VIRTUAL TABLE found USING fts5(
            question, reasoning, answer, content='', tokenize='unicode61 remove_diacritics 2')""",
    ),
)


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation's place in the store. Times are seconds since 1970."""

    id: str
    name: str = ""
    model: str = ""
    system: str = ""
    origin: str = ""  # id of the session that it branched from
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """What a list shows of a session."""

    session: Session
    changed: float
    turns: int
    first: str  # the beginning of its first question


@dataclass(frozen=True, slots=True)
class Hit:
    """One turn that a search found, where in it, and the text around that place."""

    session: str
    name: str
    turn: int
    asked: float
    where: str  # question, thought or answer
    excerpt: str


def new_session(model: str, system: str = "", origin: str = "") -> Session:
    """A session that no store knows yet."""
    id = "".join(secrets.choice(LETTERS) for _ in range(8))
    return Session(id, model=model, system=system, origin=origin, created=time.time())


def new_turn_id() -> int:
    """An id that no other process draws."""
    return secrets.randbits(62)


def problem(path: Path, *, deep: bool = False) -> str:
    """Why the database at `path` cannot be used, "" if it can or is not there. Only reads.

    `deep` reads all of it, which takes seconds where there is much.
    """
    if not path.exists():
        return ""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            said = db.execute("PRAGMA quick_check(1)").fetchone()[0] if deep else "ok"
    except (sqlite3.Error, OSError) as error:
        return str(error)
    return "" if said == "ok" else str(said)


class Store:
    """An open database. One thread at a time; any number of processes."""

    def __init__(self, path: Path | None, steps: Sequence[Sequence[str]] = STEPS) -> None:
        """Open or create the database at `path`; None keeps all in memory. Raises StoreError."""
        self.path = path
        with self._ours():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                # only its owner may read it; SQLite gives its log the same rights
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path or ":memory:", timeout=BUSY_S, isolation_level=None)
            try:
                _when_free(lambda: self._prepare(steps))
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        self._db.close()

    def files(self, id: str) -> Path | None:
        """The folder for files of a session, which need not exist; `remove` removes it."""
        return None if self.path is None else self.path.with_suffix("") / id

    # --- writing -------------------------------------------------------------------------------

    def save(
        self,
        session: Session,
        head: int | None,
        turns: Iterable[Turn] = (),
        known: Session | None = None,
    ) -> None:
        """Write a session, where the person is in it, and `turns` whole. Raises StoreError.

        `known` is the session as the caller last wrote or read it: what of it has not changed since
        is left as another process may have changed it, and what was removed is not written again.
        """
        with self._writing():
            if known is None:
                self._insert_session(session, head)
            else:
                self._update_session(session, head, known)
            for turn in turns:
                self._save_turn(session.id, turn)

    def append(self, turn: int, reasoning: str, answer: str) -> None:
        """Add to the reply of a turn that was saved before. Raises StoreError."""
        with self._writing():
            self._db.execute(
                "INSERT INTO piece VALUES (?, ?, ?)", (turn, _text(reasoning), _text(answer))
            )

    def remove(self, id: str) -> bool:
        """Remove a session with all its files so that nothing of its text is left in the store.

        False if another process is reading, so that the log can only be emptied later.
        """
        with self._writing():
            for turn in self._db.execute(f"{_INDEXED} WHERE session = ? AND indexed", (id,)):
                self._unindex(turn)
            self._db.execute("DELETE FROM session WHERE id = ?", (id,))
            # deleted words leave the index only when its parts are merged
            self._db.execute("INSERT INTO found(found) VALUES ('optimize')")
        with self._ours():
            self._remove_files(id)
            busy: int = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy

    # --- reading -------------------------------------------------------------------------------

    def find(self, word: str) -> str:
        """The id of the session of this name, id or beginning of an id. Raises UsageError."""
        with self._ours():
            rows = self._db.execute("SELECT id, coalesce(name, '') FROM session").fetchall()
        named = [id for id, name in rows if word and name.casefold() == word.casefold()]
        exact = [id for id, _ in rows if id == word]
        begins = [id for id, _ in rows if word and id.startswith(word)]
        for found in (named, exact, begins):
            if len(found) == 1:
                return str(found[0])
        if begins:
            raise UsageError(f"Several sessions begin with '{word}'.", "qwq sessions list")
        raise UsageError(f"There is no session '{word}'.", "qwq sessions list")

    def taken(self, name: str, id: str) -> bool:
        """Whether a session other than `id` has this name."""
        statement = "SELECT name FROM session WHERE name NOT NULL AND id != ?"
        with self._ours():
            rows = self._db.execute(statement, (id,)).fetchall()
        return _text(name).casefold() in [row[0].casefold() for row in rows]

    def latest(self) -> str | None:
        """The id of the session that was changed last."""
        with self._ours():
            row = self._db.execute("SELECT id FROM session ORDER BY changed DESC").fetchone()
        return None if row is None else str(row[0])

    def summaries(self, limit: int = -1) -> list[Summary]:
        """Sessions, the one that was changed last first."""
        statement = f"""SELECT {_SESSION}, changed,
            (SELECT count(*) FROM turn WHERE session = session.id),
            (SELECT substr(question, 1, 200) FROM turn WHERE session = session.id ORDER BY row)
            FROM session ORDER BY changed DESC LIMIT ?"""
        with self._ours():
            rows = self._db.execute(statement, (limit,)).fetchall()
        return [Summary(Session(*row[:6]), row[6], row[7], row[8] or "") for row in rows]

    def load(self, id: str) -> tuple[Session, Conversation]:
        """A session and all that was said in it. Raises UsageError if it is not there."""
        with self._ours():
            row = self._db.execute(
                f"SELECT {_SESSION}, head FROM session WHERE id = ?", (id,)
            ).fetchone()
            if row is None:
                raise UsageError(f"There is no session '{id}'.", "qwq sessions list")
            turns = self._turns(id)
        *session, head = row
        known = set[int]()
        for at, turn in enumerate(turns):
            if turn.parent not in known:  # none, or one that was lost: a tree all the same
                turns[at] = replace(turn, parent=None)
            known.add(turn.id)
        return Session(*session), Conversation(tuple(turns), head if head in known else None)

    def search(self, typed: str, limit: int = 20) -> list[Hit]:
        """Turns that hold every word of `typed`, the newest first; see `fulltext.query`."""
        expression = fulltext.query(typed)
        if not expression:
            return []
        self._index_the_rest()
        statement = """SELECT session.id, coalesce(name, ''), turn.id, asked, question, reasoning,
            answer FROM turn JOIN session ON session.id = turn.session WHERE row IN
            (SELECT rowid FROM found WHERE found MATCH ? ORDER BY rowid DESC LIMIT ?)
            ORDER BY row DESC"""
        with self._ours():
            rows = self._db.execute(statement, (expression, limit)).fetchall()
        return [_hit(typed, *row) for row in rows]

    # --- inside --------------------------------------------------------------------------------

    def _prepare(self, steps: Sequence[Sequence[str]]) -> None:
        version = self._version(steps)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # a power cut loses nothing that was saved
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("PRAGMA secure_delete = ON")
        if version < len(steps):
            self._migrate(steps)

    def _version(self, steps: Sequence[Sequence[str]]) -> int:
        version: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(steps):
            raise StoreError(
                f"The sessions in {self.path} were written by a newer qwq.",
                "Update qwq, or start with --no-save",
            )
        return version

    def _migrate(self, steps: Sequence[Sequence[str]]) -> None:
        """Bring the database to the last version, after a copy of what was there."""
        with self._writing():
            version = self._version(steps)  # another process may have been quicker
            if version and self.path is not None:
                # a second connection, for this one's transaction must not be in the copy
                with (
                    contextlib.closing(sqlite3.connect(self.path)) as before,
                    contextlib.closing(_create(self._backup(version))) as copy,
                ):
                    before.backup(copy)
            for step in steps[version:]:
                for statement in step:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(steps)}")

    def _backup(self, version: int) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.v{version}.bak")

    def _remove_files(self, id: str) -> None:
        folder = self.files(id)
        if self.path is None or folder is None:
            return
        for old in self.path.parent.glob(f"{self.path.name}.v*.bak"):
            old.unlink()  # it may hold the same session
        if folder.exists():
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def _ours(self) -> Iterator[None]:
        """Foreign errors as ours."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise _explain(error, self.path) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it or nothing."""
        with self._ours():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has already rolled it back
                    self._db.execute("ROLLBACK")
                raise

    def _insert_session(self, session: Session, head: int | None) -> None:
        self._db.execute(
            """INSERT INTO session (id, name, model, system, origin, created, head, changed)
            VALUES (?, nullif(?, ''), ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET
            name = excluded.name, model = excluded.model, system = excluded.system,
            head = excluded.head, changed = excluded.changed""",
            (
                *(session.id, _text(session.name), _text(session.model), _text(session.system)),
                *(session.origin, session.created, head, time.time()),
            ),
        )

    def _update_session(self, session: Session, head: int | None, known: Session) -> None:
        new: dict[str, Any] = {"head": head, "changed": time.time()}
        for name in ("model", "system"):
            if getattr(session, name) != getattr(known, name):
                new[name] = _text(getattr(session, name))
        if session.name != known.name:
            new["name"] = _text(session.name) or None
        columns = ", ".join(f"{name} = ?" for name in new)
        found = self._db.execute(
            f"UPDATE session SET {columns} WHERE id = ?", (*new.values(), session.id)
        )
        if not found.rowcount:
            raise StoreError(
                "This session was removed meanwhile.", "/branch to keep all of it in a new one"
            )

    def _save_turn(self, session: str, turn: Turn) -> None:
        old = self._db.execute(f"{_INDEXED} WHERE id = ?", (turn.id,)).fetchone()
        if old is not None and old[4]:
            self._unindex(old)
        reply = (
            *(_text(turn.reasoning), _text(turn.answer), turn.stop, json.dumps(asdict(turn.stats))),
            turn.stop is not None,
        )
        if old is None:
            self._insert(session, turn, reply)
        else:
            self._db.execute(
                "UPDATE turn SET reasoning = ?, answer = ?, stop = ?, stats = ?, indexed = ?"
                " WHERE id = ?",
                (*reply, turn.id),
            )
            self._db.execute("DELETE FROM piece WHERE turn = ?", (turn.id,))
        if turn.stop is not None:
            self._index(self._db.execute(f"{_INDEXED} WHERE id = ?", (turn.id,)).fetchone())

    def _insert(self, session: str, turn: Turn, reply: Sequence[Any]) -> None:
        self._db.execute(
            """INSERT INTO turn (reasoning, answer, stop, stats, indexed, id, session, parent,
            question, sampling, model, asked) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (
                *(*reply, turn.id, session, turn.parent, _text(turn.question)),
                *(json.dumps(asdict(turn.sampling)), _text(turn.model), turn.asked),
            ),
        )
        self._db.executemany(
            "INSERT INTO attachment VALUES (?, ?, ?)",
            [(turn.id, _text(file.name), _text(file.text)) for file in turn.attachments],
        )

    def _index(self, turn: Sequence[Any]) -> None:
        texts = [fulltext.indexed(text) for text in turn[1:4]]
        self._db.execute(
            "INSERT INTO found (rowid, question, reasoning, answer) VALUES (?, ?, ?, ?)",
            (turn[0], *texts),
        )

    def _unindex(self, turn: Sequence[Any]) -> None:
        texts = [fulltext.indexed(text) for text in turn[1:4]]
        self._db.execute(
            "INSERT INTO found (found, rowid, question, reasoning, answer)"
            " VALUES ('delete', ?, ?, ?, ?)",
            (turn[0], *texts),
        )

    def _index_the_rest(self) -> None:
        """Index replies that never came to an end, as far as they came."""
        with self._ours():
            some = self._db.execute("SELECT 1 FROM turn WHERE NOT indexed").fetchone()
        if not some:
            return
        with self._writing():
            ids = self._db.execute("SELECT id FROM turn WHERE NOT indexed").fetchall()
            for (id,) in ids:
                self._gather(id)
                self._index(self._db.execute(f"{_INDEXED} WHERE id = ?", (id,)).fetchone())
                self._db.execute("UPDATE turn SET indexed = 1 WHERE id = ?", (id,))

    def _gather(self, id: int) -> None:
        """Put the pieces of a reply into its turn."""
        for reasoning, answer in self._pieces(id):
            self._db.execute(
                "UPDATE turn SET reasoning = reasoning || ?, answer = answer || ? WHERE id = ?",
                (reasoning, answer, id),
            )
        self._db.execute("DELETE FROM piece WHERE turn = ?", (id,))

    def _pieces(self, id: int) -> list[tuple[str, str]]:
        statement = "SELECT reasoning, answer FROM piece WHERE turn = ? ORDER BY rowid"
        return self._db.execute(statement, (id,)).fetchall()

    def _turns(self, session: str) -> list[Turn]:
        statement = """SELECT id, parent, question, reasoning, answer, stop, stats, sampling, model,
            asked FROM turn WHERE session = ? ORDER BY row"""
        files: dict[int, list[Attachment]] = {}
        for turn, name, text in self._db.execute(
            """SELECT turn, name, attachment.text FROM attachment JOIN turn ON turn.id = turn
            WHERE session = ? ORDER BY attachment.rowid""",
            (session,),
        ):
            files.setdefault(turn, []).append(Attachment(name, text))
        return [
            self._turn(row, tuple(files.get(row[0], ())))
            for row in self._db.execute(statement, (session,)).fetchall()
        ]

    def _turn(self, row: Sequence[Any], files: tuple[Attachment, ...]) -> Turn:
        id, parent, question, reasoning, answer, stop, stats, sampling, model, asked = row
        pieces = self._pieces(id) if stop is None else []
        return Turn(
            id=id,
            parent=parent,
            question=question,
            attachments=files,
            reasoning=reasoning + "".join(piece[0] for piece in pieces),
            answer=answer + "".join(piece[1] for piece in pieces),
            stop=stop,
            stats=_value(Stats, stats),
            sampling=_value(Sampling, sampling),
            model=model,
            asked=asked,
        )


_SESSION = "session.id, coalesce(name, ''), model, system, origin, created"
_INDEXED = "SELECT row, question, reasoning, answer, indexed FROM turn"

T = TypeVar("T")


def _value(kind: type[T], text: str) -> T:
    """A dataclass from JSON; what another version of it had more is left out.

    Its defaults where the text is damaged: what was said is worth more than its figures.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in json.loads(text).items() if name in known})
    except (ValueError, TypeError, AttributeError):
        return kind()


def _text(text: str) -> str:
    """`text` without halves of surrogate pairs, which no database takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _hit(
    typed: str,
    session: str,
    name: str,
    turn: int,
    asked: float,
    question: str,
    reasoning: str,
    answer: str,
) -> Hit:
    """A found turn: the part that holds what was searched, and the text around it."""
    parts = (("answer", answer), ("question", question), ("thought", reasoning))
    where, text = next((part for part in parts if fulltext.holds(part[1], typed)), parts[1])
    return Hit(session, name, turn, asked, where, fulltext.excerpt(text, typed))


def _create(path: Path) -> sqlite3.Connection:
    """A new database that only its owner reads, over whatever was there."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return sqlite3.connect(path)


def _when_free(do: Any) -> None:
    """Try again while another process holds the database; to open it, SQLite does not wait."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            do()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return


def _explain(error: sqlite3.Error | OSError, path: Path | None) -> StoreError:
    """What a person can do about it."""
    text = str(error)
    if "full" in text or "No space" in text:
        return StoreError(f"The disk of {path} is full.", "Free some space")
    if "locked" in text:
        return StoreError(f"Another program has kept {path} locked for {BUSY_S:.0f} s.")
    if "malformed" in text or "not a database" in text:
        return StoreError(
            f"The sessions in {path} are damaged: {text}.", f"Move {path} away to start anew"
        )
    if "UNIQUE" in text and "name" in text:
        return StoreError("Another session has that name.", "qwq sessions list")
    text = getattr(error, "strerror", None) or text  # without a number and the path once more
    return StoreError(f"{path} cannot be used: {text}.", "See that the folder can be written to")
