"""The plan's decisions: what each machine gets and why, what gives first, wishes, commands."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import qwq
from gguf_files import Tensor, Typed, qwq_metadata, qwq_tensors, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from qwqcli import builtin, costs, quants
from qwqcli.config import FlashAttn
from qwqcli.costs import Cache
from qwqcli.errors import NoRoom, QwqError, UsageError
from qwqcli.gguf import ModelInfo, read_file_header
from qwqcli.hardware import (
    Device,
    GiB,
    Machine,
    MiB,
    Unused,
    card,
    known_machine,
    machine_names,
    with_memory,
)
from qwqcli.layout import PREFERENCES, Case, Want, placed
from qwqcli.plan import (
    ENOUGH_CONTEXT,
    Yarn,
    corrected,
    larger,
    make_plan,
    minutes,
    options,
    recommended,
    with_measurement,
)
from qwqcli.tables import show_answer
from qwqcli.terminal import Output

Q4 = quants.model_info(quants.BY_NAME["q4_k_m"])


def shaped(name: str) -> ModelInfo:
    return quants.model_info(quants.BY_NAME[name])


def machine(name: str) -> Machine:
    """A machine by name; `24G+12G` are cards of that size in an ordinary desktop."""
    if name in machine_names():
        return known_machine(name)
    return with_memory(known_machine("4070"), name.replace("+", ","), None)


# --- another context ---------------------------------------------------------------------------


def test_a_larger_context_costs_its_cells() -> None:
    """Twice the context takes as many KV cells more (256 KiB each) and little else, where the
    layers stay as they are; that is told whether it fits or not."""
    want, there = Want(n_ctx=8192), machine("3090")
    plan = make_plan(Q4, there, want)
    found = larger(Q4, there, want, plan, 16_384)
    assert (found.fits, found.how) == (True, "")
    assert 0 <= found.more_bytes - 8192 * 256 * 1024 <= 32 * MiB
    small = replace(there, ram_free_bytes=4 * GiB)
    refused = larger(Q4, small, want, plan, 131_072)
    assert not refused.fits
    assert 0 <= refused.more_bytes - (131_072 - 8192) * 256 * 1024 <= GiB


def test_a_larger_context_may_cost_speed() -> None:
    """What would move so that it fits, and how fast it would be then, is said."""
    want, there = Want(n_ctx=16_384), machine("3090")
    plan = make_plan(Q4, there, want)
    how = larger(Q4, there, want, plan, 65_536).how
    assert "the KV cache in q8_0" in how
    assert re.search(r"5\d of 65 layers whole on the GPU, about [\d.]+ tokens/s instead of", how)


# --- the table of machines ---------------------------------------------------------------------

# machine, what `qwq plan` recommends there · layers wholly on GPUs, layers whose feed-forward part
# is in RAM, context, KV type, all for Q4_K_M; None: it does not fit · why that is right
TABLE = [
    # 24 GB: 23,982 - 1,024 - 18,508 MiB leave 4.4 GiB: 16k in f16, or twice that in q8_0
    ("3090", "q4_k_m", (65, 0, 31_744, "q8_0")),
    ("4090", "q4_k_m", (65, 0, 31_744, "q8_0")),
    # the same card from AMD, a little smaller
    ("7900xtx", "q4_k_m", (65, 0, 30_720, "q8_0")),
    # 32 GB: the model's native context in f16; there is room for a better quantization
    ("5090", "q6_k", (65, 0, 32_768, "f16")),
    # 16 GB: not whole, so attention and KV on the card, 26 feed-forward parts beside
    ("4080", "iq3_xs", (39, 26, 16_384, "q8_0")),
    ("4060ti-16g", "iq3_m", (39, 26, 16_384, "q8_0")),
    # 12 GB: two thirds of the feed-forward weights in RAM; IQ4_XS a fifth faster for little loss
    ("4070", "iq4_xs", (22, 43, 16_384, "q8_0")),
    ("3060-12g", "iq4_xs", (22, 43, 16_384, "q8_0")),
    # 10 and 8 GB: nearly all feed-forward weights in RAM, the thought still on the card
    ("10G", "q4_k_s", (13, 52, 16_384, "q8_0")),
    ("8G", "q4_k_m", (5, 60, 16_384, "q8_0")),
    # 6 GB: all attention and KV do not fit, so whole layers
    ("6G", "q4_k_m", (12, 0, 16_384, "q8_0")),
    # two cards hold it whole, by their free memory
    ("24G+24G", "q6_k", (65, 0, 32_768, "f16")),
    ("24G+12G", "q6_k", (65, 0, 32_768, "f16")),
    ("16G+16G", "q6_k", (65, 0, 32_768, "f16")),
    # two of 12 GB: all but one layer
    ("12G+12G", "q4_k_s", (64, 0, 16_384, "q8_0")),
    # Mac 16 GB: Metal has 10.7; only the smallest quantizations fit
    ("mac-mini-16", "iq2_xs", None),
    # Mac 24 GB: Metal has 16, the system leaves 4 more: IQ4_XS has room to think, Q4_K_S has not
    ("mac-mini-24", "iq4_xs", None),
    # Mac 32 GB: 21.3 are one layer short of 16k
    ("mac-mini-32", "q4_k_s", (64, 1, 16_384, "q8_0")),
    # Mac 36 GB: from here Metal has three quarters
    ("mac-studio-36", "q5_k_m", (65, 0, 32_768, "q8_0")),
    # from 48 GB on: the native context in f16, and Q6_K
    ("mac-mini-pro-48", "q6_k", (65, 0, 32_768, "f16")),
    ("mac-studio-64", "q6_k", (65, 0, 32_768, "f16")),
    ("mac-studio-128", "q6_k", (65, 0, 32_768, "f16")),
    # CPU 16 GB: 11 are free; not for QwQ
    ("cpu-16", "iq2_xs", None),
    # CPU 32 GB: 27 are free: K in q8_0, small batches
    ("cpu-32", "q4_k_m", (0, 0, 32_768, "q8_0")),
    # CPU 64 GB: everything fits, time is what is short
    ("cpu-64", "q4_k_m", (0, 0, 32_768, "f16")),
]


@pytest.mark.parametrize(("name", "best", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_the_plan_of_each_machine(
    name: str, best: str, expected: tuple[int, int, int, str] | None
) -> None:
    """What Q4_K_M gets on a machine, and which quantization is recommended there."""
    here = machine(name)
    if expected is None:
        with pytest.raises(NoRoom) as caught:
            make_plan(Q4, here)
        assert caught.value.hint == f"qwq plan {best}"
    else:
        plan = make_plan(Q4, here)
        assert (plan.whole_layers, len(plan.cpu_ffn), plan.n_ctx, plan.type_k) == expected
    assert recommended(options(here, Want())) == best


def test_room_to_think_is_as_much_as_was_asked_for() -> None:
    """Who asks for less context gets a better quantization whole."""
    here = machine("4080")
    assert recommended(options(here, Want())) == "iq3_xs"
    assert recommended(options(here, Want(n_ctx=4_096))) == "iq3_m"


PUBLISHED = [  # machine, quantization, tokens/s that were published for short texts, source
    ("3090", "q4_k_m", 37.7, "llama-bench, Qwen2.5-Coder-32B, lhl"),
    ("mac-mini-pro-48", "q4_k_m", 10.5, "by bandwidth from a 27B model at 13.2, M4 Pro"),
    ("4070", "q4_k_m", 4.25, "RTX 5070 12 GB, Qwen 32B, 4.09 and 4.42"),
]


@pytest.mark.parametrize(("name", "quant", "published", "source"), PUBLISHED)
def test_speeds_are_near_published_ones(
    name: str, quant: str, published: float, source: str
) -> None:
    """A prediction is within a third of what was measured; a long thought costs a little."""
    speed = make_plan(shaped(quant), machine(name)).predicted.generation_tps
    assert speed == pytest.approx(published, rel=0.33), source


# --- what gives --------------------------------------------------------------------------------


def with_free(mebibytes: int) -> Machine:
    """A desktop whose card has so much free memory."""
    base = known_machine("3090")
    return replace(base, devices=(replace(base.devices[0], free_bytes=mebibytes * MiB),))


def test_the_order_in_which_things_give() -> None:
    """As memory shrinks: KV precision, context down to 16k, layers; never less context for that."""
    seen = []
    for free in range(32_000, 8_000, -250):
        plan = make_plan(Q4, with_free(free))
        assert plan.n_ctx >= ENOUGH_CONTEXT
        state = (plan.type_k, plan.n_ctx == 32_768, plan.whole_layers == 65)
        if not seen or seen[-1] != state:
            seen.append(state)
    assert seen == [
        ("f16", True, True),
        ("q8_0", True, True),
        ("q8_0", False, True),
        ("q8_0", False, False),
    ]


def test_context_below_16k_comes_last_and_with_a_warning() -> None:
    """Only where RAM is short too does the context go below 16k, and that is said."""
    tight = replace(known_machine("cpu-32"), ram_free_bytes=21 * GiB)
    plan = make_plan(Q4, tight)
    assert 4_096 <= plan.n_ctx < ENOUGH_CONTEXT
    assert any("may be cut" in warning for warning in plan.warnings)


def test_less_memory_is_never_faster() -> None:
    """As a card shrinks the speed only falls, but for what a smaller KV cache saves."""
    plans = [make_plan(Q4, with_free(free)) for free in range(30_000, 4_000, -500)]
    speeds = [plan.predicted.generation_tps or 0.0 for plan in plans]
    assert all(less <= more * 1.04 for more, less in itertools.pairwise(speeds))


@pytest.mark.parametrize(
    ("prefer", "whole", "n_ctx", "kv"),
    [
        (None, 65, 31_744, "q8_0"),
        ("context", 64, 32_768, "q8_0"),  # one feed-forward part goes to RAM instead
        ("speed", 65, 31_744, "q8_0"),
        ("quality", 65, 16_384, "f16"),  # half of the context instead of the precision
    ],
)
def test_preferences_on_a_3090(prefer: str | None, whole: int, n_ctx: int, kv: str) -> None:
    """--prefer changes what gives first."""
    plan = make_plan(Q4, machine("3090"), Want(prefer=prefer))  # type: ignore[arg-type]
    assert (plan.whole_layers, plan.n_ctx, plan.type_k) == (whole, n_ctx, kv)


def test_speed_would_rather_lose_context_than_layers() -> None:
    """With --prefer speed a context below 16k is accepted, and warned of, to stay on the GPU."""
    plan = make_plan(Q4, machine("mac-mini-32"), Want(prefer="speed"))
    assert plan.whole_layers == 65
    assert plan.n_ctx < ENOUGH_CONTEXT
    assert plan.warnings


@given(
    cards=st.lists(st.integers(0, 40_000), max_size=4),
    ram=st.integers(1_000, 80_000),
    n_ctx=st.one_of(st.none(), st.integers(1, 131_072)),
    kv=st.sampled_from([None, "f16", "q8_0", "q4_0"]),
    prefer=st.sampled_from([None, *PREFERENCES]),
    quant=st.sampled_from([quant.name for quant in quants.QUANTS]),
)
@settings(max_examples=40, deadline=None)
def test_a_plan_always_fits(
    cards: list[int],
    ram: int,
    n_ctx: int | None,
    kv: costs.KV | None,
    prefer: str | None,
    quant: str,
) -> None:
    """Whatever the machine and the wish: every device holds its share and the margin, or NoRoom."""
    devices = tuple(
        replace(card(index, GiB), free_bytes=size * MiB) for index, size in enumerate(cards)
    )
    here = Machine("any", devices, ram * MiB, ram * MiB, cores=4)
    info = shaped(quant)
    want = Want(n_ctx=n_ctx, kv=kv, prefer=prefer)  # type: ignore[arg-type]
    try:
        plan = make_plan(info, here, want)
    except NoRoom:
        return
    for share in plan.devices:
        assert share.used_bytes + share.margin_bytes <= share.free_bytes or not share.used_bytes
    held = sum(share.weights_bytes for share in plan.devices)
    assert held == info.tensor_bytes
    assert sum(share.layers for share in plan.devices) == plan.layers_total == 65
    assert n_ctx is None or plan.n_ctx == n_ctx
    assert kv is None or plan.type_k == kv
    assert plan.type_v == "f16" or plan.flash_attn == "on"


# --- devices -----------------------------------------------------------------------------------


def test_two_cards_are_filled_to_the_same_share() -> None:
    """Layers are dealt by free memory: a card of half the size holds about half."""
    plan = make_plan(Q4, machine("24G+12G"))
    first, second, _ = plan.devices
    assert plan.tensor_split == (first.layers, second.layers)
    shares = [(s.used_bytes + s.margin_bytes) / s.free_bytes for s in (first, second)]
    assert shares[0] == pytest.approx(shares[1], abs=0.05)


def test_attention_stays_on_a_small_card() -> None:
    """Where whole layers would leave attention to the CPU, only feed-forward weights leave."""
    plan = make_plan(Q4, machine("4070"))
    gpu, ram = plan.devices
    assert plan.gpu_layers == 65
    assert plan.cpu_ffn == tuple(range(43))
    assert gpu.kv_bytes > 0 == ram.kv_bytes
    reason = plan.reasons[0]
    assert "feed-forward" in reason
    assert "whole layers" in reason


@pytest.mark.parametrize(("name", "ram"), [("3090", 28), ("3090", 16), ("4070", 24), ("8G", 40)])
def test_neither_the_card_nor_the_ram_need_hold_nearly_all(name: str, ram: int) -> None:
    """A model is split wherever any split fits, as trying each of them shows."""
    here = replace(machine(name), ram_free_bytes=ram * GiB)
    info, cache = shaped("q8_0"), Cache(16_384, "q8_0", "q8_0")
    case = Case(info, here, Want(n_ctx=16_384, kv="q8_0"))
    ways = [*((n, 0) for n in range(1, 64)), *((0, n) for n in range(1, 65))]
    fits = any(placed(case, cache, *way) for way in ways)
    if not fits:
        with pytest.raises(NoRoom):
            make_plan(info, here, case.want)
    else:
        assert make_plan(info, here, case.want).gpu_layers


def test_whole_layers_where_speed_is_not_known() -> None:
    """Without a bandwidth nothing is predicted, and the plain layout is taken."""
    here = with_memory(known_machine("cpu-32"), "12G", None)
    plan = make_plan(Q4, here)
    assert plan.cpu_ffn == ()
    assert plan.predicted.generation_tps is None
    assert any("No speed is predicted" in reason for reason in plan.reasons)


def test_metal_counts_the_embedding_and_reads_what_is_split() -> None:
    """A whole model is mapped with its embedding; a split one is read instead of mapped."""
    whole = make_plan(Q4, machine("mac-mini-pro-48"))
    assert whole.devices[0].weights_bytes == Q4.tensor_bytes
    assert whole.mmap
    split = make_plan(Q4, machine("mac-mini-32"))
    assert not split.mmap
    assert split.devices[0].weights_bytes + split.devices[1].weights_bytes == Q4.tensor_bytes


def test_the_wired_limit_is_offered_where_it_helps() -> None:
    """On a Mac that is a little short: the line, what it gives, its risk, how to undo it."""
    (warning,) = make_plan(Q4, machine("mac-mini-32")).warnings
    assert warning.startswith("sudo sysctl iogpu.wired_limit_mb=")
    limit = int(warning.split("=")[1].split()[0])
    assert 21_845 < limit <= 28 * 1024
    assert "65 of 65 layers" in warning
    assert "swap or freeze" in warning
    assert "iogpu.wired_limit_mb=0" in warning


def test_the_wired_limit_is_not_offered_where_it_does_not() -> None:
    """Where everything fits as it is, nobody is asked to change their system."""
    assert make_plan(Q4, machine("mac-studio-64")).warnings == ()


def test_ram_counts_beside_the_card() -> None:
    """A model that the card and the RAM cannot hold together does not fit."""
    with pytest.raises(NoRoom):
        make_plan(Q4, replace(machine("8G"), ram_free_bytes=8 * GiB))


def test_a_device_without_memory_gets_nothing() -> None:
    """A device that reports no memory is left out, and that is said."""
    silent = replace(card(0, 24 * GiB), free_bytes=0)
    plan = make_plan(Q4, replace(known_machine("cpu-64"), devices=(silent,)))
    assert plan.gpu_layers == 0
    assert any("does not say" in warning for warning in plan.warnings)


def test_llama_cpp_is_not_given_a_silent_device() -> None:
    """It would put layers on a device that does not say how much memory it has."""
    silent = replace(card(0, 24 * GiB), free_bytes=0)
    here = replace(known_machine("3090"), devices=(silent, card(1, 24 * GiB)))
    plan = make_plan(Q4, here)
    assert (plan.placed_on, plan.tensor_split) == (("CUDA1",), ())
    assert "by free memory" not in plan.reasons[0]


def test_an_unused_gpu_is_named_in_the_plan() -> None:
    """Nobody runs on the CPU without being told which GPU lies idle and what to type."""
    unused = (Unused("NVIDIA GeForce RTX 3090", "pip install something", "nvidia-smi"),)
    plan = make_plan(Q4, replace(known_machine("cpu-64"), unused=unused))
    assert any("RTX 3090" in w and "pip install something" in w for w in plan.warnings)


def test_an_unused_gpu_comes_before_a_smaller_model() -> None:
    """Where nothing fits and a GPU lies idle, the line to type is the one that brings it in."""
    unused = (Unused("NVIDIA GeForce RTX 3090", "pip install something", "nvidia-smi"),)
    here = replace(known_machine("cpu-16"), unused=unused)
    with pytest.raises(NoRoom, match="RTX 3090") as caught:
        make_plan(Q4, here)
    assert caught.value.hint == "pip install something"
    out = io.StringIO()
    show_answer(here, options(here, Want()), Output(out, {}), as_json=False)
    assert "warning: NVIDIA GeForce RTX 3090" in out.getvalue()


def test_an_integrated_gpu_reads_the_ram() -> None:
    """A GPU that shares the RAM is as fast as the RAM, where nothing better is known."""
    igpu = Device("Vulkan0", "AMD Radeon 780M", "Vulkan", "unified", 40 * GiB, 48 * GiB, None, "")
    plan = make_plan(Q4, replace(known_machine("cpu-64"), devices=(igpu,)))
    assert plan.whole_layers == 65
    assert plan.predicted.generation_tps == pytest.approx(2.0, rel=0.1)


def test_an_engine_that_cannot_be_asked_is_named_in_the_plan() -> None:
    """A plan for the CPU because llama.cpp died while it was asked says so."""
    here = replace(known_machine("cpu-64"), problems=("llama.cpp could not be asked: it died",))
    assert any("it died" in warning for warning in make_plan(Q4, here).warnings)


def test_a_small_model_loads_where_little_is_free() -> None:
    """The margin is a part of what is free: the built-in model runs in half a gigabyte."""
    tiny = read_file_header(builtin.model_path())
    here = replace(known_machine("cpu-16"), ram_free_bytes=512 * MiB)
    plan = make_plan(tiny, here)
    assert plan.devices[0].margin_bytes == 64 * MiB


def test_a_margin_that_leaves_nothing() -> None:
    """Where a smaller margin is all it takes, that is what to type."""
    with pytest.raises(NoRoom) as caught:
        make_plan(Q4, machine("3090"), Want(margin_bytes=30 * GiB))
    assert caught.value.hint == "--margin 1G, or margin_gb: 1 as a setting"


def test_the_margin_can_be_set() -> None:
    """With a smaller margin more fits; the plan says what is left free."""
    plan = make_plan(Q4, machine("3090"), Want(margin_bytes=256 * MiB))
    assert plan.n_ctx == 32_768
    assert plan.devices[0].margin_bytes == 256 * MiB
    assert any("0.2 GiB or more is left free" in reason for reason in plan.reasons)


# --- the CPU, attention and rope ---------------------------------------------------------------


def test_the_cpu_goes_without_flash_attention() -> None:
    """On a CPU flash attention is slow at depth: off, with K alone quantized where RAM is short."""
    assert make_plan(Q4, machine("cpu-64")).flash_attn == "off"
    short = make_plan(Q4, machine("cpu-32"))
    assert (short.type_k, short.type_v, short.flash_attn) == ("q8_0", "f16", "off")
    assert short.n_batch == 128  # attention scores of 512 tokens would take 2.5 GiB


def test_a_quantized_v_needs_flash_attention() -> None:
    """Asked for q8_0 on the CPU, the plan turns flash attention on and says what that costs."""
    plan = make_plan(Q4, machine("cpu-64"), Want(kv="q8_0"))
    assert (plan.type_v, plan.flash_attn) == ("q8_0", "on")
    assert any("slow on the CPU" in reason for reason in plan.reasons)


@pytest.mark.parametrize(
    ("name", "flash"), [("3090", "on"), ("3090", "off"), ("cpu-64", "on"), ("cpu-64", "off")]
)
def test_flash_attention_as_asked(name: str, flash: FlashAttn) -> None:
    """What was asked for is done and said, also where the plan would do otherwise."""
    plan = make_plan(Q4, machine(name), Want(flash_attn=flash))
    assert plan.flash_attn == flash
    assert any(f"Flash attention {flash}, as asked" in reason for reason in plan.reasons)


def test_a_second_cache_only_where_there_is_room() -> None:
    """Flash attention in prompts only takes two caches in RAM; without room the plan stays."""
    want = Want(flash_attn="prompts")
    plan = make_plan(Q4, machine("cpu-64"), want)
    one = make_plan(Q4, machine("cpu-64"))
    assert (plan.flash_attn, plan.n_ctx, plan.n_batch) == ("prompts", one.n_ctx, 512)
    assert plan.devices[-1].kv_bytes == 2 * one.devices[-1].kv_bytes
    assert plan.predicted == one.predicted
    assert any("in prompts only, where it is faster" in reason for reason in plan.reasons)
    for name, kv in (("cpu-32", None), ("3090", None), ("cpu-64", "q8_0")):
        plain = make_plan(Q4, machine(name), Want(kv=kv))
        plan = make_plan(Q4, machine(name), replace(want, kv=kv))
        assert plan.placement() == plain.placement()
        assert any("room for a second KV cache" in reason for reason in plan.reasons)
    strange = replace(Q4, architecture="gemma3")
    assert make_plan(strange, machine("cpu-64"), want).flash_attn == "off"


def test_yarn_only_beyond_the_native_context() -> None:
    """QwQ's own factor, and only for a context that needs it; other models have none."""
    here = machine("mac-studio-128")
    assert make_plan(Q4, here, Want(n_ctx=32_768)).yarn is None
    assert make_plan(Q4, here, Want(n_ctx=32_769)).yarn == Yarn(4.0, 32_768)
    other = replace(Q4, name="Qwen2.5 32B", basename="Qwen2.5")
    assert make_plan(other, here, Want(n_ctx=65_536)).yarn is None


def test_a_measured_speed_takes_the_place_of_the_predicted_one() -> None:
    """One sentence speaks of speed: what was measured, where something was."""
    plan = with_measurement(make_plan(Q4, machine("3090")), None, 20.0)
    (said,) = [reason for reason in plan.reasons if "tokens/s" in reason]
    assert said.startswith("Measured by qwq bench: about 20.0 tokens/s;")
    assert "8 min 20 s" in said
    assert plan.predicted.measured


# --- wishes that cannot be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "want",
    [
        Want(n_ctx=0),
        Want(n_ctx=-1),
        Want(n_ctx=131_073),
        Want(gpu_layers=-1),
        Want(kv="q8_0", flash_attn="off"),
    ],
)
def test_wishes_that_cannot_be_meant(want: Want) -> None:
    """Each is refused before anything is planned, with what to type."""
    with pytest.raises(UsageError) as caught:
        make_plan(Q4, machine("3090"), want)
    assert caught.value.hint


def test_gpu_layers_without_a_gpu() -> None:
    """Asking for layers on a GPU that is not there says so before loading."""
    with pytest.raises(UsageError, match="no GPU"):
        make_plan(Q4, machine("cpu-64"), Want(gpu_layers=10))


def test_more_layers_than_fit() -> None:
    """An override that cannot work names the most that can."""
    with pytest.raises(NoRoom) as caught:
        make_plan(Q4, machine("4070"), Want(gpu_layers=65, n_ctx=8_192, kv="f16"))
    most = int(caught.value.hint.split()[1])
    assert make_plan(Q4, machine("4070"), Want(gpu_layers=most, n_ctx=8_192, kv="f16"))
    with pytest.raises(NoRoom):
        make_plan(Q4, machine("4070"), Want(gpu_layers=most + 1, n_ctx=8_192, kv="f16"))


@pytest.mark.parametrize("layers", [0, 1, 40, 65, 999])
def test_layers_as_asked(layers: int) -> None:
    """--gpu-layers is obeyed where it fits; more than there are means all."""
    plan = make_plan(Q4, machine("5090"), Want(gpu_layers=layers))
    assert plan.gpu_layers == min(layers, 65)
    assert plan.cpu_ffn == ()


# --- other models ------------------------------------------------------------------------------


def test_an_unknown_architecture_is_planned_from_its_sizes(tmp_path: Path) -> None:
    """Weights are exact for any model; what is not known of it is said."""
    metadata = {
        key.replace("qwen2.", "newthing."): value
        for key, value in qwq_metadata(layers=2, vocab=1_024).items()
    }
    metadata["general.architecture"] = "newthing"
    path = write_gguf(tmp_path / "new.gguf", metadata, qwq_tensors(layers=2, vocab=1_024))
    plan = make_plan(read_file_header(path), machine("3090"))
    assert plan.layers_total == 3
    assert plan.compute_source == "estimate"
    assert any("'newthing'" in reason for reason in plan.reasons)


def test_a_model_without_attention(tmp_path: Path) -> None:
    """No heads, no KV cache: still a plan, and still an estimate."""
    metadata = {
        "general.architecture": "mamba",
        "mamba.block_count": 1,
        "mamba.context_length": 4_096,
        "mamba.embedding_length": 64,
    }
    tensors = [Tensor("token_embd.weight", (64, 32)), Tensor("blk.0.ssm_in.weight", (64, 64))]
    info = read_file_header(write_gguf(tmp_path / "mamba.gguf", metadata, tensors))
    plan = make_plan(info, machine("cpu-16"))
    assert sum(share.kv_bytes for share in plan.devices) == 0
    assert plan.compute_source == "estimate"


@pytest.mark.parametrize(("template", "warned"), [(None, False), ("<think>", True)])
def test_only_a_reasoner_is_warned_of_a_short_context(template: str | None, warned: bool) -> None:
    """Whether a model thinks is asked of its template; a file without one can be planned too."""
    other = replace(Q4, name="Other", basename="", chat_template=template)
    plan = make_plan(other, machine("3090"), Want(n_ctx=2_048))
    assert any("may be cut" in warning for warning in plan.warnings) == warned


def test_a_header_that_lies_about_its_heads(tmp_path: Path) -> None:
    """Heads that would make the cache larger than any memory end in NoRoom, not in a crash."""
    metadata = qwq_metadata(layers=1, vocab=1_024)
    metadata["qwen2.attention.key_length"] = Typed("u32", 2**32 - 1)
    metadata["qwen2.attention.value_length"] = Typed("u32", 2**32 - 1)
    path = write_gguf(tmp_path / "lie.gguf", metadata, qwq_tensors(layers=1, vocab=1_024))
    with pytest.raises(NoRoom):
        make_plan(read_file_header(path), machine("3090"))


SIZES = st.sampled_from([0, 1, 100, 2**20, 2**30, 2**40, 2**62])
WIDTHS = st.sampled_from([0, 1, 64, 128, 5_120, 2**32 - 1])


@given(data=st.data(), n_layers=st.sampled_from([0, 1, 2, 64, 512]), cards=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_any_header_ends_in_a_plan_or_an_error_of_ours(
    data: st.DataObject, n_layers: int, cards: int
) -> None:
    """Whatever numbers a header claims: all its layers and bytes are placed, or it is refused."""
    ffn = tuple(data.draw(SIZES) for _ in range(min(n_layers, 2))) + (1,) * max(n_layers - 2, 0)
    info = replace(
        Q4,
        architecture=data.draw(st.sampled_from(["qwen2", "mamba"])),
        n_layers=n_layers,
        n_embd=data.draw(WIDTHS),
        n_ff=data.draw(WIDTHS),
        n_head=data.draw(WIDTHS),
        n_head_kv=(data.draw(WIDTHS),) * n_layers,
        head_dim_k=data.draw(WIDTHS),
        n_ctx_train=data.draw(WIDTHS),
        layer_bytes=tuple(part + 1 for part in ffn),
        layer_ffn_bytes=ffn,
        embedding_bytes=data.draw(SIZES),
        output_bytes=data.draw(SIZES),
        other_bytes=data.draw(SIZES),
    )
    devices = tuple(replace(card(n, GiB), free_bytes=data.draw(SIZES)) for n in range(cards))
    here = Machine("any", devices, data.draw(SIZES), 2**40, cores=4)
    try:
        plan = make_plan(info, here)
    except QwqError:
        return
    assert sum(share.layers for share in plan.devices) == n_layers + 1
    assert sum(share.weights_bytes for share in plan.devices) >= info.tensor_bytes


def test_heads_that_q8_0_cannot_store() -> None:
    """Heads that are not whole blocks stay in f16; asking for q8_0 is refused."""
    odd = replace(Q4, head_dim_k=80, head_dim_v=80)
    assert make_plan(odd, machine("3090")).type_k == "f16"
    with pytest.raises(UsageError):
        make_plan(odd, machine("3090"), Want(kv="q8_0"))


def test_a_tied_output_layer_is_counted_twice() -> None:
    """A model that uses its embedding as output has it in RAM and on the card."""
    tied = replace(Q4, output_bytes=4 * Q4.n_embd)
    plan = make_plan(tied, machine("3090"))
    gpu, ram = plan.devices
    assert ram.weights_bytes == Q4.embedding_bytes
    assert gpu.weights_bytes == sum(Q4.layer_bytes) + 4 * Q4.n_embd + Q4.embedding_bytes


# --- dry loads ---------------------------------------------------------------------------------


def test_a_dry_load_that_needs_more_changes_the_plan() -> None:
    """Where llama.cpp wants more than was thought, the plan is made anew and fits that."""
    here, want = machine("3090"), Want()
    plan = make_plan(Q4, here, want)
    more = plan.devices[0].compute_bytes + GiB
    again = corrected(Q4, here, want, plan, {"CUDA0": more, "CUDA_Host": 50 * MiB})
    assert again.n_ctx < plan.n_ctx
    assert all(s.used_bytes + s.margin_bytes <= s.free_bytes for s in again.devices)


def test_a_dry_load_that_agrees_is_taken_over() -> None:
    """llama.cpp's figures replace ours; buffers of the host count as RAM."""
    here, want = machine("3090"), Want()
    plan = make_plan(Q4, here, want)
    exact = corrected(Q4, here, want, plan, {"CUDA0": 200 * MiB, "CUDA_Host": 50 * MiB})
    assert [share.compute_bytes for share in exact.devices] == [200 * MiB, 50 * MiB]
    assert exact.placement() == plan.placement()
    assert exact.compute_source == "dry load"


@pytest.mark.parametrize(
    ("name", "buffer"),
    [("mac-mini-pro-48", "MTL0_Private"), ("3090", "CUDA0"), ("7900xtx", "ROCm0")],
)
def test_buffers_belong_to_their_device(name: str, buffer: str) -> None:
    """However a backend calls its buffers, a dry load's figure lands on the right device."""
    here = machine(name)
    plan = make_plan(Q4, here)
    exact = corrected(Q4, here, Want(), plan, {buffer: 123 * MiB})
    assert [share.compute_bytes for share in exact.devices] == [123 * MiB, 0]


@pytest.mark.parametrize("name", ["mac-mini-16", "mac-mini-32", "4070", "16G+16G", "cpu-16"])
def test_planning_is_quick(name: str) -> None:
    """A plan, or the advice where nothing fits, takes less than 0.1 s of computing."""
    here = machine(name)
    began = time.process_time()  # not the clock: a busy machine would be judged, not the plan
    with contextlib.suppress(NoRoom):
        make_plan(Q4, here)
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "10 s"),
        (54, "50 s"),
        (58, "1 min"),
        (258, "4 min 20 s"),
        (2_590, "43 min"),
        (3_599, "1 h 0 min"),
        (3_900, "1 h 5 min"),
    ],
)
def test_minutes(seconds: float, text: str) -> None:
    """Times are said to ten seconds, long ones to minutes: they are predictions."""
    assert minutes(seconds) == text


def test_header_of_each_quantization() -> None:
    """A computed header has the published size: exact for llama.cpp's mixes, near for others."""
    for quant in quants.QUANTS:
        info = quants.model_info(quant)
        assert info.file_bytes == pytest.approx(
            quant.file_bytes, abs=64 if quant.approximate else 0
        )
        assert len(info.layer_bytes) == 64


# --- the command -------------------------------------------------------------------------------


KEYS = (
    *("gpu_layers", "ffn_in_ram_layers", "layers_total", "n_ctx", "type_k", "type_v"),
    *("flash_attn", "devices", "predicted", "reasons"),
)


def test_json_of_a_plan() -> None:
    """The keys that scripts rely on, and no others."""
    result = qwq("plan", "q4_k_m", "--machine", "3090", "--json")
    assert result.code == 0
    plan = json.loads(result.out)
    assert tuple(plan) == KEYS
    device = ("name", "weights_bytes", "kv_bytes", "compute_bytes", "free_bytes")
    assert all(tuple(row) == device for row in plan["devices"])
    assert tuple(plan["predicted"]) == ("prompt_tps", "generation_tps", "measured")
    assert plan["gpu_layers"] == plan["layers_total"] == 65


def test_layers_in_json_are_whole_ones() -> None:
    """A script must not take a card that lacks the feed-forward weights for a full one."""
    plan = json.loads(qwq("plan", "q4_k_m", "--machine", "4070", "--json").out)
    assert (plan["gpu_layers"], plan["ffn_in_ram_layers"], plan["layers_total"]) == (22, 43, 65)


def test_the_table_of_quantizations() -> None:
    """All of them, the recommended one marked and why; no colour codes in a pipe."""
    result = qwq("plan", "--machine", "3090")
    assert result.code == 0
    assert all(quant.name in result.out for quant in quants.QUANTS)
    (marked,) = [line for line in result.out.splitlines() if line.startswith(">  ")]
    assert marked.split()[1] == "q4_k_m"
    assert "See: qwq plan q4_k_m" in result.out
    assert "\x1b" not in result.out
    assert result.err == ""


def test_json_of_the_table() -> None:
    """The same as values: one object for each quantization, one of them recommended."""
    rows = json.loads(qwq("plan", "--machine", "cpu-32", "--json").out)["quantizations"]
    assert [row["quantization"] for row in rows] == [quant.name for quant in quants.QUANTS]
    assert sum(row["recommended"] for row in rows) == 1
    assert any(row["plan"] is None for row in rows)


def test_a_plan_explains_itself() -> None:
    """The memory table and every reason are shown."""
    result = qwq("plan", "q4_k_m", "--machine", "4070")
    for word in ("CUDA0", "Weights", "KV cache", "Compute", "Margin", "FFN of 43", "10,000 tokens"):
        assert word in result.out


def test_this_machine_and_a_file(tiny: Path) -> None:
    """Without a machine the plan is for this one; for a file it is llama.cpp's own figure."""
    plan = json.loads(qwq("plan", str(tiny), "--json").out)
    assert plan["devices"][-1]["name"] == "CPU"
    assert any("dry load" in reason for reason in plan["reasons"])


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["plan", "q4_k_m", "--ctx", "0"], 2),
        (["plan", "q4_k_m", "--ctx", "-4096"], 2),
        (["plan", "q4_k_m", "--ctx", "200000"], 2),
        (["plan", "q4_k_m", "--ctx", "many"], 2),
        (["plan", "q4_k_m", "--kv", "q5_1"], 2),
        (["plan", "q4_k_m", "--prefer", "beauty"], 2),
        (["plan", "q4_k_m", "--vram", "lots"], 2),
        (["plan", "q4_k_m", "--ram", "-8G"], 2),
        (["plan", "q4_k_m", "--margin", "x"], 2),
        (["plan", "q4_k_m", "--threads", "0"], 2),
        (["plan", "q4_k_m", "--threads", "600"], 2),
        (["plan", "--machine", "3099"], 2),
        (["plan", "q4_k_x"], 2),
        (["plan", "./no-such-file.gguf"], 2),
        (["plan", "q4_k_m", "--machine", "cpu-16"], 3),
        (["plan", "--ctx", "200000", "--machine", "3090"], 2),
        (["plan", "q4_k_m", "--rpc", "127.0.0.1:9"], 6),
        (["plan", "q4_k_m", "--rpc", "nonsense"], 6),
    ],
)
def test_bad_input_ends_in_what_to_type(argv: list[str], code: int) -> None:
    """Every slip is one error line and one line to type, with the exit code of its kind."""
    if not {"--machine", "--rpc"} & set(argv):
        argv = [*argv, "--machine", "3090"]
    result = qwq(*argv)
    assert result.code == code
    assert result.out == ""
    error, hint = result.err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("  try: ")


def test_a_driver_cannot_draw_on_the_terminal() -> None:
    """Names from drivers and files are text: control characters are shown, not executed."""
    evil = replace(card(0, 24 * GiB, "\x1b[31mRTX"), bandwidth=None)
    here = Machine("\x1b]0;x\x07", (evil,), 64 * GiB, 64 * GiB, cores=4)
    out = io.StringIO()
    show_answer(here, make_plan(Q4, here), Output(out, {}), as_json=False)
    show_answer(here, options(here, Want()), Output(out, {}), as_json=False)
    assert "\x1b" not in out.getvalue()
    assert "\x07" not in out.getvalue()


def test_every_error_of_a_plan_is_ours() -> None:
    """No machine and no wish ends in anything but a plan or an error with a hint."""
    tiny_machine = Machine("small", (Device("X", "", "", "gpu", 1, 1, None, ""),), 1, 1, 1)
    for prefer in (None, *PREFERENCES):
        with pytest.raises(QwqError) as caught:
            make_plan(Q4, tiny_machine, Want(prefer=prefer))
        assert caught.value.hint
