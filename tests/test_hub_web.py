"""Encryption and proxies: what stands between a person and the hub."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Fault, HubServer
from hub_world import World

from qwqcli.errors import NetworkError, UsageError
from qwqcli.hub import web


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with HubServer() as server:
        yield World(server, tmp_path)


@pytest.fixture
def encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A hub that speaks TLS with a certificate of its own, which SSL_CERT_FILE makes trusted."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    pem = tmp_path / "hub.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
    curve = ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", pem, "-out", tmp_path / "cert"]
    subprocess.run([*command, *curve, *names, *files], check=True, capture_output=True)
    pem.write_bytes(pem.read_bytes() + (tmp_path / "cert").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
    web._tls.cache_clear()
    with HubServer(certificate=pem) as server:
        yield World(server, tmp_path)
    web._tls.cache_clear()


def test_a_pull_over_tls_brings_the_bytes(encrypted: World) -> None:
    """Encrypted connections are kept, shared and cut like plain ones."""
    encrypted.server.faults = [Fault(cut=100_000, times=2)]
    assert encrypted.pulled().paths[0].read_bytes() == encrypted.data


def test_an_unknown_certificate_is_refused(
    encrypted: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the certificate there is no request, and the hint names the way to trust one."""
    monkeypatch.delenv("SSL_CERT_FILE")
    web._tls.cache_clear()
    with pytest.raises(NetworkError, match="not trusted") as caught:
        encrypted.pull()
    assert "SSL_CERT_FILE" in caught.value.hint
    assert encrypted.server.log == []


def test_a_redirect_never_gives_up_encryption(encrypted: World) -> None:
    """From https no redirect leads to http, where anyone could read and change what comes."""
    encrypted.server.faults = [Fault(on="hub", match="resolve", location="http://localhost/x")]
    with pytest.raises(NetworkError, match="without encryption"):
        encrypted.pull()


def test_a_proxy_is_used_for_plain_and_for_encrypted(
    world: World, encrypted: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """http goes through the proxy as it is, https through a tunnel; no_proxy is obeyed."""
    proxy = world.server.url.replace("//", "//me:pass@")
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    plain = world.hub({"HF_ENDPOINT": "http://hub.invalid"})
    assert world.pulled(hub=plain).received == len(world.data)
    asked = world.server.asked("hub")
    assert all(r.path.startswith("http://") for r in asked)
    assert all(r.headers["Proxy-Authorization"] == "Basic bWU6cGFzcw==" for r in asked)
    assert encrypted.pulled(reuse=False).paths[0].read_bytes() == encrypted.data
    assert any(r.method == "CONNECT" for r in world.server.log)
    monkeypatch.setenv("no_proxy", "hub.invalid")
    world.policy = replace(world.policy, tries=1)
    with pytest.raises(NetworkError, match=r"hub\.invalid"):
        world.hub({"HF_ENDPOINT": "http://hub.invalid"}).choose("q4_k_m")


def test_a_proxy_of_another_kind_is_a_usage_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SOCKS is not spoken, and that is said instead of going around it."""
    monkeypatch.setenv("http_proxy", "socks5://localhost:1080")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UsageError, match="not an HTTP proxy"):
        world.pull()
    assert world.server.log == []


def test_nobody_there_is_a_network_error(world: World) -> None:
    """A closed port and a name that does not exist end after a few tries, with a hint."""
    for endpoint in ("http://127.0.0.1:1", "http://hub.invalid"):
        with pytest.raises(NetworkError, match="cannot be reached") as caught:
            world.hub({"HF_ENDPOINT": endpoint}).choose("q4_k_m")
        assert "modelscope" in caught.value.hint


def test_a_url_is_shown_without_its_secrets() -> None:
    """No user, no password, no query: signed links carry their secret there."""
    assert web.show("https://me:pw@cdn.hf.co/a/b?Signature=x#y") == "https://cdn.hf.co/a/b"
