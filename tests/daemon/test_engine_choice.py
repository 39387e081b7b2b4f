"""The engine of a model is chosen by measurement, remembered, told, and can be named; without the extra nothing changes."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from runed.backends.onnx import availability
from runed.bootstrap import EngineComparison, read_comparison
from runed.extras import install_command
from runed.paths import Paths
from tests.backends.support import FakeEngine
from tests.onnx_files import write_own_model
from tests.support import (
    Golden,
    RunningDaemon,
    clean_environment,
    process_gone,
    python_without,
    short_home,
    wait_until,
)

ONNX = availability.engine_version()

SECONDS = 120.0
"""Seconds that a first start may take on a busy machine: it builds a graph, and measures both engines."""

Start = Callable[..., RunningDaemon]


@pytest.fixture(scope="module")
def compared(llama_server: Path, minilm: Path) -> Iterator[tuple[Path, RunningDaemon]]:
    """A home whose daemon has compared the engines for MiniLM, and still runs."""
    daemon = RunningDaemon(short_home(), {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(minilm)})
    try:
        ready(daemon)
        yield daemon.home, daemon
        assert daemon.stop() == 0, daemon.log()
    finally:
        daemon.close()
        daemon.remove_home()


@pytest.fixture
def start(home: Path, llama_server: Path, minilm: Path, compared: tuple[Path, RunningDaemon]) -> Iterator[Start]:
    """Start daemons that serve MiniLM in `home`. It has a graph, and no comparison."""
    shutil.copytree(compared[0] / "cache" / "onnx", home / "cache" / "onnx")
    daemons: list[RunningDaemon] = []

    def start(*, python: str | Path = sys.executable, **env: str) -> RunningDaemon:
        usual = {"RUNED_LLAMA_SERVER": str(llama_server), "RUNED_MODEL": str(minilm)}
        daemons.append(RunningDaemon(home, usual | env, python=python))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.close()


def comparison_in(home: Path) -> EngineComparison:
    [entry] = msgspec.json.decode(Paths(home).engine_comparisons.read_bytes(), type=list[EngineComparison])
    return entry


def remember(home: Path, compared: Path, **changes: object) -> None:
    """Write a comparison into a home: that of `compared` with changes."""
    entry = msgspec.structs.replace(comparison_in(compared), **changes)
    Paths(home).engine_comparisons.write_bytes(msgspec.json.encode([entry]))


def steps(daemon: RunningDaemon) -> list[str]:
    """Return the steps of comparisons that a daemon has logged."""
    return [line["step"] for line in daemon.log_lines() if line["message"] == "choosing the engine"]


def engines(daemon: RunningDaemon) -> list[str]:
    """Return the names of the engines of a daemon that run."""
    names = []
    for child in psutil.Process(daemon.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # also of one that has ended and is not reaped yet
            names += [name for name in ("llama-server", "worker.py") if any(part.endswith(name) for part in child.cmdline())]
    return names


def workers(daemon: RunningDaemon) -> int:
    """Return the number of workers of a daemon."""
    return engines(daemon).count("worker.py")


def vector(daemon: RunningDaemon, text: str, **options: object) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    answer = daemon.call("Embed", {"text": text, **options}, timeout=SECONDS)
    return np.array(answer["vector"], np.float32)


def ready(daemon: RunningDaemon) -> dict[str, Any]:
    return daemon.wait_for("STATUS_OK", timeout=SECONDS)


# The first start


def test_the_first_start_compares_both_engines_and_serves_with_the_faster_one(
    compared: tuple[Path, RunningDaemon], minilm_golden: Golden
) -> None:
    home, daemon = compared
    result = comparison_in(home)
    assert result.objection == ""
    assert result.cosine >= 0.9999
    assert min(result.llama_server_rate, result.onnx_rate) > 0
    assert result.chooses_onnx is (result.onnx_rate >= 1.1 * result.llama_server_rate)
    info = daemon.call("Info")
    assert (info["engineVersion"] == ONNX) is result.chooses_onnx
    assert info["accelerator"] == "cpu"
    assert info["modelIdentity"] == f"sha256:{result.model[:16]}"
    assert daemon.health().get("message", "") == ""
    assert [step.partition(" for")[0] for step in steps(daemon)] == [
        "building the graph",
        "measuring llama-server",
        "measuring ONNX Runtime",
    ]
    answers = daemon.call("EmbedBatch", {"texts": minilm_golden.texts})["embeddings"]
    vectors = np.array([answer["vector"] for answer in answers], np.float32)
    assert minilm_golden.cosines(vectors).min() >= 0.9999
    assert [answer["tokenCount"] for answer in answers] == minilm_golden.tokens


def test_calls_wait_meanwhile_and_health_tells_why(start: Start, home: Path) -> None:
    daemon = start()
    told = set()

    def measures() -> bool:
        health = daemon.health()
        told.add((health.get("status"), health.get("phase"), health.get("message", "")))
        return any("measuring" in message for _, _, message in told)

    wait_until(measures, timeout=SECONDS, what="the comparison")
    [told_by_health] = [each for each in told if "measuring llama-server" in each[2] or "measuring ONNX" in each[2]]
    assert told_by_health[:2] == ("STATUS_LOADING", "PHASE_STARTING_LLAMA_SERVER")
    assert told_by_health[2].startswith("choosing the faster engine, once on this machine: measuring ")
    assert vector(daemon, "a call that came meanwhile").shape == (384,)
    assert comparison_in(home).objection == ""
    assert daemon.health()["status"] == "STATUS_OK"


def test_never_two_engines_run_at_once(start: Start) -> None:
    daemon = start()
    seen: list[list[str]] = []

    def done() -> bool:
        seen.append(engines(daemon))
        return bool(daemon.health().get("status") == "STATUS_OK")

    wait_until(done, timeout=SECONDS, what="the end of the comparison")
    assert ["llama-server"] in seen
    assert ["worker.py"] in seen
    assert max(map(len, seen)) == 1


# What is remembered


@pytest.mark.parametrize("is_faster", [True, False])
def test_the_result_is_remembered(start: Start, home: Path, compared: tuple[Path, RunningDaemon], *, is_faster: bool) -> None:
    remember(home, compared[0], is_faster=is_faster)
    daemon = start()
    assert ready(daemon).get("message", "") == ""
    assert steps(daemon) == []
    assert (daemon.call("Info")["engineVersion"] == ONNX) is is_faster
    assert workers(daemon) == is_faster


@pytest.mark.parametrize("part", ["llama_server", "onnx", "processors"])
def test_another_engine_or_machine_is_compared_again(
    start: Start, home: Path, compared: tuple[Path, RunningDaemon], part: str
) -> None:
    builds = msgspec.structs.replace(comparison_in(compared[0]).builds, **{part: "another"})
    remember(home, compared[0], builds=builds)
    daemon = start()
    ready(daemon)
    assert len(steps(daemon)) == 3
    assert comparison_in(home).builds == comparison_in(compared[0]).builds


def test_an_objection_is_told_and_llama_server_serves(start: Start, home: Path, compared: tuple[Path, RunningDaemon]) -> None:
    remember(home, compared[0], objection="it splits 2 of 24 test texts into other tokens")
    daemon = start()
    expected = (
        "llama-server serves instead of ONNX Runtime: it splits 2 of 24 test texts into other tokens; "
        "`runed install --reset` lets it be tried again"
    )
    assert ready(daemon)["message"] == expected
    assert daemon.call("Info")["engineVersion"] != ONNX


def test_a_model_that_has_no_graph_is_served_without_a_word(start_daemon: Start, home: Path, tiny_golden: Golden) -> None:
    daemon = start_daemon(RUNED_ENGINE="auto")
    assert ready(daemon).get("message", "") == ""
    assert tiny_golden.cosines(np.array([vector(daemon, text) for text in tiny_golden.texts])).min() >= 0.9999
    assert not any("ONNX" in each for each in daemon.call("Info").get("restrictions", []))
    assert not Paths(home).engine_comparisons.exists()


# Failures


def broken_python(folder: Path, code: str) -> Path:
    """Make an environment whose ONNX Runtime has the version of this one, and runs some code instead."""
    python = python_without("onnxruntime", folder=folder)
    [purelib] = folder.glob("lib/python*/site-packages")
    (purelib / "onnxruntime.py").write_text(code)
    info = purelib / "onnxruntime-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: onnxruntime\nVersion: {version('onnxruntime')}\n")
    return python


def test_a_worker_that_dies_in_the_comparison_is_remembered(start: Start, home: Path, tmp_path: Path) -> None:
    python = broken_python(tmp_path / "venv", "import os\nos.abort()\n")
    first = start(python=python)
    health = ready(first)
    assert health["message"].startswith("llama-server serves instead of ONNX Runtime: ONNX Runtime ")
    again = (
        r"; the first start after \d{4}-\d\d-\d\d \d\d:\d\d UTC tries it again, or after `runed install --reset` the next one"
    )
    assert re.search(f"{again}$", health["message"])
    assert len(vector(first, "served")) == 384
    assert first.stop() == 0
    assert comparison_in(home).objection != ""

    second = start(python=python)
    assert ready(second)["message"] == health["message"]
    assert steps(second) == []
    assert second.stop() == 0


def test_a_failure_of_yesterday_is_tried_again(start: Start, home: Path, compared: tuple[Path, RunningDaemon]) -> None:
    failure = {"objection": "it died", "llama_server_rate": 0.0, "onnx_rate": 0.0, "is_faster": False}
    remember(home, compared[0], **failure, compared_at="2026-01-01T00:00:00+00:00")
    daemon = start()
    assert ready(daemon).get("message", "") == ""
    assert len(steps(daemon)) == 3
    assert comparison_in(home).objection == ""


def test_a_package_that_is_gone_for_a_while_leaves_no_objection(
    start: Start, home: Path, compared: tuple[Path, RunningDaemon], tmp_path: Path
) -> None:
    remember(home, compared[0], is_faster=True)
    python = python_without(folder=tmp_path / "venv")
    daemon = start(python=python)
    ready(daemon)
    assert daemon.call("Info")["engineVersion"] == ONNX
    [purelib] = (tmp_path / "venv").glob("lib/python*/site-packages")
    package = purelib / "onnxruntime"
    package.rename(purelib / "gone")
    psutil.Process(int(daemon.health()["enginePid"])).kill()

    def gave_way() -> bool:
        daemon.call("Embed", {"text": "served"}, timeout=SECONDS)
        return bool(daemon.call("Info")["engineVersion"] != ONNX)

    wait_until(gave_way, timeout=SECONDS, what="the other engine")
    assert len(vector(daemon, "served")) == 384
    assert "restrictions" in daemon.call("Info")
    assert daemon.stop() == 0
    (purelib / "gone").rename(package)
    again = start(python=python)
    ready(again)
    assert again.call("Info")["engineVersion"] == ONNX


def test_a_worker_that_dies_at_a_later_start_gives_way(
    start: Start, home: Path, compared: tuple[Path, RunningDaemon], tmp_path: Path
) -> None:
    remember(home, compared[0], is_faster=True)
    daemon = start(python=broken_python(tmp_path / "venv", "import sys\nsys.exit('no such instruction')\n"))
    wait_until(lambda: "no such instruction" in daemon.health().get("message", ""), timeout=SECONDS, what="the other engine")
    assert ready(daemon)["message"].startswith("llama-server serves instead of ONNX Runtime: ")
    assert len(vector(daemon, "served")) == 384
    assert daemon.call("Info")["engineVersion"] != ONNX
    assert not workers(daemon)
    assert "no such instruction" in comparison_in(home).objection


def test_a_named_onnx_runtime_that_dies_is_told_and_nothing_takes_its_place(start: Start, tmp_path: Path) -> None:
    daemon = start(python=broken_python(tmp_path / "venv", "import os\nos.abort()\n"), RUNED_ENGINE="onnx")
    health = daemon.wait_for("STATUS_DEGRADED", timeout=SECONDS)
    assert "ONNX Runtime" in health["message"]
    assert daemon.call("Embed", {"text": "x"}, timeout=SECONDS)["code"] == "unavailable"


# What the user names


def test_onnx_serves_a_machine_that_has_no_llama_server(home: Path, minilm: Path, minilm_golden: Golden) -> None:
    env = {"RUNED_MODEL": str(minilm), "RUNED_ENGINE": "onnx", "RUNED_MANIFEST": str(home / "no-manifest.json")}
    daemon = RunningDaemon(home, env)
    try:
        ready(daemon)
        vectors = np.array([vector(daemon, text) for text in minilm_golden.texts])
        assert minilm_golden.cosines(vectors).min() >= 0.9999
        assert daemon.call("Info")["engineVersion"] == ONNX
        assert not Paths(home).llama_cpp.exists()
        assert not Paths(home).engine_comparisons.exists()
        assert daemon.stop() == 0
    finally:
        daemon.close()


@pytest.mark.parametrize("engine", ["cpu", "onnx"])
def test_a_named_engine_is_not_compared(start: Start, home: Path, engine: str) -> None:
    daemon = start(RUNED_ENGINE=engine)
    ready(daemon)
    assert (daemon.call("Info")["engineVersion"] == ONNX) is (engine == "onnx")
    assert steps(daemon) == []
    assert not Paths(home).engine_comparisons.exists()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RUNED_MODEL": "qwen"}, "RUNED_ENGINE=onnx: .*'qwen3'.*; choose another model, or set RUNED_ENGINE=auto"),
        ({"RUNED_ONNX_PROVIDER": "dml"}, "RUNED_ONNX_PROVIDER=dml: the installed ONNX Runtime can compute with cpu; set one"),
    ],
)
def test_what_onnx_runtime_cannot_do_is_an_error(start: Start, tiny_qwen3: Path, env: Mapping[str, str], message: str) -> None:
    changes = {name: str(tiny_qwen3) if value == "qwen" else value for name, value in env.items()}
    daemon = start(RUNED_ENGINE="onnx", **changes)
    health = daemon.wait_for("STATUS_DEGRADED", timeout=SECONDS)
    assert re.search(message, health["message"]), health["message"]
    assert daemon.call("Embed", {"text": "x"})["code"] == "unavailable"


# Without the extra


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment without the extra."""
    return python_without("onnx", "onnxruntime", folder=tmp_path_factory.mktemp("bare") / "venv")


def test_without_the_extra_nothing_changes_but_a_hint(
    start: Start, bare: Path, compared: tuple[Path, RunningDaemon], home: Path
) -> None:
    remember(home, compared[0], is_faster=True)
    named = start(RUNED_ENGINE="cpu")
    ready(named)
    expected = named.call("Info")
    assert named.stop() == 0

    daemon = start(python=bare)
    assert ready(daemon).get("message", "") == ""
    info = daemon.call("Info")
    hint = (
        "the engine may not be the fastest for this model: ONNX Runtime needs onnxruntime and onnx, "
        f"which this Python does not have; run `{install_command('onnx')}`"
    )
    assert info["restrictions"] == [*expected.get("restrictions", []), hint]
    left_out: dict[str, Any] = {"restrictions": [], "settings": []}  # the engine is named by one daemon only
    assert {**info, **left_out} == {**expected, **left_out}
    assert steps(daemon) == []


def test_without_the_extra_onnx_is_an_error_that_says_how_to_get_it(start: Start, bare: Path) -> None:
    daemon = start(python=bare, RUNED_ENGINE="onnx")
    message = daemon.wait_for("STATUS_DEGRADED")["message"]
    assert message.startswith(
        "RUNED_ENGINE=onnx: ONNX Runtime needs onnxruntime and onnx, which this Python does not have; run "
    )
    assert "set RUNED_ENGINE=auto" in message


def test_without_the_extra_a_model_that_could_not_be_faster_has_no_hint(
    fake: FakeEngine, home: Path, bare: Path, tiny_qwen3: Path
) -> None:
    daemon = RunningDaemon(home, {"RUNED_LLAMA_SERVER": str(fake.executable), "RUNED_MODEL": str(tiny_qwen3)}, python=bare)
    try:
        ready(daemon)
        assert not any("ONNX" in each for each in daemon.call("Info").get("restrictions", []))
    finally:
        daemon.close()


@pytest.fixture
def fake(home: Path) -> FakeEngine:
    return FakeEngine(home / "engine")


# Together with everything else


def test_two_models_with_two_engines_at_once(
    *,
    start_daemon: Start,
    home: Path,
    minilm: Path,
    minilm_golden: Golden,
    tiny_golden: Golden,
    compared: tuple[Path, RunningDaemon],
) -> None:
    models = {"mini": {"path": str(minilm)}}
    (home / "config.json").write_text(json.dumps({"version": 1, "models": models}))
    (home / "cache").mkdir()
    remember(home, compared[0], is_faster=True)
    daemon = start_daemon(RUNED_ENGINE="auto")
    ready(daemon)
    for golden, model in ((tiny_golden, ""), (minilm_golden, "mini")):
        vectors = np.array([vector(daemon, text, model=model) for text in golden.texts])
        assert golden.cosines(vectors).min() >= 0.9999
    answers = {model: daemon.call("Embed", {"text": "one", "model": model}) for model in ("", "mini")}
    assert answers[""]["fingerprint"] != answers["mini"]["fingerprint"]
    assert daemon.call("Info", {"model": "mini"})["engineVersion"] == ONNX
    assert daemon.call("Info")["engineVersion"] != ONNX
    assert workers(daemon) == 1
    pids = {int(daemon.call("Health", {"model": model})["enginePid"]) for model in ("", "mini")}
    assert len(pids) == 2
    assert daemon.stop() == 0
    assert all(process_gone(pid) for pid in pids)


def test_onnx_runtime_is_suspended_and_wakes(start: Start) -> None:
    daemon = start(RUNED_ENGINE="onnx", RUNED_IDLE_TIMEOUT="700ms", RUNED_CACHE_SIZE="0")
    pid = int(ready(daemon)["enginePid"])
    before = vector(daemon, "hello world")
    daemon.wait_for("STATUS_IDLE")
    assert process_gone(pid)
    assert np.array_equal(vector(daemon, "hello world"), before)
    assert daemon.stop() == 0


def test_cached_vectors_of_two_engines_never_mix(start: Start) -> None:
    def cached_with(engine: str) -> tuple[bool, str]:
        daemon = start(RUNED_ENGINE=engine, RUNED_CACHE="disk")
        ready(daemon)
        answer = daemon.call("Embed", {"text": "kept on the disk"}, timeout=SECONDS)
        assert daemon.stop() == 0
        return bool(answer.get("cached")), answer["fingerprint"]

    llama, onnx = cached_with("cpu"), cached_with("onnx")
    assert (llama[0], onnx[0]) == (False, False)
    assert llama[1] != onnx[1]
    assert cached_with("cpu") == (True, llama[1])
    assert cached_with("onnx") == (True, onnx[1])


def test_a_home_of_an_earlier_version_goes_on(start: Start, home: Path) -> None:
    first = start(RUNED_ENGINE="cpu", RUNED_CACHE="disk")
    ready(first)
    vector(first, "of the earlier version")
    assert first.stop() == 0
    shutil.rmtree(home / "cache" / "onnx")

    second = start(RUNED_CACHE="disk")
    ready(second)
    assert comparison_in(home).objection == ""
    assert len(vector(second, "of the earlier version")) == 384
    assert second.stop() == 0


def test_a_warm_start_answers_the_first_call(
    start: Start, home: Path, compared: tuple[Path, RunningDaemon], minilm: Path, llama_server: Path
) -> None:
    remember(home, compared[0], is_faster=True)
    environment = clean_environment(RUNED_HOME=str(home), RUNED_LLAMA_SERVER=str(llama_server), RUNED_MODEL=str(minilm))
    for _ in range(2):
        script = (
            "runed stop >&2; runed ensure >&2 && curl -sS --unix-socket $RUNED_HOME/embedding.sock "
            "-H 'content-type: application/json' -d '{\"text\": \"at once\"}' http://localhost/runed.v1.RunedService/Embed"
        )
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        done = subprocess.run(
            ["sh", "-c", script], env=environment | {"PATH": path}, capture_output=True, text=True, check=True
        )
        assert len(json.loads(done.stdout)["vector"]) == 384, done.stderr
    subprocess.run([Path(sys.executable).parent / "runed", "stop"], env=environment, capture_output=True, check=True)


# Own files


@pytest.mark.parametrize("engine", ["auto", "cpu"])
def test_an_onnx_file_of_the_users_own_is_served(home: Path, tmp_path: Path, engine: str) -> None:
    own = write_own_model(tmp_path / "own", pooling="mean", outside="model.onnx_data")
    env = {"RUNED_MODEL": str(own), "RUNED_ENGINE": engine, "RUNED_MANIFEST": str(home / "no-manifest.json")}
    daemon = RunningDaemon(home, env)
    try:
        ready(daemon)
        info = daemon.call("Info")
        assert (info["engineVersion"], info["vectorDim"], info["pooling"]) == (ONNX, 16, "mean")
        one, other = vector(daemon, "word1 word2"), vector(daemon, "word3")
        assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-5)
        assert float(one @ other) < 0.999
        assert daemon.call("Embed", {"text": "word1 " * 100})["code"] == "invalid_argument"
        assert daemon.stop() == 0
    finally:
        daemon.close()


def test_an_onnx_file_that_cannot_be_served_says_why(home: Path, tmp_path: Path) -> None:
    own = write_own_model(tmp_path / "own" / "deep")
    (own.parent / "tokenizer.json").unlink()
    daemon = RunningDaemon(home, {"RUNED_MODEL": str(own)})
    try:
        assert "has no tokenizer.json beside it" in daemon.wait_for("STATUS_DEGRADED")["message"]
    finally:
        daemon.close()


def test_the_hash_of_the_comparison_is_found_by_the_identity(compared: tuple[Path, RunningDaemon]) -> None:
    home, daemon = compared
    identity = daemon.call("Info")["modelIdentity"].removeprefix("sha256:")
    assert read_comparison(Paths(home).engine_comparisons, identity) == comparison_in(home)
