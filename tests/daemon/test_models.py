"""Many real models in one daemon: each text is answered by its model, within the memory, whatever happens to the others."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

import runed
from tests.support import Golden, RunningDaemon, process_gone, wait_until

Start = Callable[..., RunningDaemon]

MIB = 1024**2
NEW = "no cache has this text: "


def configure(home: Path, **models: object) -> None:
    """Write a configuration with models beside the default one."""
    (home / "config.json").write_text(json.dumps({"version": 1, "models": models}))


def embed(daemon: RunningDaemon, text: str, model: str = "", **options: object) -> dict[str, Any]:
    """Embed a text. Wait as long as the machine needs."""
    return daemon.call("Embed", {"text": text, "model": model, **options}, timeout=120.0)


def vectors(answers: Sequence[dict[str, Any]]) -> NDArray[np.float32]:
    return np.array([answer["vector"] for answer in answers], dtype=np.float32)


def engine_of(daemon: RunningDaemon, model: str) -> int:
    """Return the pid of a model's engine, or 0."""
    return int(daemon.call("Health", {"model": model}).get("enginePid", 0))


def refusal(answer: dict[str, Any]) -> dict[str, Any]:
    """Return reason and metadata of a refused call."""
    [info] = [detail for detail in answer["details"] if detail["type"] == "google.rpc.ErrorInfo"]
    debug: dict[str, Any] = info.get("debug") or {}
    encoded = base64.b64decode(info["value"] + "==")
    return {"code": answer["code"], "message": answer["message"], "info": encoded, **debug}


def started(start: Start, **env: str) -> RunningDaemon:
    """Start a daemon, and wait until the engine of its default model runs."""
    daemon = start(**env)
    daemon.wait_for("STATUS_OK", timeout=120)
    return daemon


@contextmanager
def both(home: Path, start: Start, minilm: Path, **env: str) -> Iterator[RunningDaemon]:
    """Run a daemon with the tiny Qwen3 as its default model, and MiniLM as "mini"."""
    configure(home, mini={"path": str(minilm), "aliases": ["small"]})
    daemon = started(start, **env)
    yield daemon
    left = engines(daemon)
    assert daemon.stop() == 0
    assert all(process_gone(engine.pid) for engine in left)


def engines(daemon: RunningDaemon) -> list[psutil.Process]:
    """Return the engines of a daemon that run."""
    return [child for child in psutil.Process(daemon.process.pid).children() if child.name() == "llama-server"]


def test_each_text_is_answered_by_the_model_that_it_names(
    home: Path, start_daemon: Start, minilm: Path, minilm_golden: Golden, tiny_golden: Golden
) -> None:
    with both(home, start_daemon, minilm) as daemon:
        for golden, model, name in ((tiny_golden, "", "tiny-qwen3.f32"), (minilm_golden, "SMALL", "mini")):
            answers = [embed(daemon, text, model) for text in golden.texts]
            assert golden.cosines(vectors(answers)).min() >= 0.9999
            assert {answer["model"] for answer in answers} == {name}
            assert [answer["tokenCount"] for answer in answers] == golden.tokens
        batch = daemon.call("EmbedBatch", {"texts": minilm_golden.texts, "model": "mini"})
        assert minilm_golden.cosines(vectors(batch["embeddings"])).min() >= 0.9999
        assert all(embedding.get("cached") for embedding in batch["embeddings"])
        assert daemon.call("CountTokens", {"texts": ["one two"], "model": "mini"})["model"] == "mini"
        listed = daemon.call("ListModels")
        assert listed["defaultModel"] == "tiny-qwen3.f32"
        loaded = {model["name"]: model for model in listed["models"] if model.get("loaded")}
        assert loaded.keys() == {"tiny-qwen3.f32", "mini"}
        assert (loaded["mini"]["vectorDim"], loaded["tiny-qwen3.f32"]["vectorDim"]) == (384, 64)
        assert all(int(model["memoryBytes"]) > MIB for model in loaded.values())
        assert daemon.call("Info", {"model": "mini"})["fingerprint"] == loaded["mini"]["fingerprint"]


def test_the_engine_of_another_model_starts_with_its_first_text_and_ends_alone(
    home: Path, start_daemon: Start, minilm: Path
) -> None:
    with both(home, start_daemon, minilm) as daemon:
        assert engine_of(daemon, "mini") == 0
        assert daemon.call("Info", {"model": "mini"})["vectorDim"] == 384
        assert engine_of(daemon, "mini") == 0, "a description starts no engine"
        first = engine_of(daemon, "")
        embed(daemon, "x", "mini")
        assert (pid := engine_of(daemon, "mini")) > 0
        unloaded = daemon.call("UnloadModel", {"model": "mini"}, timeout=60.0)["model"]
        assert not unloaded.get("loaded")
        assert process_gone(pid)
        assert engine_of(daemon, "") == first
        assert daemon.call("LoadModel", {"model": "mini"}, timeout=120.0)["model"]["loaded"]


def test_a_model_that_is_not_installed_is_refused_and_no_call_waits_for_it(
    home: Path, start_daemon: Start, minilm: Path
) -> None:
    with both(home, start_daemon, minilm) as daemon, runed.connect(socket_path=daemon.socket, timeout=60) as client:
        calls: list[Callable[..., object]] = [client.info, client.wait_until_ready, client.warm_up]
        for call in calls:
            with pytest.raises(runed.errors.ModelNotInstalledError, match=r"runed pull bge-m3\.q8_0"):
                call(model="bge-m3")
        assert client.health(model="BGE-M3").model == "bge-m3.q8_0"
        for call in [*calls, client.health]:
            with pytest.raises(runed.errors.UnknownModelError, match="there are"):
                call(model="other")


def test_health_tells_the_model_whose_state_it_is(home: Path, start_daemon: Start, minilm: Path) -> None:
    with both(home, start_daemon, minilm) as daemon, runed.connect(socket_path=daemon.socket, timeout=60) as client:
        idle = client.health(model="small")
        assert (idle.model, idle.status, idle.loaded_models) == ("mini", runed.Status.IDLE, 1)
        client.warm_up(model="small")
        ready = client.health(model="small")
        assert (ready.model, ready.status, ready.loaded_models) == ("mini", runed.Status.OK, 2)
        assert client.health().model == "tiny-qwen3.f32"


def test_a_reranker_is_loaded_ahead_of_its_first_query(reranker_daemon: RunningDaemon) -> None:
    with runed.connect(socket_path=reranker_daemon.socket, timeout=60) as client:
        assert client.info(model="minilm-reranker").model == "minilm-reranker"
        client.warm_up(model="minilm-reranker")
        assert client.health(model="minilm-reranker").engine_pid > 0


def test_kill_of_one_engine_leaves_the_others_untouched(home: Path, start_daemon: Start, minilm: Path) -> None:
    with both(home, start_daemon, minilm) as daemon:
        embed(daemon, "x", "mini")
        default, other = engine_of(daemon, ""), engine_of(daemon, "mini")
        stop = threading.Event()
        failures: list[object] = []

        def ask() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                answer = embed(daemon, f"{NEW}{number}")
                if "vector" not in answer:
                    failures.append(answer)

        asking = threading.Thread(target=ask)
        asking.start()
        os.kill(other, signal.SIGKILL)
        wait_until(lambda: engine_of(daemon, "mini") not in {0, other}, what="the replacement", timeout=60)
        again = embed(daemon, f"{NEW}after", "mini")
        stop.set()
        asking.join()
        assert "vector" in again
        assert failures == []
        assert engine_of(daemon, "") == default
        assert int(daemon.call("Health").get("engineRestarts", 0)) == 0
        assert int(daemon.call("Health", {"model": "mini"})["engineRestarts"]) == 1


def test_clients_of_two_models_in_turn_with_room_for_one(
    home: Path, start_daemon: Start, minilm: Path, minilm_golden: Golden, tiny_golden: Golden
) -> None:
    goldens = {"": tiny_golden, "mini": minilm_golden}
    rounds, clients = 4, 8
    with both(home, start_daemon, minilm, RUNED_MAX_MODELS="1", RUNED_CACHE_SIZE="0") as daemon:
        embed(daemon, "x", "mini")

        def client(number: int) -> float:
            worst = 1.0
            for turn in range(rounds):
                for model, golden in goldens.items():
                    index = (number + turn) % len(golden.texts)
                    answer = embed(daemon, golden.texts[index], model)
                    reference = golden.vectors[index] / np.linalg.norm(golden.vectors[index])
                    worst = min(worst, float(np.dot(reference, np.array(answer["vector"], dtype=np.float32))))
            return worst

        with ThreadPoolExecutor(clients) as pool:
            assert min(pool.map(client, range(clients))) >= 0.9999
        with daemon.http() as http:
            metrics = http.get("/metrics").text
        [starts] = [line.split()[1] for line in metrics.splitlines() if line.startswith("runed_engine_starts_total ")]
        # One start a turn: all clients that wait for a model are served by the same start.
        assert float(starts) <= 2 * rounds + 4
        assert int(daemon.call("Health")["loadedModels"]) == 1


def test_engines_keep_within_the_memory_at_every_moment(
    home: Path, start_daemon: Start, minilm: Path, tiny_qwen3: Path
) -> None:
    configure(home, mini={"path": str(minilm)}, **{f"tiny{number}": {"path": str(tiny_qwen3)} for number in range(3)})
    daemon = started(start_daemon, RUNED_MEMORY="700MiB", RUNED_CACHE_SIZE="0", RUNED_IDLE_TIMEOUT="0")
    samples: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.2):
            with suppress(psutil.Error):  # an engine that has just ended
                samples.append(sum(engine.memory_info().rss for engine in engines(daemon)))

    looking = threading.Thread(target=look)
    looking.start()
    random_ = random.Random(7)
    try:
        for number in range(25):
            model = random_.choice(["", "mini", "tiny0", "tiny1", "tiny2"])
            assert "vector" in embed(daemon, f"{NEW}{number}", model)
            if random_.random() < 0.2:
                daemon.call("UnloadModel", {"model": model}, timeout=60.0)
    finally:
        stop.set()
        looking.join()
    assert 0 < max(samples) <= 700 * MIB
    assert daemon.stop() == 0


def test_a_model_that_never_fits_is_refused_with_the_numbers(home: Path, start_daemon: Start, minilm: Path) -> None:
    configure(home, mini={"path": str(minilm)})
    daemon = started(start_daemon, RUNED_MEMORY="40MiB")
    answer = embed(daemon, "x", "mini")
    assert answer["code"] == "failed_precondition"
    assert f"{minilm.stat().st_size / MIB:,.0f} MiB of memory" in answer["message"]
    assert "40 MiB (RUNED_MEMORY)" in answer["message"]
    assert b"MODEL_TOO_LARGE" in refusal(answer)["info"]
    assert "vector" in embed(daemon, "x"), "the default model is small enough"


def test_a_model_of_the_manifest_that_is_not_installed_is_refused_and_not_fetched(home: Path, start_daemon: Start) -> None:
    daemon = started(start_daemon)
    answer = embed(daemon, "x", "bge-m3")
    assert answer["code"] == "failed_precondition"
    assert "`runed pull bge-m3.q8_0`" in answer["message"]
    assert daemon.call("Info", {"model": "bge-m3"}).get("vectorDim", 0) == 0
    assert embed(daemon, "x", "bge-reranker-v2-m3")["message"].startswith("bge-reranker-v2-m3.q8_0 is a reranker; use it by")


def test_a_file_tells_the_kind_and_a_contradiction_is_refused(
    home: Path, start_daemon: Start, minilm: Path, reranker: Path
) -> None:
    said = {"vectors": {"path": str(reranker), "kind": "embedding"}, "ranks": {"path": str(minilm), "kind": "rerank"}}
    configure(home, ranker={"path": str(reranker)}, **said)
    daemon = started(start_daemon)
    kinds = {model["name"]: model.get("kind") for model in daemon.call("ListModels", {})["models"]}
    assert (kinds["ranker"], kinds["vectors"]) == ("KIND_RERANK", "KIND_EMBEDDING")
    assert b"WRONG_MODEL_KIND" in refusal(embed(daemon, "x", "ranker"))["info"]
    question = {"query": "tea?", "documents": ["tea", "a train"]}
    ranked = daemon.call("Rerank", question | {"model": "ranker"}, timeout=60.0)
    assert len(ranked["results"]) == 2
    answer = embed(daemon, "x", "vectors")
    assert answer["code"] == "unavailable"
    assert "cannot be used for embeddings, since it is a reranker" in answer["message"]
    answer = daemon.call("Rerank", question | {"model": "ranks"}, timeout=60.0)
    assert "it scores no documents" in answer["message"]


@pytest.mark.parametrize("named_by", ["RUNED_MODEL", "default_model", "kind"])
def test_a_reranker_as_the_default_model_is_refused_in_a_sentence(
    home: Path, start_daemon: Start, reranker: Path, minilm: Path, named_by: str
) -> None:
    entry = {"path": str(reranker)} | ({"kind": "rerank"} if named_by == "kind" else {})
    configure(home, ranker=entry, mini={"path": str(minilm)})
    named = (
        {"RUNED_MODEL": str(reranker)} if named_by == "RUNED_MODEL" else {"RUNED_MODEL": "", "RUNED_DEFAULT_MODEL": "ranker"}
    )
    daemon = start_daemon(**named)
    health = daemon.wait_for("STATUS_DEGRADED", timeout=60)
    wanted = "ranker is a reranker and gives no vectors" if named_by == "kind" else "since it is a reranker"
    assert wanted in health["message"]
    answer = embed(daemon, "x")
    assert (answer["code"], wanted in answer["message"]) == ("unavailable", True)
    assert len(embed(daemon, "x", "mini")["vector"]) == 384, "other models serve"
    assert daemon.stop() == 0


def test_a_file_that_was_replaced_under_a_running_engine_serves_no_other_vectors(
    home: Path, start_daemon: Start, minilm: Path, tiny_qwen3: Path
) -> None:
    own = home / "own.gguf"
    shutil.copyfile(minilm, own)
    configure(home, own={"path": str(own)})
    daemon = started(start_daemon)
    before = embed(daemon, "x", "own")
    own.unlink()
    shutil.copyfile(tiny_qwen3, own)
    assert embed(daemon, f"{NEW}1", "own")["fingerprint"] == before["fingerprint"], "the engine has the old file open"
    daemon.call("UnloadModel", {"model": "own"}, timeout=60.0)
    for text in (f"{NEW}2", f"{NEW}3"):
        answer = embed(daemon, text, "own")
        assert answer["code"] == "unavailable"
        assert answer["message"].startswith(f"the model {own} was replaced or removed")
        assert [detail["type"] for detail in answer["details"]] == ["google.rpc.ErrorInfo"], "no other try can help"
    assert "vector" in embed(daemon, "x")


def test_the_disk_cache_keeps_the_vectors_of_all_models(home: Path, start_daemon: Start, minilm: Path) -> None:
    configure(home, mini={"path": str(minilm)})
    first = started(start_daemon, RUNED_CACHE="disk")
    kept = {model: embed(first, "the same text", model)["vector"] for model in ("", "mini")}
    assert first.stop() == 0
    second = started(start_daemon, RUNED_CACHE="disk")
    for model, vector in kept.items():
        answer = embed(second, "the same text", model)
        assert answer["cached"]
        assert answer["vector"] == vector


def test_each_model_has_its_own_time_after_which_it_sleeps(home: Path, start_daemon: Start, minilm: Path) -> None:
    configure(home, mini={"path": str(minilm), "keep_alive": "1s"})
    daemon = started(start_daemon)
    embed(daemon, "x", "mini")
    wait_until(lambda: engine_of(daemon, "mini") == 0, what="the suspension", timeout=30)
    assert engine_of(daemon, "") > 0
    began = time.monotonic()
    assert "vector" in embed(daemon, f"{NEW}later", "mini")
    assert time.monotonic() - began < 60


def test_each_model_has_its_own_centroids(home: Path, start_daemon: Start, minilm: Path) -> None:
    with both(home, start_daemon, minilm) as daemon:
        answer = embed(daemon, "x", "mini", withRoute=True)
        assert "NO_CENTROID_SET" in str(refusal(answer)["info"])


@pytest.mark.slow
def test_engines_of_an_earlier_daemon_are_ended(home: Path, start_daemon: Start, minilm: Path) -> None:
    configure(home, mini={"path": str(minilm)})
    first = started(start_daemon)
    embed(first, "x", "mini")
    left = [engine_of(first, ""), engine_of(first, "mini")]
    first.stop(signal.SIGKILL)
    started(start_daemon)
    wait_until(lambda: all(map(process_gone, left)), what="the end of the old engines")
