"""What can be had where: model files of Hugging Face, its mirrors and ModelScope.

Contract: a `Want` is what a person typed, an `Offer` one model file (or set of parts) with its
exact size, checksums and commit as the source announced them a moment ago. Nothing is taken from a
table but the names of repositories: files come and go. What a server says is checked before use: a
file name stays below its folder, a checksum is a checksum.
Limits: GGUF files only; a file without a published sha256 can be listed but not pulled.
Protocols: huggingface.co/docs/hub/api and the requests of the modelscope client.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from qwqcli.errors import BadFile, NetworkError, QwqError, UsageError
from qwqcli.hub.web import Refused, Web, checked_url, host, origin

HUGGING_FACE = "https://huggingface.co"
MODELSCOPE = "https://www.modelscope.cn"
DEFAULT_QUANTIZATION = "Q4_K_M"  # the usual balance of size and quality for 32B models
# Who publishes QwQ-32B, best first: its makers, then those whose files most people use.
QWQ_REPOS = (
    "Qwen/QwQ-32B-GGUF",
    "bartowski/Qwen_QwQ-32B-GGUF",
    "unsloth/QwQ-32B-GGUF",
    "lmstudio-community/QwQ-32B-GGUF",
    "mradermacher/QwQ-32B-GGUF",
    "mradermacher/QwQ-32B-i1-GGUF",
)
MAX_FILE = 1 << 50  # bytes; a bigger size is a slip of the server
MAX_PARTS = 999
MAX_LICENSE = 100  # letters of the short name of a licence, which is shown

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.ASCII)
_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d_[A-Z0-9_]+|TQ\d_\d|B?F16|FP16|F32|FP32|MXFP4(?:_MOE)?|NVFP4))$",
    re.IGNORECASE | re.ASCII,
)
_SHA256 = re.compile("[0-9a-f]{64}")
_COMMIT = re.compile("[0-9a-f]{40}")
_REVISION = re.compile(r"[\w.+-]+(?:/[\w.+-]+)*", re.ASCII)
_SHORT_HOSTS = ("hf.co/", "huggingface.co/", "modelscope.cn/", "www.modelscope.cn/")

Kind = Literal["huggingface", "modelscope"]


class Absent(UsageError):
    """A source does not have the repository, or not for us."""


@dataclass(frozen=True, slots=True)
class Want:
    """What a person asked for. Without `repo`, QwQ-32B from whoever has the quantization."""

    repo: str = ""
    quantization: str = ""  # in capitals
    file: str = ""  # path in the repository
    revision: str = ""
    source: str = ""  # from a URL; else what the settings say


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the source announces it; `sha256` is "" where it publishes none."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """A server of models and the protocol that it speaks."""

    kind: Kind
    endpoint: str

    @property
    def name(self) -> str:
        return host(self.endpoint)


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that can be pulled: one file, or all parts of one in order."""

    repo: str
    quantization: str  # "" where the file name does not say
    files: tuple[RemoteFile, ...]
    source: Source
    revision: str  # as asked for, such as main
    commit: str  # 40 hex digits
    license: str = ""

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(file.size for file in self.files)

    @property
    def name(self) -> str:
        return f"{self.repo}:{self.quantization or self.files[0].path}"

    def url(self, file: RemoteFile) -> str:
        """Where the bytes of `file` are asked for, pinned to the commit where that is possible."""
        if self.source.kind == "modelscope":
            query = urlencode({"Revision": self.revision, "FilePath": file.path})
            return f"{self.source.endpoint}/api/v1/models/{self.repo}/repo?{query}"
        return f"{self.source.endpoint}/{self.repo}/resolve/{self.commit}/{quote(file.path)}"


def parse_want(text: str, revision: str = "") -> Want:
    """What `text` asks for: "", a quantization, REPO, REPO:QUANT, REPO:FILE, REPO/FILE or a URL.

    Raises UsageError if it cannot be meant.
    """
    source, path = _without_host(text.strip())
    repo, rest = _without_repo(path)
    rest, revision = _without_revision(rest, revision) if source else (rest, revision)
    if revision and (not repo or not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(
            f"'{revision}' cannot be a revision of {repo or 'a model without a repository'}.",
            "qwq pull OWNER/NAME:QUANT --revision main",
        )
    if rest.lower().endswith(".gguf"):
        return Want(repo, "", rest, revision, source)
    is_word = ":" in path or not repo or not rest  # not what follows a slash
    if "/" in rest or not is_word or (not repo and rest and not quantization_of(rest)):
        raise UsageError(
            f"'{text}' is neither a quantization nor a repository.",
            f"qwq pull q4_k_m, or qwq pull {QWQ_REPOS[1]}:IQ4_XS",
        )
    return Want(repo, quantization_of(rest) or rest.upper(), "", revision, source)


def source_of(text: str, environ: Mapping[str, str]) -> Source:
    """The source named hf, modelscope or by a URL; "" is HF_ENDPOINT, else Hugging Face."""
    modelscope = (environ.get("MODELSCOPE_ENDPOINT") or MODELSCOPE).rstrip("/")
    known = {
        "": environ.get("HF_ENDPOINT") or HUGGING_FACE,
        "hf": HUGGING_FACE,
        "huggingface": HUGGING_FACE,
        "modelscope": modelscope,
    }
    url = known.get(text.lower(), text).rstrip("/")
    url = url if "://" in url else f"https://{url}"
    # a login in it would be of no use, and stand in receipts and on the screen
    url = re.sub("(?<=://)[^/]*@", "", url, count=1)
    try:
        named = host(checked_url(url))
    except NetworkError:
        raise UsageError(f"'{url}' is not a web address.", "--source https://...") from None
    if not any(mark in named for mark in ".:") and named != "localhost":
        raise UsageError(f"There is no source '{text}'.", "--source hf, modelscope or a URL")
    kind: Kind = "modelscope" if url == modelscope or "modelscope" in host(url) else "huggingface"
    return Source(kind, url)


def tokens_for(source: Source, environ: Mapping[str, str]) -> dict[str, str]:
    """The person's token for this source, by origin. One saved for Hugging Face goes to it, and to
    HF_ENDPOINT, since who sets that asks for it; never unencrypted but to this machine."""
    if source.kind == "modelscope":
        token = environ.get("MODELSCOPE_API_TOKEN", "")
    elif source.endpoint in (HUGGING_FACE, environ.get("HF_ENDPOINT", "").rstrip("/")):
        token = _hugging_face_token()
    else:
        token = ""
    private = source.endpoint.startswith("https://") or source.name in ("127.0.0.1", "localhost")
    return {origin(source.endpoint): token} if token and private else {}


def offers(web: Web, source: Source, want: Want) -> tuple[Offer, ...]:
    """All that `want` could mean, best first; for QwQ-32B over all its repositories.

    Raises UsageError if there is none, NetworkError or BadFile where the source fails.
    """
    every = (
        listing(web, source, want.repo, want.revision)
        if want.repo
        else [offer for repo in QWQ_REPOS for offer in _listing_if_any(web, source, repo)]
    )
    found = tuple(_matching(every, want))
    if not found:
        raise _nothing(want, every)
    return found


def choose(web: Web, source: Source, want: Want) -> Offer:
    """The one offer that is meant; asks no more repositories than it takes to find it."""
    if not want.repo:
        want = want if want.quantization or want.file else _with_default(want)
        for repo in QWQ_REPOS:
            for offer in _matching(_listing_if_any(web, source, repo), want):
                return checked(offer)
    found = offers(web, source, want)
    if len(found) > 1 and not want.quantization:
        usual = [offer for offer in found if offer.quantization == DEFAULT_QUANTIZATION]
        if not usual:
            raise UsageError(
                f"{want.repo} has {len(found)} models: {_table(found)}.",
                f"qwq pull {found[0].name}",
            )
        return checked(usual[0])
    return checked(found[0])


def checked(offer: Offer) -> Offer:
    """`offer` if it can be pulled. Raises BadFile where a checksum is missing or names collide."""
    for file in offer.files:
        if not file.sha256:
            raise BadFile(
                f"{offer.source.name} publishes no checksum for {file.path}.",
                "Choose another repository, or --source hf",
            )
    if len({file.path.lower() for file in offer.files}) < len(offer.files):
        raise BadFile(f"{offer.repo} has files whose names differ only in case.", "Choose another")
    return offer


def listing(web: Web, source: Source, repo: str, revision: str = "") -> tuple[Offer, ...]:
    """Everything in a repository that can be run, in its order."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise UsageError(f"'{repo}' is not the name of a repository.", f"qwq pull {QWQ_REPOS[0]}")
    read = _modelscope if source.kind == "modelscope" else _hugging_face
    try:
        files, revision, commit, license_ = read(web, source, repo, revision)
    except Refused as no:
        raise explain(no, source, repo) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise NetworkError(
            f"{source.name} does not answer as a model hub does.", "Check HF_ENDPOINT and --source"
        ) from None
    return tuple(
        Offer(repo, quantization, parts, source, revision, commit, license_)
        for quantization, parts in group(files)
    )


def group(files: Iterable[RemoteFile]) -> Iterator[tuple[str, tuple[RemoteFile, ...]]]:
    """Model files with their quantization; parts of one model together, and only if all are there.

    What helps other files is left out: image projectors and importance matrices.
    """
    sets: dict[tuple[str, int], dict[int, RemoteFile]] = {}
    for file in files:
        stem = file.path[: -len(".gguf")]
        if any(word in stem.rpartition("/")[2].lower() for word in ("mmproj", "imatrix")):
            continue
        part = _PART.fullmatch(stem)
        key, no = ((part[1], int(part[3])), int(part[2])) if part else ((stem, 1), 1)
        sets.setdefault(key, {})[no] = file
    for (stem, count), parts in sets.items():
        if count <= MAX_PARTS and sorted(parts) == list(range(1, count + 1)):
            yield quantization_of(stem), tuple(parts[no] for no in sorted(parts))


def quantization_of(stem: str) -> str:
    """Q4_K_M of `QwQ-32B-Q4_K_M`, in capitals; "" if the name does not say."""
    match = _QUANTIZATION.search(stem)
    if match is None:
        return ""
    return match[1].upper().replace("FP16", "F16").replace("FP32", "F32")


def safe_path(path: str) -> str:
    """`path` if it names a file below its folder on every system. Raises BadFile."""
    parts = path.split("/")
    unsafe = (
        not path.isprintable()
        or any(part in ("", ".", "..") or part != part.strip(" ") for part in parts)
        or any(character in '\\:*?"<>|' for character in path)
        or any(len(part.encode()) > 200 or part.endswith(".") for part in parts)
        or PurePosixPath(path).is_absolute()
    )
    if unsafe:
        raise BadFile(f"The server names a file {path[:60]!r}.", "Do not use this repository")
    return path


def explain(no: Refused, source: Source, repo: str) -> QwqError:
    """What a server's no means for the person who asked."""
    page = f"{source.endpoint}/{repo}"
    if no.code == "GatedRepo":
        return UsageError(
            f"{repo} is open only to those who accept its conditions.",
            f"Accept them at {page}, then log in with: hf auth login",
        )
    if no.code == "RevisionNotFound":
        return UsageError(f"{repo} has no such revision.", f"See {page}/tree/main")
    if no.code == "EntryNotFound":
        return UsageError(f"{repo} has no such file.", f"See {page}/tree/main")
    if no.code == "RepoNotFound" or no.status in (401, 404):
        return Absent(
            f"{source.name} has no repository {repo}, or it is private.",
            "Check the name; for a private one log in with: hf auth login",
        )
    if no.status == 403:
        return NetworkError(
            f"{host(no.url)} refuses access to {repo} (HTTP 403).",
            "A proxy or your region may be the cause; try: --source modelscope",
        )
    return NetworkError(f"{host(no.url)} answers HTTP {no.status}.", "Try another --source")


def _hugging_face(web: Web, source: Source, repo: str, revision: str) -> Any:
    revision = revision or "main"
    url = f"{source.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
    about = web.json(url)
    files = [
        _remote(item["rfilename"], (item.get("lfs") or item).get("size"), _lfs_sum(item))
        for item in about["siblings"]
        if item["rfilename"].lower().endswith(".gguf")
    ]
    license_ = (about.get("cardData") or {}).get("license", "")
    if not _COMMIT.fullmatch(about["sha"]):
        raise ValueError("no commit")
    shown = isinstance(license_, str) and license_.isprintable() and len(license_) < MAX_LICENSE
    return files, revision, about["sha"], license_ if shown else ""


def _modelscope(web: Web, source: Source, repo: str, revision: str) -> Any:
    revision = "master" if revision in ("", "main") else revision
    query = urlencode({"Revision": revision, "Recursive": "True"})
    data = web.json(f"{source.endpoint}/api/v1/models/{repo}/repo/files?{query}")["Data"]
    items = [item for item in data["Files"] if item["Path"].lower().endswith(".gguf")]
    files = [_remote(item["Path"], item["Size"], item.get("Sha256")) for item in items]
    return files, revision, _made_up_commit(files), ""


def _made_up_commit(files: Sequence[RemoteFile]) -> str:
    """ModelScope gives no commit of the whole, and a cache wants one: it follows from the files."""
    lines = sorted(f"{file.sha256} {file.path}" for file in files)
    return hashlib.sha1("\n".join(lines).encode(), usedforsecurity=False).hexdigest()


def _lfs_sum(item: dict[str, Any]) -> Any:
    lfs = item.get("lfs") or {}
    return lfs.get("sha256") or lfs.get("oid")


def _remote(path: str, size: Any, sha256: Any) -> RemoteFile:
    if not isinstance(size, int) or not 0 < size < MAX_FILE:
        raise ValueError("no size")
    known = isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None
    return RemoteFile(safe_path(path), size, sha256 if known else "")


def _listing_if_any(web: Web, source: Source, repo: str) -> tuple[Offer, ...]:
    """A repository of QwQ-32B, or nothing where this source does not have it."""
    try:
        return listing(web, source, repo)
    except Absent:
        return ()


def _matching(every: Iterable[Offer], want: Want) -> Iterator[Offer]:
    for offer in every:
        paths = [file.path for file in offer.files]
        if not want.repo and "preview" in paths[0].lower():
            continue  # QwQ-32B-Preview is another model of the same size
        if want.file and not any(want.file in (p, p.rpartition("/")[2]) for p in paths):
            continue
        if want.quantization in ("", offer.quantization):
            yield offer


def _with_default(want: Want) -> Want:
    return Want("", DEFAULT_QUANTIZATION, "", want.revision, want.source)


def _nothing(want: Want, every: Sequence[Offer]) -> UsageError:
    what = want.file or want.quantization or "GGUF file"
    said = f"{want.repo} has no {what}" if want.repo else f"No repository of QwQ-32B has {what}"
    if not every:
        return UsageError(f"{said}.", f"See what there is: qwq pull {QWQ_REPOS[0]}")
    by_name = {offer.quantization or offer.files[0].path: offer for offer in reversed(every)}
    close = difflib.get_close_matches(want.file or want.quantization, by_name, n=1, cutoff=0.0)
    hint = f"{want.repo}:{close[0]}" if want.repo else close[0].lower()
    kept = [offer for offer in every if offer is by_name[offer.quantization or offer.files[0].path]]
    return UsageError(f"{said}. There is: {_table(kept)}.", f"qwq pull {hint}")


def _table(every: Sequence[Offer]) -> str:
    """Quantizations with their sizes, biggest first, in one line."""
    ordered = sorted(every, key=lambda offer: -offer.size)
    return ", ".join(
        f"{offer.quantization or offer.files[0].path} {offer.size / 1e9:.1f} GB"
        for offer in ordered
    )


def _without_host(text: str) -> tuple[str, str]:
    """(source, rest): a URL, or a name that begins with the host of a hub, gives its source."""
    if text.lower().startswith(_SHORT_HOSTS):
        text = f"https://{text}"
    if "://" not in text:
        return "", text
    try:
        parts = urlsplit(text)
    except ValueError:
        raise UsageError(f"'{text}' is not a web address.", "qwq pull OWNER/REPO:QUANT") from None
    path = parts.path.strip("/").removeprefix("models/")
    known = {"hf.co": "hf", "huggingface.co": "hf"}
    name = (parts.hostname or "").removeprefix("www.")
    if name == "modelscope.cn":
        return "modelscope", path
    return known.get(name, f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"), path


def _without_repo(path: str) -> tuple[str, str]:
    """(OWNER/NAME, what follows it)."""
    name, colon, rest = path.partition(":")
    if colon and _REPO.fullmatch(name):
        return name, rest
    parts = path.split("/")
    if len(parts) < 2:
        return "", path
    return "/".join(parts[:2]), "/".join(parts[2:])


def _without_revision(rest: str, revision: str) -> tuple[str, str]:
    """The path of a hub's page without what stands between repository and file."""
    match = re.fullmatch(r"(?:blob|resolve|raw|tree|file/view)/([^/]+)/?(.*)", rest)
    if match is None:
        return "" if rest in ("files", "summary", "tree") else rest, revision
    default = match[1] in ("main", "master")
    return match[2], revision or ("" if default else match[1])


def _hugging_face_token() -> str:
    """As huggingface_hub finds it: HF_TOKEN, the file of `hf auth login`, and its other ways."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # this library is only asked for a token
    from huggingface_hub import get_token

    return get_token() or ""
