"""`qwq bench`: the arithmetic with a fake clock, the files, the comparison, and the command."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import rpc_server
from command_line import qwq
from gguf_files import write_qwq_shaped

from qwqcli import bandwidth, bench, quants
from qwqcli.bench import compare, drill, history, measure, presets, reference, report, watch
from qwqcli.bench.ceiling import ceiling_tps, readers
from qwqcli.bench.child import Child
from qwqcli.bench.report import Report, Row
from qwqcli.config import Settings
from qwqcli.engine import EngineSpec, never
from qwqcli.engine.selfcheck import fingerprint
from qwqcli.errors import EngineError, NoRoom, UsageError
from qwqcli.gguf import read_file_header
from qwqcli.hardware import System, known_machine
from qwqcli.layout import Want
from qwqcli.plan import Plan, make_plan

SMALL = ("-p", "32", "-n", "8", "-d", "0,256", "-r", "2", "--no-chat")

# --- one test, by a fake clock -----------------------------------------------------------------


@dataclass
class FakeTarget:
    """A context whose time goes by as it is told: per token, and more where it is deep."""

    ns: int = 0
    prompt_ns: int = 1_000
    token_ns: int = 5_000
    depth: int = 0
    forgets: bool = False
    said: list[str] = field(default_factory=list)

    def prompt(self, count: int) -> None:
        self.said.append(f"prompt {count}")
        self.ns += count * self.prompt_ns
        self.depth += count

    def generate(self, count: int) -> None:
        self.said.append(f"generate {count}")
        self.ns += count * (self.token_ns + self.depth)
        self.depth += count

    def rewind(self, depth: int) -> bool:
        before, self.depth = self.depth, 0
        if self.forgets or before < depth:
            return not depth
        self.depth = depth
        return True

    def deepen(self, depth: int, prompt: int) -> None:
        self.said.append(f"deepen {depth} from {prompt}")
        self.depth = depth

    def clock(self) -> int:
        return self.ns


def drilled(target: FakeTarget, test: bench.Test, repetitions: int) -> list[int]:
    """The samples of a test."""
    return list(drill.run(target, test, repetitions, target.clock, lambda done: None))


def test_only_the_work_is_timed() -> None:
    """Warm-up and filling are not in the samples; each repetition is the work alone."""
    target = FakeTarget()
    assert drilled(target, bench.Test(512, 0, 0), 3) == [512_000] * 3
    assert target.said == ["prompt 512"] * 4  # the first is the warm-up


def test_generation_warms_up_with_one_token() -> None:
    """As llama-bench does it."""
    target = FakeTarget()
    drilled(target, bench.Test(0, 16, 0), 2)
    assert target.said == ["generate 1", "generate 16", "generate 16"]


def test_a_depth_is_filled_once_and_gone_back_to() -> None:
    """1,100 tokens go in as 512, 512 and 76; every repetition begins behind them."""
    target = FakeTarget()
    samples = drilled(target, bench.Test(0, 2, 1100), 3)
    assert samples == [2 * (5_000 + 1100)] * 3
    assert target.said[1:4] == ["prompt 512", "prompt 512", "prompt 76"]
    assert target.said.count("prompt 512") == 2


def test_a_model_that_forgets_is_filled_each_time() -> None:
    """Where a cache cannot be cut, the depth is processed again, outside of the time."""
    target = FakeTarget(forgets=True)
    assert drilled(target, bench.Test(0, 2, 600), 2) == [2 * 5_600] * 2
    assert target.said.count("prompt 88") == 2


def test_a_mix_is_timed_part_by_part() -> None:
    """The prompt, then the tokens at each depth; copying and the first token are not timed."""
    target = FakeTarget()
    times = drill.run_mix(target, drill.Mix(512, 4, (0, 2048)), target.clock)
    assert times == (512_000, (4 * 5_001, 4 * 7_049))


def test_llama_benchs_order_of_tests() -> None:
    """Depth by depth, prompts before generation; a count of 0 is left out."""
    names = [test.name for test in bench.tests((512, 0), (128,), (0, 2048))]
    assert names == ["pp512", "tg128", "pp512 @ d2048", "tg128 @ d2048"]


def row(
    test: bench.Test, samples_ns: tuple[int, ...] = (1_000_000_000,) * 3, **more: object
) -> Row:
    """A row with settings of no interest."""
    plain = {
        "n_batch": 512, "n_ubatch": 512, "n_threads": 2, "type_k": "f16", "type_v": "f16",
        "n_gpu_layers": 0, "flash_attn": 0, "repack": False, "test_time": "2026-11-22T09:00:00Z",
    }  # fmt: skip
    counts = (test.n_prompt, test.n_gen, test.n_depth)
    return Row(*counts, samples_ns, **{**plain, **more})  # type: ignore[arg-type]


def test_speeds_to_the_digit() -> None:
    """128 tokens in 4, 3.2 and 3.2 s are 32, 40 and 40 tokens/s: 37.3333 +- 4.6188, median 40."""
    samples = (4_000_000_000, 3_200_000_000, 3_200_000_000)
    plain = row(bench.Test(0, 128, 0), samples, ceiling_ts=50.0).plain()
    assert plain["samples_ts"] == [32.0, 40.0, 40.0]
    assert (plain["avg_ts"], plain["stddev_ts"], plain["median_ts"]) == (37.3333, 4.6188, 40.0)
    assert (plain["avg_ns"], plain["stddev_ns"]) == (3_466_666_667, 461_880_215)
    assert plain["ceiling_share"] == 0.7467
    assert plain["outliers"] == [0]


def test_every_field_of_llama_bench_that_we_have_is_called_as_there() -> None:
    """Names of llama-bench's JSON at 0c1e57098."""
    theirs = """n_prompt n_gen n_depth avg_ns stddev_ns avg_ts stddev_ts samples_ns samples_ts
        n_batch n_ubatch n_threads type_k type_v n_gpu_layers flash_attn repack test_time"""
    assert set(theirs.split()) <= set(row(bench.Test(1, 0)).plain())
    setup = "model_filename model_size model_n_params cpu_info gpu_info backends"
    assert set(setup.split()) <= set(json.loads(report.to_json(a_report())))


# --- the ceiling -------------------------------------------------------------------------------


def test_ceiling_by_hand() -> None:
    """QwQ-32B q4_k_m on the CPU at 50 GB/s: all weights but the embedding, and 256 KiB a token."""
    info = quants.model_info(quants.BY_NAME["q4_k_m"])
    plan = make_plan(info, known_machine("cpu-64"), Want())
    found = readers(info, plan, {"CPU": 50e9})
    weights = info.tensor_bytes - info.embedding_bytes
    assert [(r.weights, r.kv_per_token) for r in found] == [(weights, 256 * 1024)]
    expected = 50e9 / (weights + 256 * 1024 * (8192 + 64))
    assert ceiling_tps(found, bench.Test(0, 128, 8192)) == pytest.approx(expected)
    assert ceiling_tps(found, bench.Test(512, 0, 0)) is None


def test_devices_read_one_after_another() -> None:
    """With layers on a GPU and in RAM the times add up; an unknown bandwidth gives no ceiling."""
    info = quants.model_info(quants.BY_NAME["q4_k_m"])
    plan = make_plan(info, known_machine("4070"), Want())
    found = readers(info, plan, {plan.devices[0].name: 500e9, "CPU": 50e9})
    assert len(found) == 2
    seconds = sum(r.weights / (r.bandwidth or 0) for r in found)
    assert ceiling_tps(found, bench.Test(0, 2, -1)) == pytest.approx(1 / seconds)
    assert ceiling_tps(readers(info, plan, {"CPU": 50e9}), bench.Test(0, 2, 0)) is None


def test_an_embedding_that_is_the_output_layer_is_read(tiny: Path) -> None:
    """The built-in model has one matrix for both."""
    info = read_file_header(tiny)
    found = readers(info, make_plan(info, known_machine("cpu-64")), {"CPU": 1e9})
    assert found[0].weights == info.tensor_bytes


def test_bandwidth_counts_each_byte_once() -> None:
    """By a clock that goes on by a second each time it is asked: 64 MiB in one second."""
    times = iter(range(100))
    assert bandwidth.measure(1, 2, lambda: float(next(times))) == 64 << 20


# --- what disturbs -----------------------------------------------------------------------------


def test_noise_is_said() -> None:
    """Each disturbance has its sentence, and quiet has none."""
    quiet = watch.Seen(1.0, 0, others_share=0.01, clock_share=0.99)
    assert list(quiet.noise()) == []
    loud = watch.Seen(1.0, 0, None, 5.0, 0.5, 0.2, 0.8, True)
    assert [line.split()[0] for line in loud.noise()] == ["Other", "The", "The", "The"]
    assert (loud.watts, quiet.watts) == (5.0, None)


def test_another_process_is_noticed() -> None:
    """A process that keeps a core busy is seen beside ours, which does nothing."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with watch.Watch() as looking:
            time.sleep(1.0)
            seen = looking.close()
    finally:
        busy.kill()
        busy.wait()
    assert seen.others_share > watch.OTHERS_SHARE
    assert seen.peak_ram_bytes > 1 << 20


def test_energy_of_the_cpu_packages(tmp_path: Path) -> None:
    """RAPL counts microjoules, one zone a package; what cannot be read is not guessed."""
    for zone, microjoules in enumerate((1_500_000, 2_500_000)):
        folder = tmp_path / f"sys/class/powercap/intel-rapl:{zone}"
        folder.mkdir(parents=True)
        (folder / "energy_uj").write_text(f"{microjoules}\n")
    system = System(root=tmp_path, run=lambda command, limit: None)
    assert watch.rapl_joules(system) == 4.0
    assert watch.rapl_joules(System(root=tmp_path / "none")) is None


def test_gpus_are_asked_through_nvidia_smi(tmp_path: Path) -> None:
    """Memory and watts of all cards add up; a card at work below its power limit is a brake."""
    answer = "1024, 300.5, 98, 0x0000000000000004\n2048, 99.5, 3, 0x0000000000000001\n"
    system = System(root=tmp_path, run=lambda command, limit: answer)
    with watch.Watch(system=system) as looking:
        time.sleep(watch.GPU_LOOK_S * 1.5)
        seen = looking.close()
    assert seen.peak_gpu_bytes == 3 << 30
    assert seen.watts == pytest.approx(400.0)
    assert seen.gpu_brakes


POWERMETRICS = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0"><dict>
<key>elapsed_ns</key><integer>1004000000</integer>
<key>hw_model</key><string>Mac15,9</string>
<key>processor</key><dict>
<key>cpu_power</key><real>4280.25</real>
<key>gpu_power</key><real>21000</real>
<key>ane_power</key><real>0</real>
<key>combined_power</key><real>25280.25</real>
</dict></dict></plist>
\0"""


def test_watts_of_a_mac() -> None:
    """Milliwatts of the whole chip; no answer from an Intel Mac, another format or none at all."""
    assert watch.mac_watts(POWERMETRICS) == pytest.approx(25.28025)
    other = POWERMETRICS.replace("combined_power", "package_energy")
    for text in ("", "powermetrics must be invoked as the superuser", POWERMETRICS[:300], other):
        assert watch.mac_watts(text) is None


@pytest.mark.parametrize(("allowed", "watts"), [(True, 25.28025), (False, None)])
def test_powermetrics_is_asked_on_a_mac_alone(
    allowed: bool, watts: float | None, tmp_path: Path
) -> None:
    """Where it may not be asked it fails once, and the watts are null."""
    asked = []

    def run(command: Sequence[str], limit: float) -> str | None:
        asked.append(command[0])
        time.sleep(0.05)
        return POWERMETRICS if allowed and command[0] == "powermetrics" else None

    with watch.Watch(system=System(kind="darwin", root=tmp_path, run=run)) as looking:
        time.sleep(0.2)
        seen = looking.close()
    assert seen.watts == (pytest.approx(watts) if watts else None)
    assert asked.count("powermetrics") > 1 if allowed else asked.count("powermetrics") == 1


# --- reports, history, comparison --------------------------------------------------------------


def a_report(name: str = "20261122-090000-aaaa", **more: object) -> Report:
    """A report of one test at 32 tokens/s."""
    setup = report.Setup(
        "QwQ 32B", "Q4_K_M", "qwq.gguf", 19, 32_763_876_352, "ab" * 32, "all layers on the CPU",
        "0.3.36", fingerprint(), "CPU", "a CPU", "", 2, 24, "0.1.0",
    )  # fmt: skip
    rows = (row(bench.Test(0, 32, 0)), row(bench.Test(512, 0, 0)))
    return Report(name, "2026-11-22T09:00:00+00:00", setup, rows, **more)  # type: ignore[arg-type]


def test_a_report_comes_back_as_it_went() -> None:
    """JSON holds all of it."""
    felt = report.Felt(1.0, 10, 0.5, 9, None, 30.0, 48, 1 << 30, None, None, None)
    before = a_report(felt=felt, noise=("loud",), complete=False)
    assert report.from_json(report.to_json(before), "x") == before


def test_csv_has_a_line_a_test() -> None:
    """With llama-bench's names as the header."""
    found = list(csv.DictReader(io.StringIO(report.to_csv([a_report(), a_report()]))))
    assert [line["n_gen"] for line in found] == ["32", "0"] * 2
    assert float(found[0]["avg_ts"]) == 32.0
    assert report.to_csv([]) == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": "x"}', "null", "\0"])
def test_a_torn_file_is_passed_over_and_named(text: str, tmp_path: Path) -> None:
    """Other runs are listed all the same; asked for by name it is an error."""
    history.keep(a_report(), tmp_path)
    torn = history.folder(tmp_path) / "20261122-100000-bbbb.json"
    torn.write_text(text)
    reports, problems = history.listed(tmp_path)
    assert [r.id for r in reports] == ["20261122-090000-aaaa"]
    assert "torn" in problems[0]
    with pytest.raises(UsageError, match="torn"):
        history.find(tmp_path, "last")


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """What this version does not know it does not guess."""
    history.keep(replace(a_report(), schema=report.SCHEMA + 1), tmp_path)
    with pytest.raises(UsageError, match="newer version of qwq") as caught:
        history.find(tmp_path, "last")
    assert "upgrade" in caught.value.hint


def test_runs_are_found_by_what_is_unique(tmp_path: Path) -> None:
    """The beginning of an id, `last`, and `last~1`; no name stands for two."""
    with pytest.raises(UsageError, match="No run has been kept"):
        history.find(tmp_path, "last")
    for name in ("20261122-090000-aaaa", "20261122-100000-bbbb"):
        history.keep(a_report(name), tmp_path)
    assert history.find(tmp_path, "last").id.endswith("bbbb")
    assert history.find(tmp_path, "last~1").id.endswith("aaaa")
    assert history.find(tmp_path, "20261122-09").id.endswith("aaaa")
    for name in ("20261122", "nothing", "last~2"):
        with pytest.raises(UsageError):
            history.find(tmp_path, name)


def test_a_folder_that_cannot_be_written_loses_no_figures(tmp_path: Path) -> None:
    """It is said, and the run goes on to its table."""
    (tmp_path / "bench").write_text("a file where the folder should be")
    assert "cannot be kept" in history.keep(a_report(), tmp_path)


def test_a_difference_within_noise_is_none() -> None:
    """Runs with the same spread around the same speed differ by nothing."""
    test = bench.Test(0, 32, 0)
    one = a_report()
    first = replace(one, tests=(row(test, (990_000_000, 1_000_000_000, 1_010_000_000)),))
    second = replace(one, tests=(row(test, (1_010_000_000, 990_000_000, 1_002_000_000)),))
    (found,) = compare.compare(first, second)
    assert found.ratio.within_noise
    faster = replace(one, tests=(row(test, (500_000_000, 505_000_000, 495_000_000)),))
    (found,) = compare.compare(first, faster)
    assert not found.ratio.within_noise
    assert found.ratio.value == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sha256": "cd" * 32}, "the file"),
        ({"placement": "65 of 65 layers on CUDA0"}, "the placement"),
    ],
)
def test_unlike_runs_are_not_compared(change: dict[str, str], named: str) -> None:
    """Another file or placement is refused, unless it is forced."""
    first = a_report()
    second = replace(first, setup=replace(first.setup, **change))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=named):
        compare.compare(first, second)
    assert compare.compare(first, second, force=True)


def test_other_depths_are_not_compared() -> None:
    """Forced, the tests that both have are; without any there is nothing to compare."""
    first = a_report()
    second = replace(first, tests=(row(bench.Test(0, 32, 0)), row(bench.Test(0, 32, 4096))))
    with pytest.raises(UsageError, match="the tests"):
        compare.compare(first, second)
    assert len(compare.compare(first, second, force=True)) == 1
    with pytest.raises(UsageError, match="no test in common"):
        compare.compare(first, replace(first, tests=second.tests[1:]), force=True)


def test_measured_speeds_replace_predictions(tmp_path: Path) -> None:
    """On the line through what was measured: 10 ms at 16, 30 ms at 10,016, so 20 ms at 5,016."""
    info = quants.model_info(quants.BY_NAME["q4_k_m"])
    plan = make_plan(info, known_machine("cpu-64"), Want())
    rows = (
        row(bench.Test(512, 0, 0), (10_240_000_000,)),
        row(bench.Test(0, 32, 0), (320_000_000,)),
        row(bench.Test(0, 32, 10_000), (960_000_000,)),
    )
    assert history.thinking_tps(rows, 5016) == pytest.approx(50.0)
    assert history.thinking_tps(rows[:2], 5016) is None
    history.keep(replace(a_report(), tests=rows), tmp_path)
    found = history.with_measured(plan, tmp_path)
    assert not isinstance(found, list)
    assert found.predicted.measured
    assert found.predicted.prompt_tps == pytest.approx(50.0)
    other = make_plan(quants.model_info(quants.BY_NAME["q6_k"]), known_machine("cpu-64"), Want())
    assert history.with_measured(other, tmp_path) == other


def test_speeds_of_other_settings_are_not_taken_for_the_plans(tmp_path: Path) -> None:
    """A later run with one thread does not replace that with the plan's; alone, it is named."""
    info = quants.model_info(quants.BY_NAME["q4_k_m"])
    plan = make_plan(info, known_machine("cpu-64"), Want())
    flash = report.FLASH[plan.flash_attn]

    def rows(ns: int, **more: object) -> tuple[Row, ...]:
        tests = (bench.Test(0, 32, 0), bench.Test(0, 32, 10_000))
        return tuple(row(test, (ns,), **more) for test in tests)

    other = rows(3_200_000_000, n_threads=1, flash_attn=1)
    history.keep(replace(a_report("20261122-090001-aaaa"), tests=other), tmp_path)
    found = history.with_measured(plan, tmp_path)
    assert isinstance(found, Plan)
    assert "qwq bench with 1 thread, flash attention on: about 10.0" in found.reasons[-1]
    own = rows(1_600_000_000, n_threads=plan.threads, flash_attn=flash)
    history.keep(replace(a_report("20261122-090000-aaaa"), tests=own), tmp_path)
    found = history.with_measured(plan, tmp_path)
    assert isinstance(found, Plan)
    assert "Measured by qwq bench: about 20.0" in found.reasons[-1]


def test_every_published_figure_has_a_source() -> None:
    """A figure without one is a rumour."""
    for entry in reference.published():
        assert entry["source"].startswith("https://")
        assert entry["quantization"] in quants.BY_NAME
        assert any(key[:2] in ("pp", "tg") for key in entry)
    assert any("RTX 3090" in line for line in reference.lines(a_report()))
    small = replace(a_report().setup, model_n_params=135_000_000)
    assert list(reference.lines(replace(a_report(), setup=small))) == []


# --- speed suites ------------------------------------------------------------------------------


def test_the_suites_that_come_with_qwq_can_be_measured() -> None:
    """Each loads; the quick one is short, and the reasoner's goes to where thoughts end."""
    assert {"default", "quick", "reasoner"} <= set(presets.names())
    for name in presets.names():
        measure.check(presets.load(name))
    assert presets.load("default").n_depth is None
    assert max(presets.load("reasoner").n_depth or ()) == 16384


@pytest.mark.parametrize("speed", [100.0, 10.0, 3.0])
def test_the_quick_suite_is_quick_on_slow_machines(speed: float, tiny: Path) -> None:
    """Everything is halved until it is predicted to fit; what is fast enough stays whole."""
    wanted = presets.load("quick")
    plan = make_plan(read_file_header(tiny), known_machine("cpu-64"))
    fast = replace(plan, predicted=replace(plan.predicted, prompt_tps=400.0, generation_tps=90.0))
    slow = replace(plan, predicted=replace(plan.predicted, prompt_tps=speed, generation_tps=speed))
    what = bench.tests(wanted.n_prompt, wanted.n_gen, wanted.n_depth or ())
    assert measure.shortened(wanted, what, fast) == wanted
    short = measure.shortened(wanted, what, slow)
    measure.check(short)
    what = bench.tests(short.n_prompt, short.n_gen, short.n_depth or ())
    assert (measure.Outlook(short, what, slow).seconds(0, 0) or 0) <= 45
    assert measure.shortened(replace(wanted, seconds=None), what, slow).n_prompt == (256,)


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    """What it leaves out is as in the default one; a single number is a list of one."""
    path = tmp_path / "mine.yaml"
    path.write_text("n_prompt: 64\nn_depth: [0, 256, 256]\n", encoding="utf-8")
    found = presets.load(str(path))
    assert (found.n_prompt, found.n_depth) == ((64,), (0, 256))
    assert found.n_gen == presets.load("default").n_gen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n_promt: [512]", "line 1: n_promt: no key of a speed suite"),
        ("n_gen: [8]\nn_depth: [0, -1]", "line 2: n_depth: [0, -1] is no list of numbers"),
        ("n_gen: []", "no list of numbers"),
        ("n_gen: [true]", "no list of numbers"),
        ("repetitions: many", "'many' is no number of them"),
        ("- 512", "a suite is a list of keys"),
        ("", "a suite is a list of keys"),
        ("n_gen: [8", "not valid YAML"),
    ],
)
def test_a_suite_with_a_slip_names_its_line(text: str, said: str, tmp_path: Path) -> None:
    """An unknown key, a number that is none, a file that is no suite."""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        presets.load(str(path))
    assert said in caught.value.message


def test_a_suite_that_is_not_there(environ: dict[str, str]) -> None:
    """A path without a file is told before anything is measured."""
    done = qwq("bench", "--suite", "gone.yaml", environ=environ)
    assert done.code == 2
    assert "There is no suite at gone.yaml" in done.err


# --- the child ---------------------------------------------------------------------------------


def test_a_child_that_dies_says_so(tiny: Path) -> None:
    """Killed in mid-measurement it is one error, and what came before it is there."""
    plan = make_plan(read_file_header(tiny), known_machine("cpu-64"))
    with Child(never) as child:
        child.load(tiny, plan.placement(), False)
        samples = child.run(bench.Test(0, 8, 0), 1000, 1)
        assert next(samples)[0] == "sample_ns"
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="ended with code -9"):
            list(samples)


def test_copies_fill_a_cache_as_tokens_do(smollm_spec: EngineSpec) -> None:
    """A cache of copies is as deep as one that was processed, and goes on from there."""
    from qwqcli.engine.native import Context, Model, Placement

    placement = Placement(n_ctx=512)
    model = Model(Path(smollm_spec.path), placement, False, lambda done: True)
    context = Context(model, placement, 1, copies=True)
    tokens = model.tokenize("The sea was calm. " * 8, start_of_text=True)[:32]
    assert context.decode(tokens)
    state = context.saved()
    context.clear()
    for copy in range(3):
        assert context.append(state, 32 * copy)
    assert context.decode([5])
    assert context.state_bytes > 3 * len(state) * 0.9
    assert context.cut(96)
    assert context.decode([5])
    context.close()
    model.close()


def returned(steps: Generator[measure.Step, None, measure.Job]) -> measure.Job:
    """What a generator returns at its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def test_a_death_half_way_loses_no_figures(tiny: Path, environ: dict[str, str]) -> None:
    """The tests that were done are in the report, which is not complete and says why."""
    wanted = measure.Wanted((16,), (4,), (0, 64), 2, 0)
    steps = measure.prepare(tiny, Settings(threads=1), Path(environ["QWQ_CACHE_DIR"]), wanted)
    events = measure.measure(returned(steps))
    for event in events:
        if isinstance(event, measure.Measured):
            break
    child = next(p for p in psutil.Process().children() if "qwqcli.bench.worker" in p.cmdline())
    child.kill()
    finished = list(events)[-1]
    assert isinstance(finished, measure.Finished)
    assert not finished.report.complete
    assert len(finished.report.tests) >= 1
    assert "ended with code -9" in finished.report.noise[-1]


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def ran(environ: dict[str, str]) -> Mapping[str, str]:
    """An environment in which a small run has been kept."""
    assert qwq("bench", *SMALL, "--md", environ=environ).code == 0
    return environ


def test_bench_tells_measures_and_keeps(environ: dict[str, str]) -> None:
    """What is expected comes first, on stderr; the last line of stdout is JSON; it is kept."""
    done = qwq("bench", *SMALL, "--json", environ=environ)
    assert done.code == 0
    plain = json.loads(done.out.splitlines()[-1])
    assert [t["n_depth"] for t in plain["tests"]] == [0, 0, 256, 256]
    assert all(len(t["samples_ns"]) == 2 for t in plain["tests"])
    assert plain["placement"] == "all layers on the CPU"
    assert plain["felt"] is None
    assert len(plain["sha256"]) == 64
    for expected in ("sha256", "at most", "Predicted", "Measures pp32, tg8, pp32 @ d256"):
        assert expected in done.err
    kept = qwq("bench", "--history", environ=environ)
    assert plain["id"] in kept.out


def test_what_is_felt_goes_through_the_chat(environ: dict[str, str]) -> None:
    """Loading, first token cold and with a reused prefix, speed; watts are null where not told."""
    done = qwq("bench", "-p", "0", "-n", "8", "-d", "0", "-r", "1", "--json", environ=environ)
    felt = json.loads(done.out)["felt"]
    assert felt["load_s"] > 0
    assert felt["cold_first_token_s"] > 0
    assert felt["reused_tokens"] > 100
    assert felt["thinking_ts"] > 1
    assert felt["peak_ram_bytes"] > 10 << 20
    assert felt["watts"] is None or felt["watts"] > 0


def test_compare_two_runs_of_the_history(ran: dict[str, str]) -> None:
    """With intervals, and in words whether the difference is one."""
    assert qwq("bench", *SMALL, "--md", environ=ran).code == 0
    done = qwq("bench", "--compare", "last~1", "last", environ=ran)
    assert done.code == 0
    assert "tg8 @ d256" in done.out
    assert " to " in done.out


def test_csv_table_and_plots(environ: dict[str, str], tmp_path: Path) -> None:
    """One run as CSV; the plots are in the file and on stderr, beside it."""
    pytest.importorskip("matplotlib")
    file = tmp_path / "speed.svg"
    done = qwq("bench", *SMALL, "--csv", "--plot", "--save-plot", str(file), environ=environ)
    assert done.code == 0
    assert len(list(csv.DictReader(io.StringIO(done.out)))) == 4
    assert "tokens/s" in done.err
    assert file.read_text().startswith("<?xml")


BAD = [
    (("-r", "0"), 2, "0 repetitions", "-r 5"),
    (("-r", "-1"), 2, "-1 repetitions", "-r 5"),
    (("-p", "0", "-n", "0"), 2, "Nothing is to be measured", "-p 512"),
    (("-d", "9000"), 2, "more than the 4,096 tokens", "is the deepest"),
    (("-d", "x"), 2, "-d 'x' is no list", "-d 0,2048"),
    (("-p", "-5"), 2, "no list of numbers", "-p"),
    (("-p", "8000"), 2, "more than the 4,096 that", "-p 128"),
    (("--quant", "q4_k_mm"), 2, "no quantization called 'q4_k_mm'", "--quant q4_k_m"),
    (("--quant", "q4_k_m"), 2, "not on this machine", "qwq pull q4_k_m"),
    (("--quant", "zzz"), 2, "no quantization called 'zzz'", "try: one of iq1_m"),
    (("--quant", ","), 2, "names no quantization", "--quant q4_k_m"),
    (("-d", "9000000"), 2, "A depth of 9,000,000", "-d 3584 is the deepest"),
    (("--compare", "a", "b"), 2, "No run has been kept", "qwq bench"),
    (("--save-plot", "x.pdf"), 2, "SVG or PNG", "x.svg"),
    (("--model", "nothing.gguf"), 2, "nothing.gguf", ""),
]


@pytest.mark.parametrize(("argv", "code", "said", "hint"), BAD)
def test_bad_input(
    argv: tuple[str, ...], code: int, said: str, hint: str, environ: dict[str, str]
) -> None:
    """Each slip is one sentence and the next thing to type, before anything is measured."""
    done = qwq("bench", *argv, environ=environ)
    assert done.code == code
    assert said in " ".join(done.err.split())
    assert hint in done.err
    assert done.out == ""


def test_too_deep_for_the_memory_names_what_fits() -> None:
    """The error says which depth fits, and that one does."""
    info = quants.model_info(quants.BY_NAME["q4_k_m"])
    machine = known_machine("cpu-32")
    fits = measure.deepest_fit(info, machine, Want(), 640, 120_000)
    assert 0 < fits < 120_000
    make_plan(info, machine, Want(n_ctx=fits + 640))
    with pytest.raises(NoRoom):
        make_plan(info, machine, Want(n_ctx=fits + 256 + 640))


def test_the_default_run_is_as_deep_as_the_model_allows(tiny: Path) -> None:
    """The built-in model has 4,096 tokens: the deep test is where they end, and that is said."""
    depths, said = measure.depths(
        read_file_header(tiny), known_machine("cpu-64"), Want(), presets.load("default")
    )
    assert depths == (0, 3584)
    assert "not at 8,192" in said[0]


def test_ctrl_c_gives_what_was_measured(environ: dict[str, str]) -> None:
    """Stopped in the middle, the run ends in 130 with the tests that were done, and keeps them."""
    command = [sys.executable, "-m", "qwqcli", "bench", "-p", "16", "-n", "8", "-d", "0"]
    child = subprocess.Popen(
        [*command, "-r", "100000", "--json"],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith(b"Loaded"):
            break
    time.sleep(0.7)  # into the repetitions
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    plain = json.loads(out)
    assert not plain["complete"]
    assert len(plain["tests"][0]["samples_ns"]) >= 1
    assert plain["id"] in qwq("bench", "--history", environ=environ).out


def test_a_model_in_the_shape_of_qwq_is_measured(environ: dict[str, str], tmp_path: Path) -> None:
    """Two layers of QwQ-32B's shape, with published figures out of place: it is no QwQ-32B."""
    path = write_qwq_shaped(tmp_path / "qwq.gguf", layers=2, vocab=1024)
    argv = ("-p", "8", "-n", "2", "-d", "0", "-r", "1", "--no-chat")
    done = qwq("bench", "--model", str(path), *argv, environ=environ)
    assert done.code == 0
    assert "tg2" in done.out
    assert "Published" not in done.out


@pytest.mark.skipif(not rpc_server.available(), reason="this build has no RPC backend")
def test_layers_on_another_device_are_measured_there(environ: dict[str, str]) -> None:
    """With a device behind RPC the real placement says so, and tune keeps to the plan's layers."""
    with rpc_server.running() as (endpoint, _):
        argv = ("-p", "16", "-n", "4", "-d", "0,128", "-r", "1", "--rpc", endpoint, "--json")
        done = qwq("bench", *argv, environ=environ)
        assert done.code == 0, done.err
        plain = json.loads(done.out)
        assert "RPC" in plain["placement"]
        assert plain["tests"][0]["n_gpu_layers"] == 7
        assert plain["tests"][1]["ceiling_ts"] is None  # a network's bandwidth is not known
