"""A real daemon with a model of an engine on another machine: `llama-server` over TCP, another daemon, or one that fails."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from runed_proto.runed.v1.runed_pb2 import EmbedRequest

import runed
from runed.errors import BackendUnavailableError, SpaceChangedError
from runed.lifecycle.record import DaemonRecord
from runed.settings import engine_environment
from tests.fakes.fake_remote import FakeRemote, vector_of
from tests.support import Golden, RunningDaemon, call, clean_environment, running_daemon, wait_until

KEY = "sk-very-secret-4711"

Start = Callable[..., RunningDaemon]


@pytest.fixture
def remote() -> Iterator[FakeRemote]:
    server = FakeRemote()
    yield server
    server.close()


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Start daemons in `home` that have neither an engine nor a model. Keyword arguments are settings."""
    daemons: list[RunningDaemon] = []

    def begin(status: str = "STATUS_OK", **env: str) -> RunningDaemon:
        daemons.append(RunningDaemon(home, env))
        if status:
            daemons[-1].wait_for(status)
        return daemons[-1]

    yield begin
    for daemon in daemons:
        daemon.close()


def configure(home: Path, default: str = "big", **models: object) -> None:
    (home / "config.json").write_text(json.dumps({"version": 1, "default_model": default, "models": models}))


@contextmanager
def llama_over_tcp(llama_server: Path, model: Path, key_file: Path) -> Iterator[str]:
    """Run a `llama-server` with a key on a loopback port, and return its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [str(llama_server), "-m", str(model), "--embedding", "--host", "127.0.0.1", "--port", str(port), "-c", "2048"]
    argv += ["-np", "4", "-ub", "512", "-b", "512", "--api-key-file", str(key_file)]
    process = subprocess.Popen(argv, env=engine_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert process.poll() is None
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(healthy, what="llama-server", timeout=60)
        yield url
    finally:
        process.kill()
        process.wait()


def vectors(answer: dict[str, Any]) -> NDArray[np.float32]:
    return np.array([item["vector"] for item in answer["embeddings"]], np.float32)


@dataclass(frozen=True)
class Tiny:
    """The tiny Qwen3, its engine, and its reference vectors."""

    llama_server: Path
    model: Path
    golden: Golden


@pytest.fixture
def tiny(llama_server: Path, tiny_qwen3: Path, tiny_golden: Golden) -> Tiny:
    return Tiny(llama_server, tiny_qwen3, tiny_golden)


def no_secret_in(daemon: RunningDaemon, *secrets: str) -> None:
    """Check that nothing which the daemon wrote or tells has a secret."""
    told = [daemon.log(), json.dumps(daemon.call("Info")), json.dumps(daemon.health()), json.dumps(daemon.call("ListModels"))]
    told += [path.read_text(errors="replace") for path in daemon.home.rglob("*.log")]
    told += [path.read_text(errors="replace") for path in daemon.home.rglob("*.json") if path.name != "config.json"]
    environment = clean_environment(RUNED_HOME=str(daemon.home))
    for arguments in (["status"], ["status", "--json"], ["models", "--json"]):
        told.append(_command(environment, *arguments, check=False))  # a degraded daemon has a code of its own
    assert not [secret for secret in secrets if any(secret in text for text in told)]


def _command(environment: dict[str, str], *arguments: str, check: bool = True) -> str:
    """Run a command of `runed`, and return all that it says."""
    argv = [sys.executable, "-m", "runed", *arguments]
    result = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=check)
    return result.stdout + result.stderr


def test_llama_server_with_a_key_serves_a_machine_without_engine_and_model(
    home: Path, start: Start, llama_server: Path, minilm: Path, minilm_golden: Golden
) -> None:
    key_file = home / "key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    with llama_over_tcp(llama_server, minilm, key_file) as url:
        # A manifest that cannot be had: nothing may be looked for.
        nowhere = "http://127.0.0.1:9/manifest.json"
        daemon = start(RUNED_BACKEND=url, RUNED_BACKEND_KEY_FILE=str(key_file), RUNED_MANIFEST=nowhere)
        answer = daemon.call("EmbedBatch", {"texts": minilm_golden.texts})
        assert minilm_golden.cosines(vectors(answer)).min() >= 0.9999
        assert sum(item["tokenCount"] for item in answer["embeddings"]) == sum(minilm_golden.tokens)
        one = daemon.call("Embed", {"text": "a new text of seven words altogether"})
        counted = daemon.call("CountTokens", {"texts": [*minilm_golden.texts, "a new text of seven words altogether"]})
        counts = [int(count) for count in counted["tokenCounts"]]
        assert counts == [*minilm_golden.tokens, one["tokenCount"]]
        info = daemon.call("Info")
        assert (info["vectorDim"], info["accelerator"], info["device"], info["model"]) == (384, "remote", url, "remote")
        assert not psutil.Process(daemon.process.pid).children()
        assert not (home / "models").exists()
        assert not list((home / "bin").glob("*"))
        no_secret_in(daemon, KEY)

        limit = info["maxTextLength"]
        long = "harbour " * (limit + 10)
        refused = call("connect+json", daemon.socket, "Embed", EmbedRequest(text=long)).refusal
        assert refused is not None
        assert (refused.reason, refused.metadata["limit"]) == ("TEXT_TOO_LONG", str(limit))
        assert daemon.stop() == 0


def test_a_text_is_cut_by_its_characters_where_the_engine_counts(
    home: Path, start: Start, llama_server: Path, minilm: Path
) -> None:
    key_file = home / "key"
    key_file.write_text(KEY)
    with llama_over_tcp(llama_server, minilm, key_file) as url:
        configure(home, big={"url": url, "api_key_file": "key", "max_tokens": 64})
        daemon = start()
        words = [f"word{number}" for number in range(200)]
        for side, kept in (("END", slice(None, None)), ("START", slice(None, None, -1))):
            text = " ".join(words)
            cut = daemon.call("Embed", {"text": text, "truncate": f"TRUNCATE_{side}"})
            assert 55 <= cut["tokenCount"] <= 64
            assert cut["totalTokenCount"] > 400
            near = words[kept][:15]
            part = daemon.call("Embed", {"text": " ".join(near[kept])})
            assert float(np.array(cut["vector"]) @ np.array(part["vector"])) > 0.8
        assert daemon.stop() == 0


@pytest.mark.parametrize("api", ["openai", "tei"])
def test_another_daemon_is_an_engine_by_its_port(api: str, home: Path, start: Start, tiny: Tiny) -> None:
    with running_daemon(tiny.llama_server, tiny.model, RUNED_HTTP="127.0.0.1:0") as far:
        record = DaemonRecord.read(far.home / "daemon.json")
        assert record is not None
        token = far.home / "http.token"
        configure(home, big={"url": record.http, "api": api, "api_key_file": str(token)})
        daemon = start()
        answer = daemon.call("EmbedBatch", {"texts": tiny.golden.texts})
        assert tiny.golden.cosines(vectors(answer)).min() >= 0.9999
        counted = daemon.call("CountTokens", {"texts": tiny.golden.texts})
        assert [int(count) for count in counted["tokenCounts"]] == tiny.golden.tokens
        no_secret_in(daemon, token.read_text().strip())
        shorter = daemon.call("Info")
        assert shorter["fingerprint"] != far.call("Info")["fingerprint"]

        # A call that its caller leaves is left there, too.
        texts = [f"a long call, number {number} " * 20 for number in range(2000)]
        with daemon.http(timeout=0.7) as http, pytest.raises(httpx.TimeoutException):
            http.post("/runed.v1.RunedService/EmbedBatch", json={"texts": texts})
        wait_until(lambda: not int(far.health().get("inFlightRequests", 0)), what="the end of the calls there", timeout=20)
        assert daemon.stop() == 0


def test_twins_lanes_roles_and_dimensions_are_those_of_any_model(home: Path, start: Start, remote: FakeRemote) -> None:
    configure(home, big={"url": remote.url, "query_prompt": "find: ", "min_dimensions": 4, "aliases": ["far"], "batch": 4})
    daemon = start()
    remote.behaviour.delay = 0.2
    remote.seen.clear()
    with ThreadPoolExecutor(20) as pool:
        twins = list(pool.map(lambda _: daemon.call("Embed", {"text": "the same text", "model": "far"}), range(20)))
    assert remote.questions == [["the same text"]]
    assert sum(not twin.get("cached") for twin in twins) == 1

    query = daemon.call("Embed", {"text": "the same text", "role": "ROLE_QUERY", "dimensions": 8})
    expected = vector_of("find: the same text", remote.behaviour)[:8]
    assert float(np.array(query["vector"]) @ expected / np.linalg.norm(expected)) > 0.99999

    # A person does not wait for a bulk job to end.
    remote.behaviour.delay = 0.1
    with ThreadPoolExecutor(1) as pool:
        bulk = pool.submit(daemon.call, "EmbedBatch", {"texts": [f"bulk {number}" for number in range(200)]})
        time.sleep(0.3)
        daemon.call("Embed", {"text": "somebody waits"})
        assert not bulk.done(), "the job takes five seconds"
        assert len(bulk.result()["embeddings"]) == 200
    assert max(map(len, remote.questions)) <= 4
    assert daemon.stop() == 0


def test_several_requests_are_on_their_way_at_once(home: Path, start: Start, remote: FakeRemote) -> None:
    configure(home, big={"url": remote.url, "batch": 4, "concurrency": 4})
    daemon = start()
    remote.behaviour.delay = 0.5
    daemon.call("EmbedBatch", {"texts": [f"text {number}" for number in range(32)]})
    assert remote.most_at_once == 4, "eight requests, four at once"
    assert daemon.stop() == 0


def test_a_cached_text_is_there_whatever_the_engine_does(home: Path, start: Start, remote: FakeRemote) -> None:
    configure(home, big={"url": remote.url, "concurrency": 1})
    daemon = start(RUNED_CACHE="disk")
    with runed.connect(socket_path=daemon.socket) as client:
        client.embed("a text that was embedded before")
        remote.behaviour.delay = 4.0
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(client.embed, "a text that takes long")
            time.sleep(0.2)
            with runed.connect(socket_path=daemon.socket) as other:
                for _ in range(20):
                    other.embed("a text that was embedded before")
                assert not slow.done()
            slow.result()
        wait_until(lambda: client.health().disk_cache_bytes, what="the writing")
        time.sleep(1)
    assert daemon.stop() == 0
    remote.close()
    daemon = start("STATUS_DEGRADED", RUNED_CACHE="disk")
    answer = daemon.call("Embed", {"text": "a text that was embedded before"})
    assert answer.get("cached"), answer
    refused = call("grpc", daemon.socket, "Embed", EmbedRequest(text="a new text")).refusal
    assert refused is not None
    assert (refused.code.lower(), refused.reason) == ("unavailable", "BACKEND_UNAVAILABLE")
    assert refused.retry_seconds
    assert daemon.stop() == 0


def test_a_changed_space_is_told_and_nothing_of_the_old_one_is_used(home: Path, start: Start, remote: FakeRemote) -> None:
    configure(home, big={"url": remote.url})
    daemon = start(RUNED_CACHE="disk")
    texts = {"texts": ["one", "two"]}
    daemon.call("EmbedBatch", texts)
    assert all(item["cached"] for item in daemon.call("EmbedBatch", texts)["embeddings"])
    before = daemon.call("Info")["fingerprint"]
    time.sleep(1.2)
    remote.behaviour.script.extend([(500, {}, b"")] * 5)  # away for a moment: the breaker opens, and looks again
    remote.behaviour.seed = 2
    daemon.call("Embed", {"text": "new"})
    wait_until(lambda: "another space" in daemon.health().get("message", ""), what="the change")
    assert daemon.health()["status"] == "STATUS_DEGRADED"
    refused = call("connect+proto", daemon.socket, "Embed", EmbedRequest(text="one")).refusal
    assert refused is not None
    assert (refused.code, refused.reason, refused.metadata) == ("failed_precondition", "SPACE_CHANGED", {"model": "big"})
    assert daemon.stop() == 0

    daemon = start(RUNED_CACHE="disk")
    answer = daemon.call("EmbedBatch", texts)
    assert not any(item.get("cached") for item in answer["embeddings"])
    assert daemon.call("Info")["fingerprint"] != before
    assert daemon.stop() == 0


def test_a_model_that_changes_amid_a_stream_ends_it_and_no_vector_of_the_new_one_is_told(
    home: Path, start: Start, remote: FakeRemote
) -> None:
    configure(home, big={"url": remote.url})
    daemon = start(RUNED_CACHE_SIZE="0")
    others: list[FakeRemote] = []

    def texts() -> Iterator[tuple[int, str]]:
        for number in range(20_000):
            if got and not others:
                remote.close()
                others.append(FakeRemote(port=remote.port, seed=2))
            yield number, f"text {number}"

    got: dict[int, NDArray[np.float32]] = {}

    def read(client: runed.Client) -> None:
        for number, outcome in client.embed_stream(texts()):
            if isinstance(outcome, runed.RunedError):
                raise outcome
            got[number] = np.asarray(outcome.vector, np.float32)

    try:
        with runed.connect(socket_path=daemon.socket, timeout=60) as client, pytest.raises(SpaceChangedError):
            read(client)
        assert got
        cosines = [float(vector @ vector_of(f"text {number}", remote.behaviour)) for number, vector in got.items()]
        assert min(cosines) > 0.9999
        assert daemon.stop() == 0
    finally:
        for other in others:
            other.close()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fallback": "nope"}, "fallback of models.big in config.json: there is no model 'nope'; there are big, "),
        ({"api_key_file": "key"}, "refuses the key of "),
        ({"dimensions": 8}, "a vector of 16 values, and 8 were expected"),
        ({"url": "https://127.0.0.1:{port}"}, "does not speak TLS"),
        ({"url": "http://127.0.0.1:{own}"}, "is the port of this daemon itself, so texts would come back to it for ever"),
        ({"url": "http://localhost:{own}/v1"}, "is the port of this daemon itself"),
        ({"url": "http://[::]:{own}"}, "is the port of this daemon itself"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_waiting_does_not_mend_is_refused_at_once(
    changes: dict[str, Any], told: str, home: Path, start: Start, remote: FakeRemote
) -> None:
    (home / "key").write_text(KEY)
    remote.behaviour.key = "another" if "api_key_file" in changes else ""
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    ports = {"port": remote.port, "own": own}
    entry = {"url": remote.url} | {key: value.format(**ports) if key == "url" else value for key, value in changes.items()}
    configure(home, big=entry)
    daemon = start("", RUNED_HTTP=f"127.0.0.1:{own}")
    wait_until(daemon.socket.exists, what="the socket")
    began = time.monotonic()
    with runed.connect(socket_path=daemon.socket, timeout=120) as client, pytest.raises(BackendUnavailableError) as refusal:
        client.embed("a text")
    assert time.monotonic() - began < 40, "it tried again"
    assert told in refusal.value.message
    assert refusal.value.retry_after is None
    assert daemon.health()["status"] == "STATUS_DEGRADED"
    assert daemon.stop() == 0


@pytest.mark.parametrize("engine", ["cpu", "onnx"])
def test_a_fallback_computes_while_the_engine_is_away_if_it_reads_all_scripts_alike(
    *, engine: str, home: Path, start: Start, llama_server: Path, minilm: Path, minilm_golden: Golden
) -> None:
    key_file = home / "key"
    key_file.write_text(KEY)
    with llama_over_tcp(llama_server, minilm, key_file) as url:
        far = {"url": url, "api_key_file": "key", "fallback": "small"}
        configure(home, big=far, small={"path": str(minilm)})
        daemon = start(RUNED_LLAMA_SERVER=str(llama_server), RUNED_CACHE_SIZE="0", RUNED_ENGINE=engine)
        assert minilm_golden.cosines(vectors(daemon.call("EmbedBatch", {"texts": minilm_golden.texts}))).min() >= 0.9999
        assert not psutil.Process(daemon.process.pid).children()
    answer = daemon.call("EmbedBatch", {"texts": minilm_golden.texts}, timeout=60.0)
    if engine == "onnx":  # it reads Hindi in another way than llama-server
        assert "do not lie in the same space" in answer["message"]
        assert "name another model, or another engine (RUNED_ENGINE)" in answer["message"]
        assert daemon.stop() == 0
        return
    assert "embeddings" in answer, answer["message"]
    assert minilm_golden.cosines(vectors(answer)).min() >= 0.9999
    assert answer["model"] == "big"
    health = daemon.health()
    assert (health["status"], "small computes meanwhile" in health["message"]) == ("STATUS_OK", True)
    assert daemon.stop() == 0


def test_an_engine_that_is_away_at_the_first_start_is_found_later(home: Path, start: Start, remote: FakeRemote) -> None:
    port = remote.port
    remote.close()
    configure(home, big={"url": f"http://127.0.0.1:{port}"})
    daemon = start("STATUS_DEGRADED")
    back = FakeRemote(port=port)
    try:

        def embeds() -> bool:
            return "vector" in daemon.call("Embed", {"text": "a text"})

        wait_until(embeds, what="the engine")
    finally:
        assert daemon.stop() == 0
        back.close()


def test_a_wrong_key_is_told_by_the_place_where_it_stands(home: Path, start: Start, remote: FakeRemote) -> None:
    (home / "key").write_text(KEY)
    remote.behaviour.key = "another"
    configure(home, big={"url": remote.url, "api_key_file": "key"})
    daemon = start("STATUS_DEGRADED")
    message = daemon.health()["message"]
    assert str(home / "key") in message
    assert "wrong" in message
    no_secret_in(daemon, KEY)
    assert daemon.stop() == 0


def test_a_key_of_a_variable_reaches_a_daemon_that_a_client_starts(home: Path, remote: FakeRemote) -> None:
    remote.behaviour.key = KEY
    configure(home, big={"url": remote.url, "api_key_env": "SOME_API_KEY"})
    environment = clean_environment(RUNED_HOME=str(home), SOME_API_KEY=KEY, OTHER_SECRET="x")
    try:
        _command(environment, "ensure", "--wait")
        record = DaemonRecord.read(home / "daemon.json")
        assert record is not None
        variables = psutil.Process(record.pid).environ()
        assert (variables.get("SOME_API_KEY"), variables.get("OTHER_SECRET")) == (KEY, None)
        shown, listed, installed = (_command(environment, name) for name in ("status", "models", "install"))
        assert f"on another machine, {remote.url}" in shown
        assert "big (default)" in listed
        assert "remote" in listed
        assert f"on another machine, {remote.url}" in installed
        assert KEY not in shown + listed + installed
    finally:
        _command(environment, "stop")


def test_a_daemon_that_is_killed_leaves_an_engine_that_goes_on(home: Path, start: Start, remote: FakeRemote) -> None:
    configure(home, big={"url": remote.url})
    daemon = start()
    remote.behaviour.delay = 0.5
    asking = threading.Thread(target=lambda: _ignore(daemon))
    asking.start()
    time.sleep(0.2)
    daemon.stop(signal.SIGKILL)
    asking.join()
    remote.behaviour.delay = 0
    daemon = start()
    assert daemon.call("Embed", {"text": "x"})["vector"]
    assert daemon.stop() == 0


def _ignore(daemon: RunningDaemon) -> None:
    try:
        daemon.call("Embed", {"text": "in flight"})
    except httpx.TransportError:
        return
