"""`qwq tune`: which settings are the fastest for a model here, searched, proved, then kept.

Contract: `search` goes along one setting after another from the best known, and keeps a step only
if it is faster by more than the noise seen; `confirm` lets the winner and our own settings take
turns and keeps it only if the gain is proved and nothing that a reasoner does is slower. Both are
pure: they are given a function that measures. `tune` gives them one, in children that may die of a
setting: that one is then out.
What is faster is judged by a turn of a reasoner: a prompt of 512 tokens, and 3,000 tokens of
thinking, a third each at the beginning, 2k and 8k tokens deep. Where a machine is slow, shorter
prompts and fewer tokens are timed.
With a GPU the layers on each device are varied too: around what the plan puts there, and as much
more as fits into half of the plan's margin. The model is then loaded anew for each.
Limits: 128 to 512 tokens of micro-batch, for more would need more memory than was planned for.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from qwqcli import figures, hardware, planning
from qwqcli.bench import drill
from qwqcli.bench.child import Child, Interrupted
from qwqcli.bench.watch import free_bytes
from qwqcli.config import KV, FlashAttn, Settings
from qwqcli.engine import Control, EngineSpec, selfcheck
from qwqcli.engine.probe import Probe
from qwqcli.engine.process import stock_spec
from qwqcli.engine.tuned import Tuned
from qwqcli.errors import EngineError, NoRoom, UsageError
from qwqcli.gguf import ModelInfo, read_file_header
from qwqcli.hardware import Machine
from qwqcli.layout import Split
from qwqcli.plan import Plan, make_plan

PROMPT, THOUGHT = 512, 3000  # tokens of the turn that is judged
DEPTHS = (0, 2048, 8192)
BUDGET_S = 180.0
SEARCH_SHARE, PROOF_SHARE = 0.5, 0.8  # of the budget; the rest compares with llama.cpp's defaults
LEAST_NOISE = 0.02  # no step is taken for less
MUCH_NOISE = 0.05  # between two runs: one of them was disturbed
KV_GAIN = 0.10  # what a less precise KV cache must be faster by
NOT_SLOWER = 0.98  # of the speed before, at anything that is judged
FAMILY = 3  # ways of one kind to deal the layers that are tried at most
ROUNDS = (3, 8)  # of the proof: at least, at most
LEAST_CONTEXT = 1024  # tokens: for the prompt, and some to generate
PIECE_S = 3.0  # aimed at for each part of a measurement


@dataclass(frozen=True, slots=True)
class Setting:
    """What is varied."""

    threads: int
    flash_attn: FlashAttn
    extra_bufts: bool
    n_batch: int
    kv: KV
    split: Split | None = None  # None: as planned
    type_v: KV | None = None  # of V where it is not `kv`: it stays in f16 without flash attention

    @property
    def load(self) -> tuple[bool, Split | None]:
        """What a model is loaded anew for."""
        return self.extra_bufts, self.split

    def placement(self) -> dict[str, Any]:
        """Fields of native.Placement that a context takes."""
        kv = {"type_k": self.kv, "type_v": self.type_v or self.kv}
        return {"flash_attn": self.flash_attn, "n_batch": self.n_batch, **kv}


NAMES = {
    "threads": "threads",
    "flash_attn": "flash attention",
    "extra_bufts": "repack",
    "n_batch": "micro-batch",
    "kv": "KV cache",
    "split": "layers",
}


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens per second of a prompt, and of generation at each depth of the mix."""

    prompt: float
    generation: tuple[float, ...]

    @property
    def turn_s(self) -> float:
        """Seconds of the turn that is judged."""
        share = THOUGHT / len(self.generation)
        return PROMPT / self.prompt + sum(share / speed for speed in self.generation)


Measure: TypeAlias = Callable[[Setting], "Speeds | None"]  # None: the process died of it
Clock: TypeAlias = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Tried:
    """A setting was measured; `speeds` is None if it does not work here."""

    setting: Setting
    speeds: Speeds | None
    best: bool


@dataclass(frozen=True, slots=True)
class Proof:
    """What turns taken by two settings say; ratios are speeds of the winner over the other's."""

    turn: figures.Ratio
    prompt: figures.Ratio
    generation: tuple[figures.Ratio, ...]
    slowest: float  # part's median ratio: another process in one round does not move it

    @property
    def holds(self) -> bool:
        """The turn or its prompt is faster beyond doubt, and no part of it slower."""
        return max(self.turn.gain, self.prompt.gain) > 1 and self.slowest >= NOT_SLOWER


# --- search ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Space:
    """What may be tried."""

    cores: int
    logical: int
    repack: bool  # the self-check trusts it
    kv: bool  # the heads can be quantized, and nobody has chosen a type
    threads: bool = True
    splits: tuple[Split, ...] = ()
    twice: bool = False  # there is room for a second KV cache, see qwqcli.engine.twin

    def along(self, best: Setting) -> Iterator[list[Setting]]:
        """For each setting, the candidates other than `best`, the most telling first."""
        yield [self._dealt(best, split) for split in self.splits]
        if best.kv == "f16":
            yield [replace(best, flash_attn=flash) for flash in self._attentions(best)]
        yield [replace(best, threads=n) for n in self._coarse(best.threads)]
        if self.repack:
            yield [replace(best, extra_bufts=not best.extra_bufts)]
        yield [replace(best, n_batch=n) for n in (256, 128, 512) if n != best.n_batch]
        if self.kv and best.kv == "f16":
            yield [replace(best, kv="q8_0", flash_attn="on")]

    def _attentions(self, best: Setting) -> Iterator[FlashAttn]:
        yield "on" if best.flash_attn == "off" else "off"
        if self.twice and best.flash_attn != "prompts":
            yield "prompts"

    def _dealt(self, best: Setting, split: Split) -> Setting:
        """With layers so; without any on a GPU, flash attention as it is best on a CPU."""
        on_cpu = not any(split.layers) and best.kv == "f16"
        return replace(best, split=split, flash_attn="off" if on_cpu else best.flash_attn)

    def finer(self, best: Setting, tried: Sequence[int]) -> list[Setting]:
        """Numbers of threads half-way from the best to its neighbours among those tried."""
        below = max((n for n in tried if n < best.threads), default=best.threads)
        above = min((n for n in tried if n > best.threads), default=best.threads)
        halves = {(below + best.threads) // 2, (above + best.threads) // 2} - set(tried)
        return [replace(best, threads=n) for n in sorted(halves)]

    def _coarse(self, now: int) -> list[int]:
        if not self.threads:
            return []
        sensible = {self.cores, max(self.cores // 2, 1), self.logical, max(self.cores - 1, 1)}
        return sorted(sensible - {now}, reverse=True)


def search(
    starts: Sequence[Setting], space: Space, measure: Measure, clock: Clock, until: float
) -> Generator[Tried, None, Setting]:
    """The best setting found before `until`.

    Every setting is measured once, the first one twice, for its noise, and a third time if that is
    much; what seems a little faster is held against the best once more, for with a dozen settings
    one of them has luck. Raises EngineError if not even the first works.
    """
    known: dict[Setting, Speeds | None] = {}
    for setting in dict.fromkeys(starts):
        known[setting] = measure(setting)
        yield Tried(setting, known[setting], False)
    best = starts[0]
    runs = sorted([_own(known[best]), _own(measure(best))], key=lambda speeds: speeds.turn_s)
    if _apart(runs) > MUCH_NOISE:
        runs = sorted([*runs, _own(measure(best))], key=lambda speeds: speeds.turn_s)
    noise = max(LEAST_NOISE, min(map(_apart, itertools.pairwise(runs))))
    known[best] = runs[0]
    for start in starts:
        if _gains(start, best, known, noise):
            best = start

    def better(candidate: Setting) -> bool:
        known[candidate] = measure(candidate)
        if not _gains(candidate, best, known, noise):
            return False
        if not _gains(candidate, best, known, max(noise, MUCH_NOISE)):
            again = {setting: measure(setting) for setting in (best, candidate)}
            known.update(again if again[best] else {candidate: None})
        return _gains(candidate, best, known, noise)

    def attempt(candidates: Sequence[Setting]) -> Iterator[Tried]:
        nonlocal best
        for candidate in candidates:
            if candidate in known or clock() > until:
                continue
            if taken := better(candidate):
                best = candidate
            yield Tried(candidate, known[candidate], taken)

    for axis in range(len(list(space.along(best)))):
        axes = list(space.along(best))
        if axis < len(axes):
            yield from attempt(axes[axis])
    while finer := space.finer(best, [s.threads for s in known]):
        before = len(known)
        yield from attempt(finer)
        if len(known) == before:
            break
    return best


def _own(speeds: Speeds | None) -> Speeds:
    if speeds is None:
        raise EngineError("This model cannot be measured with its own settings.", "qwq doctor")
    return speeds


def _apart(runs: Sequence[Speeds]) -> float:
    return runs[1].turn_s / runs[0].turn_s - 1


def _gains(
    other: Setting, best: Setting, known: dict[Setting, Speeds | None], noise: float
) -> bool:
    """Whether `other` is faster than `best`, by more than noise and by what it costs."""
    now, then = known[other], known[best]
    if now is None or then is None:
        return False
    gain = then.turn_s / now.turn_s
    if _for_prompts(best, other) and gain > 1 - noise:
        gain = now.prompt / then.prompt
    return gain > 1 + (KV_GAIN if other.kv != best.kv else noise)


def _for_prompts(one: Setting, other: Setting) -> bool:
    """Whether little more than prompts can be faster with one of them."""
    alike = replace(one, n_batch=other.n_batch, flash_attn=other.flash_attn) == other
    attentions = {one.flash_attn, other.flash_attn}
    return alike and (len(attentions) == 1 or attentions == {"off", "prompts"})


# --- proof -------------------------------------------------------------------------------------


def confirm(
    winner: Setting, other: Setting, measure: Measure, clock: Clock, until: float
) -> Proof | None:
    """Let both take turns until the gain is proved or the time is over.

    None if one of them dies, or there is no time for two rounds.
    """
    pairs: list[tuple[Speeds, Speeds]] = []
    least, most = ROUNDS
    cost = 0.0
    while len(pairs) < most and clock() + cost <= until:
        began = clock()
        order = (winner, other) if len(pairs) % 2 == 0 else (other, winner)
        seen = {setting: measure(setting) for setting in order}
        a, b = seen[winner], seen[other]
        if a is None or b is None:
            return None
        pairs.append((a, b))
        cost = clock() - began
        if len(pairs) >= least and (proof := _proof(pairs)).holds:
            return proof
    return _proof(pairs) if len(pairs) > 1 else None


def _proof(pairs: Sequence[tuple[Speeds, Speeds]]) -> Proof:
    parts = [
        [(a.prompt, b.prompt) for a, b in pairs],
        *(
            [(a.generation[at], b.generation[at]) for a, b in pairs]
            for at in range(len(pairs[0][0].generation))
        ),
    ]
    prompt, *generation = (figures.paired_ratio(part) for part in parts)
    return Proof(
        turn=figures.paired_ratio([(b.turn_s, a.turn_s) for a, b in pairs]),
        prompt=prompt,
        generation=tuple(generation),
        slowest=min(statistics.median(a / b for a, b in part) for part in parts),
    )


def explained(winner: Setting, other: Setting, proof: Proof, depths: Sequence[int]) -> str:
    """`flash attention off, threads 4: +2 % prompt, +108 % at depth 2,048`: what, and its gain."""
    changed = [
        f"{NAMES[name]} {value}"
        for name, value in words(winner).items()
        if value != words(other)[name]
    ]
    gains = [f"{ratio.value - 1:+.0%} {where}" for where, ratio in parts(proof, depths).items()]
    return f"{', '.join(changed)}: {', '.join(gains)}"


def words(setting: Setting) -> dict[str, str]:
    """Its values as a person types them."""
    kv = f"{setting.kv}/{setting.type_v}" if setting.type_v else setting.kv
    return {
        **{name: str(getattr(setting, name)) for name in NAMES},
        "kv": kv,
        "extra_bufts": "on" if setting.extra_bufts else "off",
        "split": "as planned" if setting.split is None else _dealt_as(setting.split),
    }


def _dealt_as(split: Split) -> str:
    kept = f" without {split.cpu_ffn} feed-forward parts" if split.cpu_ffn else ""
    return "+".join(map(str, split.layers)) + kept


def parts(proof: Proof, depths: Sequence[int]) -> dict[str, figures.Ratio]:
    """The ratios by what they are of."""
    places = [f"at depth {depth:,}" for depth in depths]
    return {"prompt": proof.prompt, **dict(zip(places, proof.generation, strict=True))}


# --- with real measurements --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end. `kept` is None if our own settings stay; `default` are llama.cpp's."""

    kept: Tuned | None
    best: Setting
    default: Setting
    over_own: Proof | None
    over_default: Proof | None
    depths: tuple[int, ...]
    proved: bool = True  # False: something seemed faster, and that could not be proved
    complete: bool = True


Event: TypeAlias = "drill.Mix | Tried | Comparing | Outcome"


@dataclass(frozen=True, slots=True)
class Comparing:
    """The proof has begun: the winner against `other`."""

    winner: Setting
    other: Setting


class Bench:
    """Measures settings in children: one for each way to load the weights.

    On the CPU they stay, for the weights are the file's pages; a GPU has room for one.
    """

    def __init__(
        self,
        spec: EngineSpec,
        plan: Plan,
        info: ModelInfo,
        control: Control,
        splits: Mapping[Split, Plan] | None = None,
    ) -> None:
        self._spec, self._control = spec, control
        self._own, self._splits = plan, splits or {}
        self._children: dict[tuple[bool, Split | None], Child] = {}
        self.mix = sized(plan, info)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.close()

    def measure(self, setting: Setting) -> Speeds | None:
        """None if the process died of it, or there is no memory for it."""
        try:
            child = self._child(setting)
            prompt_ns, depths_ns = child.mix(self.mix, setting.threads, setting.placement())
        except (NoRoom, EngineError):
            self._children.pop(setting.load).close()
            return None  # the next one gets a new child
        prompt = self.mix.n_prompt / (prompt_ns / 1e9)
        return Speeds(prompt, tuple(self.mix.n_gen / (ns / 1e9) for ns in depths_ns))

    def _child(self, setting: Setting) -> Child:
        if setting.load not in self._children:
            if self._own.gpu_layers:
                while self._children:
                    self._children.popitem()[1].close()
            self._children[setting.load] = child = Child(self._control)
            plan = self._splits[setting.split] if setting.split is not None else self._own
            path, rpc = Path(self._spec.path), self._spec.rpc
            child.load(path, plan.placement(), setting.extra_bufts, rpc)
        return self._children[setting.load]


def sized(plan: Plan, info: ModelInfo) -> drill.Mix:
    """A mix that takes a few seconds by what is predicted, and fits the model.

    Raises UsageError where the context is too short for it.
    """
    if plan.n_ctx < LEAST_CONTEXT:
        raise UsageError(
            f"A context of {plan.n_ctx:,} tokens is too short to tune with.", "qwq tune --ctx 4096"
        )
    speed = plan.predicted
    prompt = int(PIECE_S * (speed.prompt_tps or PROMPT))
    prompt = min(max(prompt // 32 * 32, 32), PROMPT)
    n_gen = min(max(int(PIECE_S * (speed.generation_tps or 32)), 4), 32)
    room = min(plan.n_ctx, info.n_ctx_train or plan.n_ctx) - n_gen - prompt - 1
    depths = tuple(sorted({min(depth, room // 256 * 256) for depth in DEPTHS}))
    return drill.Mix(prompt, n_gen, depths)


def tune(
    path: Path,
    settings: Settings,
    cache: Path,
    control: Control,
    budget_s: float = BUDGET_S,
    clock: Clock = time.monotonic,
) -> Iterator[Event]:
    """Say what is measured, search, prove; ends with one `Outcome`. Keeps nothing itself.

    Raises UsageError for a budget that is none, and what planning and loading raise.
    """
    if not 0 < budget_s < math.inf:
        raise UsageError(f"A budget of {budget_s:g} s measures nothing.", "--budget 180")
    began = clock()
    info = read_file_header(path)
    spec, _ = selfcheck.trusted(stock_spec(path, settings), cache)
    with Probe(spec.rpc) as probe:
        machine = hardware.probe(probe.devices)
        if spec.device:
            machine = hardware.chosen(machine, spec.device)
        plan = planning.measured(path, info, machine, spec.want(), probe)
        splits = split_plans(path, info, machine, spec, plan, probe)
    own, default = own_setting(plan, spec), default_setting(plan, spec)
    space = Space(
        cores=machine.cores,
        logical=os.cpu_count() or machine.cores,
        repack=spec.extra_bufts and free_bytes() > info.tensor_bytes * 5 // 4,
        kv=settings.kv is None and info.head_dim_k % 32 == 0 and info.head_dim_v % 32 == 0,
        threads=settings.threads is None,
        splits=tuple(splits),
        twice=_has_room_twice(info, machine, spec, plan),
    )
    best = own
    with Bench(spec, plan, info, control, splits) as bench:
        yield bench.mix
        try:
            until = began + budget_s * SEARCH_SHARE
            best = yield from search([own, default], space, bench.measure, clock, until)
            over_own = None
            if best != own:
                yield Comparing(best, own)
                over_own = confirm(best, own, bench.measure, clock, began + PROOF_SHARE * budget_s)
            chosen = best if over_own and over_own.holds else own
            over_default = None
            if chosen != default:
                yield Comparing(chosen, default)
                over_default = confirm(chosen, default, bench.measure, clock, began + budget_s)
        except Interrupted:
            yield Outcome(None, best, default, None, None, bench.mix.depths, complete=False)
            return
        depths = bench.mix.depths
    kept = _tuned(chosen, own, over_own, depths) if chosen != own and over_own else None
    yield Outcome(kept, chosen, default, over_own, over_default, depths, chosen == best)


def _has_room_twice(info: ModelInfo, machine: Machine, spec: EngineSpec, plan: Plan) -> bool:
    """Whether a second KV cache would fit, for generation without flash attention."""
    if plan.gpu_layers:
        return False
    want = replace(spec.want(), n_ctx=plan.n_ctx, flash_attn="prompts")
    return make_plan(info, machine, want).flash_attn == "prompts"


def split_plans(
    path: Path, info: ModelInfo, machine: Machine, spec: EngineSpec, plan: Plan, probe: Probe
) -> dict[Split, Plan]:
    """Other ways to deal the layers, with a plan for each, as far as the memory allows."""
    found: dict[Split, Plan] = {}
    if spec.gpu_layers is not None or not plan.gpu_layers:
        return found
    for family in splits_around(plan.split, plan.layers_total):
        fitting = 0
        for split in family:
            want = replace(spec.want(), n_ctx=plan.n_ctx, kv=plan.type_k, split=split)
            if fitting < FAMILY and make_plan(info, machine, want).split == split:
                found[split] = planning.measured(path, info, machine, want, probe)
                fitting += 1
    return {split: other for split, other in found.items() if other.split == split}


def splits_around(now: Split, total: int) -> list[list[Split]]:
    """Families of other ways to deal `total` layers, each with the most promising first.

    From one device to another; all of the layers there, with feed-forward parts in RAM; whole
    layers in RAM; everything there. A step is a sixteenth of the layers.
    """
    step = max(total // 16, 1)
    here = range(len(now.layers))
    moved = [
        Split(_moved(now.layers, to, source, count), now.cpu_ffn)
        for to, source in ((a, b) for a in here for b in here if a != b)
        for count in (now.layers[source], step)
    ]
    changes, most = (2 * step, step, -step, -2 * step), sum(now.layers)
    if now.cpu_ffn:
        parts = [now.cpu_ffn - change for change in changes]
        whole = list(range(total - step, 0, -step))
    else:  # where all is on devices, parts in RAM can only be slower
        parts = list(range(0, total if most < total else 0, step))
        whole = [most + change for change in changes]
    families = [
        moved,
        [Split(_scaled(now.layers, total), count) for count in parts if 0 <= count < total],
        [Split(_scaled(now.layers, count)) for count in whole if 0 < count <= total],
        [Split((0,) * len(now.layers))],
    ]
    return [[split for split in dict.fromkeys(family) if split != now] for family in families]


def _moved(counts: tuple[int, ...], to: int, source: int, layers: int) -> tuple[int, ...]:
    layers = min(layers, counts[source])
    change = {to: layers, source: -layers}
    return tuple(count + change.get(at, 0) for at, count in enumerate(counts))


def _scaled(counts: tuple[int, ...], total: int) -> tuple[int, ...]:
    """In the same proportions; the device with the most takes what is over."""
    smaller = [count * total // sum(counts) for count in counts]
    smaller[counts.index(max(counts))] += total - sum(smaller)
    return tuple(smaller)


def own_setting(plan: Plan, spec: EngineSpec) -> Setting:
    """What we take without tuning."""
    return Setting(
        plan.threads, plan.flash_attn, spec.extra_bufts, plan.n_batch, plan.type_k,
        type_v=plan.type_v if plan.type_v != plan.type_k else None,
    )  # fmt: skip


def default_setting(plan: Plan, spec: EngineSpec) -> Setting:
    """llama.cpp's own defaults, where they work: flash attention auto, micro-batches of 512."""
    return replace(own_setting(plan, spec), flash_attn="auto", n_batch=512)


def _tuned(best: Setting, own: Setting, proof: Proof, depths: Sequence[int]) -> Tuned:
    """What differs from our own settings; the rest stays the plan's business."""
    differ = {
        field.name: getattr(best, field.name)
        for field in fields(Setting)
        if getattr(best, field.name) != getattr(own, field.name)
    }
    why = (explained(best, own, proof, depths),)
    return Tuned(when=datetime.date.today().isoformat(), why=why, **differ)
