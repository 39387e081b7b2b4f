"""Programs for OpenAI's API against a real daemon. They use the packages unchanged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runed.lifecycle.record import DaemonRecord
from tests.support import RunningDaemon, clean_environment, running_daemon, wait_until

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TEXTS = ["a cat sat on the mat", "le chat était là", "Stromausfall in der Nacht", "zwei Wörter", "eins"]

DOCUMENT = ROOT / "docs" / "clients.md"

# Warnings of these packages, at import and in use, are not ours to fix.
QUIET = clean_environment(PYTHONWARNINGS="ignore", LANGCHAIN_TRACING_V2="false", LANGSMITH_TRACING="false")


@pytest.fixture(scope="module")
def daemon(llama_server: Path, tiny_qwen3: Path) -> Iterator[RunningDaemon]:
    with running_daemon(llama_server, tiny_qwen3, RUNED_HTTP="127.0.0.1:0") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def given(daemon: RunningDaemon) -> dict[str, Any]:
    """The input of a program: the daemon's URL and socket, its token, and the texts."""
    record = DaemonRecord.read(daemon.home / "daemon.json")
    assert record is not None
    return {
        "url": f"{record.http}/v1",
        "token": (daemon.home / "http.token").read_text().strip(),
        "socket": str(daemon.socket),
        "texts": TEXTS,
    }


def vectors_of(daemon: RunningDaemon, **options: object) -> NDArray[np.float32]:
    """Return the vectors of the texts by the RPC."""
    answer = daemon.call("EmbedBatch", {"texts": TEXTS} | options)
    return np.array([item["vector"] for item in answer["embeddings"]], "<f4")


def run(script: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run a program of the folder `openai`, and return its output."""
    argv = [sys.executable, str(HERE / "openai" / script)]
    done = subprocess.run(
        argv, input=json.dumps(given), env=QUIET, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    output: dict[str, Any] = json.loads(done.stdout)
    return output


def assert_same(vectors: object, expected: NDArray[np.float32]) -> None:
    """Check that the numbers are equal as float32, to the last bit."""
    assert np.array_equal(np.array(vectors).astype("<f4"), expected)


def test_openai_for_python(given: dict[str, Any], daemon: RunningDaemon) -> None:
    output = run("python_sdk.py", given)
    expected = vectors_of(daemon)
    for way in ("base64", "floats", "async", "socket"):
        assert_same(output[way], expected)
    assert_same(output["short"], vectors_of(daemon, dimensions=32))
    assert_same(output["query"], vectors_of(daemon, role="ROLE_QUERY")[0])
    assert output["models"] == [daemon.call("Info")["model"]] * 3
    assert output["tokens"] == sum(int(count) for count in daemon.call("CountTokens", {"texts": TEXTS})["tokenCounts"])
    assert output["refusals"] == [
        ["BadRequestError", "INVALID_REQUEST", "input"],
        ["BadRequestError", "EMPTY_TEXT", "input"],
        ["BadRequestError", "BAD_DIMENSIONS", "dimensions"],
        ["NotFoundError", "model_not_found", "model"],
        ["NotFoundError", "model_not_found", "model"],
        ["NotFoundError", "UNIMPLEMENTED", None],
        ["AuthenticationError", "UNAUTHENTICATED", None],
    ]


@pytest.mark.slow
def test_openai_for_python_tries_again_only_what_can_help(home: Path) -> None:
    path = home / "s"
    host = subprocess.Popen([sys.executable, "-m", "tests.fakes.fake_host", str(path)], cwd=ROOT, env=clean_environment())
    try:
        wait_until(path.exists, what="the fake host")
        output = run("python_sdk_retries.py", {"socket": str(path)})
    finally:
        host.terminate()
        host.wait(10)
    assert output == {
        "QUEUE_FULL": ["RateLimitError", 2, True],
        "BACKEND_FAULT": ["InternalServerError", 1, False],
    }


def test_openai_for_node(given: dict[str, Any], daemon: RunningDaemon) -> None:
    folder = HERE / "openai-node"
    assert (folder / "node_modules").is_dir(), f"{folder}/node_modules is missing: run `make setup`"
    vectors, short = (vectors_of(daemon, **options).astype(float).tolist() for options in ({}, {"dimensions": 32}))
    tokens = sum(int(count) for count in daemon.call("CountTokens", {"texts": TEXTS})["tokenCounts"])
    given = given | {"vectors": vectors, "short": short, "tokens": tokens}
    done = subprocess.run(
        ["node", "--test", "--test-reporter=tap"],
        env={"PATH": os.environ["PATH"], "GIVEN": json.dumps(given)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 5" in done.stdout.splitlines()


def test_langchain(given: dict[str, Any], daemon: RunningDaemon) -> None:
    output = run("langchain.py", given)
    expected = vectors_of(daemon)
    assert_same(output["documents"], expected)
    assert_same(output["async"], expected)
    assert_same(output["query"], expected[0])
    assert_same(output["short"], vectors_of(daemon, dimensions=32))
    assert_same(output["query_role"], vectors_of(daemon, role="ROLE_QUERY")[0])


def test_llama_index(given: dict[str, Any], daemon: RunningDaemon) -> None:
    output = run("llama_index_openai_like.py", given)
    expected = vectors_of(daemon)
    assert_same(output["documents"], expected)
    assert_same(output["async"], expected)
    assert_same(output["query"], expected[0])
    assert_same(output["short"], vectors_of(daemon, dimensions=32))


# The examples of docs/clients.md


def examples(language: str) -> list[str]:
    section = DOCUMENT.read_text().partition("\n## OpenAI programs\n")[2].partition("\n## ")[0]
    found = re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert found
    return found


def run_example(argv: list[str], given: dict[str, Any], tmp_path: Path, cwd: Path) -> str:
    """Run an example in which the user's home contains the daemon's home, and return its output."""
    (tmp_path / ".runed").symlink_to(Path(given["socket"]).parent)
    env = {"HOME": str(tmp_path), "OPENAI_BASE_URL": given["url"], "OPENAI_API_KEY": given["token"]}
    done = subprocess.run(argv, env=QUIET | env, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", examples("python"))
def test_an_example_in_python_prints_what_stands_beside_it(example: str, given: dict[str, Any], tmp_path: Path) -> None:
    promised = re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE)
    assert promised
    assert run_example([sys.executable, "-c", example], given, tmp_path, tmp_path).splitlines() == promised


@pytest.mark.parametrize("example", examples("js"))
def test_an_example_in_javascript_prints_what_stands_beside_it(example: str, given: dict[str, Any], tmp_path: Path) -> None:
    promised = re.findall(r"^console\.log\(.*\); // (.*)$", example, re.MULTILINE)
    assert promised
    argv = ["node", "--input-type=module", "--eval", example]
    assert run_example(argv, given, tmp_path, HERE / "openai-node").splitlines() == promised


def test_the_example_of_curl_answers(given: dict[str, Any], tmp_path: Path) -> None:
    [shell] = [example for example in examples("sh") if example.startswith("curl ")]
    embeddings, models = (
        json.loads(line)
        for line in run_example(
            ["sh", "-ec", shell.replace("curl ", "echo; curl -sS ")], given, tmp_path, tmp_path
        ).splitlines()
        if line
    )
    assert [len(item["embedding"]) for item in embeddings["data"]] == [64, 64]
    assert models["object"] == "list"
