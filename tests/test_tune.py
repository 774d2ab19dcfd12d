"""`qwq tune`: the search on machines that are functions, the proof, and what is kept."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import rpc_server
from command_line import qwq

from qwqcli import hardware, quants
from qwqcli.bench import tune
from qwqcli.bench.tune import Setting, Space, Speeds, Tried
from qwqcli.config import Settings
from qwqcli.engine import EngineSpec, never, tuned
from qwqcli.engine.probe import Probe
from qwqcli.engine.process import open_engine, stock_spec
from qwqcli.engine.tuned import Tuned
from qwqcli.errors import EngineError, UsageError
from qwqcli.gguf import read_file_header
from qwqcli.hardware import known_machine
from qwqcli.layout import Split, Want
from qwqcli.plan import make_plan

OWN = Setting(threads=8, flash_attn="off", extra_bufts=True, n_batch=512, kv="f16")
DEFAULT = replace(OWN, flash_attn="auto")
SPACE = Space(cores=8, logical=16, repack=True, kv=True)


@dataclass
class FakeMachine:
    """Says how fast each setting is, by factors; counts, and its clock goes on a second each."""

    factors: Callable[[Setting], float] = lambda setting: 1.0
    noise: tuple[float, ...] = (1.0,)
    measured: list[Setting] = field(default_factory=list)
    now: float = 0.0

    def __call__(self, setting: Setting) -> Speeds | None:
        self.now += 1
        factor = self.factors(setting) * self.noise[len(self.measured) % len(self.noise)]
        self.measured.append(setting)
        return Speeds(100 * factor, (20 * factor, 15 * factor, 10 * factor)) if factor else None

    def clock(self) -> float:
        return self.now


def found(machine: FakeMachine, space: Space = SPACE, until: float = 1e9) -> Setting:
    """Where the search ends."""
    run: Generator[Tried, None, Setting] = tune.search(
        [OWN, DEFAULT], space, machine, machine.clock, until
    )
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def test_the_turn_that_is_judged() -> None:
    """512 tokens of prompt, and 1,000 of thinking at each of three depths."""
    assert Speeds(128.0, (20.0, 10.0, 5.0)).turn_s == 4 + 50 + 100 + 200


def test_the_best_of_each_setting_is_found() -> None:
    """From coarse to fine: 16, 7 and 4 threads are tried, then 12, then its neighbours."""

    def factors(setting: Setting) -> float:
        flash = {"off": 1.0, "auto": 0.5, "on": 0.5}[setting.flash_attn]
        repack = 0.7 if setting.extra_bufts else 1.0
        micro = 1.2 if setting.n_batch == 256 else 1.0
        return flash * repack * micro * (1 - abs(setting.threads - 12) / 20)

    machine = FakeMachine(factors)
    best = found(machine)
    assert best == Setting(12, "off", False, 256, "f16")
    assert len(machine.measured) < 20
    repeated = [s for s in machine.measured if s != OWN]
    assert len(set(repeated)) == len(repeated)  # nothing is measured twice but the first


def test_gains_inside_the_noise_are_no_gains() -> None:
    """Where our own settings differ by 10 % from themselves, 8 % is nothing."""
    noisy = FakeMachine(lambda s: 1.08 if s.n_batch == 256 else 1.0, noise=(1.0, 1.0, 1.1, 1.0))
    assert found(noisy) == OWN
    quiet = FakeMachine(lambda s: 1.08 if s.n_batch == 256 else 1.0)
    assert found(quiet).n_batch == 256
    assert found(FakeMachine(lambda s: 1.01 if s.n_batch == 256 else 1.0)) == OWN


def test_a_micro_batch_is_judged_by_the_prompt() -> None:
    """It changes nothing else, and a prompt is too small a part of a turn to show in it."""

    def measure(setting: Setting) -> Speeds:
        return Speeds(106.0 if setting.n_batch == 256 else 100.0, (2.0, 1.0))

    machine = FakeMachine()
    run = tune.search([OWN, DEFAULT], SPACE, measure, machine.clock, 1e9)
    tried = [event for event in run if event.best]
    assert [event.setting.n_batch for event in tried] == [256]
    proved = tune.confirm(tried[0].setting, OWN, measure, machine.clock, 1e9)
    assert proved is not None
    assert proved.holds


def test_what_seems_a_little_faster_is_tried_again() -> None:
    """Of a dozen settings one has luck; what helps helps twice, and much needs no second look."""

    def tried(luck: float, gain: float) -> tuple[bool, int]:
        machine = FakeMachine()

        def measure(setting: Setting) -> Speeds:
            lucky = setting.n_batch == 256 and setting not in machine.measured
            machine.measured.append(setting)
            factor = (luck if lucky else 1.0) * (gain if setting.n_batch == 256 else 1.0)
            return Speeds(100.0 * factor, (20.0, 10.0))

        run = tune.search([OWN], SPACE, measure, machine.clock, 1e9)
        taken = any(event.best for event in run)
        return taken, sum(s.n_batch == 256 for s in machine.measured)

    assert tried(luck=1.04, gain=1.0) == (False, 2)
    assert tried(luck=1.0, gain=1.04) == (True, 2)
    assert tried(luck=1.0, gain=1.2) == (True, 1)


def test_a_less_precise_cache_must_be_worth_it() -> None:
    """KV in q8_0 costs precision: 8 % more speed does not pay for it, 15 % does."""
    assert found(FakeMachine(lambda s: 1.08 if s.kv == "q8_0" else 1.0)).kv == "f16"
    best = found(FakeMachine(lambda s: 1.15 if s.kv == "q8_0" else 1.0))
    assert (best.kv, best.flash_attn) == ("q8_0", "on")  # it needs flash attention


def test_a_setting_that_kills_the_process_is_out() -> None:
    """The search goes on without it; only our own settings must work."""
    machine = FakeMachine(lambda s: 0.0 if s.kv == "q8_0" or s.threads > 8 else 1.0)
    assert found(machine) == OWN
    with pytest.raises(EngineError, match="cannot be measured"):
        found(FakeMachine(lambda s: 0.0))


def test_the_budget_ends_the_search() -> None:
    """Nothing is begun after it; what was best by then is the result."""
    machine = FakeMachine(lambda s: 1.5 if s.kv == "q8_0" else 1.0)
    assert found(machine, until=4.0) == OWN
    assert len(machine.measured) <= 5


def test_what_a_person_has_set_is_not_varied() -> None:
    """Threads and KV type that were asked for stay."""
    machine = FakeMachine()
    found(machine, Space(8, 16, False, False, threads=False))
    assert {s.threads for s in machine.measured} == {8}
    assert {s.kv for s in machine.measured} == {"f16"}
    assert {s.extra_bufts for s in machine.measured} == {True}


def test_layers_are_tried_around_the_plan() -> None:
    """More and fewer, feed-forward parts, none: and between GPUs, and all on one of them."""
    moved, parts, whole, none = tune.splits_around(Split((40,)), 65)
    assert (moved, none) == ([], [Split((0,))])
    assert parts[:2] == [Split((65,)), Split((65,), 4)]
    assert whole == [Split((n,)) for n in (48, 44, 36, 32)]
    _, parts, whole, _ = tune.splits_around(Split((65,), 38), 65)
    assert parts == [Split((65,), n) for n in (30, 34, 42, 46)]
    assert whole[:2] == [Split((61,)), Split((57,))]
    two = tune.splits_around(Split((33, 32)), 65)
    assert two[0] == [Split(n) for n in ((65, 0), (37, 28), (0, 65), (29, 36))]
    assert two[1] == []
    assert {sum(split.layers) for split in two[2]} == {61, 57}


def test_the_best_layers_are_found() -> None:
    """Those without memory are out; with none on a GPU, flash attention is off as on any CPU."""
    every, more, none = Split((65,)), Split((44,)), Split((0,))
    space = replace(SPACE, splits=(every, more, none))
    speeds = {None: 1.0, every: 0.0, more: 1.3, none: 0.4}
    machine = FakeMachine(lambda s: speeds[s.split])
    assert found(machine, space).split == more
    assert next(s for s in machine.measured if s.split == none).flash_attn == "off"
    alone = found(FakeMachine(lambda s: 2.0 if s.split == none else 1.0), space)
    assert (alone.split, alone.flash_attn) == (none, "off")


def test_flash_attention_in_prompts_only() -> None:
    """Tried where there is room, and taken for faster prompts alone, if nothing is slower."""
    space = replace(SPACE, twice=True)

    def measured(prompt: float, deep: float = 1.0) -> Setting:
        class Prompts(FakeMachine):
            def __call__(self, setting: Setting) -> Speeds | None:
                both = setting.flash_attn == "prompts"
                self.measured.append(setting)
                rest = deep if both else 0.5 if setting.flash_attn != "off" else 1.0
                return Speeds(1000 * (prompt if both else 1), (20 * rest,) * 3)

        machine = Prompts()
        best = found(machine, space)
        assert any(s.flash_attn == "prompts" for s in machine.measured)
        return best

    assert measured(1.13).flash_attn == "prompts"
    assert measured(1.01).flash_attn == "off"
    assert measured(1.13, deep=0.9).flash_attn == "off"
    machine = FakeMachine()
    found(machine)
    assert all(s.flash_attn != "prompts" for s in machine.measured)


def proof(machine: FakeMachine, until: float = 1e9) -> tune.Proof | None:
    """Of flash attention on against off."""
    on = replace(OWN, flash_attn="on")
    return tune.confirm(on, OWN, machine, machine.clock, until)


def test_a_gain_is_proved_in_turns() -> None:
    """Both take turns, the first one changing; a clear gain needs three rounds."""
    machine = FakeMachine(lambda s: 1.3 if s.flash_attn == "on" else 1.0)
    found = proof(machine)
    assert found is not None
    assert found.holds
    assert found.turn.value == pytest.approx(1.3)
    order = [s.flash_attn for s in machine.measured]
    assert order == ["on", "off", "off", "on", "on", "off"]


def test_a_disturbed_run_is_not_the_noise() -> None:
    """Another process in the first run of our own settings hides no gain."""
    quiet = (1.0,) * 50
    machine = FakeMachine(lambda s: 1.1 if s.flash_attn == "on" else 1.0, (0.7, *quiet))
    assert found(machine).flash_attn == "on"
    assert machine.measured.count(OWN) == 3


def test_a_disturbed_round_does_not_refuse_a_winner() -> None:
    """One round in which the winner was disturbed costs more rounds, not the proof."""
    machine = FakeMachine(lambda s: 1.3 if s.flash_attn == "on" else 1.0, (0.7, *(1.0,) * 50))
    found = proof(machine)
    assert found is not None
    assert found.holds
    assert len(machine.measured) > 2 * tune.ROUNDS[0]


def test_luck_is_not_kept() -> None:
    """Where noise is as large as the gain, more rounds are taken and then it is given up."""
    machine = FakeMachine(
        lambda s: 1.03 if s.flash_attn == "on" else 1.0, (1.0, 1.2, 0.9, 1.1, 0.8)
    )
    found = proof(machine)
    assert found is not None
    assert not found.holds
    assert len(machine.measured) == 2 * tune.ROUNDS[1]


def test_no_part_may_become_slower() -> None:
    """Faster over the whole turn, but slower prompts: refused."""

    def measure(setting: Setting) -> Speeds:
        on = setting.flash_attn == "on"
        return Speeds(90.0, (40.0, 40.0)) if on else Speeds(100.0, (20.0, 20.0))

    found = tune.confirm(replace(OWN, flash_attn="on"), OWN, measure, lambda: 0.0, 1.0)
    assert found is not None
    assert found.turn.gain > 1
    assert not found.holds


def test_a_winner_that_dies_in_the_proof_is_not_kept() -> None:
    """A setting that works only sometimes is none."""
    assert proof(FakeMachine(lambda s: 0.0 if s.flash_attn == "on" else 1.0)) is None


def test_the_explanation_names_changes_and_gains() -> None:
    """What differs, and what it gave where."""
    machine = FakeMachine(lambda s: 2.08 if s.flash_attn == "on" else 1.0)
    found = proof(machine)
    assert found is not None
    on = replace(OWN, flash_attn="on", extra_bufts=False)
    said = tune.explained(on, OWN, found, (0, 2048, 8192))
    assert said == (
        "flash attention on, repack off: +108% prompt, +108% at depth 0, +108% at depth 2,048,"
        " +108% at depth 8,192"
    )


@pytest.mark.parametrize(
    ("speed", "n_prompt", "n_gen"), [(1000.0, 512, 32), (40.0, 96, 32), (2.0, 32, 6)]
)
def test_slow_machines_measure_less(speed: float, n_prompt: int, n_gen: int, tiny: Path) -> None:
    """Each part takes a few seconds by what is predicted."""
    info = read_file_header(tiny)
    plan = make_plan(info, known_machine("cpu-64"))
    plan = replace(plan, predicted=replace(plan.predicted, prompt_tps=speed, generation_tps=speed))
    mix = tune.sized(plan, info)
    assert (mix.n_prompt, mix.n_gen) == (n_prompt, n_gen)
    assert mix.depths[:2] == (0, 2048)
    assert mix.n_ctx <= info.n_ctx_train


def test_a_context_that_is_too_short_is_refused(tiny: Path) -> None:
    """Before anything is measured: there would be no room for the prompt that is judged."""
    info = read_file_header(tiny)
    plan = make_plan(info, known_machine("cpu-64"))
    for n_ctx in (256, 545, tune.LEAST_CONTEXT - 1):
        with pytest.raises(UsageError, match="too short to tune"):
            tune.sized(replace(plan, n_ctx=n_ctx), info)
    assert tune.sized(replace(plan, n_ctx=tune.LEAST_CONTEXT), info).depths[0] == 0


def test_a_plan_that_keeps_v_in_f16_is_measured_so() -> None:
    """K in q8_0 without flash attention: V cannot be quantized, and a search must not try it."""
    info = quants.model_info(quants.BY_NAME["q4_k_m"])
    plan = make_plan(info, known_machine("cpu-32"))
    assert (plan.type_k, plan.type_v) == ("q8_0", "f16")
    spec = EngineSpec("qwq.gguf")
    for setting in (tune.own_setting(plan, spec), tune.default_setting(plan, spec)):
        assert setting.placement()["type_k"] == "q8_0"
        assert setting.placement()["type_v"] == "f16"
        assert tune.words(setting)["kv"] == "q8_0/f16"
        tried = [one for axis in SPACE.along(setting) for one in axis]
        assert {one.placement()["type_v"] for one in tried} == {"f16"}


# --- what is kept ------------------------------------------------------------------------------

KEPT = Tuned("2026-11-22", flash_attn="on", n_batch=256, why=("flash attention on: +10% prompt",))


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the built-in model, whose time of change is its own."""
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny.read_bytes())
    return path


def test_an_engine_takes_what_was_found(model: Path, tmp_path: Path) -> None:
    """The rest stays as it was, and the sentence that explains it comes with it."""
    tuned.keep(EngineSpec(str(model)), tmp_path, KEPT)
    spec = tuned.applied(stock_spec(model, Settings(threads=1)), Settings(threads=1), tmp_path)
    assert (spec.flash_attn, spec.n_batch, spec.threads, spec.kv) == ("on", 256, 1, None)
    assert spec.tuned == "Tuned on 2026-11-22: flash attention on: +10% prompt."


def test_a_persons_own_setting_comes_first(model: Path, tmp_path: Path) -> None:
    """Also that of the KV type, which goes together with flash attention."""
    tuned.keep(EngineSpec(str(model)), tmp_path, replace(KEPT, threads=7))
    own = Settings(kv="f16", threads=3)
    spec = tuned.applied(stock_spec(model, own), own, tmp_path)
    assert (spec.flash_attn, spec.kv, spec.threads) == (None, "f16", 3)


def test_a_finding_holds_for_one_file_build_and_machine(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changed, or another build or CPU, has none."""
    tuned.keep(EngineSpec(str(model)), tmp_path, KEPT)
    assert tuned.recall(EngineSpec(str(model)), tmp_path) == KEPT
    monkeypatch.setattr(tuned, "fingerprint", lambda: "another")
    assert tuned.recall(EngineSpec(str(model)), tmp_path) is None
    monkeypatch.undo()
    os.utime(model, ns=(1, 1))
    assert tuned.recall(EngineSpec(str(model)), tmp_path) is None


def test_what_holds_for_the_cpu_does_not_hold_for_a_gpu(model: Path, tmp_path: Path) -> None:
    """A finding belongs to the devices that were asked for; reset forgets it for all of them."""
    tuned.keep(EngineSpec(str(model), gpu_layers=0), tmp_path, KEPT)
    assert tuned.recall(EngineSpec(str(model)), tmp_path) is None
    assert tuned.recall(EngineSpec(str(model), gpu_layers=0), tmp_path) == KEPT
    assert tuned.forget(model, tmp_path)
    assert tuned.recall(EngineSpec(str(model), gpu_layers=0), tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', "\0", '{"PATH": {"file": 3}}'])
def test_a_torn_file_is_no_finding(text: str, model: Path, tmp_path: Path) -> None:
    """And the next finding mends it."""
    (tmp_path / "tuned.json").write_text(text.replace("PATH", str(model)))
    assert tuned.recall(EngineSpec(str(model)), tmp_path) is None
    tuned.keep(EngineSpec(str(model)), tmp_path, KEPT)
    assert tuned.recall(EngineSpec(str(model)), tmp_path) == KEPT


def test_reset_brings_our_own_settings_back(model: Path, environ: dict[str, str]) -> None:
    """The second time there is nothing left to forget; both end well."""
    cache = Path(environ["QWQ_CACHE_DIR"])
    tuned.keep(EngineSpec(str(model)), cache, KEPT)
    first = qwq("tune", "--model", str(model), "--reset", environ=environ)
    again = qwq("tune", "--model", str(model), "--reset", environ=environ)
    assert (first.code, again.code) == (0, 0)
    assert "are back" in first.out
    assert "Nothing was kept" in again.out


def test_tuning_is_offered_once(tmp_path: Path) -> None:
    """After the first pull, and not again."""
    assert "qwq tune" in tuned.offer(tmp_path)
    assert tuned.offer(tmp_path) == ""


def test_chat_uses_what_was_found_and_bench_can_leave_it(
    model: Path, environ: dict[str, str]
) -> None:
    """The engine that a chat opens has it and says so; `--no-tune` is without."""
    cache = Path(environ["QWQ_CACHE_DIR"])
    tuned.keep(EngineSpec(str(model)), cache, KEPT)
    engine = open_engine(model, Settings(threads=1), cache)
    assert KEPT.sentence in engine.info().reasons
    engine.close()
    small = ("bench", "--model", str(model), "-p", "8", "-n", "0", "-d", "0", "-r", "1", "--json")
    with_it = json.loads(qwq(*small, "--no-chat", environ=environ).out)
    without = json.loads(qwq(*small, "--no-chat", "--no-tune", environ=environ).out)
    assert (with_it["tests"][0]["flash_attn"], with_it["tests"][0]["n_ubatch"]) == (1, 256)
    assert (without["tests"][0]["flash_attn"], without["tuned"]) == (0, "")
    tuned.forget(model, cache)


rpc = pytest.mark.skipif(not rpc_server.available(), reason="this build has no RPC backend")


@rpc
def test_tune_on_other_devices(model: Path, environ: dict[str, str]) -> None:
    """Layers behind RPC are tuned where they are, and dealt to two devices in other ways."""
    with rpc_server.running(2) as (endpoint, _):
        argv = ("--model", str(model), "--rpc", endpoint, "--budget", "10", "--json")
        done = qwq("tune", *argv, environ=environ)
    assert done.code == 0, done.err
    assert json.loads(done.out)["complete"]
    assert "layers 7+0: prompt" in done.err


@rpc
def test_layers_without_memory_are_survived(tiny: Path) -> None:
    """A device that says it is free and refuses: that setting is out, the next is measured."""
    info = read_file_header(tiny)
    with rpc_server.running(1, limit=8 << 20) as (endpoint, _), Probe(endpoint) as probe:
        machine = hardware.probe(probe.devices)
        few, all_of_it = (make_plan(info, machine, Want(4096, gpu_layers=n)) for n in (1, 7))
        own, other = Setting(1, "off", False, 32, "f16"), Split((7,))
        spec = EngineSpec(str(tiny), rpc=endpoint)
        with tune.Bench(spec, few, info, never, {other: all_of_it}) as bench:
            assert bench.measure(own) is not None
            assert bench.measure(replace(own, split=other)) is None
            assert bench.measure(own) is not None


@rpc
def test_tuned_layers_are_used_while_they_fit(model: Path, environ: dict[str, str]) -> None:
    """A chat has them; a person's own number, and too little memory, bring the plan's back."""
    cache = Path(environ["QWQ_CACHE_DIR"])
    with rpc_server.running(2) as (endpoint, _):
        settings = Settings(threads=1, rpc=endpoint, ctx=512)
        tuned.keep(
            stock_spec(model, settings), cache, replace(KEPT, n_batch=None, split=Split((1, 4)))
        )
        engine = open_engine(model, settings, cache)
        info = engine.info()
        engine.close()
    assert info.placement.startswith("5 of 7 layers")
    assert "5 of 7 layers on the GPU, as qwq tune measured." in info.reasons
    tuned.forget(model, cache)


def test_tuned_layers_give_way_to_memory() -> None:
    """What does not fit into half of the margin, or was found with other devices, is left."""
    info = quants.model_info(quants.BY_NAME["q4_k_m"])
    machine = known_machine("4070")
    own = make_plan(info, machine)
    more = replace(own.split, cpu_ffn=own.split.cpu_ffn - 1)
    assert make_plan(info, machine, Want(split=more)).split == more
    assert make_plan(info, machine, Want(split=more)).n_ctx == own.n_ctx
    for split in (Split((65,)), Split((90,)), Split((10, 10)), Split((20,), 3)):
        assert make_plan(info, machine, Want(split=split)) == own
    assert make_plan(info, machine, Want(split=more, gpu_layers=3)).gpu_layers == 3


# --- for real ----------------------------------------------------------------------------------


def test_tune_for_real(model: Path, environ: dict[str, str]) -> None:
    """A short budget on the built-in model: it says what it tries, and what came of it."""
    done = qwq("tune", "--model", str(model), "--budget", "3", "--json", environ=environ)
    assert done.code == 0
    plain = json.loads(done.out.splitlines()[-1])
    assert plain["complete"]
    assert plain["setting"]["threads"] == 1
    assert "at depth 0, 2,048" in done.err
    assert (
        tuned.recall(EngineSpec(str(model)), Path(environ["QWQ_CACHE_DIR"])) is not None
    ) == plain["kept"]


def test_no_budget_measures_nothing(environ: dict[str, str]) -> None:
    """A budget that is none is a slip."""
    for budget in ("0", "nan", "inf"):
        done = qwq("tune", "--budget", budget, environ=environ)
        assert done.code == 2
        assert "--budget 180" in done.err


def test_a_child_that_dies_is_replaced(tiny: Path) -> None:
    """Killed between two settings: the one is out, the next is measured in a new child."""
    info = read_file_header(tiny)
    plan = make_plan(info, known_machine("cpu-64"))
    setting = Setting(1, "off", False, 512, "f16")
    with tune.Bench(EngineSpec(str(tiny)), plan, info, never) as bench:
        assert bench.measure(setting) is not None
        os.kill(bench._children[setting.load].pid, signal.SIGKILL)
        assert bench.measure(setting) is None
        assert bench.measure(setting) is not None
