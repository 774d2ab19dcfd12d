"""QwQ-32B's quantizations: how large they are, how much they lose, and a header for each.

Contract: `QUANTS` lists what people publish, largest first; `model_info` is the `ModelInfo` that
such a file has, so that a plan can be made before anything is downloaded.
Limits: for the four mixes of llama.cpp in `MIXES` the layers are exact to the byte. The others are
computed from the size that was published, which is rounded: `approximate` says so. `sized` takes
the exact ones that a hub gives.
Sources: config.json of Qwen/QwQ-32B; llama-quant.cpp of llama.cpp at 0c1e57098 for the mixes;
listings of Qwen, bartowski, mradermacher, tensorblock and unsloth on Hugging Face for the sizes;
tools/perplexity/README.md of llama.cpp (Llama-3-8B) for what is lost: good for the order alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qwqcli.gguf import TENSOR_TYPES, ModelInfo, Rope

N_LAYERS, N_EMBD, N_FF, N_HEAD, N_HEAD_KV, HEAD_DIM = 64, 5120, 27_648, 40, 8, 128
N_VOCAB, N_CTX_TRAIN = 152_064, 131_072
HEADER_BYTES = 5_979_008  # of a published file; nearly all of it is the vocabulary
N_KV = N_HEAD_KV * HEAD_DIM

LAYER_WEIGHTS = 2 * N_EMBD * N_EMBD + 2 * N_EMBD * N_KV + 3 * N_EMBD * N_FF
LAYER_F32 = 3 * N_EMBD + 2 * N_KV  # two norms and the biases of q, k and v
EMBEDDING_WEIGHTS = N_EMBD * N_VOCAB  # of the embedding, and of the output layer


@dataclass(frozen=True, slots=True)
class Quant:
    """One quantization. `kld` is the KL divergence from f16, None where nobody published it."""

    name: str  # llama.cpp's, lower case
    file_bytes: int
    kld: float | None
    embedding: str = "Q4_K"  # tensor type
    output: str = "Q6_K"
    approximate: bool = False  # the size is rounded


# quantization -> type of most tensors, type of half of attn_v and ffn_down
MIXES = {
    "q8_0": ("Q8_0", "Q8_0"),
    "q6_k": ("Q6_K", "Q6_K"),
    "q5_k_m": ("Q5_K", "Q6_K"),
    "q4_k_m": ("Q4_K", "Q6_K"),
}


def _published(name: str, gigabytes: float, kld: float | None, embedding: str) -> Quant:
    return Quant(name, round(gigabytes * 10**9), kld, embedding, "Q6_K", True)


QUANTS: tuple[Quant, ...] = (
    Quant("q8_0", 34_820_885_376, 0.001, "Q8_0", "Q8_0"),
    Quant("q6_k", 26_886_155_136, 0.005, "Q6_K"),
    Quant("q5_k_m", 23_262_157_696, 0.011, "Q5_K"),
    _published("q5_k_s", 22.6, None, "Q5_K"),
    _published("q5_0", 22.64, 0.022, "Q5_0"),
    Quant("q4_k_m", 19_851_336_576, 0.028, "Q4_K"),
    _published("q4_k_s", 18.78, 0.032, "Q4_K"),
    _published("iq4_nl", 18.7, None, "IQ4_NL"),
    _published("q4_0", 18.64, 0.072, "Q4_0"),
    _published("iq4_xs", 17.7, 0.036, "IQ4_XS"),
    _published("q3_k_l", 17.2, None, "Q3_K"),
    _published("q3_k_m", 15.94, 0.084, "Q3_K"),
    _published("iq3_m", 14.8, 0.103, "IQ3_S"),
    _published("iq3_s", 14.4, None, "IQ3_S"),
    _published("q3_k_s", 14.39, None, "Q3_K"),
    _published("iq3_xs", 13.7, 0.139, "IQ3_S"),
    _published("iq3_xxs", 12.8, 0.184, "IQ3_S"),
    _published("q2_k", 12.31, 0.332, "Q2_K"),
    _published("q2_k_s", 11.5, None, "Q2_K"),
    _published("iq2_m", 11.3, 0.326, "IQ3_S"),
    _published("iq2_s", 10.4, None, "IQ2_S"),
    _published("iq2_xs", 9.96, 0.546, "IQ2_S"),
    _published("iq2_xxs", 9.03, None, "Q2_K"),
    _published("iq1_m", 7.93, 1.39, "Q2_K"),
    _published("iq1_s", 7.27, None, "Q2_K"),
)
BY_NAME = {quant.name: quant for quant in QUANTS}


def sized(known: Mapping[str, int]) -> tuple[Quant, ...]:
    """`QUANTS` with the sizes in bytes that are known by name, such as those of a hub.

    A size that is a quarter off is that of something else, and not taken.
    """
    found = []
    for quant in QUANTS:
        size = known.get(quant.name, 0)
        if abs(size - quant.file_bytes) <= quant.file_bytes // 4:
            quant = replace(quant, file_bytes=size, approximate=False)
        found.append(quant)
    return tuple(found)


def is_qwq(info: ModelInfo, file_name: str = "") -> bool:
    """Whether this is QwQ-32B, which we know by heart; files do not always say their name."""
    named = "qwq" in f"{info.name} {info.basename} {file_name}".lower()
    return named and info.architecture == "qwen2" and info.n_embd == N_EMBD


def model_info(quant: Quant) -> ModelInfo:
    """What the header of QwQ-32B in this quantization says."""
    embedding = _bytes(EMBEDDING_WEIGHTS, quant.embedding)
    output = _bytes(EMBEDDING_WEIGHTS, quant.output) + 4 * N_EMBD
    layers, ffn = _layers(quant, embedding + output)
    return ModelInfo(
        architecture="qwen2",
        name="QwQ 32B",
        basename="QwQ",
        size_label="32B",
        quantization=quant.name.upper(),
        n_layers=N_LAYERS,
        n_embd=N_EMBD,
        n_ff=N_FF,
        n_head=N_HEAD,
        n_head_kv=(N_HEAD_KV,) * N_LAYERS,
        head_dim_k=HEAD_DIM,
        head_dim_v=HEAD_DIM,
        n_ctx_train=N_CTX_TRAIN,
        rope=Rope(freq_base=1_000_000.0),
        n_vocab=N_VOCAB,
        tokenizer="gpt2",
        tokenizer_pre="qwen2",
        bos_id=None,
        eos_id=None,
        add_bos=False,
        chat_template=None,
        split=None,
        n_tensors=3 + 12 * N_LAYERS,
        n_params=N_LAYERS * (LAYER_WEIGHTS + LAYER_F32) + 2 * EMBEDDING_WEIGHTS + N_EMBD,
        layer_bytes=layers,
        layer_ffn_bytes=ffn,
        embedding_bytes=embedding,
        output_bytes=output,
        other_bytes=0,
        alignment=32,
        data_offset=HEADER_BYTES,
        file_bytes=HEADER_BYTES + sum(layers) + embedding + output,
    )


def _layers(quant: Quant, outside: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes of each layer, and of its feed-forward part."""
    # a publisher's header is some kilobytes longer or shorter; another mix differs by more
    if quant.name in MIXES and abs(quant.file_bytes - BY_NAME[quant.name].file_bytes) < 1 << 20:
        rows = [_mixed_layer(quant.name, layer) for layer in range(N_LAYERS)]
        return tuple(row[0] for row in rows), tuple(row[1] for row in rows)
    layer = (quant.file_bytes - HEADER_BYTES - outside) // N_LAYERS
    ffn = (layer - 4 * LAYER_F32) * 3 * N_EMBD * N_FF // LAYER_WEIGHTS
    return (layer,) * N_LAYERS, (ffn,) * N_LAYERS


def _mixed_layer(name: str, layer: int) -> tuple[int, int]:
    """llama.cpp's rule `use_more_bits`: first and last eighth, every third between."""
    base, better = MIXES[name]
    eighth = N_LAYERS // 8
    more = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2
    mixed = better if more else base
    attention = _bytes(2 * N_EMBD * N_EMBD + N_EMBD * N_KV, base) + _bytes(N_EMBD * N_KV, mixed)
    ffn = _bytes(2 * N_EMBD * N_FF, base) + _bytes(N_EMBD * N_FF, mixed)
    return attention + ffn + 4 * LAYER_F32, ffn


_TYPES = {name: (block, block_bytes) for name, block, block_bytes in TENSOR_TYPES.values()}


def _bytes(weights: int, tensor_type: str) -> int:
    block, block_bytes = _TYPES[tensor_type]
    return weights // block * block_bytes
