"""The checks of the network, with servers on this machine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from runed.bootstrap.manifest import current_platform
from runed.doctor import network
from runed.doctor.finding import Patient
from runed.lifecycle.asking import Health, Info
from runed.settings import HUB
from tests.doctor.conftest import only

Make = Callable[..., Patient]

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def a_patient_look_without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_SECONDS", 60.0)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextmanager
def server(*, status: int = 404, date: str = "") -> Iterator[str]:
    """Serve a status to every request; the URL of a manifest there."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(status)
            self.send_header("Date", date or self.date_time_string())
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the base class calls it so
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/manifest.json"
        http.shutdown()
        thread.join()


def test_a_server_that_answers_is_reached_whatever_it_says(patient: Make) -> None:
    with server() as url:
        found = only(network.servers, patient({"RUNED_MANIFEST": url}))
    assert (found.state.value, found.detail) == ("ok", f"reached: {url.removesuffix('/manifest.json')}")


def test_a_server_that_refuses_fails_only_where_something_has_to_be_fetched(patient: Make, llama_server: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        environ = {"RUNED_MANIFEST": f"http://127.0.0.1:{closed.getsockname()[1]}/m"}
        subject = patient(environ)
        found = only(network.servers, subject)
        assert (found.state.value, "HTTPS_PROXY" in found.remedy) == ("failed", True)
        assert "RUNED_LLAMA_SERVER and RUNED_MODEL" in found.remedy
        answers = {"info": Info(model_identity="sha256:0"), "health": Health(status="OK")}
        assert only(network.servers, patient(environ, **answers)).state.value == "warning"
        answers["health"] = Health(status="DEGRADED")
        assert only(network.servers, patient(environ, **answers)).state.value == "failed"

        own_engine = patient(environ | {"RUNED_LLAMA_SERVER": str(llama_server)})
        record = {"url": "https://host/tiny.gguf", "sha256": "0" * 64, "size": 1, "installed_at": "now"}
        own_engine.paths.installed.write_text(json.dumps({"models": {"tiny": record}}))
        assert only(network.servers, own_engine).state.value == "failed"
        own_engine.paths.models.mkdir()
        own_engine.paths.model("tiny").write_bytes(b"x")
        found = only(network.servers, own_engine)
        assert (found.state.value, "nothing has to be fetched now" in found.remedy) == ("warning", True)


def test_a_server_that_is_silent_takes_no_longer_than_its_time(patient: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = only(network.servers, patient({"RUNED_MANIFEST": f"http://127.0.0.1:{silent.getsockname()[1]}/m"}))
    assert (found.state.value, "no answer within 0.3 s" in found.detail) == ("failed", True)


def test_a_server_that_is_broken(patient: Make) -> None:
    with server(status=503) as url:
        assert "status 503" in only(network.servers, patient({"RUNED_MANIFEST": url})).detail


def test_a_clock_that_differs_from_that_of_the_server(patient: Make) -> None:
    with server(date="Mon, 01 Jan 2001 00:00:00 GMT") as url:
        reached, clock = network.servers(patient({"RUNED_MANIFEST": url}))
    assert reached.state.value == "ok"
    assert (clock.check, clock.state.value, "ahead of" in clock.detail) == ("clock", "warning", True)


def test_the_servers_of_a_manifest_and_of_the_hub_are_asked_once_each(patient: Make, tmp_path: Path) -> None:
    with server() as engines, server() as hub:
        origin = engines.removesuffix("/manifest.json")
        file = {"url": f"{HUB}/a/b/resolve/main/m.gguf", "sha256": "0" * 64, "size": 1}
        program = {"url": f"{origin}/engine.tar.gz", "sha256": "0" * 64, "size": 1, "extract": "tar.gz", "exec": "llama-server"}
        platforms = {current_platform(): {"llama_server": program}}
        document = {"version": 1, "platforms": platforms, "models": {"m": file}, "default_model": "m"}
        manifest = tmp_path / "manifest.json"
        manifest.write_text(json.dumps(document))
        mirror = hub.removesuffix("/manifest.json")
        found = only(network.servers, patient({"RUNED_MANIFEST": str(manifest), "HF_ENDPOINT": mirror}))
    assert (found.state.value, found.detail) == ("ok", f"reached: {mirror}, {origin}")


def test_the_manifest_of_the_package_names_servers(patient: Make) -> None:
    assert all(url.startswith("https://") for url in network._urls(patient()))
    assert len(network._urls(patient())) >= 1


def test_a_manifest_that_is_none(patient: Make) -> None:
    subject = patient({"RUNED_MANIFEST": "/no/such/manifest.json"})
    assert only(network.servers, subject).state.value == "failed"


def test_nothing_is_asked_where_nothing_is_downloaded(patient: Make) -> None:
    subject = patient({"RUNED_LLAMA_SERVER": "/x", "RUNED_MODEL": "/y"})
    assert only(network.servers, subject).detail == "nothing is downloaded with these settings"


def test_proxies(patient: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"RUNED_MANIFEST": "https://mirror.test/m.json"}
    assert only(network.proxies, patient(own)).detail == "none"
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.test:8080")
    found = only(network.proxies, patient(own))
    assert found.detail == "the proxy http://proxy.test:8080 of HTTPS_PROXY"
    monkeypatch.setenv("HTTPS_PROXY", "ftp://me:secret@proxy.test")
    found = only(network.proxies, patient(own))
    assert (found.state.value, "HTTPS_PROXY is not used" in found.detail) == ("warning", True)
    assert "secret" not in found.detail
