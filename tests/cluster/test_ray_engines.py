"""All nodes of Ray serve by one engine: of a job, and of an application of Ray Serve that is started as docs/scale.md tells."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pytest

import runed
import runed.ray
from runed.errors import RunedError
from tests.cluster.conftest import BOTH_NODES, Home, free_port, ray_cluster
from tests.cluster.test_documentation import DOCUMENT
from tests.support import wait_until


def open_settings(settings: dict[str, str]) -> dict[str, str]:
    """Return settings that leave the choice of the engine to each node."""
    return {name: value for name, value in settings.items() if name != "RUNED_ENGINE"}


def space_of(home: Home) -> str:
    """Return the fingerprint of the daemon of a node; "" while there is none."""
    try:
        with runed.connect(home=home.path, spawn=False) as client:
            return client.wait_until_ready().fingerprint
    except RunedError:
        return ""


def test_nodes_with_different_engines_are_told_before_the_first_vector(settings: dict[str, str]) -> None:
    with ray_cluster([settings, settings | {"RUNED_ENGINE": "onnx"}]):
        data: Any = importlib.import_module("ray.data")
        source = data.from_arrow(pa.table({"text": [f"text {number}" for number in range(400)]})).repartition(40)
        pool = data.ActorPoolStrategy(size=BOTH_NODES)
        expected = runed.ray.fingerprint()
        with pytest.raises(Exception, match=r"have different engines: .*onnx.*; set RUNED_ENGINE=(cpu|onnx) on all nodes"):
            source.map_batches(
                runed.ray.Embed, fn_constructor_kwargs={"fingerprint": expected}, batch_size=10, compute=pool, num_cpus=1
            ).materialize()


def test_serve_runs_by_the_documented_file_with_one_engine(settings: dict[str, str], tmp_path: Path) -> None:
    section = DOCUMENT.read_text().partition("\n## Ray Serve\n")[2].partition("\n## ")[0]
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    port = free_port()
    small = text.replace("num_cpus: 7", "num_cpus: 1").replace("max_replicas: 16", "max_replicas: 2")
    assert small != text
    config = tmp_path / "serve.yaml"
    config.write_text(f"http_options: {{host: 127.0.0.1, port: {port}}}\n{small}")
    own = open_settings(settings)
    with ray_cluster([own, own]) as cluster:
        command: list[str | Path] = [Path(sys.executable).parent / "serve", "run", "--address", cluster.address, str(config)]
        with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:

                def answered() -> bool:
                    assert process.poll() is None, (tmp_path / "log").read_text()
                    try:
                        return httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json={"input": "tea"}).status_code == 200
                    except httpx.HTTPError:
                        return False

                wait_until(answered, timeout=300, what="the application")
                spaces = {wait_until(lambda home=home: space_of(home), timeout=300) for home in cluster.homes}  # type: ignore[misc]
                assert len(spaces) == 1
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                        each.kill()
