"""What a model costs: bytes of weights, KV cache and compute buffer, and seconds per token.

Contract: pure arithmetic on a `ModelInfo`. Weights and KV cache are exact. The compute buffer is a
closed form that was fitted to llama.cpp's own reservations for QwQ-32B (commit 0c1e57098, logits of
`OUTPUTS` positions, n_batch = n_ubatch): it follows the two moments of a layer at which most is
alive, and is within 5 % for models of that kind. Speeds are predictions, good for about a third.
Limits: models with plain attention; a sliding window, experts or recurrent state cost otherwise,
and `known_architecture` says when.
Non-goals: choosing anything (plan.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwqcli.config import KV
from qwqcli.gguf import ModelInfo

KV_BLOCKS: dict[str, tuple[int, int]] = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}

# Positions of a batch whose logits can be read, at least; a reply reads one. llama.cpp's default is
# all of n_batch, 297 MiB in the compute buffer with QwQ's vocabulary. Fewer than 16 are no good:
# their indices come first in that buffer, in steps of 32 bytes, and where every tensor after them
# lies across cache lines, a prompt takes up to a third longer (AVX-512, depth 2,048).
OUTPUTS = 16

# Tokens of a batch from which flash attention works in tiles on a CPU (ggml_fa_tile_config::Q).
# Smaller ones take as long a token as generation does.
TILE = 64

KNOWN_ARCHITECTURES = ("llama", "qwen2", "qwen3")  # plain attention and one dense FFN a layer


@dataclass(frozen=True, slots=True)
class Cache:
    """The context of a load: tokens, KV types, attention and batch."""

    n_ctx: int
    type_k: KV = "f16"
    type_v: KV = "f16"
    flash_attn: bool = True
    n_batch: int = 512
    twice: bool = False  # a second one beside it, for generation without flash attention

    @property
    def generating(self) -> Cache:
        """The one that generation uses."""
        if not self.twice:
            return self
        return replace(self, flash_attn=False, n_batch=min(self.n_batch, TILE), twice=False)


def known_architecture(info: ModelInfo) -> bool:
    """Whether the formulas here were made for this kind of model."""
    return info.architecture in KNOWN_ARCHITECTURES and info.n_head > 0 and info.n_embd > 0


def padded_context(n_ctx: int) -> int:
    """Tokens that llama.cpp really keeps room for: a multiple of 256 (llama-context.cpp)."""
    return -(-n_ctx // 256) * 256


# --- bytes -------------------------------------------------------------------------------------


def kv_bytes(info: ModelInfo, cache: Cache) -> tuple[int, ...]:
    """KV cache of each layer: a row of K and one of V for every token."""
    tokens = padded_context(cache.n_ctx)
    rows = {
        heads: row_bytes(heads * info.head_dim_k, cache.type_k)
        + row_bytes(heads * info.head_dim_v, cache.type_v)
        for heads in set(info.n_head_kv)
    }
    times = 2 if cache.twice else 1
    return tuple(times * tokens * rows[heads] for heads in info.n_head_kv)


def row_bytes(n: int, kv: KV) -> int:
    """Bytes of `n` numbers in this type."""
    block, block_bytes = KV_BLOCKS[kv]
    return -(-n // block) * block_bytes


def can_hold(info: ModelInfo, kv: KV) -> bool:
    """Whether heads are whole blocks of this type; llama.cpp refuses others."""
    block = KV_BLOCKS[kv][0]
    return not (info.head_dim_k % block or info.head_dim_v % block)


def output_bytes(info: ModelInfo) -> int:
    """The output layer; without one of its own a model uses its embedding a second time."""
    tied = info.output_bytes < info.embedding_bytes // 16  # then only the norm is there
    return info.output_bytes + (info.embedding_bytes if tied else 0)


@dataclass(frozen=True, slots=True)
class _Alive:
    """Bytes of the tensors of a batch, named as in llama.cpp's graph."""

    hidden: int  # a row of the residual stream per token
    ffn: int  # the widest activations
    scores: int  # attention scores: without flash attention all of them exist at once
    inputs: int  # the causal mask, and where V goes

    @classmethod
    def of(cls, info: ModelInfo, cache: Cache) -> _Alive:
        kept = padded_context(cache.n_ctx)
        batch = min(kept, cache.n_batch)
        n_v = max(info.n_head_kv, default=0) * info.head_dim_v
        if cache.flash_attn:
            scores, inputs = 0, batch * kept * 2  # mask in f16
        else:
            scores = batch * kept * 4 * info.n_head
            inputs = batch * kept * 4 + batch * n_v * 8  # mask in f32, and an index per V value
        return cls(batch * info.n_embd * 4, batch * info.n_ff * 4, scores, inputs)


def device_compute(info: ModelInfo, cache: Cache, layers: int, everything: bool) -> int:
    """Compute buffer of a device that has `layers` layers; `everything`: the model is all there.

    The feed-forward part needs three activations of width n_ff and two rows of the residual, the
    attention part the scores and four rows. A third row for f16 flash attention when everything
    is on one device is how llama.cpp's allocator places them.
    """
    if layers == 0:  # only the output layer: the logits and their rows
        return (info.n_vocab + info.n_embd) * 4 * OUTPUTS
    alive = _Alive.of(info, cache)
    rows = 3 if everything and cache.flash_attn and cache.type_k == "f16" else 2
    feed_forward = 3 * alive.ffn + rows * alive.hidden
    attention = alive.scores + 4 * alive.hidden if alive.scores else 0
    return max(feed_forward, attention) + alive.inputs


def host_compute(info: ModelInfo, cache: Cache, layers: int, ffn_layers: int) -> int:
    """Compute buffer in RAM, by what the CPU computes: layers, only feed-forward parts, nothing."""
    if cache.twice:
        both = replace(cache, twice=False), cache.generating
        return sum(host_compute(info, one, layers, ffn_layers) for one in both)
    alive = _Alive.of(info, cache)
    if not layers and not ffn_layers:
        return alive.inputs + 2 * alive.hidden
    if not layers:
        return _host_feed_forward(alive)
    rows = 4 if cache.flash_attn and cache.type_k == "f16" else 3
    feed_forward = 3 * alive.ffn + rows * alive.hidden
    attention = alive.scores + 5 * alive.hidden if alive.scores else 0
    return max(feed_forward, attention) + alive.inputs


def _host_feed_forward(alive: _Alive) -> int:
    """The CPU only copies the inputs to the device, so large ones make room for activations."""
    if alive.inputs > alive.ffn:
        reused = alive.inputs + alive.ffn + alive.hidden
        return max(3 * alive.ffn + 2 * alive.hidden, reused)
    rows = 1 if alive.inputs > alive.hidden else 2
    return alive.inputs + 3 * alive.ffn + rows * alive.hidden


def pipeline_bytes(info: ModelInfo, cache: Cache, *, first: bool) -> int:
    """What each of several GPUs that hold all layers needs on top.

    llama.cpp then keeps four batches in flight (GGML_SCHED_MAX_COPIES): three more copies of the
    inputs, four of the hidden state that comes in, and of what the layer before it leaves beside.
    """
    alive = _Alive.of(info, cache)
    return 3 * alive.inputs + (4 if first else 8) * alive.hidden


def pipeline_host_bytes(info: ModelInfo, cache: Cache) -> int:
    """What the same costs in RAM, on top of `host_compute`."""
    alive = _Alive.of(info, cache)
    return 3 * (alive.inputs + alive.hidden)


# --- seconds -----------------------------------------------------------------------------------

# Share of the memory bandwidth that token generation reaches: an RTX 3090 (936 GB/s) generates
# 37.7 to 38.3 tokens/s with a 32B Q4_K_M, 0.78 of what its bandwidth would allow.
EFFICIENCY = 0.8
# Attention on the CPU waits for arithmetic, not for memory: per core and second, by flash
# attention. Measured with QwQ's heads, 3,600 tokens deep, on one core with AVX-512 at 2.6 GHz.
CPU_ATTENTION_FLOPS = {False: 15e9, True: 6.9e9}
# Each change from one device to another and back costs a synchronisation and a copy of a row.
SWITCH_S = 60e-6
# Sampling from a large vocabulary, and our own loop, per token (measured: 0.16 + 0.03 ms).
SAMPLING_S = 0.2e-3
# Prompt processing: floating-point operations per byte of bandwidth. RTX 3090: 1,294 tokens/s with
# a 32B model are 84 TFLOP/s, 90 per byte; Radeon W7900: 50. Apple M1 Max and M4: 20 and 30.
PROMPT_FLOP_PER_BYTE = {"gpu": 70.0, "unified": 22.0}
CPU_PROMPT_FLOPS = 50e9  # per core and second: 12 threads processed 10 tokens/s of a 32B model
PCIE_BYTES_PER_S = 20e9  # weights that visit the GPU for a batch: PCIe 4.0 x16 in practice
THOUGHT = 10_000  # tokens of thinking that a prediction is about; half of them is the mean depth


@dataclass(frozen=True, slots=True)
class Part:
    """What one device does for a token. `bandwidth` in bytes/s, None where it is not known."""

    kind: str  # gpu, unified or remote; cpu
    bandwidth: float | None
    weights: int  # bytes of weights that it reads
    kv_per_token: int  # bytes of KV cache that a token of depth adds
    attention_layers: int = 0
    params_share: float = 0.0  # of the model's weights


def generation_tps(
    info: ModelInfo, cache: Cache, parts: Sequence[Part], cores: int, switches: int
) -> float | None:
    """Tokens per second while thinking, at the mean depth of a thought of `THOUGHT` tokens."""
    depth = min(THOUGHT, cache.n_ctx) // 2
    seconds = SAMPLING_S + switches * SWITCH_S
    for part in parts:
        if not part.bandwidth:
            return None
        read = (part.weights + part.kv_per_token * depth) / (EFFICIENCY * part.bandwidth)
        if part.kind == "cpu":
            flops = 4 * info.n_head * info.head_dim_k * depth * part.attention_layers
            busy = flops / (CPU_ATTENTION_FLOPS[cache.generating.flash_attn] * cores)
            weights = part.weights / (EFFICIENCY * part.bandwidth)
            read = weights + max(read - weights, busy)
        seconds += read
    return 1 / seconds


def prompt_tps(
    info: ModelInfo, cache: Cache, parts: Sequence[Part], cores: int, copies: bool
) -> float | None:
    """Tokens per second of prompt processing, in batches of `cache.n_batch`.

    With `copies` the GPU computes for the CPU's layers too, and their weights travel to it for
    each batch: llama.cpp does so for CUDA, ROCm, Vulkan and Metal.
    """
    flops = 2.0 * info.n_params
    gpu = next((part for part in parts if part.kind in PROMPT_FLOP_PER_BYTE), None)
    seconds = 0.0  # per token
    for part in parts:
        if part.kind == "cpu" and not (copies and gpu):
            seconds += flops * part.params_share / (CPU_PROMPT_FLOPS * cores)
            continue
        worker = gpu if part.kind == "cpu" else part
        if worker is None or not worker.bandwidth or worker.kind not in PROMPT_FLOP_PER_BYTE:
            return None
        seconds += flops * part.params_share / _prompt_flops(worker)
        if part.kind == "cpu" and worker.kind == "gpu":
            seconds += part.weights / (PCIE_BYTES_PER_S * cache.n_batch)
    return 1 / seconds if seconds else None


def _prompt_flops(part: Part) -> float:
    assert part.bandwidth
    return PROMPT_FLOP_PER_BYTE[part.kind] * part.bandwidth
