"""How well a model predicts a text, and how far its predictions are from another's.

Contract: as llama.cpp's llama-perplexity does it (`perplexity` and `kl_divergence` in its
tools/perplexity/perplexity.cpp): the text is cut into windows of `n_ctx` tokens, the first token of
each is replaced by BOS where the model wants one, and the second half of a window is scored, each
token by the logits before it. Perplexity is exp of the mean negative log-likelihood; the KL
divergence is sum p ln(p / q) over the vocabulary, p of the base model, averaged over the same
positions.
`measure` runs a child process per model (native code may die there) and yields progress.
Limits: between two models the predictions of the base lie on disk, 16-bit floats, 2 bytes for each
token of the vocabulary at each position; llama.cpp takes 16 bits too, and rounds in another way.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwqcli.engine import EngineSpec, pipes
from qwqcli.engine.measurer import Measurer, failure
from qwqcli.errors import NoRoom, QwqError, UsageError

WINDOW = 512  # tokens, llama-perplexity's own
_ROWS = 16  # positions whose probabilities are worked out at once: 20 MB with QwQ's vocabulary


@dataclass(frozen=True, slots=True)
class Sums:
    """What is known after some windows; `plus_minus` are standard errors, as llama.cpp's."""

    windows: int
    scored: int  # tokens
    perplexity: float
    perplexity_plus_minus: float
    kl_divergence: float | None = None
    kl_plus_minus: float | None = None
    same_top: float | None = None  # share of positions where both hold the same token likeliest


@dataclass(frozen=True, slots=True)
class Job:
    """One pass of one model over a text."""

    spec: EngineSpec
    text: str  # path of the file
    n_ctx: int
    windows: int | None  # at most; None: all
    cache: str
    write: str = ""  # where the predictions go
    read: str = ""  # where the predictions of the base are


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` windows of a pass."""

    done: int
    total: int
    sums: Sums


@dataclass(frozen=True, slots=True)
class Result:
    """Of the model, and of the base if there was one."""

    model: Sums
    base: Sums | None


def measure(
    spec: EngineSpec,
    text: Path,
    cache: Path,
    *,
    n_ctx: int = WINDOW,
    windows: int | None = None,
    base: EngineSpec | None = None,
    stop: Callable[[], object] = lambda: False,
) -> Generator[Progress, None, Result | None]:
    """Yield progress of each pass; returns the result, None if `stop` said so.

    Raises UsageError for a text that is too short, NoRoom if the predictions do not fit on disk.
    """
    if base is None:
        sums = yield from _child(Job(spec, str(text), n_ctx, windows, str(cache)), stop)
        return Result(sums, None) if sums else None
    with tempfile.TemporaryDirectory(prefix="qwq-kld-") as folder:
        kept = str(Path(folder) / "predictions")
        first = Job(base, str(text), n_ctx, windows, str(cache), write=kept)
        before = yield from _child(first, stop)
        if before is None:
            return None
        second = Job(spec, str(text), n_ctx, windows, str(cache), read=kept)
        after = yield from _child(second, stop)
        return Result(after, before) if after else None


def _child(job: Job, stop: Callable[[], object]) -> Generator[Progress, None, Sums | None]:
    child = Measurer("qwqcli.engine.perplexity", stop)
    sums: Sums | None = None
    try:
        child.send(asdict(job))
        while (said := child.next()) and "done" not in said:
            sums = Sums(**said["sums"])
            yield Progress(sums.windows, said["total"], sums)
        return sums if said else None
    finally:
        child.close()


# --- in the child ------------------------------------------------------------------------------


def _score(job: Job) -> Iterator[tuple[Sums, int]]:
    """The sums after each window, and the number of windows."""
    import numpy as np

    from qwqcli.engine import hosted, native, selfcheck

    spec, _ = selfcheck.trusted(job.spec, Path(job.cache))
    scored = job.n_ctx - job.n_ctx // 2
    placement = hosted.placement(spec, n_ctx=job.n_ctx, n_outputs=scored)
    model = native.Model(Path(spec.path), placement, spec.extra_bufts, lambda done: True)
    context = native.Context(model, placement.contexts[0], spec.threads)
    text = Path(job.text).read_text(encoding="utf-8")
    tokens = model.tokenize(text, start_of_text=True)
    total = _windows(len(tokens), job)
    print_of_text = np.array([model.n_vocab, zlib.crc32(repr(tokens).encode())], np.int64)
    file = _open(job, print_of_text, total * (scored - 1) * model.n_vocab * 2)
    tally = _Tally()
    for window in range(total):
        ids = tokens[window * job.n_ctx : (window + 1) * job.n_ctx]
        right = ids[job.n_ctx // 2 + 1 :]  # each is predicted by the position before it
        if model.adds_bos and model.bos is not None:
            ids[0] = model.bos
        context.clear()
        logits = context.decode_all(ids, job.n_ctx // 2)[:-1]
        for at in range(0, len(right), _ROWS):
            block = log_softmax(logits[at : at + _ROWS])
            if job.write:
                block.astype(np.float16).tofile(file)
            base = _base(file, block.shape) if job.read else None
            tally.add(block, right[at : at + _ROWS], base)
        yield tally.sums(window + 1), total


def _windows(count: int, job: Job) -> int:
    if count < 2 * job.n_ctx:
        raise UsageError(
            f"{Path(job.text).name} has {count:,} tokens; two windows of {job.n_ctx} are needed.",
            f"A longer text, or --ctx {max(256, count // 512 * 256)}",
        )
    return min(count // job.n_ctx, job.windows or count)


def _open(job: Job, print_of_text: Any, needed: int) -> Any:
    """The file of predictions: made, or checked to be of the same text and vocabulary."""
    import numpy as np

    if job.write:
        free = shutil.disk_usage(Path(job.write).parent).free
        if needed > free:
            raise NoRoom(
                f"The predictions take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free.",
                "--windows N, for fewer of them, or TMPDIR=FOLDER",
            )
        target = Path(job.write).open("wb")  # noqa: SIM115  (open as long as the child lives)
        print_of_text.tofile(target)
        return target
    if job.read:
        file = Path(job.read).open("rb")  # noqa: SIM115
        if not np.array_equal(np.fromfile(file, np.int64, 2), print_of_text):
            raise UsageError(
                "The two models cut the text into other tokens: their predictions cannot be"
                " compared.",
                "Compare quantizations of one model",
            )
        return file
    return None


def _base(file: Any, shape: tuple[int, int]) -> Any:
    """The base's logarithms of probabilities, normalized again after their rounding."""
    import numpy as np

    stored = np.fromfile(file, np.float16, shape[0] * shape[1]).reshape(shape)
    return log_softmax(stored)


def log_softmax(logits: Any) -> Any:
    """ln p of each row of `logits`, shape (positions, vocabulary), as 64-bit floats."""
    import numpy as np

    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class _Tally:
    """Sums over positions."""

    def __init__(self) -> None:
        self._count = 0
        self._nll = [0.0, 0.0]  # sum, and sum of squares
        self._kld = [0.0, 0.0]
        self._same: int | None = None

    def add(self, block: Any, right: list[int], base: Any) -> None:
        import numpy as np

        nll = -block[np.arange(len(right)), right]
        self._count += len(right)
        _into(self._nll, nll)
        if base is None:
            return
        _into(self._kld, (np.exp(base) * (base - block)).sum(axis=1))
        same = int((base.argmax(axis=1) == block.argmax(axis=1)).sum())
        self._same = (self._same or 0) + same

    def sums(self, windows: int) -> Sums:
        nll, nll_error = self._mean(self._nll)
        perplexity = math.exp(nll)
        known = Sums(windows, self._count, perplexity, perplexity * nll_error)
        if self._same is None:
            return known
        kld, error = self._mean(self._kld)
        return Sums(
            windows,
            self._count,
            perplexity,
            perplexity * nll_error,
            kld,
            error,
            self._same / self._count,
        )

    def _mean(self, sums: list[float]) -> tuple[float, float]:
        mean = sums[0] / self._count
        variance = max(0.0, sums[1] / self._count - mean**2)
        return mean, math.sqrt(variance / max(1, self._count - 1))


def _into(sums: list[float], values: Any) -> None:
    sums[0] += float(values.sum())
    sums[1] += float((values**2).sum())


def main() -> None:
    """One job, from stdin; each answer is a line."""
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    say = pipes.answers()
    plain = json.loads(sys.stdin.readline())
    job = Job(**{**plain, "spec": EngineSpec(**plain["spec"])})
    try:
        for sums, total in _score(job):
            say({"sums": asdict(sums), "total": total})
        say({"done": True})
    except QwqError as error:
        say(failure(error))


if __name__ == "__main__":
    main()
