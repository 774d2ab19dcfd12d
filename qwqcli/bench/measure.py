"""A whole run of `qwq bench`: says what it will do, measures, and ends with a report.

Contract: `prepare` refuses what cannot work before anything is measured. `measure` yields `Step`s
and results as they come and ends with one `Finished`, also when `cancel` stopped it or a process
died after a first result: then with what was measured until then. It draws and keeps nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from qwqcli import __version__, bandwidth, figures, hardware, planning
from qwqcli.bench import Test, identity, tests
from qwqcli.bench.ceiling import Reader, ceiling_tps, readers
from qwqcli.bench.child import Child, Interrupted
from qwqcli.bench.report import FLASH, Felt, Report, Row, Setup
from qwqcli.bench.watch import Watch
from qwqcli.config import Settings
from qwqcli.engine import Control, EngineSpec, never, selfcheck, tuned
from qwqcli.engine.probe import Probe
from qwqcli.engine.process import ProcessEngine, stock_spec
from qwqcli.errors import EngineError, NoRoom, UsageError
from qwqcli.gguf import ModelInfo, read_file_header
from qwqcli.hardware import Machine
from qwqcli.hub.events import Checking
from qwqcli.layout import Want
from qwqcli.messages import Answer, Done, Message, Reasoning, Sampling, Stats
from qwqcli.plan import Plan, make_plan

DEEP = 8192  # where a reasoner works; less where the model or the memory ends before
QUESTIONS = (
    "A farmer has 17 sheep, 12 goats and 9 cows. All but 9 of the sheep run away, a third of the"
    " goats are sold, and each of the cows has a calf. Two neighbours then bring 5 sheep and 3"
    " goats each. How many animals of each kind are there now, and how many in all? Think step"
    " by step and check your result before you answer.",
    "And how many legs do they have together?",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure. `n_depth` None: at the start of a context, and deep in a thought.

    Where it is predicted to take longer than `seconds`, everything is made smaller until it fits.
    """

    n_prompt: tuple[int, ...]
    n_gen: tuple[int, ...]
    n_depth: tuple[int, ...] | None
    repetitions: int
    chat_tokens: int  # of a reply through the chat's path; 0 leaves that out
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """All that is known before anything is timed."""

    path: Path
    info: ModelInfo
    spec: EngineSpec  # with settings that work here
    settings: Settings
    cache: Path
    machine: Machine
    plan: Plan
    tests: tuple[Test, ...]
    wanted: Wanted
    setup: Setup
    readers: tuple[Reader, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """What is going on; `eta_s` is a guess that gets better."""

    what: str
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is there, placed so."""

    placement: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A test is done."""

    row: Row


@dataclass(frozen=True, slots=True)
class Finished:
    """The end, however it came."""

    report: Report


Event: TypeAlias = Step | Loaded | Measured | Finished


# --- before ------------------------------------------------------------------------------------


def prepare(
    path: Path, settings: Settings, cache: Path, wanted: Wanted, *, tune: bool = True
) -> Generator[Step, None, Job]:
    """Plan for the tests and look at the machine. Raises UsageError, NoRoom, EngineError."""
    check(wanted)
    info = read_file_header(path)
    spec = stock_spec(path, settings)
    if tune:
        spec = tuned.applied(spec, settings, cache)
    yield Step("checking the engine")
    spec, notices = selfcheck.trusted(spec, cache)
    yield Step("asking for devices")
    with Probe(spec.rpc) as probe:
        machine = hardware.probe(probe.devices)
        if spec.device:
            machine = hardware.chosen(machine, spec.device)
        deep, said = depths(info, machine, spec.want(), wanted)
        what = tests(wanted.n_prompt, wanted.n_gen, deep)
        plan = planned(path, info, machine, spec.want(), what, probe)
    short = shortened(wanted, what, plan)
    if short != wanted:
        wanted, what = short, tests(short.n_prompt, short.n_gen, short.n_depth or deep)
        said = (*said, "Less is measured than usual: all of it would take too long here.")
    checksum = identity.sha256(path, info, cache)
    while True:
        try:
            yield Step(_reading(next(checksum)))
        except StopIteration as stop:
            sha256 = stop.value
            break
    yield Step("measuring the memory's bandwidth")
    speeds = bandwidths(info, machine, plan)
    found = readers(info, plan, speeds)
    setup = _setup(path, info, spec, machine, plan, sha256, found)
    setup = replace(setup, bandwidth=speeds["CPU"])
    notices = (*notices, *said)
    return Job(
        path, info, spec, settings, cache, machine, plan, what, wanted, setup, found, notices
    )


def check(wanted: Wanted) -> None:
    """Raises UsageError for what cannot be measured."""
    if wanted.repetitions < 1:
        raise UsageError(f"{wanted.repetitions} repetitions measure nothing.", "-r 5")
    if not any(wanted.n_prompt) and not any(wanted.n_gen):
        raise UsageError("Nothing is to be measured with -p 0 and -n 0.", "-p 512 -n 128")


def planned(
    path: Path, info: ModelInfo, machine: Machine, want: Want, what: Sequence[Test], probe: Probe
) -> Plan:
    """The plan that a chat would have, or one with more context where a test needs it.

    Raises NoRoom, which names the depth that fits.
    """
    needed = max(test.n_ctx for test in what)
    plan = planning.measured(path, info, machine, want, probe)
    if plan.n_ctx >= needed:
        return plan
    try:
        return planning.measured(path, info, machine, replace(want, n_ctx=needed), probe)
    except NoRoom as error:
        deepest = max(test.n_depth for test in what)
        fits = deepest_fit(info, machine, want, needed - deepest, deepest)
        hint = f"-d {fits} fits" if fits >= 0 else error.hint
        raise NoRoom(f"There is no memory for a depth of {deepest:,} tokens.", hint) from error


def deepest_fit(info: ModelInfo, machine: Machine, want: Want, rest: int, too_deep: int) -> int:
    """The deepest that fits with `rest` tokens behind it, in steps of 256; -1 if nothing does."""
    low, high = -1, -(-too_deep // 256)  # in steps
    while high - low > 1:
        middle = (low + high) // 2
        try:
            make_plan(info, machine, replace(want, n_ctx=middle * 256 + rest))
            low = middle
        except NoRoom:
            high = middle
    return low * 256 if low >= 0 else -1


def depths(
    info: ModelInfo, machine: Machine, want: Want, wanted: Wanted
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The depths to measure at, and what the person should know of them."""
    rest = max((*wanted.n_prompt, *wanted.n_gen))
    most = info.n_ctx_train - rest if info.n_ctx_train else DEEP
    asked = wanted.n_depth
    if asked is not None:
        over = [depth for depth in asked if depth > most]
        if over:
            raise UsageError(
                f"A depth of {over[0]:,} and {rest:,} tokens behind it are more than the"
                f" {info.n_ctx_train:,} tokens that this model was trained for.",
                f"-d {max(most, 0)} is the deepest",
            )
        return asked, ()
    if most < 0:
        raise UsageError(
            f"{rest:,} tokens are more than the {info.n_ctx_train:,} that this model was trained"
            " for.",
            "-p 128 -n 64",
        )
    deep = min(DEEP, most // 256 * 256)
    try:
        make_plan(info, machine, replace(want, n_ctx=max(deep + rest, 256)))
    except NoRoom:
        deep = max(deepest_fit(info, machine, want, rest, deep), 0)
    said = (f"The deepest test is at {deep:,} tokens, not at {DEEP:,}: more does not fit.",)
    return ((0, deep) if deep else (0,)), (() if deep == DEEP else said)


def bandwidths(info: ModelInfo, machine: Machine, plan: Plan) -> dict[str, float | None]:
    """Bytes per second by the plan's device names; that of the RAM is measured here and now."""
    known: dict[str, float | None] = {d.name: d.bandwidth for d in machine.devices}
    ram = bandwidth.measure(info.tensor_bytes, plan.threads)
    unified = {d.name: ram for d in machine.devices if d.kind == "unified" and not d.bandwidth}
    return {**known, **unified, "CPU": ram}


def _setup(
    path: Path,
    info: ModelInfo,
    spec: EngineSpec,
    machine: Machine,
    plan: Plan,
    sha256: str,
    found: tuple[Reader, ...],
) -> Setup:
    return Setup(
        model_name=info.name or path.stem,
        quantization=info.quantization,
        model_filename=path.name,
        model_size=info.tensor_bytes,
        model_n_params=info.n_params,
        sha256=sha256,
        placement="",
        engine=identity.engine_version(),
        engine_build=selfcheck.fingerprint(),
        backends=", ".join(machine.backends),
        cpu_info=identity.cpu_name(),
        gpu_info=", ".join(device.description for device in machine.devices),
        cores=machine.cores,
        ram_bytes=machine.ram_total_bytes,
        qwq_version=__version__,
        tuned=spec.tuned,
        bytes_per_token=sum(reader.weights for reader in found),
        predicted_prompt_ts=plan.predicted.prompt_tps,
        predicted_gen_ts=plan.predicted.generation_tps,
    )


def _reading(checking: Checking) -> str:
    return f"checksum of {checking.file}, {checking.done / max(checking.total, 1):.0%}"


# --- the measuring -----------------------------------------------------------------------------


class Outlook:
    """How long the rest will take: tokens to come, at the speeds seen so far, else predicted."""

    def __init__(self, wanted: Wanted, what: Sequence[Test], plan: Plan) -> None:
        self._repetitions, self._what = wanted.repetitions, list(what)
        self._speed = {"pp": plan.predicted.prompt_tps, "tg": plan.predicted.generation_tps}
        self._felt = wanted.chat_tokens

    def seen(self, test: Test, nanoseconds: int) -> None:
        """A repetition of `test` took so long."""
        self._speed[test.kind[:2]] = (test.n_prompt + test.n_gen) / (nanoseconds / 1e9)

    def seconds(self, at: int, repetition: int) -> float | None:
        """From the start of a repetition of the test number `at` to the end of all."""
        prompt, gen = self._speed["pp"], self._speed["tg"]
        if not prompt or not gen:
            return None
        total = 3 * self._felt / gen if self._felt else 0.0
        for index, test in enumerate(self._what[at:], at):
            first = index == at
            left = self._repetitions - (repetition if first else 0)
            total += left * (test.n_prompt / prompt + test.n_gen / gen)
            same = index > 0 and self._what[index - 1].n_depth == test.n_depth
            if not (first and repetition) and not same:
                total += (test.n_depth + test.n_prompt) / prompt
        return total


def shortened(wanted: Wanted, what: Sequence[Test], plan: Plan) -> Wanted:
    """`wanted`, halved until it is predicted to be done in its `seconds`."""
    while wanted.seconds is not None:
        seconds = Outlook(wanted, what, plan).seconds(0, 0)
        less = _halved(wanted)
        if seconds is None or seconds <= wanted.seconds or less == wanted:
            break
        wanted = less
        what = tests(wanted.n_prompt, wanted.n_gen, wanted.n_depth or (0,))
    return wanted


def _halved(wanted: Wanted) -> Wanted:
    depths = wanted.n_depth and tuple(dict.fromkeys(n // 2 // 128 * 128 for n in wanted.n_depth))
    return replace(
        wanted,
        n_prompt=tuple(min(n, max(n // 2, 16)) for n in wanted.n_prompt),
        n_gen=tuple(min(n, max(n // 2, 4)) for n in wanted.n_gen),
        n_depth=depths,
        repetitions=max(wanted.repetitions - 1, 1),
        chat_tokens=wanted.chat_tokens // 2 if wanted.chat_tokens > 15 else 0,
    )


def measure(job: Job, cancel: Control = never) -> Iterator[Event]:
    """Everything in `job`; see the module."""
    rows: list[Row] = []
    noise: list[str] = []
    setup, felt, complete = job.setup, None, True
    try:
        with Child(cancel) as child:
            yield Step("loading the model")
            placement = job.plan.placement()
            loaded = child.load(job.path, placement, job.spec.extra_bufts, job.spec.rpc)
            setup = replace(setup, placement=str(loaded["placement"]))
            yield Loaded(setup.placement)
            for event in _tests(job, child, noise):
                if isinstance(event, Measured):
                    rows.append(event.row)
                yield event
        if job.wanted.chat_tokens:
            yield Step("a chat: loading, first token, thinking")
            felt, said = feel(job, cancel)
            noise += said
            complete = not cancel()
    except Interrupted:
        complete = False
    except EngineError as error:  # what was measured before it is not lost
        if not rows:
            raise
        complete = False
        noise.append(error.message)
    now = datetime.datetime.now(datetime.timezone.utc)
    name = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    when = now.isoformat(timespec="seconds")
    yield Finished(Report(name, when, setup, tuple(rows), felt, tuple(noise), complete))


def _tests(job: Job, child: Child, noise: list[str]) -> Iterator[Event]:
    outlook = Outlook(job.wanted, job.tests, job.plan)
    for at, test in enumerate(job.tests):
        samples: list[int] = []
        yield Step(f"{test.name}, warm-up", outlook.seconds(at, 0))
        following = job.tests[at + 1 : at + 2]
        keep = any(other.n_depth == test.n_depth for other in following)
        stopped = None
        with Watch([child.pid]) as watch:
            run = child.run(test, job.wanted.repetitions, job.plan.threads, keep=keep)
            try:
                for what, number in run:
                    if what == "sample_ns":
                        samples.append(number)
                        outlook.seen(test, number)
                    eta = outlook.seconds(at, len(samples))
                    yield Step(_progress(test, what, number, samples, job), eta)
            except Interrupted as interrupted:
                stopped = interrupted
            seen = watch.close()
        if samples:
            noise += [f"{test.name}: {said}" for said in (*seen.noise(), *_named(samples))]
            yield Measured(_row(job, test, samples))
        if stopped:
            raise stopped


def _progress(test: Test, what: str, number: int, samples: list[int], job: Job) -> str:
    if what == "filled":
        return f"{test.name}, {number:,} of {test.n_depth:,} tokens deep"
    return f"{test.name}, {len(samples)} of {job.wanted.repetitions}"


def _named(samples: Sequence[int]) -> Iterator[str]:
    """A sentence for each outlier; the mean keeps it, as llama-bench's does."""
    found = figures.summary(samples)
    for index in found.outliers:
        share = samples[index] / found.median
        yield f"repetition {index + 1} took {share:.2f} times as long as the median."


def _row(job: Job, test: Test, samples: Sequence[int]) -> Row:
    plan = job.plan
    return Row(
        n_prompt=test.n_prompt,
        n_gen=test.n_gen,
        n_depth=test.n_depth,
        samples_ns=tuple(samples),
        n_batch=plan.n_batch,
        n_ubatch=plan.n_batch,
        n_threads=plan.threads,
        type_k=plan.type_k,
        type_v=plan.type_v,
        n_gpu_layers=plan.gpu_layers,
        flash_attn=FLASH[plan.flash_attn],
        repack=job.spec.extra_bufts,
        test_time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        ceiling_ts=ceiling_tps(job.readers, test),
    )


# --- what the person feels ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Heard:
    """A reply as its reader sees it."""

    first_s: float | None
    ts: float | None
    text: str
    done: Done


def feel(job: Job, cancel: Control) -> tuple[Felt | None, list[str]]:
    """Load as a chat does, ask, and ask again; None if it was stopped in between."""
    sampling = replace(job.settings.sampling, seed=1, max_tokens=job.wanted.chat_tokens)
    began = time.perf_counter()
    engine = ProcessEngine(job.spec, job.cache)
    with contextlib.closing(engine), Watch([engine.pid]) as watch:
        engine.info()
        load_s = time.perf_counter() - began
        messages = [Message("user", QUESTIONS[0])]
        cold = _listen(engine, messages, sampling, cancel)
        messages += [Message("assistant", cold.text), Message("user", QUESTIONS[1])]
        again = _listen(engine, messages, sampling, cancel)
        seen = watch.close()
    if cancel():
        return None, []
    stats = cold.done.stats
    tokens = stats.generated_tokens + again.done.stats.generated_tokens
    felt = Felt(
        load_s=load_s,
        prompt_tokens=stats.prompt_tokens,
        cold_first_token_s=cold.first_s,
        reused_tokens=again.done.stats.reused_tokens,
        reused_first_token_s=again.first_s,
        thinking_ts=cold.ts,
        generated_tokens=stats.generated_tokens,
        peak_ram_bytes=seen.peak_ram_bytes,
        peak_gpu_bytes=seen.peak_gpu_bytes,
        watts=seen.watts,
        tokens_per_joule=tokens / seen.joules if seen.joules else None,
    )
    return felt, [f"chat: {said}" for said in seen.noise()]


def _listen(
    engine: ProcessEngine, messages: Sequence[Message], sampling: Sampling, cancel: Control
) -> _Heard:
    """One reply; its times are taken here, where the person sits."""
    sent, times, answer = time.perf_counter(), [], ""
    done = Done("died", Stats())
    for event in engine.stream(messages, sampling, cancel):
        if isinstance(event, Reasoning | Answer):
            times.append(time.perf_counter())
            answer += event.text if isinstance(event, Answer) else ""
        elif isinstance(event, Done):
            done = event
    if not times:
        return _Heard(None, None, answer, done)
    following, seconds = done.stats.generated_tokens - 1, times[-1] - times[0]
    speed = following / seconds if following > 0 and seconds > 0 else None
    return _Heard(times[0] - sent, speed, answer, done)
