"""The one door to llama.cpp: models, contexts and samplers as small objects over `llama.h` names.

Uses llama-cpp-python's ctypes mirror, never its high-level `Llama` (which is quadratic in a long
answer and cannot set what we need). Importing this module loads the native library: only the
engine's child process and tests do. Nothing here knows about conversations or thoughts.
"""

from __future__ import annotations

import collections
import ctypes
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from qwqcli.config import MAX_THREADS, FlashAttn
from qwqcli.costs import OUTPUTS, TILE
from qwqcli.engine import MEMORY_WORDS
from qwqcli.errors import BadFile, EngineError, OutOfMemory, UsageError
from qwqcli.messages import Sampling

RPC_CONNECT_S = 3.0  # an RPC server is in the same room
LOG_LINES = 400  # the end of llama.cpp's own log, kept for error messages and for the placement

_DEBUG, _WARNING, _CONTINUED = 1, 3, 5  # ggml_log_level; a CONT continues the line before it
_FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type


class _Log:
    """llama.cpp's log, captured: it must never reach the person's screen."""

    def __init__(self) -> None:
        self.lines: collections.deque[tuple[int, str]] = collections.deque(maxlen=LOG_LINES)
        self._level = 0  # of the line that a CONT would continue
        self._callback = lib.llama_log_callback(self._write)  # ctypes keeps no reference itself

    def install(self) -> None:
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _write(self, level: int, text: bytes, _: Any) -> None:
        if level != _CONTINUED:
            self._level = level
        if self._level > _DEBUG:  # llama.cpp's debug lines are thousands, one a graph node
            self.lines.append((self._level, text.decode("utf-8", "replace")))

    def text(self, lowest_level: int = 0) -> str:
        return "".join(line for level, line in self.lines if level >= lowest_level)


log = _Log()
_started = False


def start() -> None:
    """Initialise the library once per process, with its log captured."""
    global _started
    if not _started:
        log.install()
        lib.llama_backend_init()
        _started = True


def build() -> str:
    """What tells this build of llama.cpp from another: version, the file itself, what it uses."""
    stat = Path(lib.llama_cpp._lib._name).stat()
    uses = lib.llama_print_system_info().decode("utf-8", "replace")
    return f"{lib.__version__} {stat.st_size} {stat.st_mtime_ns} {uses}"


def quantize(source: Path, target: Path, ftype: int, threads: int) -> None:
    """Write `source` in another quantization (enum llama_ftype), also from a quantized file."""
    start()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = ftype, threads, True
    if lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)):
        raise EngineError(f"llama.cpp could not quantize {source.name}: {_last_error()}")


def add_rpc_devices(endpoints: str) -> None:
    """Register the devices of RPC servers, HOST:PORT[,HOST:PORT], as devices of this process."""
    for endpoint in endpoints.split(","):
        _add_rpc_server(endpoint.strip())


def _add_rpc_server(endpoint: str) -> None:
    start()
    add_server = _ggml("ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
    if add_server is None:
        raise UsageError(
            "This build of llama.cpp has no RPC backend.",
            "CMAKE_ARGS=-DGGML_RPC=on pip install --force-reinstall --no-cache-dir"
            " llama-cpp-python",
        )
    _check_answers(endpoint)  # llama.cpp would abort the process
    registry = add_server(endpoint.encode())
    register = _ggml("ggml_backend_register", None, ctypes.c_void_p)
    assert register is not None
    register(registry)


def _check_answers(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"'{endpoint}' is not an address.", "--rpc 127.0.0.1:50052")
    try:
        socket.create_connection((host, int(port)), RPC_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"No RPC server answers at {endpoint}: {error}.",
            "Start the server, or leave out --rpc",
        ) from error


def _ggml(name: str, result: Any, *arguments: Any) -> Callable[..., Any] | None:
    """A function of the ggml libraries that libllama itself is linked to; None if it has none.

    Asked of libllama's handle, whose lookup follows its dependencies. Loading `libggml.so` by
    path gives a second copy with a device registry of its own: wheels hold no symbolic links, so
    it is another file than the `libggml.so.0` that libllama uses.
    """
    try:
        function = getattr(lib.llama_cpp._lib, name)
    except AttributeError:
        return None
    function.restype, function.argtypes = result, arguments
    return cast(Callable[..., Any], function)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a load puts what: the part of a plan that llama.cpp's parameters express."""

    n_ctx: int
    n_batch: int = 512
    gpu_layers: int = 0
    devices: tuple[str, ...] | None = None  # by name, such as CUDA0; None: llama.cpp's own choice
    tensor_split: tuple[int, ...] = ()  # layers per device, in the order of the devices
    cpu_ffn: tuple[int, ...] = ()  # layers whose feed-forward weights stay in RAM
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: FlashAttn = "off"
    mmap: bool = True  # False: weights are read; Metal would count a mapped file whole
    yarn_factor: float = 0.0  # 0: no rope scaling beyond the file's own
    yarn_original_context: int = 0
    n_outputs: int = 1  # positions of a batch whose logits can be read

    @property
    def contexts(self) -> tuple[Placement, ...]:
        """A placement for each context that this one takes: for prompts and for generation."""
        if self.flash_attn != "prompts":
            return (self,)
        generation = replace(self, flash_attn="off", n_batch=min(self.n_batch, TILE))
        return replace(self, flash_attn="on"), generation


class Model:
    """Weights and vocabulary. `progress` is told a fraction and may return False to give up."""

    def __init__(
        self,
        path: Path,
        placement: Placement,
        extra_bufts: bool,
        progress: Callable[[float], bool],
    ) -> None:
        """`extra_bufts` repacks weights for the CPU, which kills some builds (selfcheck.py)."""
        start()
        log.lines.clear()
        params = lib.llama_model_default_params()
        params.use_extra_bufts = extra_bufts
        params.progress_callback = lib.llama_progress_callback(lambda done, _: progress(done))
        kept = place_weights(params, placement)
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        del kept
        if not self._model:
            raise _load_error(path)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.specials = self._special_tokens()
        self._pieces: dict[int, bytes] = {}  # asked for once a token, each call is 20 us beside
        self._ends: dict[int, bool] = {}  # a decode that leaves nothing in the caches

    @property
    def n_ctx_train(self) -> int:
        return int(lib.llama_model_n_ctx_train(self._model))

    @property
    def n_params(self) -> int:
        return int(lib.llama_model_n_params(self._model))

    @property
    def size_bytes(self) -> int:
        return int(lib.llama_model_size(self._model))

    @property
    def n_vocab(self) -> int:
        return int(lib.llama_vocab_n_tokens(self._vocab))

    @property
    def bos(self) -> int | None:
        """The token that llama.cpp puts in front of a text; None if it puts none."""
        return int(lib.llama_vocab_bos(self._vocab)) if self.adds_bos else None

    @property
    def forgets(self) -> bool:
        """The cache cannot be cut back (recurrent state, or a sliding window that drops tokens)."""
        return bool(
            lib.llama_model_is_recurrent(self._model)
            or lib.llama_model_is_hybrid(self._model)
            or lib.llama_model_n_swa(self._model)
        )

    def metadata(self, key: str) -> str | None:
        """The value of a GGUF key as text, None if the file lacks it."""
        size = lib.llama_model_meta_val_str(self._model, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")

    def chat_template(self) -> str | None:
        """The chat template in the file; None where there is none."""
        template = lib.llama_model_chat_template(self._model, None)
        return template.decode("utf-8", "replace") if template else None

    def tokenize(self, text: str, *, start_of_text: bool) -> list[int]:
        """Tokens of `text`, control tokens recognised; BOS in front if the model wants one."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 2  # no token is shorter than a byte, and BOS and EOS may be added
        tokens = (lib.llama_token * room)()
        count = lib.llama_tokenize(self._vocab, data, len(data), tokens, room, start_of_text, True)
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenize a text of {len(data)} bytes.")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes that `token` stands for, which need not be whole characters."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def _read_piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def ends(self, token: int) -> bool:
        """Whether `token` ends the turn."""
        ends = self._ends.get(token)
        if ends is None:
            ends = self._ends[token] = bool(lib.llama_vocab_is_eog(self._vocab, token))
        return ends

    def bos_text(self) -> str:
        """The text of BOS where the model puts one in front, else an empty string."""
        return self._token_text(lib.llama_vocab_bos(self._vocab)) if self.adds_bos else ""

    def eos_text(self) -> str:
        return self._token_text(lib.llama_vocab_eos(self._vocab))

    @property
    def adds_bos(self) -> bool:
        return bool(lib.llama_vocab_get_add_bos(self._vocab))

    def close(self) -> None:
        if self._model:
            lib.llama_model_free(self._model)
            self._model = None

    def _special_tokens(self) -> tuple[str, ...]:
        """Texts that the tokenizer takes for one token wherever they stand (`<|im_end|>`, …)."""
        special = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        attribute, vocab = lib.llama_vocab_get_attr, self._vocab
        count = lib.llama_vocab_n_tokens(vocab)
        texts = (self._token_text(t) for t in range(count) if attribute(vocab, t) & special)
        return tuple(sorted({text for text in texts if len(text) > 1}, key=len, reverse=True))

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        return str(lib.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace"))


class Pool:
    """CPU threads that stay as long as the contexts that compute with them.

    A build of llama.cpp with OpenMP takes no notice, for it has threads that stay. One without, as
    on macOS, would start and join threads for every part of every graph that the CPU computes: up
    to 17 times slower where a GPU and the CPU share the layers (benchmarks/LOG.md).
    """

    def __init__(self, threads: int) -> None:
        start()
        self._contexts = 0
        self._pool = None
        new = _of_cpu("ggml_threadpool_new", ctypes.c_void_p, ctypes.c_void_p)
        free = _of_cpu("ggml_threadpool_free", None, ctypes.c_void_p)
        params = (ctypes.c_uint32 * 1024)()  # more than ggml_threadpool_params takes
        _must("ggml_threadpool_params_init", None, ctypes.c_void_p, ctypes.c_int)(params, threads)
        at = MAX_THREADS // 4  # words, behind a mask of CPUs: threads, priority, polling
        known = tuple(params[at : at + 3]) == (threads, 0, _POLL)  # else laid out in another way
        if new and free and known:
            params[at + 2] = 0  # who waits sleeps: a GPU may compute for long
            self._pool, self._free = new(params), free

    def join(self, context: Any) -> None:
        """Let a llama_context compute with these threads."""
        self._contexts += 1
        if self._pool:
            attach = _must("llama_attach_threadpool", None, *[ctypes.c_void_p] * 3)
            attach(context, self._pool, self._pool)

    def leave(self) -> None:
        """One of the contexts has been freed; the threads end with the last one."""
        self._contexts -= 1
        if self._pool and not self._contexts:
            self._free(self._pool)
            self._pool = None


_POLL = 50  # what ggml_threadpool_params_init sets


class Context:
    """A KV cache of one sequence, and decoding into it."""

    def __init__(
        self,
        model: Model,
        placement: Placement,
        threads: int,
        *,
        copies: bool = False,
        pool: Pool | None = None,
    ) -> None:
        """`copies` allows `append`, `page` and `add_page`; `pool` is shared with who decodes in
        turns with this one.
        """
        params = lib.llama_context_default_params()
        if copies:  # a second sequence in the same cells
            params.n_seq_max, params.kv_unified = 2, True
        place_cache(params, placement)
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self._abort = ctypes.create_string_buffer(2)
        self._strlen, params.abort_callback = _abort_callback()
        params.abort_callback_data = ctypes.cast(self._abort, ctypes.c_void_p)
        self._context = lib.llama_init_from_model(model._model, params)
        if not self._context:
            kind = OutOfMemory if _memory_refused() else EngineError
            raise kind(
                f"llama.cpp could not set up a context of {placement.n_ctx:,} tokens:"
                f" {_last_error()}",
                f"Try --ctx {max(256, placement.n_ctx // 2)}",
            )
        self._pool = pool or Pool(threads)
        self._pool.join(self._context)
        self._memory = lib.llama_get_memory(self._context)
        self._n_vocab = int(lib.llama_vocab_n_tokens(model._vocab))
        self._tokens = (lib.llama_token * placement.n_batch)()
        self._one = lib.llama_batch_get_one(self._tokens, 1)
        self._logits_at = 0
        self.n_batch = placement.n_batch
        self.n_ctx = int(lib.llama_n_ctx(self._context))

    def abort(self, on: bool = True) -> None:
        """Stop a decode that is under way in another thread; acts on the CPU backend only."""
        self._abort[0] = b"\x01" if on else b"\x00"

    def decode(self, tokens: Sequence[int]) -> bool:
        """Append at most `n_batch` tokens; False if it was aborted and they are not in the cache.

        Raises EngineError when llama.cpp fails.
        """
        count = len(tokens)
        if count == 1:
            self._tokens[0], batch = tokens[0], self._one
        else:
            self._tokens[:count] = tokens
            batch = lib.llama_batch_get_one(self._tokens, count)
        code = lib.llama_decode(self._context, batch)
        if code == 0:
            return True
        if code == 2:
            return False
        raise EngineError(f"llama.cpp failed to decode (code {code}): {_last_error()}")

    def logits(self) -> NDArray[np.float32]:
        """The logits of the last decoded position, one a token; valid until the next decode."""
        pointer = lib.llama_get_logits_ith(self._context, -1)
        address = ctypes.addressof(pointer.contents)
        if address != self._logits_at:  # making the view takes longer than reading what is there
            self._logits = np.ctypeslib.as_array(pointer, (self._n_vocab,))
            self._logits_at = address
        return self._logits

    def decode_all(self, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
        """Append `tokens`; the logits from position `first` on, shape (positions, vocabulary).

        The placement must have `n_outputs` for as many positions. Raises EngineError.
        """
        for at in range(0, first, self.n_batch):
            self.decode(tokens[at : min(at + self.n_batch, first)])
        pieces = [
            self._decode_outputs(tokens[at : at + self.n_batch], at)
            for at in range(first, len(tokens), self.n_batch)
        ]
        return np.concatenate(pieces)

    def _decode_outputs(self, tokens: Sequence[int], start: int) -> NDArray[np.float32]:
        """Decode a batch that begins at position `start`; a copy of the logits of all of it."""
        count = len(tokens)
        batch = lib.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for at, token in enumerate(tokens):
                batch.token[at], batch.pos[at], batch.logits[at] = token, start + at, 1
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
            code = lib.llama_decode(self._context, batch)
        finally:
            lib.llama_batch_free(batch)
        if code:
            raise EngineError(f"llama.cpp failed to decode (code {code}): {_last_error()}")
        values = np.ctypeslib.as_array(lib.llama_get_logits(self._context), (count, self._n_vocab))
        return np.array(values, np.float32)  # the next decode writes over it

    def penalise(self, tokens: list[int], penalty: float) -> None:
        """Lower the logits of `tokens` at the last decoded position, before a token is drawn."""
        self.logits()[tokens] -= penalty

    def cut(self, length: int) -> bool:
        """Forget everything after the first `length` tokens; False if the model cannot."""
        return bool(lib.llama_memory_seq_rm(self._memory, 0, length, -1))

    def clear(self) -> None:
        lib.llama_memory_clear(self._memory, True)

    @property
    def length(self) -> int:
        """Tokens in the cache, as llama.cpp counts them."""
        return int(lib.llama_memory_seq_pos_max(self._memory, 0)) + 1

    def synchronize(self) -> None:
        """Wait for what a GPU still computes."""
        lib.llama_synchronize(self._context)

    @property
    def state_bytes(self) -> int:
        """How much `saved` would take."""
        return int(lib.llama_state_seq_get_size(self._context, 0))

    def saved(self) -> Any:
        """What is in the KV cache, as bytes for `restore` of this or another context."""
        state = (ctypes.c_uint8 * self.state_bytes)()
        lib.llama_state_seq_get_data(self._context, state, len(state), 0)
        return state

    def append(self, state: Any, length: int) -> bool:
        """Put `saved` tokens behind the `length` that are there, without decoding them.

        Their positions are shifted with the next decode. False if the model cannot.
        """
        if not lib.llama_memory_can_shift(self._memory):
            return False
        if not lib.llama_state_seq_set_data(self._context, state, len(state), 1):
            return False
        lib.llama_memory_seq_add(self._memory, 1, 0, -1, length)
        lib.llama_memory_seq_cp(self._memory, 1, 0, -1, -1)
        return bool(lib.llama_memory_seq_rm(self._memory, 1, -1, -1))

    def page(self, start: int, end: int, room: bytearray | None = None) -> memoryview:
        """What the cache holds of the positions from `start` to before `end`, for `add_page`.

        It is written to `room` where that is large enough.
        """
        lib.llama_memory_seq_cp(self._memory, 0, 1, start, end)
        size = int(lib.llama_state_seq_get_size(self._context, 1))
        room = room if room is not None and len(room) >= size else bytearray(size)
        state = (ctypes.c_uint8 * size).from_buffer(room)
        written = int(lib.llama_state_seq_get_data(self._context, state, size, 1))
        lib.llama_memory_seq_rm(self._memory, 1, -1, -1)
        return memoryview(room)[:written]

    def add_page(self, state: bytearray | memoryview, end: int) -> bool:
        """Append what `page` gave, up to the position `end`; False leaves the cache as it was.

        llama.cpp aborts the process on some broken states: it must be what this build has written.
        """
        start, size = self.length, len(state)
        data = (ctypes.c_uint8 * size).from_buffer(state)
        read = int(lib.llama_state_seq_set_data(self._context, data, size, 1))
        first = int(lib.llama_memory_seq_pos_min(self._memory, 1))
        last = int(lib.llama_memory_seq_pos_max(self._memory, 1))
        fits = (read, first, last) == (size, start, end - 1)
        if fits:
            lib.llama_memory_seq_cp(self._memory, 1, 0, -1, -1)
        lib.llama_memory_seq_rm(self._memory, 1, -1, -1)
        return fits

    def restore(self, state: Any) -> bool:
        """Put `saved` bytes into this empty cache; False if they do not suit it."""
        return bool(lib.llama_state_seq_set_data(self._context, state, len(state), 0))

    def close(self) -> None:
        if self._context:
            lib.llama_free(self._context)
            self._context = None
            self._pool.leave()


class Sampler:
    """Draws the next token: top_k, top_p, min_p, temperature, in the order that Qwen gives."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for link in self._links(sampling, seed):
            lib.llama_sampler_chain_add(self._chain, link)
        self._candidates = _Candidates(1 if sampling.greedy else sampling.top_k)

    def sample(self, logits: NDArray[np.float32]) -> int:
        """The next token, drawn from `logits`, one a token of the vocabulary."""
        candidates = self._candidates.of(logits)
        lib.llama_sampler_apply(self._chain, candidates)
        token = int(candidates.data[candidates.selected].id)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        lib.llama_sampler_free(self._chain)

    @staticmethod
    def _links(sampling: Sampling, seed: int) -> Iterator[Any]:
        if sampling.greedy:
            yield lib.llama_sampler_init_greedy()
            return
        yield lib.llama_sampler_init_top_k(sampling.top_k)
        yield lib.llama_sampler_init_top_p(sampling.top_p, 1)
        yield lib.llama_sampler_init_min_p(sampling.min_p, 1)
        yield lib.llama_sampler_init_temp(sampling.temperature)
        yield lib.llama_sampler_init_dist(seed)


_WIDTH = 512  # tokens that are compared with as many that follow them, at most
_MOST = 4096  # candidates that it pays to pick out
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class _Candidates:
    """The few tokens that the `top_k` likeliest are among, as llama.cpp's samplers take them.

    llama.cpp itself begins with a candidate for every token of the vocabulary, 1.8 MB for QwQ's, of
    which top-k keeps 40: half of what is done for a token outside `llama_decode`. Here logits are
    only read: of `top_k` groups of tokens, each has one that is as likely as the least of their
    maxima, so that what is below it can be left out. Where the likeliest are spread evenly over
    the groups, `top_k` * (1 + 1/2 + ... + 1/`top_k`) stay: 171 for 40.
    """

    def __init__(self, top_k: int) -> None:
        self._top_k = max(top_k, 0)
        self._logits: NDArray[np.float32] | None = None

    def of(self, logits: NDArray[np.float32]) -> Any:
        """A llama_token_data_array in memory of this object, valid until the next call.

        Every token is in it without a top-k, in a small vocabulary, and where most logits are
        alike or none is a number.
        """
        if logits is not self._logits:  # making views and buffers takes longer than all the rest
            self._lay_out(logits)
        ids = self._likeliest(logits)
        count = len(ids)
        if 0 < count <= _MOST:
            self._ids[:count], self._values[:count] = ids, logits[ids]
        else:
            self._ids[:], self._values[:], count = self._all, logits, len(logits)
        array = self._array
        array.size, array.selected, array.sorted = count, -1, False
        return array

    def _likeliest(self, logits: NDArray[np.float32]) -> NDArray[np.integer[Any]]:
        if not len(self._groups):
            return self._all
        np.maximum.reduce(self._groups, out=self._maxima)
        np.maximum.reduce(self._maxima.reshape(-1, self._top_k), out=self._topmost)
        np.minimum.reduce(self._topmost, out=self._least)
        ids: NDArray[np.intp]
        (ids,) = np.greater_equal(logits, self._least, self._mask).nonzero()
        return ids

    def _lay_out(self, logits: NDArray[np.float32]) -> None:
        """Make room for the candidates of a vocabulary, and what is needed to find them."""
        self._logits = logits
        candidates = np.zeros(len(logits), _CANDIDATE)  # llama_token_data
        self._ids, self._values = candidates["id"], candidates["logit"]
        data = ctypes.cast(candidates.ctypes.data, lib.llama_token_data_p)
        self._array = lib.llama_token_data_array(data, 0, -1, False)
        self._all = np.arange(len(logits), dtype=np.int32)
        # a group is each `top_k`-th token: maxima of rows that lie side by side take a third
        width = _WIDTH // self._top_k * self._top_k if self._top_k else 0
        rows = len(logits) // width if width else 0
        self._groups = logits[: rows * width].reshape(rows, width)
        self._maxima = np.empty(width, np.float32)
        self._topmost = np.empty(self._top_k, np.float32)
        self._least = np.empty((), np.float32)
        self._mask = np.empty(len(logits), np.bool_)


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device that this build can use, as ggml describes it."""

    name: str  # such as CUDA0
    description: str  # such as NVIDIA GeForce RTX 3090
    backend: str  # the registry it comes from: CUDA, MTL, Vulkan, ROCm, RPC[...], CPU
    kind: str  # one of DEVICE_KINDS
    free_bytes: int
    total_bytes: int


DEVICE_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")  # enum ggml_backend_dev_type


def devices() -> list[DeviceInfo]:
    """Every device of every backend in this build, the CPU among them."""
    return [_device_info(pointer) for pointer in _device_pointers().values()]


def _device_pointers() -> dict[str, int]:
    """What ggml knows a device by, by its name, in ggml's order."""
    start()
    count = _must("ggml_backend_dev_count", ctypes.c_size_t)
    get = _must("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    pointers = [get(index) for index in range(count())]
    return {_text_of("ggml_backend_dev_name", pointer): pointer for pointer in pointers}


def backends() -> list[str]:
    """The backends in this build, such as CPU and CUDA, whether or not they found a device."""
    start()
    count = _must("ggml_backend_reg_count", ctypes.c_size_t)
    registry = _must("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    return [_text_of("ggml_backend_reg_name", registry(index)) for index in range(count())]


def machine() -> dict[str, Any]:
    """Devices and backends as plain values: what `hardware.probe` takes for llama.cpp's answer."""
    return {"devices": [asdict(device) for device in devices()], "backends": backends()}


def buffer_owners() -> dict[str, str]:
    """Device by the name of its buffers in llama.cpp's log, where that is another name.

    The first device of every RPC server has buffers called RPC0[HOST:PORT].
    """
    owners = {}
    for name, pointer in _device_pointers().items():
        buffers = _must("ggml_backend_dev_buffer_type", ctypes.c_void_p, ctypes.c_void_p)(pointer)
        owners[_text_of("ggml_backend_buft_name", buffers)] = name
    return owners


def _device_info(device: int) -> DeviceInfo:
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    size = ctypes.POINTER(ctypes.c_size_t)
    memory = _must("ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
    memory(device, ctypes.byref(free), ctypes.byref(total))
    kind = _must("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)(device)
    registry = _must("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)(device)
    return DeviceInfo(
        name=_text_of("ggml_backend_dev_name", device),
        description=_text_of("ggml_backend_dev_description", device),
        backend=_text_of("ggml_backend_reg_name", registry),
        kind=DEVICE_KINDS[kind] if 0 <= kind < len(DEVICE_KINDS) else "accel",
        free_bytes=free.value,
        total_bytes=total.value,
    )


def _text_of(function: str, pointer: int) -> str:
    text = _must(function, ctypes.c_char_p, ctypes.c_void_p)(pointer) or b""
    return str(text.decode("utf-8", "replace"))


def _must(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A function that every build of ggml has."""
    function = _ggml(name, result, *arguments)
    if function is None:
        raise EngineError(
            f"This build of llama.cpp lacks {name}.", "pip install --upgrade llama-cpp-python"
        )
    return function


def _of_cpu(name: str, result: Any, *arguments: Any) -> Callable[..., Any] | None:
    """A function that the CPU backend lends, also where a build loads it as a plugin."""
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    backend = _must("ggml_backend_reg_by_name", pointer, text)(b"CPU")
    lend = _must("ggml_backend_reg_get_proc_address", pointer, pointer, text)
    address = lend(backend, name.encode()) if backend else None
    return ctypes.CFUNCTYPE(result, *arguments)(address) if address else None


_GGML_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}  # enum ggml_type


class _BufferOverride(ctypes.Structure):
    """struct llama_model_tensor_buft_override"""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def place_weights(params: Any, placement: Placement) -> list[Any]:
    """Set what llama_model_params says of a placement; the result must outlive the load."""
    params.n_gpu_layers = placement.gpu_layers
    kept: list[Any] = []
    if placement.devices is not None:
        devices = _device_array(placement.devices)
        params.devices = ctypes.addressof(devices)
        kept.append(devices)
    if placement.tensor_split:
        split = (ctypes.c_float * lib.LLAMA_MAX_DEVICES)(*placement.tensor_split)
        params.tensor_split = split
        kept.append(split)
    if placement.cpu_ffn:
        layers = "|".join(map(str, placement.cpu_ffn))
        pattern = rf"^blk\.({layers})\.ffn_(up|gate|down)".encode()
        cpu = _must("ggml_backend_cpu_buffer_type", ctypes.c_void_p)()
        overrides = (_BufferOverride * 2)(_BufferOverride(pattern, cpu))  # ends with a null
        params.tensor_buft_overrides = ctypes.addressof(overrides)
        kept += [overrides, pattern]
    if not placement.mmap:
        params.load_mode = 0  # LLAMA_LOAD_MODE_NONE
    return kept


def _device_array(names: Sequence[str]) -> Any:
    """llama_model_params.devices: the devices that are called so, and a null at the end."""
    pointers = _device_pointers()
    for name in names:
        if name not in pointers:
            raise EngineError(f"The device {name} is gone.", "qwq doctor")
    return (ctypes.c_void_p * (len(names) + 1))(*(pointers[name] for name in names))


def place_cache(params: Any, placement: Placement) -> None:
    """Set what llama_context_params says of a placement."""
    params.n_ctx = placement.n_ctx
    params.n_batch = params.n_ubatch = placement.n_batch
    params.flash_attn_type = _FLASH_ATTN[placement.flash_attn]
    params.type_k = _GGML_TYPES[placement.type_k]
    params.type_v = _GGML_TYPES[placement.type_v]
    params.n_outputs_max = -(-placement.n_outputs // OUTPUTS) * OUTPUTS  # see there
    if placement.yarn_factor:
        params.rope_scaling_type = 2  # LLAMA_ROPE_SCALING_TYPE_YARN
        params.rope_freq_scale = 1 / placement.yarn_factor
        params.yarn_orig_ctx = placement.yarn_original_context


def dry_load(path: Path, placement: Placement, vocabulary: tuple[str, int]) -> dict[str, int]:
    """Bytes of compute buffer per device that a load with this placement would take.

    Nothing is allocated and no weight is read. `vocabulary` is the architecture and the number of
    tokens, so that llama.cpp need not build its tokenizer: half of the time of a dry load.
    """
    start()
    log.lines.clear()
    params = lib.llama_model_default_params()
    params.no_alloc, params.load_mode = True, 0  # LLAMA_LOAD_MODE_NONE: nothing is mapped
    params.use_extra_bufts = False
    overrides = _without_vocabulary(*vocabulary)
    params.kv_overrides = overrides
    kept = place_weights(params, placement)
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise _load_error(path)
    try:
        for part in placement.contexts:
            _dry_context(model, part)
        return _compute_buffers(log.text())
    finally:
        lib.llama_model_free(model)
        del kept


def _dry_context(model: Any, placement: Placement) -> None:
    params = lib.llama_context_default_params()
    place_cache(params, placement)
    params.n_threads = params.n_threads_batch = 1
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise EngineError(f"llama.cpp could not plan this context: {_last_error()}")
    lib.llama_free(context)


def _without_vocabulary(architecture: str, n_vocab: int) -> Any:
    """llama_model_params.kv_overrides that put a number of tokens in place of the tokenizer."""
    overrides = (lib.llama_model_kv_override * 3)()  # ends with an empty key
    overrides[0].tag, overrides[0].key = 3, b"tokenizer.ggml.model"  # 3: a string
    overrides[0].value.val_str = b"no_vocab"
    overrides[1].tag, overrides[1].key = 0, f"{architecture}.vocab_size".encode()  # 0: an integer
    overrides[1].value.val_i64 = n_vocab
    return overrides


def _compute_buffers(load_log: str) -> dict[str, int]:
    """Bytes by device, from `sched_reserve: <buffers> compute buffer size = <n> MiB`.

    Buffers that are not a device's usual ones keep their own name.
    """
    owners, found = buffer_owners(), dict[str, int]()
    for line in load_log.splitlines():
        head, _, size = line.partition(" compute buffer size = ")
        if size:
            name = head.rpartition(": ")[2].strip()
            name = owners.get(name, name)
            found[name] = found.get(name, 0) + round(float(size.split()[0]) * 2**20)
    return found


def _abort_callback() -> tuple[Any, Any]:
    """A C function that says whether the first byte of its argument is set, without Python.

    llama.cpp asks `bool callback(void *)` at every node of every graph; a Python callback would
    take the interpreter lock each time. `strlen` has the same shape, and over a buffer of one byte
    and a terminator it answers just that: 1 when the byte is set, 0 when not.
    """
    strlen = ctypes.CDLL(None if os.name == "posix" else "msvcrt").strlen
    return strlen, ctypes.cast(strlen, lib.ggml_abort_callback)


def _load_error(path: Path) -> Exception:
    text = log.text(_WARNING)
    unknown = text.partition("unknown model architecture: '")[2].partition("'")[0]
    if unknown:
        return BadFile(
            f"{path.name} is a model of architecture '{unknown}', which this build of llama.cpp"
            " does not know.",
            "pip install --upgrade llama-cpp-python",
        )
    if _memory_refused():
        return OutOfMemory(f"There was no memory for the weights of {path.name}: {_last_error()}")
    return EngineError(f"llama.cpp could not load {path.name}: {_last_error()}")


def _memory_refused() -> bool:
    said = log.text(_WARNING).lower()
    return any(words in said for words in MEMORY_WORDS)


def _last_error() -> str:
    """The most telling line that llama.cpp logged, without its function name."""
    lines = [line.strip() for line in log.text(_WARNING).splitlines() if line.strip()]
    # the last lines only repeat that loading failed; the first error says why
    telling = [line for line in lines if "error" in line.lower()] or lines[-1:] or ["no reason"]
    said = telling[0].partition(": ")[2] or telling[0]
    return said.rstrip(". ") + "."
