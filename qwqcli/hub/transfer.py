"""The byte mover: one file of known size and sha256 from a server into an open file.

Contract: `Mover.run` fetches what is missing over several connections, notes what is on disk in a
journal, and computes the checksum behind the bytes as they come, so nothing is read twice but what
an earlier run left. It ends when every byte is there and the sum is right, or raises NetworkError,
BadFile or NoRoom; the journal then lets the next run go on. Where the sum is wrong, all of it is
fetched once more and compared with what is on disk, and only what differs is written.
Limits: a sum of the whole file only, so a bad part is found by fetching, not by looking; a server
without ranges gets one connection, and after a cut its first bytes pass by a second time.
Non-goals: where files live, locks, names; those are the store's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from qwqcli.errors import BadFile, NetworkError, NoRoom, QwqError
from qwqcli.hub.events import Checking, Event, Notice, Progress, Retrying
from qwqcli.hub.spans import Journal, Spans, gaps, held
from qwqcli.hub.web import Line, Policy, Refused, Reply, Transient, Web, host, origin
from qwqcli.portable import read_at, write_at

BLOCK = 256 << 10  # bytes of one read at most
NOTE_BYTES = 8 << 20  # the journal is written after so many new bytes,
NOTE_SHARE = 200  # or after this part of a small file, 0.5 %,
NOTE_S = 0.5  # or after this time
# One connection is enough while it brings so many bytes a second, and the disk is then asked after
# seconds only: more of either takes from the checksum the CPU that limits such a pull.
FAST = 200e6
# The disk is asked to take what came after so many bytes or seconds, looked at every SYNC_LOOK_S:
# up to 1 Gbit/s a power cut loses less than 64 MB.
SYNC_BYTES, SYNC_S, SYNC_LOOK_S = 32 << 20, 2.0, 0.25
SYNC_SHARE = 4  # and rests so many times as long as that took, for it costs as much CPU as the rest
TICK_S = 0.1  # between two looks of `run` at what the connections have done
HASH_NAP_S = 0.01  # the checksum waits so long for new bytes
RATE_S = 8.0  # the rate shown is that of the last seconds
FRUITFUL = 64 << 10  # bytes that make a connection that failed a good one all the same
JOIN_S = 2.0  # a thread that does not end by then is in a name look-up; it cannot write any more
EXPIRED = frozenset({400, 401, 403, 404, 410})  # what a CDN says to an outdated link
MAX_REFUSALS = 8  # of links in a row: some for each connection that may have an old one
MAX_LOOKS = 4  # whole sums computed early while mending; each reads the whole file
AGAIN = "Run the same command again: it goes on where it stopped"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class _NoRanges(Exception):
    """The server answers a request for a part with something else."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is to be moved: its name for messages, where it comes from and what it must be."""

    name: str
    url: str
    size: int
    sha256: str
    explain: Callable[[Refused], QwqError]


@dataclass(slots=True, eq=False)
class _Piece:
    """Bytes `at` to `end` are missing; those before `claimed` are on their way to the disk."""

    at: int
    end: int
    claimed: int = 0
    differed: bool = False  # found while mending


class _Link:
    """The way to the bytes: the hub's own URL, and where it last sent us, while that works."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._direct = ""
        self._refusals = 0  # of the CDN, in a row

    def open(self, line: Line, headers: dict[str, str]) -> Reply:
        """A reply with the bytes. Raises Transient, or the error of a final no."""
        direct = self._direct
        try:
            reply = line.get(direct or self._content.url, headers)
        except Refused as no:
            raise self._meaning(no, direct) from None
        if not direct:
            self._check(reply)
        self._refusals = 0
        if origin(reply.url) != origin(self._content.url):
            self._direct = reply.url
        return reply

    def _meaning(self, no: Refused, direct: str) -> Exception:
        """A CDN that refuses is asked again by a new link, a hub is believed."""
        self.forget(direct)
        from_cdn = origin(no.url) != origin(self._content.url)
        if no.status == 416:
            return _changed(self._content, "is shorter than announced")
        if from_cdn and no.status in EXPIRED and self._refusals < MAX_REFUSALS:
            self._refusals += 1
            return Transient(f"{host(no.url)} refuses an outdated link (HTTP {no.status})")
        return self._content.explain(no)

    def forget(self, direct: str = "") -> None:
        """Ask the hub again next time; with an argument only if that is still the link."""
        if not direct or direct == self._direct:
            self._direct = ""

    def _check(self, reply: Reply) -> None:
        """The hub's word about the file, on the way to its bytes, must be what it announced."""
        tag = reply.trail.get("x-linked-etag", "").removeprefix("W/").strip('"')
        size = reply.trail.get("x-linked-size", "")
        if re.fullmatch("[0-9a-f]{64}", tag) and tag != self._content.sha256:
            raise _changed(self._content, "has another checksum than announced")
        if size.isdecimal() and int(size) != self._content.size:
            raise _changed(self._content, "has another size than announced")


class Mover:
    """Moves one `Content` into the file descriptor `target`, which it leaves open."""

    def __init__(self, web: Web, content: Content, target: int, journal: Journal) -> None:
        self._web, self._policy = web, web.policy
        self._content, self._target, self._journal = content, target, journal
        self._inode = os.fstat(target).st_ino
        self._link = _Link(content)
        self._state = threading.Condition()  # guards all that follows
        self._todo: deque[_Piece] = deque()
        self._active: list[_Piece] = []
        self._lines: list[Line] = []
        self._allowed = web.policy.connections
        self._narrow = True  # one connection, until it proves too slow
        self._said: deque[Event] = deque()
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._single = False  # the server has no ranges
        self._compare = False  # mending: write only what differs
        self._mended = 0  # blocks that differed
        self._hashed = 0
        self._digest = ""
        self.received = 0  # bytes from the network that were of use
        self._fresh_at = 0.0  # when the last of them came
        self._unfinished = 0  # threads that must end for the work to be done
        self._problem = ""
        self._noted = (0, 0.0)  # `received` and the time of the last note
        self._noting = threading.Lock()

    @property
    def done(self) -> int:
        """Bytes of the file that are on disk."""
        with self._state:
            return self._content.size - sum(p.end - p.at for p in (*self._todo, *self._active))

    def run(self, have: Spans) -> Iterator[Event]:
        """Move what `have` leaves out; yields Progress, Retrying, Notice and Checking.

        The first Progress tells what was here before.
        """
        size, before = self._content.size, held(have)
        yield Progress(self._content.name, 1, 1, before, size, before, size, 0.0, None, 0, 0)
        yield from self._move(have)
        if self._digest != self._content.sha256:
            yield Notice(
                f"{self._content.name} came with a wrong checksum; fetching it again to find"
                " and replace what differs."
            )
            yield from self._mend()

    def _mend(self) -> Iterator[Event]:
        """Fetch all of it again, replace what differs, and stop as soon as the sum is right."""
        self._compare, checked, looks = True, 0, 0
        with contextlib.closing(self._move(())) as events:
            for event in events:
                yield event
                with self._state:
                    settled = self._mended > checked and not self._dirty()
                if settled and looks < MAX_LOOKS:
                    checked, looks = self._mended, looks + 1
                    yield from self._rehash()
                    if self._digest == self._content.sha256:
                        return
        yield from self._rehash()
        if self._digest != self._content.sha256:
            self._journal.remove()
            os.ftruncate(self._target, 0)  # nothing of it is worth its room
            raise BadFile(
                f"{self._content.name} has the checksum {self._digest[:12]}… instead of"
                f" {self._content.sha256[:12]}…, twice.",
                "The copy on the server is damaged; try another --source or repository",
            )

    def _dirty(self) -> bool:
        """Whether a piece that differs is only half compared."""
        return any(piece.differed for piece in (*self._todo, *self._active))

    def _rehash(self) -> Iterator[Checking]:
        digest = hashlib.sha256()
        for at in range(0, self._content.size, BLOCK):
            digest.update(read_at(self._target, BLOCK, at))
            if at % (64 << 20) == 0:
                yield Checking(self._content.name, at, self._content.size)
        self._digest = digest.hexdigest()

    def _move(self, have: Spans) -> Generator[Event, None, None]:
        threads = self._start(have)
        meter = _Meter(self.done)
        try:
            while self._unfinished:
                before, began = self.received, time.monotonic()
                with self._state:
                    self._state.wait_for(self._over, TICK_S)
                self._widen(self.received - before, time.monotonic() - began)
                while self._said:
                    yield self._said.popleft()
                yield self._progress(meter)
                self._give_up_in_time()
                if self._failure is not None:
                    break
        finally:
            self._halt(threads)
        if self._failure is not None:
            raise self._failure
        yield self._progress(meter)

    def _over(self) -> bool:
        return not self._unfinished or self._failure is not None

    def _widen(self, count: int, seconds: float) -> None:
        """Let the other connections in, once one has brought too little in a tick."""
        with self._state:
            if self._narrow and count < FAST * seconds:
                self._narrow = False
                self._state.notify_all()

    def _progress(self, meter: _Meter) -> Progress:
        done = self.done
        rate, eta_s = meter.at(done, self._content.size)
        size, name = self._content.size, self._content.name
        return Progress(
            name, 1, 1, done, size, done, size, rate, eta_s, self._hashed, len(self._active),
            self._compare,
        )  # fmt: skip

    def _start(self, have: Spans) -> list[threading.Thread]:
        """Start the threads: those that must end for the work to be done, and those that help."""
        self._stop.clear()
        self._todo = deque(_pieces(have, self._content.size, self._policy.piece))
        self._fresh_at = time.monotonic()
        self._hashed = 0
        workers = self._policy.connections if self._todo else 0
        needed: list[Callable[[], None]] = [self._work] * workers
        helpers: list[Callable[[], None]] = []
        if not self._compare:
            needed, helpers = [*needed, self._follow], [self._sync]
        self._unfinished = len(needed)
        threads = [self._thread(job, needed=True) for job in needed]
        return [*threads, *(self._thread(job, needed=False) for job in helpers)]

    def _thread(self, job: Callable[[], None], *, needed: bool) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(job, needed), daemon=True)
        thread.start()
        return thread

    def _halt(self, threads: list[threading.Thread]) -> None:
        """Stop every thread soon, wherever it waits, and note what is on disk."""
        self._stop.set()
        with self._state:
            self._state.notify_all()
            lines, self._lines = self._lines, []
        for line in lines:
            line.abort()
        for thread in threads:
            thread.join(JOIN_S)
        if not self._compare:
            self._note()

    def _guarded(self, job: Callable[[], None], needed: bool) -> None:
        """Run a thread's job; what goes wrong in it is raised by `run`."""
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            with self._state:
                if self._failure is None and not self._stop.is_set():
                    self._failure = error
                self._stop.set()
                self._state.notify_all()
        finally:
            with self._state:
                self._unfinished -= needed
                self._state.notify_all()

    def _give_up_in_time(self) -> None:
        if self._todo or self._active:
            silent = time.monotonic() - self._fresh_at
            if silent > self._policy.patience_s:
                reason = self._problem or f"{host(self._content.url)} is silent"
                raise NetworkError(f"{reason}; nothing came for {silent:.0f} s.", AGAIN)

    # -- one thread for each connection

    def _work(self) -> None:
        line, attempt = Line(self._web), 0
        with self._state:
            self._lines.append(line)
        try:
            while (piece := self._take()) is not None:
                began, wait_s = piece.at, 0.0
                try:
                    self._fetch(line, piece)
                    attempt = 0
                except _NoRanges:
                    self._one_stream()
                except Transient as problem:
                    attempt = 1 if piece.at - began >= FRUITFUL else attempt + 1
                    wait_s = self._failed(line, problem, attempt)
                finally:
                    self._give_back(piece)
                self._stop.wait(wait_s)
        finally:
            line.close()

    def _take(self) -> _Piece | None:
        """The next piece, when there is one for this connection; None when all is done."""
        with self._state:
            while not self._stop.is_set() and (self._todo or self._active):
                if len(self._active) < (1 if self._narrow else self._allowed):
                    piece = self._todo.popleft() if self._todo else self._half()
                    if piece is not None:
                        self._active.append(piece)
                        return piece
                self._state.wait(TICK_S)
            return None

    def _half(self) -> _Piece | None:
        """The second half of what a busy connection still has before it, if that is worth it."""
        if self._single or not self._active:
            return None
        piece = max(self._active, key=lambda p: p.end - max(p.at, p.claimed))
        at = max(piece.at, piece.claimed)
        if piece.end - at <= self._policy.split:
            return None
        middle = (at + piece.end) // 2
        half, piece.end = _Piece(middle, piece.end), middle
        return half

    def _give_back(self, piece: _Piece) -> None:
        with self._state:
            if piece in self._active:
                self._active.remove(piece)
            if piece.at < piece.end:
                piece.claimed = 0
                self._todo.appendleft(piece)
            self._state.notify_all()

    def _failed(self, line: Line, problem: Transient, attempt: int) -> float:
        """Say so; returns the seconds to wait before the next try."""
        line.close()
        self._link.forget()
        wait_s = self._policy.backoff(attempt, problem.wait_s)
        with self._state:
            self._problem = problem.reason
            self._said.append(Retrying(problem.reason, wait_s))
            if problem.wait_s is not None and self._allowed > 1:
                self._allowed -= 1  # a server that names a time to wait finds us too greedy
        return wait_s

    def _one_stream(self) -> None:
        with self._state:
            if not self._single:
                self._single, self._allowed = True, 1
                self._said.append(
                    Notice(
                        f"{host(self._content.url)} cannot send parts of a file: one connection,"
                        " and an interrupted pull starts from the first byte."
                    )
                )

    def _fetch(self, line: Line, piece: _Piece) -> None:
        """Bring a piece to disk, or as much of it as comes. Raises Transient or _NoRanges."""
        if self._single:
            self._fetch_all(line, piece)
            return
        at, end = piece.at, piece.end
        reply = self._link.open(line, {"Range": f"bytes={at}-{end - 1}"})
        if reply.status == 200 or not self._right_range(reply, at):
            raise _NoRanges
        watch, buffer = _Watch(self._policy, self._content), memoryview(bytearray(BLOCK))
        while (left := piece.end - piece.at) > 0:
            if not (count := reply.read_into(buffer[: min(BLOCK, left)])):
                raise Transient(f"{host(reply.url)} broke off")
            self._put(piece, piece.at, buffer[:count])
            watch.saw(count)

    def _fetch_all(self, line: Line, piece: _Piece) -> None:
        """Let the whole file pass by and take what is missing."""
        reply = self._link.open(line, {})
        if reply.length not in (None, self._content.size):
            kind = reply.headers.get("Content-Type", "")
            what = "a web page" if "html" in kind else f"{reply.length:,} bytes"
            raise _changed(
                self._content, f"has {self._content.size:,} bytes; the server sends {what}"
            )
        at, watch = 0, _Watch(self._policy, self._content)
        buffer = memoryview(bytearray(BLOCK))
        while at < self._content.size:
            if not (count := reply.read_into(buffer[: self._content.size - at])):
                raise Transient(f"{host(reply.url)} broke off")
            self._take_from(piece, at, buffer[:count])
            at += count
            watch.saw(count)

    def _take_from(self, piece: _Piece, at: int, block: memoryview) -> None:
        """Of a block that passes by, write what `piece` and the pieces after it lack."""
        if at == 0:
            self._look_at_start(block)
        with self._state:
            wanted = [piece, *self._todo]
        for want in wanted:
            start, end = max(at, want.at), min(at + len(block), want.end)
            if start == want.at and start < end:
                self._put(want, start, block[start - at : end - at])
        with self._state:
            self._todo = deque(want for want in self._todo if want.at < want.end)

    def _right_range(self, reply: Reply, at: int) -> bool:
        match = re.match(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
        if match is None:
            return False
        if match[2] != "*" and int(match[2]) != self._content.size:
            raise _changed(
                self._content,
                f"has {self._content.size:,} bytes; the server has one of {int(match[2]):,}",
            )
        return int(match[1]) == at

    # -- bytes to disk

    def _put(self, piece: _Piece, at: int, block: memoryview) -> None:
        """Write the part of `block` that is still `piece`'s, and count it."""
        with self._state:
            if self._stop.is_set():
                raise Transient("stopped")
            size = min(len(block), piece.end - at)
            piece.claimed = at + size
        data = block[:size]
        if at == 0:
            self._look_at_start(data)
        if not self._compare:
            self._write(at, data)
        elif read_at(self._target, size, at) != data:
            piece.differed = True
            self._mended += 1
            self._write(at, data)
        with self._state:
            piece.at = at + size
            self.received += size
            self._fresh_at = now = time.monotonic()
            count, when = self._noted
            limit = min(NOTE_BYTES, self._content.size // NOTE_SHARE)
            due = self.received - count > limit or now - when > NOTE_S
        if due and not self._compare:
            self._note()

    def _write(self, at: int, view: memoryview) -> None:
        try:
            while view:
                written = write_at(self._target, view, at)
                view, at = view[written:], at + written
        except OSError as error:
            raise _cannot_write(self._content, error) from error

    def _look_at_start(self, data: memoryview) -> None:
        """Stop at the first bytes where they are not a model's, not after 20 GB."""
        start = bytes(data[:12])
        if not b"GGUF".startswith(start[:4]):
            raise _changed(self._content, f"is not a GGUF file: it begins with {start!r}")

    def _note(self) -> None:
        """Write the journal, unless another thread is at it."""
        if not self._noting.acquire(blocking=False):
            return
        try:
            self._noted = (self.received, time.monotonic())
            self._journal.save(self._have(), self._inode)
        except OSError as error:
            if error.errno not in FULL:  # on a full disk the last note stands
                raise
        finally:
            self._noting.release()

    def _have(self) -> Spans:
        with self._state:
            left = [(p.at, p.end) for p in (*self._todo, *self._active) if p.at < p.end]
        return gaps(left, self._content.size)

    def _sync(self) -> None:
        """Let the disk take what came, once in a while, and note that it did."""
        synced, last, wait_s = self.received, time.monotonic(), SYNC_LOOK_S
        while not self._stop.wait(wait_s) and (self._todo or self._active):
            began, fresh = time.monotonic(), self.received - synced
            enough = SYNC_BYTES <= fresh < FAST * (began - last)
            if not enough and (not fresh or began - last < SYNC_S):
                continue
            synced, spans = self.received, self._have()
            getattr(os, "fdatasync", os.fsync)(self._target)
            if self._stop.is_set():
                return
            self._journal.save(spans, self._inode, synced=True)
            last = time.monotonic()
            wait_s = max(SYNC_LOOK_S, SYNC_SHARE * (last - began))

    def _follow(self) -> None:
        """Compute the checksum behind the bytes as they come."""
        digest, at = hashlib.sha256(), 0
        while at < self._content.size:
            with self._state:
                ready = min((p.at for p in (*self._todo, *self._active) if p.at < p.end),
                            default=self._content.size)  # fmt: skip
            if ready == at and self._stop.wait(HASH_NAP_S):
                return
            while at < ready and not self._stop.is_set():
                block = read_at(self._target, min(BLOCK, ready - at), at)
                if not block:
                    raise _changed(self._content, "was cut short on disk by someone else")
                digest.update(block)
                at += len(block)
                self._hashed = at
            if self._stop.is_set():
                return
        self._digest = digest.hexdigest()


class _Watch:
    """Notices a connection that still sends, but next to nothing."""

    def __init__(self, policy: Policy, content: Content) -> None:
        self._policy, self._host = policy, host(content.url)
        self._since, self._bytes = time.monotonic(), 0

    def saw(self, count: int) -> None:
        """Count bytes. Raises Transient if there were too few in the last `stall_s`."""
        self._bytes += count
        passed = time.monotonic() - self._since
        if passed > self._policy.stall_s:
            if self._bytes < self._policy.slowest * passed:
                raise Transient(
                    f"{self._host} sends only {self._bytes / passed:.0f} bytes a second"
                )
            self._since, self._bytes = time.monotonic(), 0


class _Meter:
    """Rate over the last `RATE_S` seconds, and when that will be enough."""

    def __init__(self, done: int) -> None:
        self._marks = deque([(time.monotonic(), done)])

    def at(self, done: int, total: int) -> tuple[float, float | None]:
        """Bytes per second and seconds left, with `done` of `total` bytes here now."""
        now = time.monotonic()
        self._marks.append((now, done))
        while now - self._marks[0][0] > RATE_S and len(self._marks) > 2:
            self._marks.popleft()
        then, before = self._marks[0]
        rate = (done - before) / (now - then) if now > then else 0.0
        return rate, (total - done) / rate if rate > 0 else None


def _pieces(have: Spans, size: int, limit: int) -> Iterator[_Piece]:
    for start, end in gaps(have, size):
        for at in range(start, end, limit):
            yield _Piece(at, min(at + limit, end))


def _changed(content: Content, what: str) -> BadFile:
    return BadFile(
        f"{content.name} {what}.",
        "Try again later, or another --source; a login page of the network can be the cause too",
    )


def _cannot_write(content: Content, error: OSError) -> QwqError:
    if error.errno == errno.EFBIG:
        return NoRoom(
            f"This file system cannot hold a file as big as {content.name}.",
            "Choose another disk: --to FOLDER, or set HF_HOME",
        )
    if error.errno in FULL:
        return NoRoom(
            f"The disk is full; what has come of {content.name} is kept.",
            "Make room and run the same command again",
        )
    return QwqError(f"{content.name} cannot be written: {error.strerror}.", "Check the disk")
