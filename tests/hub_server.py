"""A model hub on loopback for tests: Hugging Face's protocol and ModelScope's, with faults.

Contract: `with HubServer() as hub: hub.add("owner/name", {"a.gguf": data})`, then point a client at
`hub.url`. File bytes come from a second server under another host name, reached by a signed link
that expires, as from a real CDN. `hub.faults` says what goes wrong, in order; `hub.log` has every
request, `hub.sent` the body bytes that left. huggingface_hub's own client works against it, which
is tested, so that what passes here is the protocol and not our idea of it.
Limits: GET and HEAD, one Range per request, no Xet, no upload; a body is bytes or a file.
Run as a program, it serves one file at a given speed for benchmarks and kill tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

BLOCK = 64 << 10  # bytes sent at once where the speed or the bytes are tampered with
COMMIT = "5" * 40
SECRET = "Signature=s3cr3t"


@dataclass
class Fault:
    """What goes wrong with the requests that it meets: `times` of them, or all.

    `on` is the hub itself, its CDN or both; `match` is looked for in the path.
    """

    on: Literal["hub", "cdn", "any"] = "cdn"
    times: int | None = None
    skip: int = 0  # let so many pass first
    match: str = ""
    delay: float = 0.0  # seconds before the answer
    status: int = 0
    retry_after: str = ""
    code: str = ""  # X-Error-Code
    location: str = ""  # redirect there
    cut: int | None = None  # close after so many body bytes
    stall: int | None = None  # fall silent after so many body bytes
    rate: int = 0  # bytes per second
    length: int = 0  # added to Content-Length
    flip: int | None = None  # position in the file of a byte that is flipped
    no_ranges: bool = False
    shift: int = 0  # a 206 that begins so many bytes later than asked
    total: int = 0  # added to the total in Content-Range
    etag: str = ""  # instead of the real one
    linked_size: int = 0  # added to X-Linked-Size
    html: bool = False  # a login page instead of the answer
    endless: bool = False  # the body goes on for ever

    def meets(self, role: str, path: str) -> bool:
        if self.on not in ("any", role) or self.match not in path or self.times == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Repo:
    files: dict[str, Body]
    commit: str = COMMIT
    gated: bool = False
    private: bool = False
    no_sha: bool = False
    license: str = "apache-2.0"


@dataclass(frozen=True)
class Body:
    """The bytes of a file, in memory or on disk."""

    source: bytes | Path = field(repr=False)
    sha256: str

    @classmethod
    def of(cls, source: bytes | Path) -> Body:
        if isinstance(source, bytes):
            return cls(source, hashlib.sha256(source).hexdigest())
        digest = hashlib.sha256()
        with source.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        return cls(source, digest.hexdigest())

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def blocks(self, start: int, end: int) -> Iterator[bytes]:
        if isinstance(self.source, bytes):
            for at in range(start, end, BLOCK):
                yield self.source[at : min(at + BLOCK, end)]
            return
        with self.source.open("rb") as file:
            file.seek(start)
            for at in range(start, end, BLOCK):
                yield file.read(min(BLOCK, end - at))


@dataclass(frozen=True)
class Request:
    role: str
    method: str
    path: str  # with its query
    headers: Mapping[str, str]
    status: int = 0


@dataclass
class HubServer:
    """Both servers, what they hold and what they were asked. A context manager."""

    token: str = ""  # asked for by gated and private repositories
    link_seconds: float = 3600.0  # until a signed link expires
    rate: int = 0  # bytes per second of each connection; 0: no limit
    certificate: Path | None = None  # speak TLS with this PEM file of key and certificate
    repos: dict[str, Repo] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    log: list[Request] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._servers = [_Server(self, "hub"), _Server(self, "cdn")]
        scheme = "https" if self.certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{self._servers[0].server_port}"
        self.cdn = f"{scheme}://localhost:{self._servers[1].server_port}"

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: Mapping[str, bytes | Path], **about: Any) -> Repo:
        """Publish a repository; `about` are fields of Repo."""
        repo = Repo({path: Body.of(source) for path, source in files.items()}, **about)
        self.repos[name] = repo
        return repo

    def fault(self, role: str, path: str) -> Fault:
        """The fault of this request: the first that meets it, else one that does nothing."""
        with self.lock:
            return next((f for f in self.faults if f.meets(role, path)), Fault())

    def note(self, request: Request) -> None:
        with self.lock:
            self.log.append(request)

    def count(self, sent: int) -> None:
        with self.lock:
            self.sent += sent

    def asked(self, role: str) -> list[Request]:
        with self.lock:
            return [request for request in self.log if request.role == role]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: HubServer, role: str) -> None:
        self.hub = hub
        self.role = role
        super().__init__(("127.0.0.1", 0), _Handler)
        if hub.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(hub.certificate)
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed or give up are what these tests are about."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send_response(self, code: int, message: str | None = None) -> None:
        self.server.hub.note(
            Request(self.server.role, self.command, self.path, dict(self.headers), code)
        )
        super().send_response(code, message)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_CONNECT(self) -> None:
        """Be a proxy: carry bytes both ways, to whatever port of this machine is named."""
        with socket.create_connection(("127.0.0.1", int(self.path.rpartition(":")[2]))) as far:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_carry, args=(far, self.connection), daemon=True)
            back.start()
            _carry(self.connection, far)
            back.join(5)
        self.close_connection = True

    def do_GET(self) -> None:
        parts = urlsplit(self.path)  # an absolute URL if we are asked as a proxy
        self.fault = self.server.hub.fault(self.server.role, self.path)
        time.sleep(self.fault.delay)
        if self.fault.status and not self.fault.location:
            headers = {"Retry-After": self.fault.retry_after, "X-Error-Code": self.fault.code}
            self.answer(self.fault.status, b"", {k: v for k, v in headers.items() if v})
        elif self.fault.location:
            self.answer(self.fault.status or 302, b"", {"Location": self.fault.location})
        elif self.fault.html:
            self.answer(200, b"<!doctype html><title>Log in</title>" * 100)
        else:
            self.route(unquote(parts.path), parse_qs(parts.query))

    def route(self, path: str, query: dict[str, list[str]]) -> None:
        name = r"(?P<name>[^/]+/[^/]+)"
        routes: list[tuple[str, Callable[..., None]]] = [
            (rf"/api/models/{name}(?:/revision/(?P<revision>.+))?", self.model_info),
            (rf"/{name}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self.resolve),
            (rf"/cdn/{name}/(?P<file>.+)", self.bytes_of),
            (rf"/api/v1/models/{name}/repo/files", self.modelscope_files),
            (rf"/api/v1/models/{name}/repo", self.modelscope_file),
        ]
        if path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {self.server.hub.token}"
            self.answer(200 if known else 401, b'{"name": "a-person"}')
            return
        for pattern, handler in routes:
            if match := re.fullmatch(pattern, path):
                if self.allowed(match["name"], handler == self.bytes_of):
                    handler(query=query, **match.groupdict())
                return
        self.answer(404, b"")

    def allowed(self, name: str, signed: bool) -> bool:
        """Answer as the Hub does where a repository is missing, private or gated."""
        repo = self.server.hub.repos.get(name)
        known = self.headers.get("Authorization") == f"Bearer {self.server.hub.token}"
        if repo is None or (repo.private and not known and not signed):
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            return False
        is_list = self.path.startswith("/api/")
        if repo.gated and not known and not signed and not is_list:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return False
        return True

    def model_info(self, name: str, revision: str | None, query: Any) -> None:
        repo = self.server.hub.repos[name]
        if revision not in (None, "main", repo.commit):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [
            {"rfilename": path, "size": body.size, "blobId": body.sha256[:40]}
            | (
                {}
                if repo.no_sha
                else {"lfs": {"sha256": body.sha256, "size": body.size, "pointerSize": 130}}
            )
            for path, body in repo.files.items()
        ]
        about = {
            "_id": "0" * 24,
            "id": name,
            "modelId": name,
            "sha": repo.commit,
            "tags": [],
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
            "cardData": {"license": repo.license},
        }
        self.answer(200, json.dumps(about).encode())

    def resolve(self, name: str, revision: str, file: str, query: Any) -> None:
        repo = self.server.hub.repos[name]
        if revision not in ("main", repo.commit):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif file not in repo.files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            body = repo.files[file]
            self.answer(
                302,
                b"",
                {
                    "Location": self.link(name, file),
                    "X-Repo-Commit": repo.commit,
                    "X-Linked-Etag": f'"{self.fault.etag or body.sha256}"',
                    "X-Linked-Size": str(body.size + self.fault.linked_size),
                    "ETag": f'"{body.sha256[:32]}"',
                    "Accept-Ranges": "bytes",
                },
            )

    def modelscope_files(self, name: str, query: dict[str, list[str]]) -> None:
        repo = self.server.hub.repos[name]
        if query.get("Revision", ["master"])[0] != "master":
            self.answer(404, b'{"Code":10010205001,"Message":"no such revision"}')
            return
        files = [
            {
                "Path": path,
                "Name": path.rpartition("/")[2],
                "Type": "blob",
                "Size": body.size,
                "Sha256": body.sha256,
                "Revision": repo.commit,
                "CommittedDate": 1741300000 + number,
            }
            for number, (path, body) in enumerate(repo.files.items())
        ]
        self.answer(
            200, json.dumps({"Code": 200, "Data": {"Files": files}, "Success": True}).encode()
        )

    def modelscope_file(self, name: str, query: dict[str, list[str]]) -> None:
        file = query["FilePath"][0]
        if file not in self.server.hub.repos[name].files:
            self.answer(404, b"")
        else:
            self.answer(302, b"", {"Location": self.link(name, file)})

    def link(self, name: str, file: str) -> str:
        expires = time.time() + self.server.hub.link_seconds
        return f"{self.server.hub.cdn}/cdn/{name}/{quote(file)}?Expires={expires}&{SECRET}"

    def bytes_of(self, name: str, file: str, query: dict[str, list[str]]) -> None:
        if float(query["Expires"][0]) < time.time():
            self.answer(403, b"<Error>expired</Error>")
            return
        body = self.server.hub.repos[name].files[file]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or self.fault.no_ranges:
            self.send_file(200, body, 0, body.size)
            return
        start = int(asked[1])
        if start >= body.size:
            self.answer(416, b"", {"Content-Range": f"bytes */{body.size}"})
            return
        end = min(int(asked[2] or body.size) + 1, body.size)
        self.send_file(206, body, min(start + self.fault.shift, end - 1), end)

    def answer(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_file(self, status: int, body: Body, start: int, end: int) -> None:
        fault = self.fault
        self.send_response(status)
        if not fault.endless:
            self.send_header("Content-Length", str(end - start + fault.length))
        self.send_header("ETag", f'"{fault.etag or body.sha256[:32]}"')
        self.send_header("Accept-Ranges", "none" if fault.no_ranges else "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{body.size + fault.total}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.close_connection = bool(fault.endless or fault.length)
        if (
            fault == Fault(on=fault.on)
            and not self.server.hub.rate
            and isinstance(body.source, Path)
        ):
            self.send_fast(body.source, start, end)
        else:
            self.send_slowly(self.tampered(body, start, end))

    def send_fast(self, path: Path, start: int, end: int) -> None:
        """From the page cache to the socket, so that a benchmark measures the client."""
        self.wfile.flush()
        with path.open("rb") as file:
            while start < end:
                sent = os.sendfile(
                    self.connection.fileno(), file.fileno(), start, min(end - start, 1 << 20)
                )
                start += sent
                self.server.hub.count(sent)

    def tampered(self, body: Body, start: int, end: int) -> Iterator[bytes]:
        fault, at = self.fault, start
        for block in body.blocks(start, end):
            if fault.flip is not None and at <= fault.flip < at + len(block):
                inside = fault.flip - at
                block = block[:inside] + bytes([block[inside] ^ 0xFF]) + block[inside + 1 :]
            at += len(block)
            yield block
        while fault.endless:
            yield bytes(BLOCK)

    def send_slowly(self, blocks: Iterator[bytes]) -> None:
        fault, hub, sent, began = self.fault, self.server.hub, 0, time.monotonic()
        rate = fault.rate or hub.rate
        for block in blocks:
            limit = min(x for x in (fault.cut, fault.stall, sent + len(block)) if x is not None)
            piece = block[: max(0, limit - sent)]
            for at in range(0, len(piece), step := max(1, rate // 20) if rate else BLOCK):
                self.wfile.write(piece[at : at + step])
                hub.count(len(piece[at : at + step]))
                if rate and hub.closing.wait(
                    max(0.0, (sent + at + step) / rate - (time.monotonic() - began))
                ):
                    return
            sent += len(piece)
            if sent == fault.stall:
                hub.closing.wait(60)
            if sent in (fault.cut, fault.stall):
                self.wfile.flush()
                self.close_connection = True
                return


def _carry(source: socket.socket, target: socket.socket) -> None:
    """Bytes from one socket to the other until either ends."""
    try:
        while data := source.recv(BLOCK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def main(path: str, name: str = "owner/name", rate: str = "0") -> None:
    """Serve the file at `path` until standard input ends; prints the address as one JSON line."""
    with HubServer(rate=int(rate)) as hub:
        hub.add(name, {Path(path).name: Path(path)})
        direct = f"{hub.cdn}/cdn/{name}/{Path(path).name}?Expires=9999999999"
        print(json.dumps({"url": hub.url, "direct": direct}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
