"""`ollama pull` against a real daemon: it downloads a second model from a real site on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from runed.lifecycle.record import DaemonRecord
from tests.bootstrap.site import Site, drop_after, running_site, stall_after, status
from tests.interop.test_programs_without_a_token import run
from tests.support import Golden, RunningDaemon, running_daemon, wait_until

FILE = "/second.gguf"
NAME = "second.f16"

Pull = Callable[..., dict[str, Any]]


@pytest.fixture
def site(minilm: Path) -> Iterator[Site]:
    """A site with MiniLM as a second model. The default model of its manifest is not there."""
    content = minilm.read_bytes()
    with running_site() as site:
        first = {"url": f"{site.url}/first.gguf", "sha256": "0" * 64, "size": 1}
        second = {
            "url": f"{site.url}{FILE}",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "license": "apache-2.0",
        }
        manifest = {"version": 1, "models": {"first.f16": first, NAME: second}, "default_model": "first.f16", "platforms": {}}
        site.files |= {FILE: content, "/manifest.json": json.dumps(manifest).encode()}
        yield site


@pytest.fixture
def daemon(site: Site, llama_server: Path, tiny_qwen3: Path) -> Iterator[RunningDaemon]:
    settings = {"RUNED_HTTP": "127.0.0.1:0", "RUNED_HTTP_TOKEN": "off", "RUNED_MANIFEST": f"{site.url}/manifest.json"}
    with running_daemon(llama_server, tiny_qwen3, **settings) as daemon:
        yield daemon


@pytest.fixture
def url(daemon: RunningDaemon) -> str:
    record = DaemonRecord.read(daemon.home / "daemon.json")
    assert record is not None
    assert record.http
    return record.http


@pytest.fixture
def pull(url: str) -> Pull:
    """Run a program that pulls. Return its steps, how it was refused, and the models that are listed then."""
    return lambda model="second", *, stream=True: run("ollama/pull.py", {"url": url, "model": model, "stream": stream})


def test_a_download_is_shown_byte_by_byte_and_its_model_embeds(
    site: Site, daemon: RunningDaemon, pull: Pull, minilm_golden: Golden
) -> None:
    size, digest = len(site.files[FILE]), hashlib.sha256(site.files[FILE]).hexdigest()
    site.behaviours[FILE] = [stall_after(size // 2)]

    def release() -> None:
        wait_until(lambda: site.count(FILE) == 1, what="the download", timeout=60)
        threading.Event().wait(1)  # several steps are told of a half
        site.released.set()

    releasing = threading.Thread(target=release)
    releasing.start()
    answer = pull()
    releasing.join()
    steps = answer["steps"]
    assert not answer["refusal"]
    assert (steps[0], steps[-1]) == ({"status": "pulling manifest"}, {"status": "success"})
    assert {"status": "licence: apache-2.0"} in steps
    bars = [step for step in steps if "total" in step]
    assert {(step["digest"], step["total"]) for step in bars} == {(f"sha256:{digest}", size)}
    done = [step["completed"] for step in bars]
    assert done == sorted(done)
    assert [each for each in done if size // 4 < each <= size // 2]
    assert done[-1] == size
    assert "downloading second.f16" in bars[0]["status"]
    assert answer["listed"]["second:latest"] == digest
    vectors = daemon.call("EmbedBatch", {"texts": minilm_golden.texts, "model": "second"}, timeout=120.0)["embeddings"]
    assert minilm_golden.cosines(np.array([each["vector"] for each in vectors], dtype=np.float32)).min() >= 0.9999

    asked = len(site.requests)
    for stream in (True, False):
        again = pull(stream=stream)
        assert (again["steps"][-1], again["refusal"]) == ({"status": "success"}, [])
    assert len(site.requests) == asked, "a model that is there is not downloaded again"


@pytest.mark.parametrize("stream", [True, False])
def test_a_pull_after_one_that_was_cut_goes_on_where_that_ended(
    site: Site,
    pull: Pull,
    stream: bool,  # noqa: FBT001 # as in the request
) -> None:
    half = len(site.files[FILE]) // 2
    site.behaviours[FILE] = [drop_after(half)]
    site.always[FILE] = status(404)
    cut = pull(stream=stream)
    code, message = cut["refusal"]
    assert code == (-1 if stream else 503)  # what the package makes of an error in a line
    assert "404" in message
    assert "second:latest" not in cut["listed"]
    del site.always[FILE]
    again = pull(stream=stream)  # at once
    assert (again["refusal"], again["steps"][-1]) == ([], {"status": "success"})
    assert site.requests[-1].range == f"bytes={half}-"
    assert "second:latest" in again["listed"]


def test_a_program_that_leaves_and_comes_back_finds_the_same_download(site: Site, url: str, pull: Pull) -> None:
    site.behaviours[FILE] = [stall_after(len(site.files[FILE]) // 2)]
    with httpx.stream("POST", f"{url}/api/pull", json={"model": "second"}, timeout=60) as response:
        lines = response.iter_lines()
        while not json.loads(next(lines)).get("completed"):
            pass
    site.released.set()
    assert pull()["steps"][-1] == {"status": "success"}
    ranges = [request.range for request in site.requests if request.path == FILE]
    assert ranges == [""], "it began anew"


def test_an_unknown_model_is_refused_with_the_names_that_there_are(pull: Pull) -> None:
    for stream, code in ((True, -1), (False, 404)):
        status_code, message = pull("nothing:7b", stream=stream)["refusal"]
        assert status_code == code
        assert "there is no model 'nothing:7b'" in message
        assert NAME in message
