"""Write GGUF files for tests: tiny ones, and ones in the shape of QwQ-32B that take no disk.

Contract: what `write_gguf` writes is a valid GGUF that llama.cpp reads. Tensors without data are
zeros and are left as a hole in the file, so 20 GB cost a few megabytes of disk and no time.
Limits: the weights are zeros or what the caller gives; nothing is quantized. `write_qwq_shaped` has
the tensors, the counts and the sizes of the real thing, and a made-up vocabulary.
Sources: ggml/include/gguf.h and src/llama-quant.cpp of llama.cpp; config.json of Qwen/QwQ-32B.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qwqcli.gguf import DEFAULT_ALIGNMENT, FILE_TYPES, TENSOR_TYPES

PACKING = {
    "u8": (0, "<B"),
    "i8": (1, "<b"),
    "u16": (2, "<H"),
    "i16": (3, "<h"),
    "u32": (4, "<I"),
    "i32": (5, "<i"),
    "f32": (6, "<f"),
    "bool": (7, "<?"),
    "str": (8, ""),
    "array": (9, ""),
    "u64": (10, "<Q"),
    "i64": (11, "<q"),
    "f64": (12, "<d"),
}
TYPE_IDS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
FILE_TYPE_IDS = {name: number for number, name in FILE_TYPES.items()}


@dataclass(frozen=True)
class Typed:
    """A value in a type of your choice, such as Typed("u16", 3); "array" takes a list of `item`."""

    kind: str
    value: Any
    item: str = "i32"


@dataclass(frozen=True)
class Tensor:
    """`shape` is innermost first, as in GGUF; without `data` the weights are zeros."""

    name: str
    shape: tuple[int, ...]
    kind: str = "F32"
    data: bytes | None = None

    @property
    def n_params(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product

    @property
    def n_bytes(self) -> int:
        _, block, block_bytes = TENSOR_TYPES[TYPE_IDS[self.kind]]
        return self.n_params // block * block_bytes


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[Tensor] = (),
    *,
    alignment: int = DEFAULT_ALIGNMENT,
    version: int = 3,
) -> Path:
    """Write a GGUF file. Values are bool, int, float, str, a list of one of those, or `Typed`."""
    with path.open("wb") as file:
        start = write_header(file, metadata, tensors, alignment=alignment, version=version)
        _write_data(file, start, tensors, alignment)
    return path


def gguf_bytes(
    metadata: Mapping[str, Any],
    tensors: Sequence[Tensor] = (),
    *,
    alignment: int = DEFAULT_ALIGNMENT,
    version: int = 3,
) -> bytes:
    """The same file in memory: for small ones."""
    file = io.BytesIO()
    start = write_header(file, metadata, tensors, alignment=alignment, version=version)
    _write_data(file, start, tensors, alignment)
    return file.getvalue()


def write_header(
    file: BinaryIO,
    metadata: Mapping[str, Any],
    tensors: Sequence[Tensor] = (),
    *,
    alignment: int = DEFAULT_ALIGNMENT,
    version: int = 3,
) -> int:
    """Write the header without its padding; returns the offset where the tensor data begin."""
    own = {} if alignment == DEFAULT_ALIGNMENT else {"general.alignment": Typed("u32", alignment)}
    keys = {**metadata, **own}
    file.write(struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(keys)))
    for key, value in keys.items():
        kind, packed = _pack(value)
        file.write(_text(key) + struct.pack("<I", kind) + packed)
    offset = 0
    for tensor in tensors:
        file.write(_tensor_row(tensor, offset))
        offset = _padded(offset + tensor.n_bytes, alignment)
    return _padded(file.tell(), alignment) if tensors else file.tell()


def write_split(
    folder: Path, stem: str, metadata: Mapping[str, Any], parts: Sequence[Sequence[Tensor]]
) -> list[Path]:
    """Write a model in several files as llama-gguf-split does: the first one has the metadata."""
    total = sum(len(part) for part in parts)
    paths = []
    for no, part in enumerate(parts):
        own = {
            "split.no": Typed("u16", no),
            "split.count": Typed("u16", len(parts)),
            "split.tensors.count": Typed("i32", total),
        }
        path = folder / f"{stem}-{no + 1:05}-of-{len(parts):05}.gguf"
        paths.append(write_gguf(path, {**metadata, **own} if no == 0 else own, part))
    return paths


def write_qwq_shaped(
    path: Path, quant: str = "q4_k_m", layers: int = 64, vocab: int = 152_064
) -> Path:
    """A sparse file that llama.cpp takes for QwQ-32B; `quant` is one of `MIXES`.

    With fewer `layers` or a smaller `vocab` (at least 1,024) it is a smaller model of that kind.
    """
    return write_gguf(path, qwq_metadata(quant, layers, vocab), qwq_tensors(quant, layers, vocab))


# quantization -> (most tensors, half of attn_v and ffn_down, output)
MIXES = {
    "q4_k_m": ("Q4_K", "Q6_K", "Q6_K"),
    "q5_k_m": ("Q5_K", "Q6_K", "Q6_K"),
    "q6_k": ("Q6_K", "Q6_K", "Q6_K"),
    "q8_0": ("Q8_0", "Q8_0", "Q8_0"),
    "f16": ("F16", "F16", "F16"),
}
N_EMBD, N_FF, N_HEAD, N_HEAD_KV, HEAD_DIM = 5120, 27_648, 40, 8, 128
N_MERGES = 151_387  # of the full vocabulary
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
N_UNUSED = 418  # ids behind the three special tokens: 151,643 + 3 + 418 = 152,064

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and not loop.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
    {%- if not enable_thinking %}{{- '</think>' }}{%- endif %}
{%- endif %}
"""


def qwq_metadata(quant: str = "q4_k_m", layers: int = 64, vocab: int = 152_064) -> dict[str, Any]:
    """The keys of a QwQ-32B file, in the order in which llama.cpp's tools leave them."""
    special = vocab - N_UNUSED - len(SPECIAL_TOKENS)
    return {
        "general.architecture": "qwen2",
        "general.type": "model",
        "general.name": "QwQ 32B (test, zero weights)",
        "general.basename": "QwQ",
        "general.size_label": "32B",
        "qwen2.block_count": layers,
        "qwen2.context_length": 131_072,
        "qwen2.embedding_length": N_EMBD,
        "qwen2.feed_forward_length": N_FF,
        "qwen2.attention.head_count": N_HEAD,
        "qwen2.attention.head_count_kv": N_HEAD_KV,
        "qwen2.rope.freq_base": 1_000_000.0,
        "qwen2.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": _tokens(vocab),
        "tokenizer.ggml.token_type": Typed("array", [1] * special + [3] * (vocab - special)),
        "tokenizer.ggml.merges": _merges(min(N_MERGES, special - 256)),
        "tokenizer.ggml.eos_token_id": special + 2,
        "tokenizer.ggml.padding_token_id": special,
        "tokenizer.ggml.bos_token_id": special,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "general.quantization_version": 2,
        "general.file_type": FILE_TYPE_IDS[quant.upper()],
    }


def qwq_tensors(quant: str = "q4_k_m", layers: int = 64, vocab: int = 152_064) -> list[Tensor]:
    """The tensors of a QwQ-32B file: 3 and 12 per layer."""
    base, _, output = MIXES[quant]
    tensors = [
        Tensor("output.weight", (N_EMBD, vocab), output),
        Tensor("output_norm.weight", (N_EMBD,)),
        Tensor("token_embd.weight", (N_EMBD, vocab), base),
    ]
    for layer in range(layers):
        tensors.extend(_layer(quant, layer, layers))
    return tensors


def _layer(quant: str, layer: int, layers: int) -> Iterator[Tensor]:
    base, better, _ = MIXES[quant]
    mixed = better if _gets_more_bits(layer, layers) else base
    n_kv = N_HEAD_KV * HEAD_DIM
    rows = [
        ("attn_k.bias", (n_kv,), "F32"),
        ("attn_k.weight", (N_EMBD, n_kv), base),
        ("attn_norm.weight", (N_EMBD,), "F32"),
        ("attn_output.weight", (N_EMBD, N_EMBD), base),
        ("attn_q.bias", (N_EMBD,), "F32"),
        ("attn_q.weight", (N_EMBD, N_EMBD), base),
        ("attn_v.bias", (n_kv,), "F32"),
        ("attn_v.weight", (N_EMBD, n_kv), mixed),
        ("ffn_down.weight", (N_FF, N_EMBD), mixed),
        ("ffn_gate.weight", (N_EMBD, N_FF), base),
        ("ffn_norm.weight", (N_EMBD,), "F32"),
        ("ffn_up.weight", (N_EMBD, N_FF), base),
    ]
    for name, shape, kind in rows:
        yield Tensor(f"blk.{layer}.{name}", shape, kind)


def _gets_more_bits(layer: int, layers: int) -> bool:
    """`use_more_bits` of llama-quant.cpp: the first and last eighth, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _byte_letters() -> list[str]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, others from U+0100.

    llama.cpp needs them all to split text into tokens.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = itertools.count(256)
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _tokens(vocab: int) -> list[str]:
    """Bytes, made-up words of the real mean length of 9 letters, special and unused tokens."""
    words = vocab - 256 - N_UNUSED - len(SPECIAL_TOKENS)
    return [
        *_byte_letters(),
        *(f"w{number:08}" for number in range(words)),
        *SPECIAL_TOKENS,
        *(f"<|unused_{number}|>" for number in range(N_UNUSED)),
    ]


def _merges(count: int) -> list[str]:
    """Pairs of the real mean length of 10 letters, which no text can meet."""
    return [f"m{number // 1000:03} n{number % 1000:04}" for number in range(count)]


def _write_data(file: BinaryIO, start: int, tensors: Sequence[Tensor], alignment: int) -> None:
    offset = start
    for tensor in tensors:
        if tensor.data is not None:
            assert len(tensor.data) == tensor.n_bytes, tensor.name
            file.seek(offset)
            file.write(tensor.data)
        offset = _padded(offset + tensor.n_bytes, alignment)
    _extend(file, offset)


def _extend(file: BinaryIO, size: int) -> None:
    """Make the file `size` bytes long with a hole; BytesIO cannot, so it gets its last zero."""
    if file.seek(0, io.SEEK_END) < size:
        file.seek(size - 1)
        file.write(b"\0")


def _padded(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _tensor_row(tensor: Tensor, offset: int) -> bytes:
    n_dims = len(tensor.shape)
    shape = struct.pack(f"<I{n_dims}Q", n_dims, *tensor.shape)
    return _text(tensor.name) + shape + struct.pack("<IQ", TYPE_IDS[tensor.kind], offset)


def _text(text: str | bytes) -> bytes:
    data = text.encode("utf-8") if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _pack(value: Any) -> tuple[int, bytes]:
    """The number of the type of `value`, and its bytes."""
    typed = value if isinstance(value, Typed) else _typed(value)
    number, packing = PACKING[typed.kind]
    if typed.kind == "str":
        return number, _text(typed.value)
    if typed.kind == "array":
        return number, _array(typed.item, typed.value)
    return number, struct.pack(packing, typed.value)


def _array(item: str, values: Sequence[Any]) -> bytes:
    number, packing = PACKING[item]
    head = struct.pack("<IQ", number, len(values))
    if item == "str":
        return head + b"".join(map(_text, values))
    return head + struct.pack(f"<{len(values)}{packing[1:]}", *values)


def _typed(value: Any) -> Typed:
    """The type that the converter of llama.cpp takes for such a value; arrays of ints are i32."""
    if isinstance(value, (list, tuple)):
        first = _typed(value[0]).kind if value else "i32"
        return Typed("array", value, "i32" if first == "u32" else first)
    if isinstance(value, bool):
        return Typed("bool", value)
    if isinstance(value, int):
        kind = "i32" if value < 0 else "u32" if value < 2**32 else "u64"
        return Typed(kind, value)
    return Typed("f32" if isinstance(value, float) else "str", value)
