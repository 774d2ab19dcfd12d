"""Exact sizes of QwQ-32B's quantizations: what the hub says of them today.

Contract: `Sizes` asks every repository that publishes QwQ-32B, all at once and in the background;
`known` waits for them no longer than `LIMIT_S` after that and never raises. What they said is kept
for a day in `sizes.json` of the cache folder, and used however old where nobody answers.
Non-goals: choosing a file to pull (hub), the quantizations themselves (quants.py).
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from qwqcli import atomic, config
from qwqcli.errors import QwqError
from qwqcli.hub import Hub, Policy
from qwqcli.hub.sources import QWQ_REPOS, Absent, source_of

LIMIT_S = 3.0  # a hub that is near answers in 0.2 to 1 s
KEPT_S = 24 * 3600.0
QUICK = Policy(connect_s=2.0, stall_s=2.0, metadata_s=2.5, tries=1)

Answer = tuple[str, Mapping[str, int] | None]  # a repository and its sizes; None: not to be had


class Sizes:
    """The question, asked at once."""

    def __init__(
        self, environ: Mapping[str, str], *, source: str = "", offline: bool = False
    ) -> None:
        self._file = config.paths(environ).cache / "sizes.json"
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._deadline = time.monotonic() + LIMIT_S
        self._asked = 0
        try:
            self._source = source_of(source, environ).endpoint
            hub = Hub(environ, source=source, offline=offline, policy=QUICK)
        except QwqError:  # no source that could be asked; a pull will say so
            self._kept: dict[str, int] = {}
            return
        self._kept, fresh = _read(self._file, self._source)
        if not fresh and not hub.offline:
            self._asked = len(QWQ_REPOS)
            for repo in QWQ_REPOS:
                threading.Thread(target=self._ask, args=(hub, repo), daemon=True).start()

    def known(self) -> Mapping[str, int]:
        """Bytes by the name of the quantization, in lower case; empty if nothing is known."""
        found: dict[str, Mapping[str, int] | None] = {}
        while len(found) < self._asked:
            try:
                left = self._deadline - time.monotonic()
                repo, sizes = self._answers.get(timeout=max(left, 0))
            except queue.Empty:
                break
            found[repo] = sizes
        sizes = self._kept
        for repo in reversed(QWQ_REPOS):  # the first one is who a pull would take it from
            sizes = {**sizes, **(found.get(repo) or {})}
        if self._asked and all(found.get(repo) is not None for repo in QWQ_REPOS):
            _write(self._file, self._source, sizes)
        return sizes

    def _ask(self, hub: Hub, repo: str) -> None:
        sizes: dict[str, int] | None = None
        try:
            sizes = {o.quantization.lower(): o.size for o in reversed(hub.offers(repo))}
        except Absent:  # a mirror need not have them all
            sizes = {}
        except QwqError:
            pass
        self._answers.put((repo, sizes))


def _read(file: Path, source: str) -> tuple[dict[str, int], bool]:
    """What was kept, and whether it is of today."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        sizes = {str(name): int(n_bytes) for name, n_bytes in kept["sizes"].items()}
        if kept["source"] != source or not all(0 < size < 1 << 50 for size in sizes.values()):
            return {}, False
        return sizes, 0 <= time.time() - kept["time"] < KEPT_S
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not ours
        return {}, False


def _write(file: Path, source: str, sizes: Mapping[str, int]) -> None:
    """Keep `sizes` if that is possible; the next plan asks again if not."""
    text = json.dumps({"source": source, "time": time.time(), "sizes": sizes})
    with contextlib.suppress(OSError):
        atomic.write_text(file, text)
