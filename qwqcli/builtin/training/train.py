"""Train the built-in model: `python -m qwqcli.builtin.training.train --out DIR --minutes 95`.

The length is given in minutes or in tokens; `--resume` goes on from DIR's checkpoint.

Seeded and resumable: the checkpoint (written between chunks of data) holds weights, their
running mean, optimizer, counters, the training clock and the state of the data generator.
The learning rate follows the share of the length that is done: warm-up, flat, linear to zero.

Two processes of one thread each share a step and add up their gradients. That keeps its pace
beside other work, where one process with two threads waits at every operation for the slower.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn import functional as F

from . import data
from .model import Shape, TinyQwen
from .tokenizer import Tokenizer
from .traces import MARK_CLOSE, MARK_OPEN, strip_marks

Doc = tuple[list[int], list[bool]]  # token ids, and which of them are to be predicted
Batch = tuple[Tensor, Tensor, Tensor]  # ids (batch, length), flat positions, their next ids
WORKERS = 2
CHUNK_DOCS, BATCH_TOKENS, DOC_LIMIT = 3000, 3072, 3200
TARGETS_PER_STEP = 3800  # a constant, so that every token weighs the same in any step
PEAK_LR, WARMUP_STEPS, FLAT_UNTIL, EMA = 1.7e-3, 200, 0.35, 0.998
EARLY_TOKENS, SHORT_TOKENS = 4_000_000, 140  # tokens spent on short items first
VALIDATE_EVERY, VALIDATION_ITEMS = 480.0, 64  # seconds of the training clock; items a task
_SLIPS = re.compile(f"({MARK_OPEN}.*?{MARK_CLOSE})")


def encode(item: data.Item, tok: Tokenizer) -> Doc:
    """Return an item's ids; its prompt and its planted slips are read, never predicted."""
    ids = tok.encode(data.render_prompt(item))
    learn = [False] * len(ids)
    for part in _SLIPS.split(data.render_target(item)):
        ids += tok.encode(strip_marks(part))
        learn += [not part.startswith(MARK_OPEN)] * (len(ids) - len(learn))
    return ids, learn


def collate(docs: list[Doc]) -> Batch:
    """Pad documents to one length (a multiple of 16) and list the positions that predict."""
    length = -(-max(len(ids) for ids, _ in docs) // 16) * 16
    rows = torch.zeros(len(docs), length, dtype=torch.long)
    where, wanted = [], []
    for row, (ids, learn) in enumerate(docs):
        rows[row, : len(ids)] = torch.tensor(ids)
        for i in range(1, len(ids)):
            if learn[i]:
                where.append(row * length + i - 1)
                wanted.append(ids[i])
    return rows, torch.tensor(where), torch.tensor(wanted)


def batches(docs: list[Doc], rng: Random, rank: int = 0, workers: int = 1) -> Iterator[Batch]:
    """Cut documents into batches of like length, in random order; workers get like batches."""
    groups: list[list[Doc]] = [[]]
    for doc in sorted(docs, key=lambda doc: len(doc[0])):
        if groups[-1] and (len(groups[-1]) + 1) * len(doc[0]) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(doc)
    shares = list(zip(*(groups[i::workers] for i in range(workers)), strict=False))
    rng.shuffle(shares)
    return (collate(share[rank]) for share in shares)


def chunk(rng: Random, tok: Tokenizer, early: bool) -> list[Doc]:
    """Draw documents from the generator; `early` ones are short, with much spelling."""
    docs: list[Doc] = []
    limit = SHORT_TOKENS if early else DOC_LIMIT
    while len(docs) < CHUNK_DOCS:
        item = data.training_item(rng, data.EARLY_MIX if early else data.MIX, short=early)
        doc = encode(item, tok)
        if len(doc[0]) <= limit:
            docs.append(doc)
    return docs


def learning_rate(step: int, progress: float) -> float:
    """Return the rate at a step and a share (0..1) of the training done."""
    decay = min(1.0, max(0.0, (1 - progress) / (1 - FLAT_UNTIL)))
    return PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS) * decay


class Length(NamedTuple):
    """How long to train: minutes of the training clock, or tokens where that is not zero."""

    minutes: float
    tokens: int


class Trainer:
    """One worker's model, running mean, optimizer and clocks; all workers stay identical."""

    def __init__(self, out: Path, seed: int, length: Length, rank: int = 0) -> None:
        torch.manual_seed(seed)
        self.path, self.rank = out / "checkpoint.pt", rank
        self.tok, self.rng = Tokenizer.load(), Random(seed)
        self.model = TinyQwen(Shape())
        self.mean = copy.deepcopy(self.model).eval()
        self.fast = torch.compile(self.model, dynamic=True)
        self.gradients = self._share_gradients()
        matrices = [q for q in self.model.parameters() if q.dim() > 1]
        others = [q for q in self.model.parameters() if q.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98), fused=True)
        self.step, self.tokens, self.seconds, self.length = 0, 0, 0.0, length
        self.validated, self.loss, self.lap = 0.0, 0.0, time.monotonic()

    def _share_gradients(self) -> Tensor:
        """Lay all gradients into one buffer, with four figures behind them (see `learn`)."""
        parameters = list(self.model.parameters())
        buffer = torch.zeros(sum(q.numel() for q in parameters) + 4)
        at = 0
        for q in parameters:
            q.grad = buffer[at : at + q.numel()].view_as(q)
            at += q.numel()
        return buffer

    @property
    def progress(self) -> float:
        """The share of the training that is done; 1 or more at its end."""
        if self.length.tokens:
            return self.tokens / self.length.tokens
        return self.seconds / (60 * self.length.minutes)

    def save(self) -> None:
        """Write the checkpoint; a crash while writing leaves the old one."""
        state = {
            "model": self.model.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "rng": self.rng.getstate(),
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)

    def restore(self) -> None:
        """Go on from the checkpoint."""
        state = torch.load(self.path, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.validated = self.seconds
        self.rng.setstate(state["rng"])

    def learn(self, batch: Batch) -> None:
        """Take one step on the workers' batches and fold the weights into their running mean."""
        ids, where, wanted = batch
        self.gradients.zero_()
        with torch.autocast("cpu", torch.bfloat16):
            states = self.fast(ids).view(-1, self.model.shape.width)[where]
            logits = states @ self.model.embed.weight.T
        loss = F.cross_entropy(logits.float(), wanted, reduction="sum")
        (loss / TARGETS_PER_STEP).backward()
        figures = (loss.item(), len(wanted), ids.numel(), self._lap() if self.rank == 0 else 0.0)
        self.gradients[-4:] = torch.tensor(figures)
        distributed.all_reduce(self.gradients)
        total, targets, tokens, seconds = self.gradients[-4:].tolist()
        self.seconds += seconds
        self._update(learning_rate(self.step, self.progress))
        self.loss += 0.02 * (total / targets - self.loss)
        self.step, self.tokens = self.step + 1, self.tokens + int(tokens)

    def _lap(self) -> float:
        """Return the seconds since this was last asked."""
        before, self.lap = self.lap, time.monotonic()
        return self.lap - before

    def _update(self, rate: float) -> None:
        gradients = self.gradients[:-4]
        gradients.mul_(1.0 / gradients.norm().clamp(min=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            share = 1 - min(EMA, self.step / (self.step + 100))
            torch._foreach_lerp_(list(self.mean.parameters()), list(self.model.parameters()), share)

    @torch.no_grad()
    def exact(self, task: str) -> float:
        """Return the share of held-out items whose every token the mean model gets right."""
        rng, right = Random(7), 0
        docs = [encode(data.make(task, rng, test=True), self.tok) for _ in range(VALIDATION_ITEMS)]
        for ids, where, wanted in batches(docs, rng):
            with torch.autocast("cpu", torch.bfloat16):
                states = self.mean(ids).view(-1, self.model.shape.width)[where]
                hits = (states @ self.mean.embed.weight.T).argmax(-1) == wanted
            rows = where // ids.shape[1]
            right += sum(bool(hits[rows == r].all()) for r in range(len(ids)))
        return right / len(docs)

    def validate(self) -> str:
        """Return the teacher-forced exactness of every task (that of greedy decoding)."""
        self.validated = self.seconds
        return " ".join(f"{task} {self.exact(task):.2f}" for task in data.MAKERS)

    def run(self, log: Callable[[str], None]) -> None:
        """Train to the end; only the first worker writes and reports."""
        while self.progress < 1:
            docs = chunk(self.rng, self.tok, self.tokens < EARLY_TOKENS)
            for batch in batches(docs, self.rng, self.rank, WORKERS):
                self.learn(batch)
            if self.rank:
                continue
            self.save()
            log(
                f"step {self.step} tokens {self.tokens / 1e6:.2f}M minutes {self.seconds / 60:.1f} "
                f"lr {learning_rate(self.step, self.progress):.2e} loss {self.loss:.4f}"
            )
            if self.seconds - self.validated > VALIDATE_EVERY or self.progress >= 1:
                log(f"  exact: {self.validate()}")
                self._lap()


def worker(rank: int, args: argparse.Namespace) -> None:
    """Run one of the workers, on one thread."""
    torch.set_num_threads(1)
    meet = f"file://{args.out.resolve()}/workers"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=WORKERS)
    trainer = Trainer(args.out, args.seed, Length(args.minutes, args.tokens), rank)
    if args.resume:
        trainer.restore()
    trainer.run(lambda line: print(time.strftime("%H:%M:%S"), line, flush=True))
    distributed.destroy_process_group()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--minutes", type=float, default=95, help="length of the whole training")
    parser.add_argument("--tokens", type=int, default=0, help="its length in tokens instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "workers").unlink(missing_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.spawn(worker, (args,), nprocs=WORKERS)


if __name__ == "__main__":
    main()
