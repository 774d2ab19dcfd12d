"""HTTP as a download of 20 GB needs it: the one door of `qwqcli.hub` to the network.

Contract: a `Line` sends GET requests over one kept-alive connection and follows redirects itself.
What may pass by waiting is `Transient`, a server's final no is `Refused`, and what a person must
change is a QwqError. A token goes only to the origin that it was given for, never to where that
origin redirects; redirects lead only to http(s) and never from https down to http.
Limits: HTTP/1.1 over TCP or TLS, through HTTP proxies of the environment; no SOCKS, no HTTP/2.
Why not the Hub library's session: a body read through http.client costs as little CPU as curl,
needs no 10 MiB steps, and a read can be broken off from another thread.
Messages name hosts and paths, never a query: signed links carry their secret there.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import functools
import http.client
import importlib
import json
import os
import random
import socket
import ssl
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from qwqcli import __version__
from qwqcli.errors import NetworkError, UsageError

MAX_REDIRECTS = 10  # the Hub needs 1 to 3
MAX_JSON = 32 << 20  # bytes; the listing of a repository with 1,000 files has 0.5 MB
DRAINED = 64 << 10  # so much of an unread body is read, so that the connection can be kept
REDIRECTS = frozenset({301, 302, 303, 307, 308})
WAITABLE = frozenset({408, 425, 429})  # besides every 5xx
# What the Hub says about a file on the way to where its bytes are.
LINKED = ("x-repo-commit", "x-linked-etag", "x-linked-size")
# Characters that may stand in a URL as they are; a Location is not always clean.
_URL_SAFE = "%/:=&?~#+!$,;'@()*[]"


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient and how greedy downloads are. Times in seconds, sizes in bytes."""

    connections: int = 4  # at once for one file; more gain little and some servers answer 429
    connect_s: float = 10.0
    stall_s: float = 30.0  # a connection that brings nothing for so long is replaced
    slowest: int = 1024  # bytes per second over `stall_s`; below, it counts as stalled
    backoff_s: float = 0.5  # first wait after a failure, doubled each time
    backoff_max_s: float = 30.0
    retry_after_max_s: float = 300.0  # the longest wait that a server can order
    patience_s: float = 600.0  # without one new byte, then the pull ends
    tries: int = 4  # of a request for metadata
    metadata_s: float = 30.0  # for one answer with metadata
    # bytes asked for at once: big, since each request costs a round trip, and not so big that the
    # checksum, which follows the first gap, falls far behind
    piece: int = 32 << 20
    split: int = 4 << 20  # an idle connection takes half of a piece that has more left than this

    def backoff(self, attempt: int, ordered: float | None = None) -> float:
        """Seconds to wait after failure number `attempt` (from 1), or as the server ordered."""
        if ordered is not None:
            return min(ordered, self.retry_after_max_s) + random.uniform(0, self.backoff_s)
        ceiling = min(self.backoff_max_s, self.backoff_s * 2.0 ** min(attempt - 1, 30))
        return random.uniform(ceiling / 2, ceiling)


class Transient(Exception):
    """It did not work now and may work later; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


class Refused(Exception):
    """The server's final no: an HTTP status, the Hub's own code for it, and who said it."""

    def __init__(self, status: int, code: str, url: str) -> None:
        super().__init__(f"HTTP {status} from {show(url)}")
        self.status = status
        self.code = code
        self.url = url


@dataclass(frozen=True, slots=True)
class Web:
    """What all connections of one pull share. `tokens` maps an origin to the token for it."""

    policy: Policy = field(default_factory=Policy)
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    offline: bool = False

    def json(self, url: str) -> Any:
        """The JSON at `url`, tried again while that may help. Raises Refused or NetworkError."""
        for attempt in range(1, self.policy.tries + 1):
            line = Line(self)
            try:
                return _read_json(line.get(url), self.policy)
            except Transient as problem:
                if attempt == self.policy.tries:
                    raise _unreachable(url, problem) from None
                wait_s = self.policy.backoff(attempt, problem.wait_s)
                time.sleep(min(wait_s, self.policy.metadata_s))
            finally:
                line.close()
        raise AssertionError("tries is at least 1")


class Reply:
    """An answer whose body is still to be read; `trail` has what redirects said of the file."""

    def __init__(
        self, response: http.client.HTTPResponse, url: str, trail: Mapping[str, str]
    ) -> None:
        self.status = response.status
        self.headers: Message = response.headers
        self.url = url
        self.trail = trail
        self._response = response

    def read(self, limit: int) -> bytes:
        """What the next read from the socket gives, at most `limit` bytes; b"" at the end."""
        with _named(self.url):
            return self._response.read1(limit)

    def read_into(self, view: memoryview) -> int:
        """As `read`, into the beginning of `view`; returns the bytes, 0 at the end.

        For bodies of gigabytes: a new buffer of 1 MB for each read costs more than the copying.
        """
        response = self._response
        if response.chunked or response.length is None or response.isclosed():
            data = self.read(len(view))
            view[: len(data)] = data
            return len(data)
        with _named(self.url):
            count = response.fp.readinto1(view[: response.length])
        response.length -= count
        return int(count)

    def whole(self, limit: int, seconds: float) -> bytes:
        """The body, at most `limit` bytes of it and for at most so many seconds."""
        deadline, data = time.monotonic() + seconds, bytearray()
        while len(data) <= limit and (block := self.read(limit + 1 - len(data))):
            data += block
            if time.monotonic() > deadline:
                raise Transient(f"{host(self.url)} is too slow")
        return bytes(data)

    @property
    def length(self) -> int | None:
        """Bytes of the body as announced."""
        return _number(self.headers.get("Content-Length"))


class Line:
    """One connection at a time, kept for the next request to the same origin. One thread's own,
    but for `abort`."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._connection: http.client.HTTPConnection | None = None
        self._origin = ""
        self._response: http.client.HTTPResponse | None = None
        self._socket: socket.socket | None = None
        self._aborted = False

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Reply:
        """The final answer, with status 200 or 206. Raises Transient, Refused or NetworkError."""
        if self._web.offline:
            raise NetworkError(
                f"{host(url)} would have to be asked, and --offline forbids it.",
                "Run it once without --offline (and without HF_HUB_OFFLINE)",
            )
        trail: dict[str, str] = {}
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(url, headers or {})
            if response.status not in REDIRECTS:
                return _accepted(Reply(response, url, trail))
            trail.update(
                (name, response.headers[name]) for name in LINKED if name in response.headers
            )
            target = _redirected(url, response.headers.get("Location"))
            url = target
        raise NetworkError(
            f"{host(url)} redirects in a circle.", "Check HF_ENDPOINT, or use another --source"
        )

    def close(self) -> None:
        """Give the connection back to the system."""
        connection, self._connection, self._response = self._connection, None, None
        if connection is not None:
            connection.close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def abort(self) -> None:
        """Wake a thread that waits for bytes on this line, from another thread."""
        self._aborted = True
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                # not TLS's own shutdown, which is not made for a second thread
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _send(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        self._leave_response()
        kept = self._connection
        fresh = kept is None or kept.sock is None or self._origin != origin(url)
        try:
            return self._exchange(url, headers)
        except Transient:
            if fresh or self._aborted:
                raise
        # a kept connection may have been closed meanwhile, which is no failure
        return self._exchange(url, headers)

    def _exchange(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        connection = self._connected(url)
        proxy = _proxy(url)
        target = url if proxy and urlsplit(url).scheme == "http" else _target(url)
        sent = {"User-Agent": f"qwq/{__version__}", "Accept-Encoding": "identity", **headers}
        if proxy and urlsplit(url).scheme == "http":
            sent.update(_proxy_login(proxy))
        if (token := self._web.tokens.get(origin(url))) is not None:
            sent["Authorization"] = f"Bearer {token}"
        try:
            with _named(url):
                connection.request("GET", target, headers=sent)
                self._response = connection.getresponse()
                return self._response
        except Transient:
            self.close()
            raise

    def _connected(self, url: str) -> http.client.HTTPConnection:
        kept = self._connection
        if kept is not None and kept.sock is not None and self._origin == origin(url):
            return kept
        self.close()
        connection = _connection(url, self._web.policy.connect_s)
        with _named(url):
            connection.connect()
        self._socket = connection.sock
        if self._aborted:
            self.close()
            raise Transient("stopped")
        self._socket.settimeout(self._web.policy.stall_s)
        self._connection, self._origin = connection, origin(url)
        return connection

    def _leave_response(self) -> None:
        """Keep the connection for another request if nothing of the last answer can be on it."""
        response, self._response = self._response, None
        if response is None or response.isclosed():
            return
        if response.length is not None and 0 < response.length <= DRAINED:
            with contextlib.suppress(Transient), _named(""):
                response.read()
        if response.length == 0:
            response.close()
        else:
            self.close()


def origin(url: str) -> str:
    """Scheme, host and port, in one spelling: what a token belongs to."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{port}"


def host(url: str) -> str:
    """The host of a URL, for messages."""
    return urlsplit(url).hostname or "the server"


def show(url: str) -> str:
    """A URL without what may be secret: no user, no query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def checked_url(url: str, base: str = "") -> str:
    """`url`, seen from `base`, if it can be asked for. Raises NetworkError if it is not http(s)."""
    try:
        whole = urljoin(base, url)
        parts = urlsplit(whole)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an address or a port that is none
        usable = False
    if not usable:
        raise NetworkError(
            f"{host(base)} sends us to {url[:60]!r}, which is not a web address.",
            "Check HF_ENDPOINT, or use another --source",
        )
    return quote(whole, safe=_URL_SAFE)


def retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which is a number or a date; None if it is neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())


def _redirected(url: str, location: str | None) -> str:
    if not location:
        raise Transient(f"{host(url)} redirects to nowhere")
    target = checked_url(location, url)
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http":
        raise NetworkError(
            f"{host(url)} redirects to {host(target)} without encryption.", "Use another --source"
        )
    return target


def _accepted(reply: Reply) -> Reply:
    """The reply if it is what was asked for, else what its status means."""
    if reply.status in (200, 206):
        return reply
    if reply.status in WAITABLE or reply.status >= 500:
        wait_s = retry_after(reply.headers.get("Retry-After"))
        raise Transient(f"{host(reply.url)} answers HTTP {reply.status}", wait_s)
    raise Refused(reply.status, reply.headers.get("X-Error-Code", ""), reply.url)


def _read_json(reply: Reply, policy: Policy) -> Any:
    data = reply.whole(MAX_JSON, policy.metadata_s)
    if reply.length is not None and len(data) < reply.length:
        raise Transient(f"{host(reply.url)} broke off")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise NetworkError(
            f"{host(reply.url)} does not answer as a model hub does.",
            "A login page of the network, or a wrong HF_ENDPOINT or --source?",
        ) from None


def _unreachable(url: str, problem: Transient) -> NetworkError:
    return NetworkError(
        f"{host(url)} cannot be reached: {problem.reason}.",
        "Check the network and proxies, or try: --source modelscope",
    )


@contextlib.contextmanager
def _named(url: str) -> Any:
    """Errors of sockets and of HTTP become Transient, in words that hold no secret."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise NetworkError(
            f"The certificate of {host(url)} is not trusted: {error.verify_message}.",
            "Behind a company proxy, set SSL_CERT_FILE to its certificate",
        ) from None
    except TimeoutError:
        raise Transient(f"{host(url)} is silent") from None
    except socket.gaierror:
        raise Transient(f"the name {host(url)} cannot be resolved") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "connection lost"
        raise Transient(f"{host(url)}: {reason}") from None
    except (http.client.HTTPException, ValueError):  # ValueError: it was closed meanwhile
        raise Transient(f"{host(url)} broke off") from None


def _connection(url: str, timeout: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    secure, name = parts.scheme == "https", parts.hostname or ""
    proxy = _proxy(url)
    if proxy:
        via = urlsplit(proxy)
        at, port = via.hostname or "", via.port or 80
    else:
        at, port = name, parts.port or (443 if secure else 80)
    if not secure:
        return http.client.HTTPConnection(at, port, timeout=timeout)
    connection = http.client.HTTPSConnection(at, port, timeout=timeout, context=_tls())
    if proxy:
        connection.set_tunnel(name, parts.port or 443, _proxy_login(proxy))
    return connection


@functools.cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if os.path.isfile(bundle := os.environ.get(name, "")):
            context.load_verify_locations(bundle)
    paths = ssl.get_default_verify_paths()
    if not paths.cafile and not paths.capath:  # python.org's Python for macOS brings none
        with contextlib.suppress(ImportError):
            context.load_verify_locations(importlib.import_module("certifi").where())
    return context


def _proxy(url: str) -> str:
    """The proxy that the environment names for this URL, else ""."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme != "http":
        raise UsageError(
            f"The proxy {show(proxy)} is not an HTTP proxy, and qwq knows no other kind.",
            f"Set {parts.scheme}_proxy to an address that begins with http://",
        )
    return proxy


def _proxy_login(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if not parts.username:
        return {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(login).decode()}"}


def _target(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(("", "", parts.path or "/", parts.query, ""))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None
