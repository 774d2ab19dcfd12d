"""Where model files live: the Hugging Face cache, or a folder of the person's choice.

Contract: a `Place` knows for each file of an offer where it is collected, locked and finally kept.
A file gets its final name by one rename, after its checksum; in the cache it then is what
huggingface_hub itself would have left, so `hf` and llama.cpp take it as theirs, and the lock is the
one that they wait for. Folders below the cache's root must be real: a link planted there could lead
a download anywhere, and is refused.
Limits: where no symbolic links can be made, the file itself lies in the snapshot, as
huggingface_hub has it there, and two revisions of it are two files. On a network disk
where locks do nothing, two machines that pull the same file at once disturb each other, and the
checksum notices.
Layout: huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qwqcli.atomic import sync_folder, write_file
from qwqcli.errors import BadFile, NoRoom, QwqError, UsageError
from qwqcli.hub.sources import (
    QWQ_REPOS,
    Offer,
    RemoteFile,
    Want,
    quantization_of,
    safe_path,
)
from qwqcli.hub.spans import Journal, held
from qwqcli.portable import disk_bytes, is_ours, open_own, typed_path

PARTIAL = ".qwq.incomplete"  # the ending lets `hf cache prune` sweep what is left behind
LOCK_MODE = 0o664  # as huggingface_hub: people who share a cache wait for each other


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What an interrupted pull left: `done` of `size` bytes of the file `name`.

    `note` is what tells of a partial file in a folder of the person's choice; None in the cache.
    """

    repo: str
    name: str
    sha256: str
    path: Path
    lock: Path
    note: Path | None
    done: int
    size: int

    @property
    def label(self) -> str:
        """How people name it: REPO:FILE."""
        return f"{self.repo}:{self.name}"

    @property
    def to(self) -> Path | None:
        """The folder that was given with --to."""
        return self.path.parent if self.note else None

    def is_of(self, want: Want) -> bool:
        """Whether `want` means this file. Only QwQ-32B can be meant without its repository."""
        file = self.name.rpartition("/")[2]
        if want.file:
            same = want.file.rpartition("/")[2].lower() == file.lower()
        else:
            stem = re.sub(r"-\d{5}-of-\d{5}$", "", file.removesuffix(".gguf"))
            same = want.quantization in ("", quantization_of(stem))
            same = same and bool(want.repo or self.repo in QWQ_REPOS)
        return same and want.repo.lower() in ("", self.repo.lower())


class Lock(Protocol):
    """What keeps other processes from a file until it is released."""

    def release(self) -> None:
        """Let the next one have it."""


class Place(Protocol):
    """What a pull needs to know of where its files go."""

    def prepare(self, file: RemoteFile) -> None:
        """Make the folders. Raises BadFile where a link has been planted."""

    def partial(self, file: RemoteFile) -> Path:
        """Where the bytes are collected."""

    def lock(self, file: RemoteFile) -> Path:
        """What must be locked meanwhile."""

    def begin(self, file: RemoteFile) -> None:
        """The partial file is about to be there: note it, where nothing else leads to it."""

    def kept(self, file: RemoteFile) -> Path | None:
        """A finished file of the right size, if one is there; its checksum is still to be seen."""

    def reject(self, kept: Path) -> None:
        """What `kept` gave has another checksum. Raises UsageError if it must stay as it is."""

    def settle(self, file: RemoteFile) -> Path:
        """Have everything lead to the finished file, which is right, and return its path."""

    def finish(self, file: RemoteFile, content: Path) -> Path:
        """Give the file `content`, which is in our folder, its final name, and return that."""

    def link(self, file: RemoteFile, other: Path) -> Path | None:
        """Take `other`, a file of another tool, by a second name; None where that cannot be."""


class CachePlace:
    """The snapshot of one commit in the Hugging Face cache at `root`."""

    def __init__(self, root: Path, offer: Offer) -> None:
        self._root, self._offer = root, offer
        name = f"models--{offer.repo.replace('/', '--')}"
        self.folder = root / name
        self._locks = root / ".locks" / name
        self._snapshot = self.folder / "snapshots" / offer.commit

    def prepare(self, file: RemoteFile) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        pointer = self._pointer(file)
        for folder in (self.folder / "blobs", pointer.parent, self.folder / "refs", self._locks):
            real_folder(self._root, folder)

    def partial(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / f"{file.sha256}{PARTIAL}"

    def lock(self, file: RemoteFile) -> Path:
        return self._locks / f"{file.sha256}.lock"

    def begin(self, file: RemoteFile) -> None:
        """The cache is known, and what is in it is found."""

    def kept(self, file: RemoteFile) -> Path | None:
        blob = self._blob(file)
        found = blob if blob.exists() else self._pointer(file)
        return found if _is_inside(found, self._root) and _has_size(found, file.size) else None

    def reject(self, kept: Path) -> None:
        """A blob is named by its checksum, so one with another is damaged and of no use."""

    def settle(self, file: RemoteFile) -> Path:
        """Have the name in the snapshot lead to the blob, and the revision to the commit."""
        pointer, blob = self._pointer(file), self._blob(file)
        if blob.exists() and not (pointer.exists() and pointer.samefile(blob)):
            scratch = pointer.with_name(f".{file.sha256[:12]}.{os.getpid()}.link")
            scratch.unlink(missing_ok=True)
            try:
                scratch.symlink_to(os.path.relpath(blob, pointer.parent))
            except OSError:  # Windows asks for a right that few have, and some disks have no links
                scratch = blob
            os.replace(scratch, pointer)
            sync_folder(pointer.parent)
        self._note_revision()
        return pointer

    def finish(self, file: RemoteFile, content: Path) -> Path:
        os.replace(content, self._blob(file))
        sync_folder(self._blob(file).parent)
        return self.settle(file)

    def link(self, file: RemoteFile, other: Path) -> Path | None:
        scratch = self.partial(file).with_suffix(".link")
        with disk_errors(scratch):
            scratch.unlink(missing_ok=True)
        if not _linked(other, scratch):
            return None
        return self.finish(file, scratch)

    def _blob(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / file.sha256

    def _pointer(self, file: RemoteFile) -> Path:
        return self._snapshot / safe_path(file.path)

    def _note_revision(self) -> None:
        """refs/main, except that another source must not say what main is at Hugging Face."""
        revision = self._offer.revision
        foreign = self._offer.source.kind != "huggingface"
        path = self.folder / "refs" / ("main" if foreign else safe_path(revision))
        if revision == self._offer.commit or (foreign and path.exists()):
            return
        with contextlib.suppress(OSError):  # right already, maybe in a cache that is not ours
            if path.read_bytes() == self._offer.commit.encode():
                return
        real_folder(self._root, path.parent)
        write_file(path, self._offer.commit.encode())


class FolderPlace:
    """A plain folder, as given with --to. The files lie in it side by side.

    What is partial there is noted in `notes`, or it would never be found again.
    """

    def __init__(self, folder: Path, repo: str, *, locks: Path, notes: Path) -> None:
        self._folder, self._repo = typed_path(folder), repo
        self._locks, self._notes = locks, notes

    def prepare(self, file: RemoteFile) -> None:
        if self._folder.exists() and not self._folder.is_dir():
            raise UsageError(f"{self._folder} is not a folder.", "--to FOLDER")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._locks.mkdir(parents=True, exist_ok=True)
        if self._final(file).is_symlink():
            raise _planted(self._final(file))

    def partial(self, file: RemoteFile) -> Path:
        return self._folder / f".{self._final(file).name}.{file.sha256[:16]}{PARTIAL}"

    def lock(self, file: RemoteFile) -> Path:
        return self._locks / f"{self._where(file)}.lock"

    def begin(self, file: RemoteFile) -> None:
        note = self._note(file)
        said = {
            "repo": self._repo,
            "sha256": file.sha256,
            "partial": os.path.abspath(self.partial(file)),
            "lock": os.path.abspath(self.lock(file)),
        }
        with disk_errors(note):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_file(note, json.dumps(said).encode())

    def kept(self, file: RemoteFile) -> Path | None:
        final = self._final(file)
        if final.exists() and not _has_size(final, file.size):
            self.reject(final)
        return final if final.exists() else None

    def reject(self, kept: Path) -> None:
        raise UsageError(
            f"{kept} is there already, and is another file.", "Choose another folder: --to"
        )

    def settle(self, file: RemoteFile) -> Path:
        self._note(file).unlink(missing_ok=True)
        return self._final(file)

    def finish(self, file: RemoteFile, content: Path) -> Path:
        os.replace(content, self._final(file))
        sync_folder(self._folder)
        return self.settle(file)

    def link(self, file: RemoteFile, other: Path) -> Path | None:
        return self._final(file) if _linked(other, self._final(file)) else None

    def _final(self, file: RemoteFile) -> Path:
        return self._folder / safe_path(file.path).rpartition("/")[2]

    def _note(self, file: RemoteFile) -> Path:
        return self._notes / f"{self._where(file)}-{file.sha256[:16]}.json"

    def _where(self, file: RemoteFile) -> str:
        """Which file of which folder, as a name that any file system takes."""
        return hashlib.sha256(os.path.realpath(self._final(file)).encode()).hexdigest()[:16]


def unfinished(root: Path, notes: Path) -> Iterator[Unfinished]:
    """Partial files below the cache's root and in the folders of `notes`, and what they have."""
    for path in sorted(root.glob(f"models--*/blobs/*{PARTIAL}")):
        sha256, folder = path.name.removesuffix(PARTIAL), path.parent.parent.name
        repo = folder.removeprefix("models--").replace("--", "/", 1)
        lock = root / ".locks" / folder / f"{sha256}.lock"
        yield from _partly(repo, sha256, path, lock, None)
    for note in sorted(notes.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(note.read_bytes())
            path, lock = Path(said["partial"]), Path(said["lock"])
            if path.exists():  # else it was deleted by hand, or its disk is not here now
                yield from _partly(str(said["repo"]), str(said["sha256"]), path, lock, note)


def _partly(
    repo: str, sha256: str, path: Path, lock: Path, note: Path | None
) -> Iterator[Unfinished]:
    """The partial file at `path`, if its journal can be read."""
    about = Journal(path, sha256, 0).about()
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
        size, name = int(about["size"]), str(about["name"])
        done = held(Journal(path, sha256, size).load())
        yield Unfinished(repo, name, sha256, path, lock, note, done, size)


def discard(left: Unfinished) -> int:
    """Delete a partial file and its notes; returns the bytes freed."""
    lock = try_lock(left.lock)
    if lock is None:
        raise UsageError(f"{left.name} is being downloaded now.", "Stop that pull first")
    try:
        freed = disk_bytes(left.path.lstat())
        left.path.unlink()
        Journal(left.path, left.sha256, left.size).remove()
        if left.note:
            left.note.unlink(missing_ok=True)
        return freed
    except FileNotFoundError:
        return 0
    finally:
        lock.release()


def try_lock(path: Path) -> Lock | None:
    """The lock at `path`, or None if another has it."""
    from filelock import FileLock, SoftFileLock, Timeout

    for kind in (FileLock, SoftFileLock):
        lock = kind(path, mode=LOCK_MODE)
        try:
            lock.acquire(timeout=0)
            return lock
        except NotImplementedError:  # a file system without locks
            continue
        except Timeout:
            return None
    return None


def cache_root(environ: Mapping[str, str]) -> Path:
    """The Hugging Face cache, found as huggingface_hub finds it; it need not exist."""
    own = home(environ)
    hugging_face = environ.get("HF_HOME") or str(
        Path(environ.get("XDG_CACHE_HOME") or own / ".cache") / "huggingface"
    )
    default = str(Path(hugging_face) / "hub")
    chosen = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or default
    path = Path(os.path.expandvars(chosen))
    return own / path.relative_to("~") if path.parts[:1] == ("~",) else path


def home(environ: Mapping[str, str]) -> Path:
    """The person's home folder."""
    return Path(environ.get("HOME") or Path.home())


def real_folder(root: Path, folder: Path) -> None:
    """Make `folder`, and see that no step of it below `root` is a link. Raises BadFile."""
    at = root
    for part in folder.relative_to(root).parts:
        at = at / part
        with contextlib.suppress(FileExistsError):
            at.mkdir()
        if not stat.S_ISDIR(at.lstat().st_mode):
            raise _planted(at)


def open_partial(path: Path) -> int:
    """A descriptor of the partial file, made if need be. Raises BadFile if it is not our own."""
    try:
        number = open_own(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _planted(path) from None
        raise unwritable(path, error) from error
    about = os.fstat(number)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1 or not is_ours(about):
        os.close(number)
        raise _planted(path)
    return number


def same_file(number: int, path: Path) -> bool:
    """Whether `path` still is the file behind the descriptor."""
    try:
        return os.path.samestat(os.fstat(number), path.lstat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Errors of the disk under `path` as ours."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> QwqError:
    """What an error of the disk means for the person."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"The disk under {path.parent} is full.", "Make room, then run it again")
    reason = error.strerror or str(error)
    return QwqError(
        f"{path} cannot be used: {reason}.", "Check who owns it, or choose a folder with --to"
    )


def _is_inside(path: Path, root: Path) -> bool:
    """Whether `path` stays below `root` when links are followed; the Hub's own blobs may link."""
    with contextlib.suppress(OSError, RuntimeError):
        return path.resolve().is_relative_to(root.resolve())
    return False


def _has_size(path: Path, size: int) -> bool:
    try:
        about = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(about.st_mode) and about.st_size == size


def _linked(other: Path, name: Path) -> bool:
    """Give `other` a second name on the same disk, if the system lets us."""
    try:
        os.link(other.resolve(), name)
    except OSError:
        return False
    return True


def _planted(path: Path) -> BadFile:
    return BadFile(
        f"{path} is a link or another's file where qwq expects its own.",
        f"Look at it: ls -l {path}",
    )
