"""The header of a model on a server, read by range: what a plan needs, before 20 GB are spent.

Contract: `remote_header` reads as much as the header is long (6 MB for QwQ-32B, whose vocabulary
stands before what a plan needs) and at most `SPAN` more. Bytes are asked for in spans, so a server
is not left with a broken connection to 20 GB.
"""

from __future__ import annotations

import time
from typing import BinaryIO, cast

from qwqcli.errors import BadFile, NetworkError
from qwqcli.gguf import ModelInfo, merge, read_header
from qwqcli.hub.sources import Offer, RemoteFile, explain
from qwqcli.hub.web import Line, Refused, Reply, Transient, Web, host

SPAN = 2 << 20  # bytes of one request


def remote_header(web: Web, offer: Offer) -> ModelInfo:
    """What `offer` says about itself. Raises NetworkError, or BadFile if it is no model."""
    headers = [_part(web, offer, file) for file in offer.files]
    return headers[0] if len(headers) == 1 else merge(headers, offer.name)


def _part(web: Web, offer: Offer, file: RemoteFile) -> ModelInfo:
    stream = _Stream(web, offer, file)
    try:
        info = read_header(cast(BinaryIO, stream), file.path)
    except Refused as no:
        raise explain(no, offer.source, offer.repo) from None
    finally:
        stream.close()
    if info.file_bytes > file.size:
        raise BadFile(
            f"{file.path} has {file.size:,} bytes, but its header speaks of {info.file_bytes:,}.",
            "Choose another repository",
        )
    return info


class _Stream:
    """The first bytes of a remote file as far as `read` is called."""

    def __init__(self, web: Web, offer: Offer, file: RemoteFile) -> None:
        self._web, self._url, self._size = web, offer.url(file), file.size
        self._line, self._at = Line(web), 0
        self._reply: Reply | None = None

    def read(self, limit: int) -> bytes:
        """The next bytes, at most `limit`; b"" at the end of the file."""
        for attempt in range(1, self._web.policy.tries + 1):
            if self._at >= self._size:
                return b""
            try:
                if (block := self._next(limit)) != b"":
                    self._at += len(block)
                    return block
                problem = Transient(f"{host(self._url)} broke off")
            except Transient as error:
                problem = error
            self._line.close()
            self._reply = None
            time.sleep(self._web.policy.backoff(attempt, problem.wait_s))
        raise NetworkError(f"{problem.reason}.", "Run it again, or try another --source")

    def close(self) -> None:
        self._line.close()

    def _next(self, limit: int) -> bytes:
        """Bytes of the running reply, else of one for the next span."""
        if self._reply is not None and (block := self._reply.read(limit)):
            return block
        end = min(self._at + SPAN, self._size) - 1
        self._reply = self._line.get(self._url, {"Range": f"bytes={self._at}-{end}"})
        if self._reply.status == 200 and self._at > 0:
            raise NetworkError(f"{host(self._url)} cannot send parts of a file.", "Pull it first")
        return self._reply.read(limit)
