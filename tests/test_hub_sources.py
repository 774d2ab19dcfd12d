"""From what a person types to exact files: names, quantizations, repositories, sources, headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_files import Tensor, gguf_bytes, qwq_metadata, qwq_tensors, write_split
from hub_server import Fault, HubServer
from hub_world import FILE, QWEN, World, model_bytes
from hypothesis import given
from hypothesis import strategies as st

from qwqcli.errors import BadFile, NetworkError, QwqError, UsageError
from qwqcli.gguf import read_header
from qwqcli.hub.sources import (
    QWQ_REPOS,
    RemoteFile,
    Source,
    Want,
    group,
    parse_want,
    quantization_of,
    safe_path,
    source_of,
    tokens_for,
)

BARTOWSKI = "bartowski/Qwen_QwQ-32B-GGUF"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with HubServer() as server:
        yield World(server, tmp_path)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", Want()),
        ("q5_k_m", Want(quantization="Q5_K_M")),
        (" IQ4_XS ", Want(quantization="IQ4_XS")),
        ("ud-q4_k_xl", Want(quantization="UD-Q4_K_XL")),
        ("a/b", Want("a/b")),
        ("a/b:q4_0", Want("a/b", "Q4_0")),
        ("a/b:x.gguf", Want("a/b", file="x.gguf")),
        ("a/b/c/x.gguf", Want("a/b", file="c/x.gguf")),
        ("hf.co/a/b:Q4_0", Want("a/b", "Q4_0", source="hf")),
        ("https://huggingface.co/a/b", Want("a/b", source="hf")),
        ("https://huggingface.co/a/b/tree/main", Want("a/b", source="hf")),
        (
            "https://huggingface.co/a/b/blob/main/c/x.gguf?download=true",
            Want("a/b", file="c/x.gguf", source="hf"),
        ),
        (
            "https://huggingface.co/a/b/resolve/v2/x.gguf",
            Want("a/b", file="x.gguf", revision="v2", source="hf"),
        ),
        ("modelscope.cn/a/b:Q8_0", Want("a/b", "Q8_0", source="modelscope")),
        (
            "https://www.modelscope.cn/models/a/b/file/view/master/x.gguf",
            Want("a/b", file="x.gguf", source="modelscope"),
        ),
        ("https://www.modelscope.cn/models/a/b/summary", Want("a/b", source="modelscope")),
        ("https://hf-mirror.com/a/b", Want("a/b", source="https://hf-mirror.com")),
    ],
)
def test_what_people_type_is_understood(text: str, want: Want) -> None:
    """A quantization, a repository with or without one, a file, and the URLs of hub pages."""
    assert parse_want(text) == want


@pytest.mark.parametrize("text", ["qwen", "a/b/c", "a/b:c/d", "a/b/tree/main/../../x.gguf/y"])
def test_what_cannot_be_meant_is_a_usage_error(text: str) -> None:
    """A word that is no quantization or repository is refused with an example."""
    with pytest.raises(UsageError) as caught:
        parse_want(text)
    assert caught.value.hint.startswith("qwq pull")


@pytest.mark.parametrize(("text", "revision"), [("q4_0", "main"), ("a/b", "../x"), ("a/b", "x y")])
def test_a_revision_belongs_to_a_repository_and_is_a_name(text: str, revision: str) -> None:
    """--revision without a repository, or that is a path, is refused."""
    with pytest.raises(UsageError, match="revision"):
        parse_want(text, revision)


@pytest.mark.parametrize(
    ("stem", "quantization"),
    [
        ("qwq-32b-q4_k_m", "Q4_K_M"),
        ("Qwen_QwQ-32B-IQ4_XS", "IQ4_XS"),
        ("QwQ-32B.i1-IQ1_S", "IQ1_S"),
        ("QwQ-32B.Q8_0", "Q8_0"),
        ("QwQ-32B-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("fp16/qwq-32b-fp16", "F16"),
        ("BF16/QwQ-32B.BF16", "BF16"),
        ("model", ""),
        ("QwQ-32B", ""),
    ],
)
def test_a_file_name_tells_the_quantization(stem: str, quantization: str) -> None:
    """As its publishers write it, at the end of the name."""
    assert quantization_of(stem) == quantization


def test_parts_are_grouped_and_what_is_no_model_is_left_out() -> None:
    """A set of parts is one model if it is complete; projectors and matrices are none."""
    names = [
        *("x-Q8_0-00002-of-00002.gguf", "x-Q8_0-00001-of-00002.gguf"),
        *("x-F16-00001-of-00002.gguf", "mmproj-x-F16.gguf", "x.imatrix.gguf", "x-Q4_0.gguf"),
    ]
    groups = dict(group(RemoteFile(name, 1, "") for name in names))
    assert list(groups) == ["Q8_0", "Q4_0"]
    assert [file.path for file in groups["Q8_0"]] == sorted(names[:2])


def test_a_quantization_comes_from_the_first_repository_that_has_it(world: World) -> None:
    """The makers' own files go before those of others, which fill the gaps."""
    files = {
        f"Qwen_QwQ-32B-{q}.gguf": model_bytes(100, n) for n, q in enumerate(("Q4_K_M", "IQ4_XS"))
    }
    world.server.add(BARTOWSKI, files)
    assert world.hub().choose("q4_k_m").repo == QWEN
    assert world.hub().choose("iq4_xs").repo == BARTOWSKI
    assert world.hub().choose("").name == f"{QWEN}:Q4_K_M"
    assert [offer.repo for offer in world.hub().offers()] == [QWEN, BARTOWSKI, BARTOWSKI]
    assert QWQ_REPOS[0] == QWEN


def test_the_preview_is_another_model(world: World) -> None:
    """QwQ-32B-Preview is never taken for QwQ-32B, unless its repository is named."""
    world.server.add(BARTOWSKI, {"QwQ-32B-Preview-Q3_K_M.gguf": model_bytes(100)})
    with pytest.raises(UsageError, match="has Q3_K_M"):
        world.hub().choose("q3_k_m")
    assert world.hub().choose(f"{BARTOWSKI}:q3_k_m").files[0].path.startswith("QwQ-32B-Preview")


def test_an_unknown_quantization_says_what_there_is(world: World) -> None:
    """The error lists all that exists with sizes, and the hint is the nearest."""
    world.server.add("a/b", {"m-Q4_K_M.gguf": model_bytes(100), "m-Q8_0.gguf": model_bytes(200)})
    with pytest.raises(UsageError, match=r"Q8_0 0\.0 GB, Q4_K_M 0\.0 GB") as caught:
        world.hub().choose("a/b:q4_k_s")
    assert caught.value.hint == "qwq pull a/b:Q4_K_M"


def test_an_announcement_has_exact_values(world: World) -> None:
    """Size, checksum, commit and licence are what the server holds."""
    (offer,) = world.hub().offers(QWEN)
    repo = world.server.repos[QWEN]
    assert offer.files == (RemoteFile(FILE, len(world.data), repo.files[FILE].sha256),)
    assert (offer.commit, offer.license, offer.size) == (repo.commit, repo.license, len(world.data))


def test_both_protocols_announce_the_same_file(world: World) -> None:
    """What ModelScope lists has the size and checksum of what Hugging Face lists."""
    (ours,) = world.hub().offers(QWEN)
    (theirs,) = world.hub(source="modelscope").offers(QWEN)
    assert theirs.files == ours.files
    assert len(theirs.commit) == 40


def test_a_file_without_a_checksum_cannot_be_pulled(world: World) -> None:
    """Without a published sha256 nothing could be verified."""
    world.server.repos[QWEN].no_sha = True
    with pytest.raises(BadFile, match="no checksum"):
        world.hub().choose("q4_k_m")


def test_another_revision_can_be_asked_for(world: World) -> None:
    """A commit is a revision; one that does not exist is said to be none."""
    commit = world.server.repos[QWEN].commit
    assert world.hub().choose(f"{QWEN}:q4_k_m", commit).revision == commit
    with pytest.raises(UsageError, match="no such revision"):
        world.hub().choose(f"{QWEN}:q4_k_m", "v9")


def test_an_ambiguous_repository_asks_for_more(world: World) -> None:
    """With several models and no usual one, the person has to say which."""
    world.server.add("a/b", {"m-Q2_K.gguf": model_bytes(100), "m-Q8_0.gguf": model_bytes(200)})
    with pytest.raises(UsageError, match="2 models"):
        world.hub().choose("a/b")
    assert world.hub().choose("a/b:m-Q2_K.gguf").quantization == "Q2_K"


@pytest.mark.parametrize(
    "path",
    [
        *("", "/etc/passwd", "../x", "a/../x", "a//x", "./x", "a\\b", "C:/x", "a\0b", "a\nb", "a/"),
        *("x.", " x", "x ", "a" * 201, "\x1b[2J", "a\u202eb", "nul?", "a*"),
    ],
)
def test_an_unsafe_file_name_is_refused(path: str) -> None:
    """Nothing that could leave the folder, or be another name on another system, is accepted."""
    with pytest.raises(BadFile, match="names a file"):
        safe_path(path)


@given(st.text())
def test_a_safe_name_stays_below_its_folder(path: str) -> None:
    """Whatever passes the check resolves to a place inside."""
    try:
        safe_path(path)
    except BadFile:
        return
    folder = Path("/folder")
    assert (folder / path).resolve().is_relative_to(folder)
    assert (folder / path).resolve() != folder


def test_a_repository_that_lists_an_unsafe_name_is_not_used(world: World) -> None:
    """A server that tries is not trusted with its other files either."""
    world.server.add("a/b", {"m-Q8_0.gguf": b"GGUF", "../../m-Q4_0.gguf": b"GGUF"})
    with pytest.raises(BadFile, match="names a file"):
        world.hub().choose("a/b:q8_0")


def test_names_that_differ_only_in_case_are_refused(world: World) -> None:
    """On many disks they would be one file."""
    world.server.add(
        "a/b", {"m-Q8_0-00001-of-00002.gguf": b"GGUF1", "m-Q8_0-00002-of-00002.gguf": b"GGUF2"}
    )
    offer = world.hub().choose("a/b")
    first = offer.files[0]
    from dataclasses import replace

    twins = replace(offer, files=(first, replace(first, path=first.path.upper())))
    with pytest.raises(BadFile, match="only in case"):
        list(world.hub().pull(twins))


@pytest.mark.parametrize("repo", ["a/..", "a--b/c", "a/b--c", "-a/b", "a/b c"])
def test_a_repository_name_is_a_name(world: World, repo: str) -> None:
    """What could lead elsewhere on the server or on disk is refused before it is asked for."""
    with pytest.raises(QwqError):
        world.hub().choose(repo)
    assert world.server.log == []


@pytest.mark.parametrize(
    ("text", "environ", "source"),
    [
        ("", {}, Source("huggingface", "https://huggingface.co")),
        (
            "",
            {"HF_ENDPOINT": "https://hf-mirror.com/"},
            Source("huggingface", "https://hf-mirror.com"),
        ),
        ("hf", {"HF_ENDPOINT": "https://x.y"}, Source("huggingface", "https://huggingface.co")),
        ("modelscope", {}, Source("modelscope", "https://www.modelscope.cn")),
        ("https://www.modelscope.ai", {}, Source("modelscope", "https://www.modelscope.ai")),
        ("hf-mirror.com", {}, Source("huggingface", "https://hf-mirror.com")),
    ],
)
def test_a_source_is_a_name_or_an_address(
    text: str, environ: dict[str, str], source: Source
) -> None:
    """What is typed goes before the environment, and that before Hugging Face."""
    assert source_of(text, environ) == source


@pytest.mark.parametrize("text", ["ollama", "ftp://x.y", "file:///etc", "https://"])
def test_what_is_no_source_is_refused(text: str) -> None:
    """Only hubs that are known, and web addresses."""
    with pytest.raises(UsageError):
        source_of(text, {})


@pytest.mark.parametrize(
    ("endpoint", "environ", "sent"),
    [
        ("https://huggingface.co", {}, True),
        ("https://mirror.org", {"HF_ENDPOINT": "https://mirror.org/"}, True),
        ("http://mirror.org", {"HF_ENDPOINT": "http://mirror.org"}, False),
        ("https://mirror.org", {}, False),
    ],
)
def test_a_token_is_for_those_it_was_given_for(
    endpoint: str, environ: dict[str, str], sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hugging Face and who stands in for it get the token, encrypted; nobody else does."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert bool(tokens_for(Source("huggingface", endpoint), environ)) is sent


# -- headers by range


def test_a_header_is_read_before_the_download(world: World) -> None:
    """What a plan needs comes by range, and it is what the whole file says."""
    data = gguf_bytes(qwq_metadata(layers=2, vocab=2048), qwq_tensors(layers=2, vocab=2048)[:3])
    world.server.add("a/b", {"m-Q4_K_M.gguf": data})
    hub = world.hub()
    import io

    assert hub.header(hub.choose("a/b")) == read_header(io.BytesIO(data))
    assert world.server.sent < len(data)


def test_the_header_of_a_long_vocabulary_takes_a_few_megabytes(world: World) -> None:
    """QwQ-32B's own vocabulary is read in spans: 8 MB at most, whatever the size of the model."""
    data = gguf_bytes(qwq_metadata(), [Tensor("token_embd.weight", (1024, 4096), "F32")])
    world.server.add("a/b", {"m-Q4_K_M.gguf": data})
    hub = world.hub()
    assert hub.header(hub.choose("a/b")).n_vocab == 152_064
    assert world.server.sent <= 8 << 20


def test_a_header_survives_a_bad_connection(world: World) -> None:
    """Cuts and refusals on the way are retried from where it was."""
    data = gguf_bytes(qwq_metadata(vocab=20_000), [Tensor("token_embd.weight", (64, 64))])
    world.server.add("a/b", {"m-Q4_K_M.gguf": data})
    world.server.faults = [Fault(cut=50_000, times=2), Fault(status=503, times=1)]
    hub = world.hub()
    assert hub.header(hub.choose("a/b")).n_vocab == 20_000


def test_a_header_that_promises_more_than_the_file_has_is_refused(world: World) -> None:
    """20 GB that cannot be whole are not worth downloading."""
    data = gguf_bytes(qwq_metadata(vocab=2048), [Tensor("token_embd.weight", (64, 64))])
    world.server.add("a/b", {"m-Q4_K_M.gguf": data[:-100]})
    hub = world.hub()
    with pytest.raises(BadFile, match="its header speaks of"):
        hub.header(hub.choose("a/b"))


def test_a_short_header_needs_no_ranges(world: World) -> None:
    """From a server without ranges the first bytes do; gated files are said to be gated."""
    data = gguf_bytes(qwq_metadata(vocab=2048), [Tensor("token_embd.weight", (64, 64))])
    world.server.add("a/b", {"m-Q4_K_M.gguf": data})
    world.server.faults = [Fault(no_ranges=True)]
    hub = world.hub()
    assert hub.header(hub.choose("a/b")).n_vocab == 2048
    world.server.repos["a/b"].gated = True
    with pytest.raises(UsageError, match="conditions"):
        hub.header(hub.choose("a/b"))


def test_the_headers_of_all_parts_make_one_model(world: World, tmp_path: Path) -> None:
    """A split model is described as a whole."""
    tensors = [Tensor(f"blk.{n}.ffn_up.weight", (32, 32)) for n in range(4)]
    metadata = {"general.architecture": "llama", "llama.block_count": 4}
    paths = write_split(tmp_path, "m-F32", metadata, [tensors[:2], tensors[2:]])
    world.server.add("a/b", {path.name: path for path in paths})
    hub = world.hub()
    info = hub.header(hub.choose("a/b"))
    assert (info.n_tensors, info.n_params) == (4, 4 * 32 * 32)


def test_a_remote_file_that_is_no_model_is_said_to_be_none(world: World) -> None:
    """A wrong start is an error of the file; a dead server is one of the network."""
    world.server.add("a/b", {"m-Q4_0.gguf": b"<!doctype html>" * 100})
    hub = world.hub()
    with pytest.raises(BadFile, match="web page"):
        hub.header(hub.choose("a/b"))
    world.server.faults = [Fault(status=503)]
    with pytest.raises(NetworkError, match="503"):
        hub.header(hub.choose("a/b"))
