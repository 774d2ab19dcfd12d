"""Find, download, verify, reuse, list and remove model files.

Contract: a `Hub` turns what a person types into an `Offer` with exact sizes and checksums, and an
offer into files on this machine. `pull` is an iterator of small events; it ends with `Pulled`, or
raises NetworkError, NoRoom, BadFile or UsageError. Whatever ends it, also kill -9, what has come is
kept and the next pull goes on there. Closing the iterator stops it at once. No file gets its final
name before its sha256 is right.
Limits: GGUF files that have a published sha256.
Non-goals: choosing for the machine (the planner's), drawing progress, asking questions.
Inside, each knowing only those before it: events · web (HTTP) · sources (names to offers) · spans
(what is on disk) · store (places and locks) · transfer (bytes) · reuse · library · remote.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from qwqcli import config
from qwqcli.errors import NoRoom, QwqError, UsageError
from qwqcli.gguf import ModelInfo
from qwqcli.hub.events import (
    Checking,
    Chosen,
    Event,
    Found,
    How,
    Notice,
    Progress,
    Pulled,
    Retrying,
    Waiting,
)
from qwqcli.hub.library import Library, Model, Removed
from qwqcli.hub.remote import remote_header
from qwqcli.hub.reuse import Sums, find, shelves
from qwqcli.hub.sources import (
    Offer,
    RemoteFile,
    Source,
    Want,
    checked,
    choose,
    explain,
    offers,
    parse_want,
    source_of,
    tokens_for,
)
from qwqcli.hub.spans import Journal, held
from qwqcli.hub.store import (
    CachePlace,
    FolderPlace,
    Lock,
    Place,
    Unfinished,
    cache_root,
    discard,
    disk_errors,
    home,
    open_partial,
    same_file,
    try_lock,
    unfinished,
)
from qwqcli.hub.transfer import AGAIN, Content, Mover
from qwqcli.hub.web import Policy, Refused, Web
from qwqcli.portable import open_to_all, typed_path

__all__ = [
    "Checking", "Chosen", "Event", "Found", "How", "Hub", "Model", "Notice", "Offer", "Policy",
    "Progress", "Pulled", "RemoteFile", "Removed", "Retrying", "Source", "Unfinished", "Waiting",
    "Want",
]  # fmt: skip

SPARE = 256 << 20  # bytes that stay free: a system without any room misbehaves
SPARE_SHARE = 100  # or this part of the download, if that is more
LOCK_LOOK_S = 0.25  # between two looks whether another process is done
Brought: TypeAlias = tuple[Path, How, int]  # a file, how it came, the bytes that came for it
TRUE = ("1", "true", "yes", "on")


def free_bytes(folder: Path) -> int:
    """Bytes that this person may still write where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class Hub:
    """Everything about model files for one person on one machine.

    `source` is hf, modelscope, a URL of a mirror, or "" for what the environment says. `free` tells
    the room on a disk.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        source: str = "",
        offline: bool = False,
        policy: Policy | None = None,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._environ, self._named, self._free = environ, source, free
        self._policy = policy or Policy()
        self.offline = offline or environ.get("HF_HUB_OFFLINE", "").lower() in TRUE
        self._cache = cache_root(environ)
        self.home = home(environ)
        self._shelves = shelves(environ)
        folders = config.paths(environ)
        self._sums = Sums(folders.cache / "known.json")
        self._library = Library(folders.data / "models", self._cache, self._shelves)
        self._locks, self._notes = folders.cache / "locks", folders.data / "pulls"

    def offers(self, text: str = "", revision: str = "") -> tuple[Offer, ...]:
        """All that `text` can mean, see `parse_want`; "" is every quantization of QwQ-32B."""
        want = parse_want(text, revision)
        source = source_of(want.source or self._named, self._environ)
        return offers(self._web(source), source, want)

    def choose(self, text: str, revision: str = "") -> Offer:
        """The one offer that `text` means. Raises UsageError with what there is if none is."""
        want = parse_want(text, revision)
        source = source_of(want.source or self._named, self._environ)
        return choose(self._web(source), source, want)

    def header(self, offer: Offer) -> ModelInfo:
        """The header of a model that is not here yet: reads a few megabytes of it."""
        return remote_header(self._web(offer.source), offer)

    def models(self) -> tuple[Model, ...]:
        """Every model on this machine: ours first, then those of other tools."""
        return self._library.models()

    def find(self, text: str) -> Model | None:
        """The model on this machine that `text` means: by a name of `models`, or see `parse_want`.

        Nothing is asked of the network.
        """
        if (model := self._library.named(text)) is not None:
            return model
        want = _want_or_none(text)
        return self._library.find(want) if want is not None else None

    def latest(self) -> Model | None:
        """The QwQ-32B that was pulled or used last."""
        return self._library.latest()

    def used(self, path: Path) -> None:
        """Note that the model at `path` is used now, if it is one of ours."""
        self._library.used(path)

    def damaged(self, model: Model) -> Generator[Event, None, tuple[Path, ...]]:
        """Read all of a model that was pulled: the files that are not what was published."""
        wrong = []
        for path, sha256 in zip(model.paths, model.sha256, strict=False):
            if (yield from self._sums.of(path, anew=True)) != sha256:
                wrong.append(path)
        return tuple(wrong)

    def token_works(self) -> bool | None:
        """Whether Hugging Face takes the person's token; None if there is none to try.

        Raises NetworkError.
        """
        source = source_of(self._named, self._environ)
        web = self._web(source)
        if source.kind != "huggingface" or not web.tokens:
            return None
        try:
            web.json(f"{source.endpoint}/api/whoami-v2")  # as `hf auth whoami` asks
        except Refused as no:
            if no.status in (401, 403):
                return False
            raise explain(no, source, "") from None
        return True

    def remove(self, model: Model) -> Removed:
        """Delete a model that we brought. Raises UsageError if another tool owns it."""
        with disk_errors(model.paths[0]):
            return self._library.remove(model)

    def adopt(self, path: Path, taken: Collection[str] = ()) -> Model:
        """Know the model at `path` by its name from now on; the file stays where it is.

        A name that is `taken` or another model's gets a number.
        """
        return self._library.adopt(typed_path(path), taken)

    def unfinished(self, text: str | None = None) -> tuple[Unfinished, ...]:
        """What interrupted pulls have left; only that which `text` means."""
        every = tuple(unfinished(self._cache, self._notes))
        if text is None:
            return every
        named = tuple(left for left in every if left.label.lower() == text.lower())
        want = _want_or_none(text)
        return named or tuple(left for left in every if want is not None and left.is_of(want))

    def discard(self, left: Unfinished) -> int:
        """Delete what an interrupted pull left; returns the bytes freed.

        Raises UsageError while a pull is at it.
        """
        with disk_errors(left.path):
            return discard(left)

    def pull(
        self, offer: Offer, *, to: Path | None = None, reuse: bool = True
    ) -> Generator[Event, None, None]:
        """Bring all files of `offer` here: into the Hugging Face cache, or the folder `to`."""
        checked(offer)
        place = self._place(offer, to)
        yield Chosen(
            offer.repo, offer.quantization, offer.source.name, offer.commit,
            tuple(file.path for file in offer.files), offer.size,
        )  # fmt: skip
        here: dict[str, tuple[Path, How]] = {}
        for file in offer.files:
            with disk_errors(place.partial(file)):
                place.prepare(file)
            # llama.cpp wants all parts in one folder
            in_place = to is None and len(offer.files) == 1
            found = yield from self._here(place, file, reuse, in_place)
            if found is not None:
                here[file.path] = found
        received = 0
        if len(here) < len(offer.files):
            yield from self._room(offer, place, here)
            received = yield from self._missing(offer, place, here)
        paths = tuple(here[file.path][0] for file in offer.files)
        how = [here[file.path][1] for file in offer.files]
        self._library.record(offer, paths, how)
        yield Pulled(offer.name, paths, "downloaded" if received else how[0], offer.size, received)

    def _here(
        self, place: Place, file: RemoteFile, reuse: bool, in_place: bool
    ) -> Generator[Event, None, tuple[Path, How] | None]:
        """The file if its content is on this machine already, and how we have it."""
        kept = place.kept(file)
        if kept is not None:
            if (yield from self._sums.of(kept)) == file.sha256:
                return self._settled(place, file), "kept"
            place.reject(kept)
            yield Notice(f"{file.path} in the cache is damaged; it is downloaded again.")
        if not reuse:
            return None
        other = yield from find(self._shelves, self._sums, file.size, file.sha256)
        if other is None:
            return None
        path, owner = other
        yield Found(file.path, path, owner)
        linked = place.link(file, path)
        if linked is not None:
            self._sums.remember(linked, file.sha256)
            self._library.claim(linked, "linked")
            return linked, "linked"
        return (path, "in place") if in_place else None

    def _room(
        self, offer: Offer, place: Place, here: Mapping[str, tuple[Path, How]]
    ) -> Iterator[Notice]:
        """See that the disk can hold what is still to come. Raises NoRoom."""
        missing = [file for file in offer.files if file.path not in here]
        folder = place.partial(missing[0]).parent
        left = sum(file.size - held(self._journal(place, file).load()) for file in missing)
        need, free = left + max(SPARE, left // SPARE_SHARE), self._free(folder)
        if need > free:
            raise NoRoom(
                f"{offer.name} needs {need / 1e9:.1f} GB more under {folder}, which has"
                f" {free / 1e9:.1f} GB free.",
                "Make room, choose another disk with --to or HF_HOME, or a smaller quantization",
            )
        if open_to_all(folder):
            yield Notice(f"Anyone on this machine can change {folder}; mend it: chmod o-w {folder}")

    def _missing(
        self, offer: Offer, place: Place, here: dict[str, tuple[Path, How]]
    ) -> Generator[Event, None, int]:
        """Download what is not in `here`, adding it; returns the bytes that came."""
        received, count = 0, len(offer.files)
        for number, file in enumerate(offer.files, 1):
            if file.path in here:
                continue
            before = sum(other.size for other in offer.files if other.path in here)
            path, how, came = yield from _counted(
                self._download(offer, place, file), number, count, before, offer.size
            )
            received += came
            here[file.path] = (path, how)
        return received

    def _download(
        self, offer: Offer, place: Place, file: RemoteFile
    ) -> Generator[Event, None, Brought]:
        """One file, unless another process is faster."""
        journal = self._journal(place, file)
        with disk_errors(place.partial(file)):
            lock = yield from _locked(place.lock(file), file, journal)
            try:
                kept = place.kept(file)
                if kept is not None and (yield from self._sums.of(kept)) == file.sha256:
                    return self._settled(place, file), "kept", 0  # it came while we waited
                return (yield from self._move(offer, place, file, journal))
            finally:
                lock.release()

    def _move(
        self, offer: Offer, place: Place, file: RemoteFile, journal: Journal
    ) -> Generator[Event, None, Brought]:
        """Download one file whose lock we hold."""
        place.begin(file)
        with _partial(place.partial(file)) as number:
            content = Content(
                file.path, offer.url(file), file.size, file.sha256,
                lambda no: explain(no, offer.source, offer.repo),
            )  # fmt: skip
            mover = Mover(self._web(offer.source), content, number, journal)
            yield from mover.run(journal.load())
            _settle_down(place.partial(file), file, number)
        path = place.finish(file, place.partial(file))  # closed, or Windows would not rename it
        self._sign(path, file, journal)
        return path, "downloaded", mover.received

    def _settled(self, place: Place, file: RemoteFile) -> Path:
        """The path of a finished file that is right, signed if its pull was stopped before that."""
        path, journal = place.settle(file), self._journal(place, file)
        if journal.about() and not place.partial(file).exists():
            self._sign(path, file, journal)
        return path

    def _sign(self, path: Path, file: RemoteFile, journal: Journal) -> None:
        """Note that a finished file is ours; what told of an unfinished one goes last."""
        self._sums.remember(path, file.sha256)
        self._library.claim(path, "downloaded")
        journal.remove()

    def _place(self, offer: Offer, to: Path | None) -> Place:
        if to is None:
            return CachePlace(self._cache, offer)
        return FolderPlace(to, offer.repo, locks=self._locks, notes=self._notes)

    def _journal(self, place: Place, file: RemoteFile) -> Journal:
        return Journal(place.partial(file), file.sha256, file.size, file.path)

    def _web(self, source: Source) -> Web:
        tokens = {} if self.offline else tokens_for(source, self._environ)
        return Web(self._policy, tokens, self.offline)


def _want_or_none(text: str) -> Want | None:
    with contextlib.suppress(UsageError):
        return parse_want(text)
    return None


def _locked(path: Path, file: RemoteFile, journal: Journal) -> Generator[Waiting, None, Lock]:
    """The lock of a file, once no other process has it; yields that one's progress meanwhile."""
    while (lock := try_lock(path)) is None:
        yield Waiting(file.path, held(journal.load()), file.size)
        time.sleep(LOCK_LOOK_S)
    return lock


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[int]:
    number = open_partial(path)
    try:
        yield number
    finally:
        os.close(number)


def _settle_down(partial: Path, file: RemoteFile, number: int) -> None:
    """Have the disk take all of a checked file."""
    os.ftruncate(number, file.size)  # an older partial file may have been longer
    os.fsync(number)
    if not same_file(number, partial):
        raise QwqError(f"{partial.name} was removed while it was downloaded.", AGAIN)


def _counted(
    events: Generator[Event, None, Brought],
    number: int,
    count: int,
    before: int,
    total: int,
) -> Generator[Event, None, Brought]:
    """The events of one file, with its progress set into that of the whole pull."""
    try:
        while True:
            event = next(events)
            if isinstance(event, Progress):
                done = before + event.done
                eta_s = (total - done) / event.rate if event.rate > 0 else None
                event = replace(
                    event, number=number, count=count, done=done, total=total, eta_s=eta_s
                )
            yield event
    except StopIteration as end:
        result: Brought = end.value
        return result
    finally:
        events.close()
