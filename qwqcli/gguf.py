"""What a GGUF file says about itself, read from its header and checked against its size.

Contract: `read_header` takes any byte stream (a file, a BytesIO, the first megabytes of a download)
and needs no seek; `read_file_header` takes a path, follows split files and holds the table of
tensors against the bytes on disk. Both give a `ModelInfo` or raise an error of ours, in bounded
time and memory whatever the bytes are: a header comes from strangers. Long arrays such as the
vocabulary are walked over and counted, never kept.
Limits: GGUF versions 2 and 3, little-endian, and the tensor layout that llama.cpp accepts: every
tensor right behind the one before it. Each limit below is a constant with its reason.
Non-goals: reading weights, writing files, tokenizing; what a KV cache costs is the planner's.
Source of format, names and sizes: llama.cpp, ggml/src/gguf.cpp, ggml/src/ggml-common.h and
include/llama.h at commit 0c1e57098.
"""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TypeAlias

from qwqcli.errors import BadFile, UsageError

Scalar: TypeAlias = int | float | bool | str
Numbers: TypeAlias = tuple[int | float | bool, ...]

CHUNK = 256 * 1024  # bytes read at once: a lie about a length can make us allocate this much
MAX_HEADER_BYTES = 128 << 20  # QwQ-32B has 6 MB; 128 MB of empty strings take 1.7 s
MAX_KEYS = 1024  # real files have 20 to 80
MAX_KEY_BYTES = 1024  # real keys stay under 80
MAX_SHORT_TEXT = 4096  # a longer text, such as a licence, is of no use in `metadata`: passed over
MAX_TEMPLATE_BYTES = 1 << 20  # QwQ's template has about 3 KB
MAX_ARRAY_ITEMS = 1 << 22  # QwQ-32B has 152,064; 4 million strings take 0.4 s
MAX_TENSORS = 1 << 16  # QwQ-32B has 771; 61 layers of 256 separate experts would be 47,000
MAX_TENSOR_NAME = 63  # GGML_MAX_NAME of llama.cpp is 64 with its final zero
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS; also the longest array that is kept
MAX_TENSOR_DATA = 2**63 - 1  # llama.cpp counts elements, and the system file offsets, in 63 bits

DEFAULT_ALIGNMENT = 32
DEFAULT_FREQ_BASE = 10_000.0  # what llama.cpp takes when a file does not say

AGAIN = "Download it again with: qwq pull"
OTHER = "Give the path of a .gguf file, or get one with: qwq pull"

STRANGERS = {  # the first four bytes of what is most often taken for a GGUF
    b"vers": "a Git LFS pointer, not the model itself",
    b"<!do": "a web page",
    b"<htm": "a web page",
    b"pk\x03\x04": "a zip or PyTorch file",
    b"tjgg": "a GGML file from before GGUF",
}

_ARRAY, _TEXT, _BOOL = 9, 8, 7
_VALUES = {  # value type -> how it is packed; strings and arrays are not
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _VALUES[4], _VALUES[10]

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {  # id -> name, weights per block, bytes per block
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

_GUESSED = 1024  # LLAMA_FTYPE_GUESSED, a flag on the number of a file type
FILE_TYPES = {  # LLAMA_FTYPE_*, without the MOSTLY
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}

_EMBEDDING = ("token_embd.",)
_OUTPUT = ("output.", "output_norm.")
_GROUPED = ("blk.", *_EMBEDDING, *_OUTPUT)
_LAYER = re.compile(r"blk\.([0-9]+)\.(ffn_(?:up|gate|down))?")
_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")


class HeaderCut(BadFile):
    """The stream ended inside the header: with more of the file it may still be a good one."""


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions are encoded; `scaling` is none, linear, yarn or longrope."""

    freq_base: float = DEFAULT_FREQ_BASE
    scaling: str = "none"
    factor: float = 1.0
    original_context: int | None = None  # tokens before scaling, where the file says


@dataclass(frozen=True, slots=True)
class Split:
    """Which part of a model this file is: `no` of `count`, from 0; `n_tensors` in all parts."""

    no: int
    count: int
    n_tensors: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as its header describes it. Sizes are exact bytes, contexts are tokens.

    A text that the file does not give is "", a number 0, unless it says otherwise: a model without
    attention has no heads. Every per-layer tuple has `n_layers` items.
    """

    architecture: str  # such as qwen2; "" in every part of a split model but the first
    name: str  # general.name
    basename: str
    size_label: str  # such as 32B
    quantization: str  # of the file, such as Q4_K_M; else the type that holds the most bytes
    n_layers: int
    n_embd: int
    n_ff: int  # of the widest layer
    n_head: int  # of the layer that has the most
    n_head_kv: tuple[int, ...]  # per layer
    head_dim_k: int
    head_dim_v: int
    n_ctx_train: int
    rope: Rope
    n_vocab: int  # entries of tokenizer.ggml.tokens
    tokenizer: str  # tokenizer.ggml.model
    tokenizer_pre: str
    bos_id: int | None
    eos_id: int | None
    add_bos: bool | None  # None: the file does not say, llama.cpp decides
    chat_template: str | None
    split: Split | None  # None: the whole model
    n_tensors: int
    n_params: int
    layer_bytes: tuple[int, ...]  # per layer, all of blk.N.*
    layer_ffn_bytes: tuple[int, ...]  # the part of it in blk.N.ffn_{up,gate,down}*
    embedding_bytes: int  # token_embd.*
    output_bytes: int  # output.* and output_norm.*; without output.* the embedding is used twice
    other_bytes: int
    alignment: int
    data_offset: int  # of the first tensor, from the start of the file
    file_bytes: int  # end of the last tensor, over all parts; padding may follow it in the file
    metadata: Mapping[str, Scalar] = field(default_factory=dict, hash=False)  # the short values

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all weights, without padding."""
        rest = self.embedding_bytes + self.output_bytes + self.other_bytes
        return sum(self.layer_bytes) + rest


def read_file_header(path: Path) -> ModelInfo:
    """The header of the model at `path`, and of all other parts if it is one part of several.

    Raises UsageError if there is no such file, BadFile if it is not a whole model.
    """
    first = _read_part(path)
    if first.split is None or first.split.count == 1:
        return first
    paths = split_paths(path)
    if len(paths) != first.split.count:
        number = f"{first.split.no + 1:05}-of-{first.split.count:05}"
        raise BadFile(
            f"{path.name} is one of {first.split.count} parts, but its name does not say which.",
            f"Name it as it was published: ...-{number}.gguf",
        )
    missing = next((part for part in paths if not part.exists()), None)
    if missing is not None:
        raise BadFile(f"{path.name} needs {missing.name}, which is not there.", AGAIN)
    return merge([_read_part(part) for part in paths], paths[0].name)


def split_paths(path: Path) -> tuple[Path, ...]:
    """All parts of the model that `path` is a part of by its name, in order; else `path` alone.

    llama.cpp loads a split model by the first of them.
    """
    match = _PART.fullmatch(path.name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return (path,)
    count = int(match[3])
    return tuple(
        path.with_name(f"{match[1]}-{no:05}-of-{count:05}.gguf") for no in range(1, count + 1)
    )


def merge(headers: Sequence[ModelInfo], name: str = "The model") -> ModelInfo:
    """One model of all its parts, in order. What is not about tensors comes from the first.

    Raises BadFile if they are not the parts of one model.
    """
    whole = headers[0]
    count = len(headers)
    for no, part in enumerate(headers):
        if part.split is None or (part.split.no, part.split.count) != (no, count):
            raise _damaged(name, f"part {no + 1} of {count} is a part of something else")
        if part.n_layers > whole.n_layers:
            raise _damaged(name, f"part {no + 1} has layers that part 1 does not count")
    expected = whole.split.n_tensors if whole.split else 0
    n_tensors = sum(part.n_tensors for part in headers)
    if n_tensors != expected:
        raise _damaged(name, f"its parts hold {n_tensors:,} tensors instead of {expected:,}")
    return replace(
        whole,
        split=None,
        quantization=next((part.quantization for part in headers if part.quantization), ""),
        n_tensors=n_tensors,
        n_params=sum(part.n_params for part in headers),
        layer_bytes=_add_up([part.layer_bytes for part in headers], whole.n_layers),
        layer_ffn_bytes=_add_up([part.layer_ffn_bytes for part in headers], whole.n_layers),
        embedding_bytes=sum(part.embedding_bytes for part in headers),
        output_bytes=sum(part.output_bytes for part in headers),
        other_bytes=sum(part.other_bytes for part in headers),
        file_bytes=sum(part.file_bytes for part in headers),
    )


def read_header(stream: BinaryIO, name: str = "The model file") -> ModelInfo:
    """The header at the current position of `stream`; `name` is for the messages.

    Reads up to `CHUNK` bytes beyond the header. Raises HeaderCut if the stream ends within it, any
    other BadFile if no header of a model is there; errors of the stream itself pass through.
    """
    reader = _Reader(stream, name)
    n_tensors, n_keys = _read_start(reader)
    keys = _read_keys(reader, n_keys)
    tensors, end = _read_tensors(reader, n_tensors, keys.alignment)
    data_offset = _padded(reader.offset, keys.alignment) if tensors else reader.offset
    return _describe(keys, tensors, data_offset, data_offset + end)


def _read_part(path: Path) -> ModelInfo:
    """The header of this one file, which must be as long as its tensors need."""
    try:
        size = _file_size(path)
        with path.open("rb") as stream:
            info = read_header(stream, path.name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadFile(f"{path.name} cannot be read: {reason}.", f"Look at: ls -l {path}") from error
    if size < info.file_bytes:
        raise BadFile(f"{path.name} is cut short: {_amount(size, info.file_bytes)}.", AGAIN)
    return info


def _file_size(path: Path) -> int:
    """Bytes of a regular file; to open a pipe would mean to wait for ever."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a zero byte
        raise UsageError(f"There is no file {path}.", OTHER) from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise UsageError(f"{path} is {kind}.", OTHER)
    return found.st_size


def _amount(have: int, need: int) -> str:
    """'12.0 of 19.9 GB are there', in bytes where rounding would hide what is missing."""
    units = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes"))
    size, unit = next((u for u in units if need >= u[0]), units[-1])
    if abs(need - have) < size:
        return f"{need - have:,} of {need:,} bytes are missing"
    return f"{have / size:.1f} of {need / size:.1f} {unit} are there"


def _damaged(name: str, reason: str) -> BadFile:
    return BadFile(f"{name} is damaged: {reason}.", AGAIN)


def _padded(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _add_up(rows: Iterable[tuple[int, ...]], length: int) -> tuple[int, ...]:
    """The sums of the columns of `rows`, which may be shorter than `length`."""
    sums = [0] * length
    for row in rows:
        for index, value in enumerate(row):
            sums[index] += value
    return tuple(sums)


class _Reader:
    """A window that moves forward over a stream: bounded reads, no seek, errors that are ours."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name = name
        self._stream = stream
        self._window = b""  # read and not yet passed
        self._at = 0  # next byte, within the window
        self._start = 0  # offset of the window from the start of the header

    @property
    def offset(self) -> int:
        """Bytes passed since the start of the header."""
        return self._start + self._at

    def damaged(self, reason: str) -> BadFile:
        return _damaged(self.name, reason)

    def peek(self, count: int) -> bytes:
        """The next `count` bytes, or all that are left if those are fewer."""
        pieces = [self._window[self._at :]]
        missing = count - len(pieces[0])
        while missing > 0 and (piece := self._stream.read(CHUNK)):
            pieces.append(piece)
            missing -= len(piece)
        self._start += self._at
        self._window, self._at = b"".join(pieces), 0
        return self._window[:count]

    def skip(self, count: int) -> None:
        """Pass over `count` bytes without keeping them."""
        target = self.offset + count
        if target > MAX_HEADER_BYTES:
            raise self.damaged(f"its header claims more than {MAX_HEADER_BYTES >> 20} MB")
        beyond = count - (len(self._window) - self._at)
        if beyond <= 0:
            self._at += count
            return
        while beyond > 0:
            piece = self._stream.read(min(beyond, CHUNK))
            if not piece:
                raise self._cut(target - beyond)
            beyond -= len(piece)
        self._window, self._at, self._start = b"", 0, target

    def unpack(self, packing: struct.Struct) -> int | float | bool:
        """The next number."""
        self._need(packing.size)
        value: int | float | bool = packing.unpack_from(self._window, self._at)[0]
        self._at += packing.size
        return value

    def u32(self) -> int:
        return int(self.unpack(_U32))

    def u64(self) -> int:
        return int(self.unpack(_U64))

    def raw(self, count: int) -> bytes:
        """The next `count` bytes; the caller has checked that so many are plausible."""
        self._need(count)
        self._at += count
        return self._window[self._at - count : self._at]

    def identifier(self, what: str, limit: int) -> str:
        """A key or a tensor name: they are looked up, so one that is not UTF-8 is an error."""
        size = self.u64()
        if size > limit:
            raise self.damaged(f"a {what} claims {size:,} bytes, at most {limit:,} are allowed")
        try:
            return self.raw(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"a {what} is not UTF-8") from error

    def skip_texts(self, count: int) -> None:
        """Pass over `count` strings, each 8 bytes of length and so many bytes.

        This loop sees a third of a million strings in QwQ-32B, hence the local names.
        """
        unpack = _U64.unpack_from
        window, at = self._window, self._at
        last = len(window) - 8
        for _ in range(count):
            if at > last:
                self.skip(at - self._at)
                self._need(8)
                window, at = self._window, self._at
                last = len(window) - 8
            at += 8 + unpack(window, at)[0]
        self.skip(at - self._at)

    def _need(self, count: int) -> None:
        """Have the next `count` bytes in the window."""
        if len(self._window) - self._at < count and len(self.peek(count)) < count:
            raise self._cut(self._start + len(self._window))

    def _cut(self, end: int) -> HeaderCut:
        return HeaderCut(f"{self.name} is cut short: it ends after {end:,} bytes.", AGAIN)


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys of a header, with typed questions. Absent keys give the default."""

    file: str
    values: dict[str, Scalar | Numbers]
    lengths: dict[str, int]  # of every array, kept or not

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        if not isinstance(value, str):
            raise _damaged(self.file, f"{key} is not a text")
        return value

    def integer(self, key: str, default: int = 0) -> int:
        return self._whole(key, self.values.get(key, default))

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _damaged(self.file, f"{key} is not a number")
        return float(value)

    def flag(self, key: str) -> bool | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise _damaged(self.file, f"{key} is not true or false")
        return value

    def per_layer(self, key: str, n_layers: int) -> tuple[int, ...] | None:
        """One number for each layer; the file gives one for all or an array. None if absent."""
        value = self.values.get(key)
        if value is None and key not in self.lengths:
            return None
        if value is None or (isinstance(value, tuple) and len(value) != n_layers):
            raise _damaged(
                self.file, f"{key} has {self.lengths[key]:,} items for {n_layers} layers"
            )
        if isinstance(value, tuple):
            return tuple(self._whole(key, item) for item in value)
        return (self._whole(key, value),) * n_layers

    def token(self, key: str, n_vocab: int) -> int | None:
        """A token id; llama.cpp ignores one outside the vocabulary, and so do we."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n_vocab:
            return None
        return value

    @property
    def alignment(self) -> int:
        value = self.integer("general.alignment", DEFAULT_ALIGNMENT)
        if value == 0 or value & (value - 1):
            raise _damaged(self.file, f"its alignment of {value:,} is not a power of two")
        return value

    def _whole(self, key: str, value: Scalar | Numbers) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _damaged(self.file, f"{key} is not a whole number")
        return value


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One row of the tensor table."""

    name: str
    type_name: str
    n_params: int
    n_bytes: int


def _read_start(reader: _Reader) -> tuple[int, int]:
    """Magic, version and the numbers of tensors and keys."""
    magic = reader.peek(4)
    if not magic:
        raise BadFile(f"{reader.name} is empty.", AGAIN)
    if not b"GGUF".startswith(magic):
        what = STRANGERS.get(magic.lower(), "not a GGUF file")
        raise BadFile(f"{reader.name} is {what}.", OTHER)
    reader.raw(4)
    version = reader.u32()
    if version & 0xFFFF == 0:  # no version has so many digits: 3 written the other way round
        raise BadFile(f"{reader.name} is a big-endian GGUF, for other machines.", OTHER)
    if version not in (2, 3):
        raise BadFile(f"{reader.name} has GGUF version {version}; qwq reads 2 and 3.", OTHER)
    n_tensors, n_keys = reader.u64(), reader.u64()
    if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
        raise reader.damaged(f"it claims {n_tensors:,} tensors and {n_keys:,} keys")
    return n_tensors, n_keys


def _read_keys(reader: _Reader, count: int) -> _Keys:
    keys = _Keys(reader.name, {}, {})
    seen = set()
    for _ in range(count):
        key = reader.identifier("key", MAX_KEY_BYTES)
        if not key or key in seen:
            raise reader.damaged(f"it has the key '{key}' twice" if key else "a key has no name")
        seen.add(key)
        value_type = reader.u32()
        if value_type == _ARRAY:
            value: Scalar | Numbers | None = _read_array(reader, key, keys.lengths)
        else:
            value = _read_scalar(reader, key, value_type)
        if value is not None:
            keys.values[key] = value
    return keys


def _read_scalar(reader: _Reader, key: str, value_type: int) -> Scalar | None:
    """One value; None for a text too long to keep.

    A text that is not UTF-8 is mended, not refused: it is only shown, and llama.cpp runs the model
    all the same.
    """
    if value_type in _VALUES:
        return reader.unpack(_VALUES[value_type])
    if value_type != _TEXT:
        raise reader.damaged(f"the key '{key}' has the unknown type {value_type}")
    size = reader.u64()
    if key == "tokenizer.chat_template":
        if size > MAX_TEMPLATE_BYTES:
            raise reader.damaged(f"its chat template claims {size:,} bytes")
    elif size > MAX_SHORT_TEXT:
        reader.skip(size)
        return None
    return reader.raw(size).decode("utf-8", errors="replace")


def _read_array(reader: _Reader, key: str, lengths: dict[str, int]) -> Numbers | None:
    """The items if they can be one number per layer, else None; the length goes to `lengths`."""
    item_type, count = reader.u32(), reader.u64()
    if count > MAX_ARRAY_ITEMS:
        raise reader.damaged(f"the key '{key}' claims {count:,} items")
    lengths[key] = count
    if item_type == _TEXT:
        reader.skip_texts(count)
        return None
    if item_type not in _VALUES:  # also an array of arrays, which llama.cpp does not read either
        raise reader.damaged(f"the key '{key}' is an array of the unknown type {item_type}")
    packing = _VALUES[item_type]
    if count > MAX_LAYERS:
        reader.skip(count * packing.size)
        return None
    return tuple(reader.unpack(packing) for _ in range(count))


def _read_tensors(reader: _Reader, count: int, alignment: int) -> tuple[list[_Tensor], int]:
    """The table of tensors and the end of the last one, counted from the first."""
    tensors: list[_Tensor] = []
    seen = set()
    end = 0
    for _ in range(count):
        tensor, offset = _read_tensor(reader)
        if tensor.name in seen:
            raise reader.damaged(f"it has the tensor '{tensor.name}' twice")
        seen.add(tensor.name)
        expected = _padded(end, alignment)
        if offset != expected:  # an overlap, a gap or a misaligned tensor: llama.cpp wants none
            raise reader.damaged(f"'{tensor.name}' is at byte {offset:,} instead of {expected:,}")
        end = offset + tensor.n_bytes
        if end > MAX_TENSOR_DATA:
            raise reader.damaged("its tensors are larger than any file")
        tensors.append(tensor)
    return tensors, end


def _read_tensor(reader: _Reader) -> tuple[_Tensor, int]:
    """One row of the table and the offset of its data."""
    name = reader.identifier("tensor name", MAX_TENSOR_NAME)
    n_dims = reader.u32()
    if n_dims > MAX_DIMS:
        raise reader.damaged(f"'{name}' has {n_dims:,} dimensions")
    shape = [reader.u64() for _ in range(n_dims)]
    type_id, offset = reader.u32(), reader.u64()
    if type_id not in TENSOR_TYPES:
        raise BadFile(
            f"{reader.name} has weights of a type that qwq does not know: {type_id}.",
            "Update qwq, or take another quantization with: qwq pull",
        )
    type_name, block, block_bytes = TENSOR_TYPES[type_id]
    row = shape[0] if shape else 1
    n_params = 1
    for size in shape:
        n_params *= size
    if row % block or max([*shape, n_params]) > MAX_TENSOR_DATA:
        raise reader.damaged(f"'{name}' cannot have the shape {shape} in {type_name}")
    return _Tensor(name, type_name, n_params, n_params // block * block_bytes), offset


def _describe(keys: _Keys, tensors: list[_Tensor], data_offset: int, end: int) -> ModelInfo:
    """Everything that `ModelInfo` holds, out of the keys and the table of tensors."""
    split = _split(keys)
    architecture = keys.text("general.architecture")
    if not architecture and (split is None or split.no == 0):
        raise BadFile(f"{keys.file} is no language model: it names no architecture.", OTHER)
    at = f"{architecture}."
    layers, ffn = _layer_bytes(keys, tensors, at)
    n_layers = len(layers)
    n_embd = keys.integer(at + "embedding_length")
    heads = keys.per_layer(at + "attention.head_count", n_layers) or (0,) * n_layers
    n_head = max(heads, default=0)
    head_dim = n_embd // n_head if n_head else 0
    n_vocab = keys.lengths.get("tokenizer.ggml.tokens", 0)
    template = keys.text("tokenizer.chat_template")
    return ModelInfo(
        architecture=architecture,
        name=keys.text("general.name"),
        basename=keys.text("general.basename"),
        size_label=keys.text("general.size_label"),
        quantization=_quantization(keys, tensors),
        n_layers=n_layers,
        n_embd=n_embd,
        n_ff=max(keys.per_layer(at + "feed_forward_length", n_layers) or (0,), default=0),
        n_head=n_head,
        n_head_kv=keys.per_layer(at + "attention.head_count_kv", n_layers) or heads,
        head_dim_k=keys.integer(at + "attention.key_length", head_dim),
        head_dim_v=keys.integer(at + "attention.value_length", head_dim),
        n_ctx_train=keys.integer(at + "context_length"),
        rope=_rope(keys, at),
        n_vocab=n_vocab,
        tokenizer=keys.text("tokenizer.ggml.model"),
        tokenizer_pre=keys.text("tokenizer.ggml.pre"),
        bos_id=keys.token("tokenizer.ggml.bos_token_id", n_vocab),
        eos_id=keys.token("tokenizer.ggml.eos_token_id", n_vocab),
        add_bos=keys.flag("tokenizer.ggml.add_bos_token"),
        chat_template=template or None,
        split=split,
        n_tensors=len(tensors),
        n_params=sum(tensor.n_params for tensor in tensors),
        layer_bytes=layers,
        layer_ffn_bytes=ffn,
        embedding_bytes=_bytes_of(tensors, _EMBEDDING),
        output_bytes=_bytes_of(tensors, _OUTPUT),
        other_bytes=sum(t.n_bytes for t in tensors if not t.name.startswith(_GROUPED)),
        alignment=keys.alignment,
        data_offset=data_offset,
        file_bytes=end,
        metadata=dict(_short_values(keys)),
    )


def _bytes_of(tensors: list[_Tensor], prefixes: tuple[str, ...]) -> int:
    return sum(tensor.n_bytes for tensor in tensors if tensor.name.startswith(prefixes))


def _short_values(keys: _Keys) -> Iterator[tuple[str, Scalar]]:
    for key, value in keys.values.items():
        if not isinstance(value, tuple) and key != "tokenizer.chat_template":
            yield key, value


def _split(keys: _Keys) -> Split | None:
    count = keys.integer("split.count")
    if count == 0:
        return None
    no = keys.integer("split.no")
    if no >= count:
        raise _damaged(keys.file, f"it claims to be part {no + 1:,} of {count:,}")
    return Split(no, count, keys.integer("split.tensors.count"))


def _layer_bytes(
    keys: _Keys, tensors: list[_Tensor], at: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes of each layer and of its feed-forward part; both have one item per layer.

    The number of layers is the file's, or what the names of the tensors show.
    """
    found: list[tuple[int, bool, int]] = []
    for tensor in tensors:
        match = _LAYER.match(tensor.name)
        if match is None and tensor.name.startswith("blk."):
            raise _damaged(keys.file, f"'{tensor.name}' does not say its layer")
        if match is not None:
            found.append((int(match[1]), match[2] is not None, tensor.n_bytes))
    seen = max((layer + 1 for layer, _, _ in found), default=0)
    n_layers = keys.integer(at + "block_count", seen)
    if max(seen, n_layers) > MAX_LAYERS:
        raise _damaged(keys.file, f"it claims {max(seen, n_layers):,} layers")
    if seen > n_layers:
        raise _damaged(keys.file, f"it has a layer {seen - 1}, but claims {n_layers} layers")
    layers, ffn = [0] * n_layers, [0] * n_layers
    for layer, is_ffn, n_bytes in found:
        layers[layer] += n_bytes
        ffn[layer] += n_bytes if is_ffn else 0
    return tuple(layers), tuple(ffn)


def _quantization(keys: _Keys, tensors: list[_Tensor]) -> str:
    """The file's own word, else the type that holds the most bytes; "" without tensors."""
    if "general.file_type" in keys.values:
        file_type = keys.integer("general.file_type") & ~_GUESSED
        if file_type in FILE_TYPES:
            return FILE_TYPES[file_type]
    totals: dict[str, int] = {}
    for tensor in tensors:
        totals[tensor.type_name] = totals.get(tensor.type_name, 0) + tensor.n_bytes
    return max(totals, key=lambda name: totals[name], default="")


def _rope(keys: _Keys, at: str) -> Rope:
    """Scaling as llama.cpp reads it: a factor without a type is linear, a factor of 0 is 1."""
    factor = keys.number(at + "rope.scaling.factor", keys.number(at + "rope.scale_linear", 0.0))
    return Rope(
        freq_base=keys.number(at + "rope.freq_base", DEFAULT_FREQ_BASE),
        scaling=keys.text(at + "rope.scaling.type") or ("linear" if factor else "none"),
        factor=factor or 1.0,
        original_context=keys.integer(at + "rope.scaling.original_context_length") or None,
    )
