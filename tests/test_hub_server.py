"""The hub for tests speaks the protocol: huggingface_hub's own client says so."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer
from hub_world import FILE, QWEN, World, model_bytes

from qwqcli.hub import Waiting

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = importlib.import_module("huggingface_hub.constants")
errors = importlib.import_module("huggingface_hub.errors")


@pytest.fixture(autouse=True)
def _plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add(QWEN, {FILE: model_bytes(), "README.md": b"# QwQ"})
        yield server


def download(server: HubServer, cache: Path, **options: object) -> Path:
    return Path(
        huggingface_hub.hf_hub_download(
            QWEN, FILE, cache_dir=cache, endpoint=server.url, token=False, **options
        )
    )


def test_the_hubs_own_client_downloads_from_it(hub: HubServer, tmp_path: Path) -> None:
    """hf_hub_download gets the very bytes and files them under the announced checksum."""
    path = download(hub, tmp_path)
    assert path.read_bytes() == model_bytes()
    assert path.resolve().name == hub.repos[QWEN].files[FILE].sha256


def test_the_hubs_own_client_reads_its_listing(hub: HubServer) -> None:
    """model_info understands sizes, checksums and the commit."""
    api = huggingface_hub.HfApi(endpoint=hub.url, token=False)
    about = api.model_info(QWEN, files_metadata=True, timeout=5)
    file = next(item for item in about.siblings if item.rfilename == FILE)
    assert (about.sha, file.size, file.lfs.sha256) == (
        COMMIT,
        len(model_bytes()),
        hub.repos[QWEN].files[FILE].sha256,
    )


def test_the_hubs_own_client_understands_its_refusals(hub: HubServer, tmp_path: Path) -> None:
    """Gated, missing repository, file and revision are the errors that the Hub's client knows."""
    hub.repos[QWEN].gated = True
    with pytest.raises(errors.GatedRepoError):
        download(hub, tmp_path)
    hub.repos[QWEN].gated = False
    with pytest.raises(errors.RevisionNotFoundError):
        download(hub, tmp_path, revision="v9")
    del hub.repos[QWEN].files[FILE]
    with pytest.raises(errors.EntryNotFoundError):
        download(hub, tmp_path)
    del hub.repos[QWEN]
    with pytest.raises(errors.RepositoryNotFoundError):
        download(hub, tmp_path)


def test_the_hubs_own_client_finds_what_qwq_pulled(hub: HubServer, tmp_path: Path) -> None:
    """After a pull, hf_hub_download returns the same file and sends for no byte of it."""
    world = World(hub, tmp_path)
    pulled = world.pulled()
    before = hub.sent
    assert download(hub, world.cache) == pulled.paths[0]
    assert download(hub, world.cache, local_files_only=True) == pulled.paths[0]
    assert hub.sent == before


def test_the_hubs_own_scan_lists_what_qwq_pulled(hub: HubServer, tmp_path: Path) -> None:
    """scan_cache_dir sees one repository with one revision and no warning."""
    world = World(hub, tmp_path)
    world.pull()
    found = huggingface_hub.scan_cache_dir(world.cache)
    (repo,) = found.repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.commit_hash, revision.refs) == (QWEN, COMMIT, {"main"})
    assert [file.file_name for file in revision.files] == [FILE]
    assert not found.warnings


def test_the_hubs_own_client_and_qwq_wait_for_each_other(hub: HubServer, tmp_path: Path) -> None:
    """Both lock the same file: of two that want it at once, one downloads."""
    world = World(hub, tmp_path)
    hub.rate = 3_000_000
    other = threading.Thread(target=download, args=(hub, world.cache))
    other.start()
    while not hub.sent:
        time.sleep(0.01)
    events = world.pull()
    other.join()
    assert any(isinstance(event, Waiting) for event in events)
    assert hub.sent == len(world.data)


def test_qwq_finds_what_the_hubs_own_client_downloaded(hub: HubServer, tmp_path: Path) -> None:
    """A file that hf brought is taken as it is, once its checksum is computed."""
    world = World(hub, tmp_path)
    path = download(hub, world.cache)
    before = hub.sent
    pulled = world.pulled()
    assert (pulled.paths, pulled.how, hub.sent) == ((path,), "kept", before)
