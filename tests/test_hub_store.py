"""What is already on this machine: reused, listed, removed; and a cache that someone prepared."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_files import Tensor, write_gguf
from hub_server import HubServer
from hub_world import FILE, QWEN, World, interrupted_pull, model_bytes

from qwqcli.errors import BadFile, QwqError, UsageError
from qwqcli.hub import Found, Notice, Progress
from qwqcli.hub.reuse import Sums
from qwqcli.hub.spans import Journal, gaps, held
from qwqcli.hub.store import cache_root


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with HubServer() as server:
        yield World(server, tmp_path)


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def on_another_disk(*_: object, **__: object) -> None:
    """What os.link does where a link cannot be."""
    raise OSError(18, "Invalid cross-device link")


def sha256(world: World) -> str:
    return world.server.repos[QWEN].files[FILE].sha256


def ollama(world: World, data: bytes, model: str = "qwq", tag: str = "32b") -> Path:
    """A model in Ollama's store, as `ollama pull` leaves it."""
    root = world.home / "ollama"
    blob = put(root / "blobs" / f"sha256-{sha256(world)}", data)
    layer = {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": f"sha256:{sha256(world)}",
        "size": len(data),
    }
    manifest = root / "manifests" / "registry.ollama.ai" / "library" / model / tag
    put(manifest, json.dumps({"layers": [layer]}).encode())
    return blob


PLACES = {
    "LM Studio": ".lmstudio/models/lmstudio-community/QwQ-32B-GGUF/QwQ-32B-Q4_K_M.gguf",
    "LM Studio, old": ".cache/lm-studio/models/a/b/x.gguf",
    "llama.cpp": ".cache/llama.cpp/Qwen_QwQ-32B-GGUF_qwq-32b-q4_k_m.gguf",
    "ModelScope": ".cache/modelscope/hub/models/Qwen/QwQ-32B-GGUF/qwq-32b-q4_k_m.gguf",
}


@pytest.mark.parametrize(("owner", "place"), PLACES.items(), ids=PLACES.keys())
def test_content_that_another_tool_has_is_not_downloaded(
    world: World, owner: str, place: str
) -> None:
    """A file of the same size and checksum gets a second name in the cache, and stays its own."""
    theirs = put(world.home / place, world.data)
    events = world.pull()
    (found,) = [event for event in events if isinstance(event, Found)]
    assert (found.owner, found.path) == (owner.partition(",")[0], theirs)
    (path,) = events[-1].paths  # type: ignore[union-attr]
    assert path.samefile(theirs)
    assert not theirs.is_symlink()
    assert world.server.sent == 0


def test_ollamas_blob_is_used(world: World) -> None:
    """Ollama names its blobs by checksum, which is where to look, and is checked all the same."""
    theirs = ollama(world, world.data)
    assert world.pulled().how == "linked"
    theirs.write_bytes(theirs.read_bytes()[:-1] + b"!")
    world.hub().remove(world.hub().models()[0])
    assert world.pulled().how == "downloaded"


def test_reuse_can_be_refused(world: World) -> None:
    """With reuse off the file is downloaded, whoever else has it."""
    ollama(world, world.data)
    assert world.pulled(reuse=False).how == "downloaded"


def test_where_no_link_can_be_made_the_file_is_used_in_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another disk there is no second name: the path is theirs, and removing leaves it there."""
    monkeypatch.setattr(os, "link", on_another_disk)
    theirs = ollama(world, world.data)
    pulled = world.pulled()
    assert (pulled.how, pulled.paths) == ("in place", (theirs,))
    hub = world.hub()
    (model,) = [model for model in hub.models() if model.ours]
    assert hub.remove(model).stays == (theirs,)
    assert theirs.read_bytes() == world.data


def test_a_file_of_the_same_size_with_other_bytes_is_not_taken(world: World) -> None:
    """Size is a hint; the checksum decides."""
    put(world.home / PLACES["llama.cpp"], world.data[:-1] + b"!")
    assert world.pulled().how == "downloaded"


def test_a_checksum_is_computed_once(world: World, tmp_path: Path) -> None:
    """It is remembered as long as size, time and inode stay the same."""
    path = put(tmp_path / "x.gguf", b"GGUF")
    sums = Sums(tmp_path / "known.json")
    assert sums.known(path) is None
    first = run(sums, path)
    assert sums.known(path) == first
    os.utime(path, ns=(1, 1))
    assert sums.known(path) is None
    (tmp_path / "known.json").write_bytes(b"[1")
    assert run(sums, path) == first


def run(sums: Sums, path: Path) -> str:
    steps = sums.of(path)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return str(end.value)


# -- listing and removing


def test_the_list_has_ours_and_theirs(world: World) -> None:
    """What we pulled comes with its origin, what others keep with its owner and their name."""
    ollama(world, b"GGUF of another model", "llama", "1b")
    put(world.home / ".lmstudio/models/a/b/m-Q8_0-00001-of-00002.gguf", b"GGUF 1")
    put(world.home / ".lmstudio/models/a/b/m-Q8_0-00002-of-00002.gguf", b"GGUF 2")
    world.pull()
    mine, *others = world.hub().models()
    assert (mine.name, mine.repo, mine.ours) == (f"{QWEN}:Q4_K_M", QWEN, True)
    assert (mine.license, mine.sha256) == ("apache-2.0", (sha256(world),))
    assert mine.used_s == 0
    assert [(m.owner, m.name, len(m.paths), m.ours) for m in others] == [
        ("Ollama", "llama:1b", 1, False),
        ("LM Studio", "m-Q8_0-00001-of-00002.gguf", 2, False),
    ]
    assert (others[1].quantization, others[1].repo) == ("Q8_0", "a/b")
    assert all(world.hub().find(model.name) == model for model in (mine, *others))


def test_use_is_remembered(world: World) -> None:
    """What was used or pulled last comes first where a name can mean several."""
    world.server.add("bartowski/Qwen_QwQ-32B-GGUF", {"Qwen_QwQ-32B-IQ4_XS.gguf": model_bytes(9000)})
    first, second = world.pulled().paths[0], world.pulled("iq4_xs").paths[0]
    hub = world.hub()
    age(world.home / "qwq-data/models", "Qwen--*.json", 100)
    assert (latest := hub.latest()) is not None
    assert latest.paths == (second,)
    hub.used(first)
    assert (latest := hub.latest()) is not None
    assert latest.paths == (first,)
    assert latest.used_s > 0
    assert (named := hub.find("iq4_xs")) is not None
    assert named.used_s == 0


def age(folder: Path, pattern: str, seconds: float) -> None:
    """Make files look as if they had been written earlier."""
    for path in folder.glob(pattern):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


@pytest.mark.parametrize(
    ("name", "is_qwq"),
    [
        ("qwq-32b-q4_k_m.gguf", True),
        ("Qwen_QwQ-32B-IQ4_XS.gguf", True),
        ("QwQ-32B.i1-IQ2_M.gguf", True),
        ("QwQ-32B-UD-Q4_K_XL.gguf", True),
        ("qwq-32b-fp16-00001-of-00017.gguf", True),
        ("QwQ-32B.gguf", True),
        ("QwQ-32B-Preview-Q4_K_M.gguf", False),
        ("QwQ-32B-ArliAI-RpR-v4-Q4_K_M.gguf", False),
        ("QwQ-32B-Preview.gguf", False),
    ],
)
def test_a_bare_quantization_means_qwq_itself(
    world: World, tmp_path: Path, name: str, is_qwq: bool
) -> None:
    """Neither its preview nor what others made of it is taken for QwQ-32B."""
    path = put(world.home / ".cache/llama.cpp" / name, b"GGUF")
    found = world.hub().find("")
    assert (found is not None and found.paths == (path,)) == is_qwq


def test_a_pulled_model_is_found_by_any_of_its_names(world: World) -> None:
    """By quantization, repository and file, whatever the capitals; another one is not."""
    world.server.add("a/b", {"m-Q8_0.gguf": b"GGUF"})
    (path,) = world.pulled("a/b:q8_0").paths
    hub = world.hub()
    for text in ("a/b", "A/B:Q8_0", "a/b:q8_0", "a/b:m-Q8_0.gguf", "hf.co/a/b/m-Q8_0.gguf"):
        found = hub.find(text)
        assert found is not None, text
        assert found.paths == (path,)
    for text in ("q8_0", "", "a/b:q4_0", "a/b:x.gguf", "b/b"):  # a bare one means QwQ-32B
        assert hub.find(text) is None, text


def test_lm_studio_may_have_moved(world: World, tmp_path: Path) -> None:
    """Its pointer file and its settings say where the models are."""
    put(world.home / ".lmstudio-home-pointer", f"{tmp_path}/studio\n".encode())
    put(
        tmp_path / "studio" / "settings.json",
        json.dumps({"downloadsFolder": str(tmp_path / "moved")}).encode(),
    )
    put(tmp_path / "moved/a/b/x.gguf", world.data)
    assert world.pulled().how == "linked"


def test_a_damaged_manifest_of_ollama_is_passed_over(world: World) -> None:
    """Another tool's files are read as what they are: a stranger's."""
    manifests = world.home / "ollama/manifests/registry.ollama.ai/library/m"
    for name, text in (
        ("a", "["), ("b", "{}"), ("c", '{"layers": [3]}'),
        ("d", '{"layers": [{"mediaType": "application/vnd.ollama.image.model",'
              ' "digest": "sha256:../../x"}]}'),
    ):  # fmt: skip
        put(manifests / name, text.encode())
    assert world.hub().models() == ()


def test_removing_frees_the_disk_and_leaves_no_trace(world: World) -> None:
    """File, names and empty folders go, and what was freed is said."""
    world.pull()
    hub = world.hub()
    removed = hub.remove(hub.models()[0])
    assert removed.freed >= len(world.data)
    assert removed.stays == ()
    assert hub.models() == ()
    assert not world.blobs.parent.exists()


def test_removing_leaves_other_files_of_the_repository(world: World) -> None:
    """Only what the model consists of is removed."""
    world.server.repos[QWEN].files |= world.server.add("x/y", {"m-Q8_0.gguf": b"GGUF 8"}).files
    world.pull("q4_k_m")
    (kept,) = world.pulled("q8_0").paths
    hub = world.hub()
    model = hub.find("q4_k_m")
    assert model is not None
    hub.remove(model)
    assert kept.read_bytes() == b"GGUF 8"
    assert [model.quantization for model in hub.models()] == ["Q8_0"]


def test_what_an_interrupted_pull_left_can_be_discarded(world: World) -> None:
    """It is listed with what it has, and frees the disk; a pull that is at it keeps it."""
    interrupted_pull(world, after=500_000)
    hub = world.hub()
    (left,) = hub.unfinished()
    assert (left.repo, left.name, left.size) == (QWEN, FILE, len(world.data))
    assert 0 < left.done <= 500_000
    world.server.rate = 500_000
    running = hub.pull(hub.choose("q4_k_m"))
    next(event for event in running if isinstance(event, Progress))
    with pytest.raises(UsageError, match="being downloaded"):
        hub.discard(left)
    running.close()  # type: ignore[attr-defined]
    assert hub.discard(left) > 0
    assert hub.unfinished() == ()
    assert world.leftovers() == []


def test_what_is_partial_in_a_folder_is_found_again(world: World, tmp_path: Path) -> None:
    """It is listed with its folder, goes on, and is listed no more; what is deleted by hand too."""
    for folder in (tmp_path / "one", tmp_path / "two"):
        interrupted_pull(world, after=500_000, to=folder)
    hub = world.hub()
    left = hub.unfinished("q4_k_m")
    assert {item.to for item in left} == {tmp_path / "one", tmp_path / "two"}
    assert {(item.label, item.size) for item in left} == {(f"{QWEN}:{FILE}", len(world.data))}
    assert all(0 < item.done <= 500_000 for item in left)
    before = world.server.sent
    world.pull(to=tmp_path / "one")
    assert world.server.sent - before < len(world.data)
    (other,) = hub.unfinished()
    assert other.to == tmp_path / "two"
    other.path.unlink()
    assert hub.unfinished() == ()


def test_what_is_partial_in_a_folder_can_be_discarded(world: World, tmp_path: Path) -> None:
    """A pull that is at it keeps it; else the folder is empty afterwards, and no note is left."""
    interrupted_pull(world, after=500_000, to=tmp_path / "models")
    hub = world.hub()
    (left,) = hub.unfinished()
    world.server.rate = 500_000
    running = hub.pull(hub.choose("q4_k_m"), to=tmp_path / "models")
    next(event for event in running if isinstance(event, Progress))
    with pytest.raises(UsageError, match="being downloaded"):
        hub.discard(left)
    running.close()  # type: ignore[attr-defined]
    assert hub.discard(left) > 0
    assert list((tmp_path / "models").iterdir()) == []
    assert list((world.home / "qwq-data" / "pulls").iterdir()) == []


@pytest.mark.parametrize("note", [b"", b"[", b"[]", b"3", b"{}", b'{"partial": 1}', b"\xff"])
def test_a_damaged_note_of_a_pull_is_passed_over(world: World, tmp_path: Path, note: bytes) -> None:
    """What can be read is listed all the same."""
    interrupted_pull(world, after=500_000, to=tmp_path / "models")
    put(world.home / "qwq-data" / "pulls" / "0.json", note)
    assert len(world.hub().unfinished()) == 1


def test_what_another_tool_owns_is_never_removed(world: World) -> None:
    """The error names the owner and its own command."""
    theirs = ollama(world, world.data)
    hub = world.hub()
    with pytest.raises(UsageError, match="belongs to Ollama") as caught:
        hub.remove(hub.models()[0])
    assert "ollama rm" in caught.value.hint
    assert theirs.exists()


def test_a_link_is_removed_and_the_other_tools_file_stays(world: World) -> None:
    """Removing a reused model frees nothing and takes nothing away."""
    theirs = ollama(world, world.data)
    world.pull()
    hub = world.hub()
    assert hub.remove(hub.models()[0]).freed == 0
    assert theirs.read_bytes() == world.data


def test_what_hf_downloaded_stays_when_our_receipt_goes(world: World) -> None:
    """A file that was in the cache before our pull is not ours to delete."""
    (path,) = world.pulled().paths
    shutil.rmtree(world.home / "qwq-data")
    assert world.pulled().how == "kept"
    hub = world.hub()
    assert hub.remove(hub.models()[0]).stays == (path,)
    assert path.exists()


def test_a_file_that_changed_since_its_pull_is_not_removed(world: World, tmp_path: Path) -> None:
    """What lies at the place of a pulled file but is another is not ours to delete."""
    (path,) = world.pulled(to=tmp_path / "models").paths
    path.write_bytes(b"somebody's work")
    hub = world.hub()
    with pytest.raises(UsageError, match="has changed"):
        hub.remove(hub.models()[0])
    assert path.exists()


def test_what_hf_downloads_while_we_wait_is_not_ours(world: World) -> None:
    """Who waits for another tool's download takes it as it is, and cannot remove it."""
    hub_library = pytest.importorskip("huggingface_hub")
    world.server.rate = 3_000_000
    options = {"cache_dir": world.cache, "endpoint": world.server.url, "token": False}
    other = threading.Thread(target=hub_library.hf_hub_download, args=(QWEN, FILE), kwargs=options)
    other.start()
    while not world.server.sent:
        time.sleep(0.01)
    assert world.pulled().how == "kept"
    other.join()
    hub = world.hub()
    assert hub.remove(hub.models()[0]).freed == 0


def test_parts_are_not_used_in_place(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of a split model must lie side by side, so one elsewhere does not help."""
    monkeypatch.setattr(os, "link", on_another_disk)
    parts = {f"m-F16-0000{n}-of-00002.gguf": f"GGUF {n}".encode() for n in (1, 2)}
    world.server.add("a/b", parts)
    put(world.home / ".lmstudio/models/x/y/part.gguf", b"GGUF 2")
    pulled = world.pulled("a/b")
    assert pulled.how == "downloaded"
    assert len({path.parent for path in pulled.paths}) == 1


def test_a_second_pull_does_not_make_our_file_anothers(world: World) -> None:
    """Pulled twice, it still is ours to remove."""
    world.pull()
    world.pull()
    hub = world.hub()
    assert hub.remove(hub.models()[0]).freed > 0


def test_a_model_can_be_imported_by_its_path(world: World, tmp_path: Path) -> None:
    """It gets a receipt and stays where it is; removing takes the receipt only."""
    metadata = {"general.architecture": "llama", "llama.block_count": 1, "general.file_type": 0}
    path = write_gguf(tmp_path / "mine.gguf", metadata, [Tensor("blk.0.ffn_up.weight", (32, 32))])
    hub = world.hub()
    model = hub.adopt(path)
    assert (model.name, model.quantization, model.how) == ("mine", "F32", ("imported",))
    assert hub.find("MINE") == hub.models()[0]
    assert hub.adopt(path).name == "mine"
    assert [m.name for m in hub.models()] == ["mine"]
    assert hub.remove(model).stays == (path,)
    assert path.exists()


def test_an_imported_name_is_nobody_elses(world: World, tmp_path: Path) -> None:
    """A name that another model has, or that means something else, gets a number."""
    metadata = {"general.architecture": "llama", "llama.block_count": 1, "general.file_type": 0}
    tensors = [Tensor("blk.0.ffn_up.weight", (32, 32))]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_gguf(tmp_path / folder / "mine.gguf", metadata, tensors)
    hub = world.hub()
    assert hub.adopt(tmp_path / "a/mine.gguf", ("mine",)).name == "mine-2"
    assert hub.adopt(tmp_path / "b/mine.gguf", ("mine",)).name == "mine-3"


def test_what_is_no_model_cannot_be_imported(world: World, tmp_path: Path) -> None:
    """A missing file and a file that is none are errors at once."""
    with pytest.raises(UsageError):
        world.hub().adopt(tmp_path / "none.gguf")
    with pytest.raises(BadFile):
        world.hub().adopt(put(tmp_path / "x.gguf", b"<html>"))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"paths": ["/etc/passwd"]}', b'{"paths": 3}'])
def test_a_damaged_receipt_is_passed_over(world: World, text: bytes) -> None:
    """A broken file in the data folder breaks no list."""
    put(world.home / "qwq-data" / "models" / "x.json", text)
    assert world.hub().models() == ()


# -- a cache that someone prepared


def test_a_link_planted_in_the_cache_is_refused(world: World, tmp_path: Path) -> None:
    """No folder below the cache's root may be a link: a download would go where it leads."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for planted in (world.blobs.parent, world.blobs, world.blobs.parent / "snapshots"):
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.symlink_to(elsewhere)
        with pytest.raises(BadFile, match="is a link"):
            world.pull()
        planted.unlink()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "pipe"])
def test_a_partial_file_that_is_not_ours_is_refused(
    world: World, tmp_path: Path, kind: str
) -> None:
    """Through a link, a second name, a folder or a pipe in its place nothing is written."""
    victim = put(tmp_path / "victim", b"precious")
    partial = world.blobs / f"{sha256(world)}.qwq.incomplete"
    partial.parent.mkdir(parents=True)
    make = {
        "link": lambda: partial.symlink_to(victim),
        "hard link": lambda: partial.hardlink_to(victim),
        "folder": lambda: partial.mkdir(),
        "pipe": lambda: os.mkfifo(partial),
    }
    make[kind]()
    with pytest.raises(BadFile):
        world.pull()
    assert victim.read_bytes() == b"precious"


def test_a_blob_that_links_out_of_the_cache_is_not_believed(world: World, tmp_path: Path) -> None:
    """Even of the right content, a link to elsewhere is replaced by a file of our own."""
    victim = put(tmp_path / "victim", world.data)
    world.blobs.mkdir(parents=True)
    (world.blobs / sha256(world)).symlink_to(victim)
    (path,) = world.pulled(reuse=False).paths
    assert not (world.blobs / sha256(world)).is_symlink()
    assert path.resolve().is_relative_to(world.cache)
    assert victim.read_bytes() == world.data


def test_a_damaged_blob_gets_no_name(world: World) -> None:
    """A blob of the right size and wrong content is not named in a snapshot, even for a moment."""
    put(world.blobs / sha256(world), world.data[:-1] + b"!")
    for _ in world.hub().pull(world.hub().choose("q4_k_m")):
        named = list(world.cache.glob("**/snapshots/*/*"))
        assert all(path.read_bytes() == world.data for path in named)
    assert named


def test_a_blob_that_links_inside_the_cache_is_the_hubs_own_way(world: World) -> None:
    """huggingface_hub 2 shares blobs between repositories by links within the cache."""
    shared = put(world.cache / "blobs" / "ab" / "ab12", world.data)
    world.blobs.mkdir(parents=True)
    (world.blobs / sha256(world)).symlink_to("../../blobs/ab/ab12")
    assert world.pulled().how == "kept"
    assert shared.exists()


def test_the_root_of_the_cache_may_be_a_link(world: World, tmp_path: Path) -> None:
    """People put the cache on another disk that way."""
    (tmp_path / "big").mkdir()
    world.cache.parent.mkdir(parents=True)
    world.cache.symlink_to(tmp_path / "big")
    (path,) = world.pulled().paths
    assert path.read_bytes() == world.data


def test_a_folder_that_anyone_can_change_is_mentioned(world: World) -> None:
    """A pull into it works, and says how to mend it."""
    world.blobs.mkdir(parents=True)
    world.blobs.chmod(0o777)
    notices = [event.text for event in world.pull() if isinstance(event, Notice)]
    assert any("chmod o-w" in text for text in notices)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_to_be_so(world: World) -> None:
    """An error of the disk is one of ours, with what to do."""
    world.cache.mkdir(parents=True)
    world.cache.chmod(0o500)
    with pytest.raises(QwqError, match="cannot be used"):
        world.pull()


def test_a_cache_that_is_a_file_is_said_to_be_one(world: World) -> None:
    """An error of the disk is one of ours, with what to do."""
    put(world.cache, b"")
    with pytest.raises(QwqError, match="cannot be used"):
        world.pull()


@pytest.mark.parametrize(
    ("environ", "root"),
    [
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HOME": "/h", "HF_HOME": "/f"}, "/f/hub"),
        ({"HOME": "/h", "HF_HOME": "/f", "HF_HUB_CACHE": "/c"}, "/c"),
        ({"HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HOME": "/h", "HF_HUB_CACHE": "~/c"}, "/h/c"),
    ],
)
def test_the_cache_is_where_the_hubs_library_has_it(environ: dict[str, str], root: str) -> None:
    """The same variables in the same order."""
    assert cache_root(environ) == Path(root)


# -- what is on disk of a partial file


@pytest.mark.parametrize(
    ("spans", "free"),
    [
        ([], ((0, 10),)),
        ([(0, 10)], ()),
        ([(5, 7), (0, 2)], ((2, 5), (7, 10))),
        ([(0, 6), (4, 8)], ((8, 10),)),
    ],
)
def test_gaps_are_what_spans_leave(
    spans: list[tuple[int, int]], free: tuple[tuple[int, int], ...]
) -> None:
    """In any order and overlapping."""
    assert gaps(spans, 10) == free
    assert held(free) == 10 - len({n for start, end in spans for n in range(start, end)})


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(put(tmp_path / "x.qwq.incomplete", bytes(100)), "a" * 64, 1000)


def inode(tmp_path: Path) -> int:
    return (tmp_path / "x.qwq.incomplete").stat().st_ino


def test_a_journal_gives_back_what_was_noted(journal: Journal, tmp_path: Path) -> None:
    """As long as the machine runs, the quick note counts."""
    journal.save(((0, 10), (20, 90)), inode(tmp_path))
    assert journal.load() == ((0, 10), (20, 90))


def test_after_a_restart_only_what_was_synced_counts(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk had not taken when the power went may be gone."""
    journal.save(((0, 10),), inode(tmp_path), synced=True)
    journal.save(((0, 90),), inode(tmp_path))
    monkeypatch.setattr("qwqcli.hub.spans.boot_id", lambda: "another run")
    assert journal.load() == ((0, 10),)


@pytest.mark.parametrize(
    "spans", [((0, 101),), ((5, 3),), ((10, 20), (0, 5)), ((-1, 4),), (("a", 2),), ((1,),), 7]
)
def test_an_impossible_note_is_worth_nothing(
    journal: Journal, tmp_path: Path, spans: object
) -> None:
    """Beyond the end, backwards, or no numbers: as if there were none."""
    journal.save(spans, inode(tmp_path))  # type: ignore[arg-type]
    assert journal.load() == ()


def test_a_note_about_another_file_is_worth_nothing(journal: Journal, tmp_path: Path) -> None:
    """Another checksum, size or inode, and nonsense."""
    journal.save(((0, 10),), inode(tmp_path) + 1)
    assert journal.load() == ()
    journal.save(((0, 10),), inode(tmp_path))
    partial = tmp_path / "x.qwq.incomplete"
    assert Journal(partial, "b" * 64, 1000).load() == ()
    assert Journal(partial, "a" * 64, 999).load() == ()
    (tmp_path / "x.qwq-journal.incomplete").write_bytes(b"[" * 100_000)
    assert journal.load() == ()
